// items

// function
pub fn join(items: impl IntoIterator<Item = impl AsRef<str>>, sep: &str) -> String {
    let mut out = String::new();
    for (i, x) in items.into_iter().enumerate() { if i > 0 { out += sep; } out += x.as_ref(); }
    out
}
// tests
#[test] fn t() { assert_eq!(join(["a", "b"], "-"), "a-b"); assert_eq!(join(Vec::<String>::new(), "-"), ""); }
