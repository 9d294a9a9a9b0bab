// items

// function
pub fn split_pair<'a, 'b: 'a>(s: &'a str, sep: &'b str) -> Option<(&'a str, &'a str)> {
    let at = s.find(sep)?;
    let (l, r) = s.split_at(at);
    if l.is_empty() || r.len() == sep.len() { return None; }
    Some((l.trim_end(), r[sep.len()..].trim_start()))
}
// tests
#[test] fn t() { assert_eq!(split_pair("a = b", "="), Some(("a", "b"))); assert_eq!(split_pair("=b", "="), None); assert_eq!(split_pair("a=", "="), None); assert_eq!(split_pair("ab", "="), None); }
