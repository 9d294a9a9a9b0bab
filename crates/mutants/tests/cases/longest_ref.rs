// items

// function
pub fn longest<'a>(a: &'a str, b: &'a str) -> &'a str { if a.len() >= b.len() { a } else { b } }
// tests
#[test] fn t() { assert_eq!(longest("ab", "c"), "ab"); assert_eq!(longest("a", "bc"), "bc"); }
