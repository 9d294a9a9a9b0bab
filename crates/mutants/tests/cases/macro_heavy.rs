// items
macro_rules! sq { ($x:expr) => { $x * $x }; }
// function
pub fn norm(v: &[i64]) -> String {
    let s: i64 = v.iter().map(|x| sq!(*x)).sum();
    assert!(s >= 0, "negative {}", s);
    let parts = vec![s; 2];
    if matches!(s, 0..=9) { return format!("small {}", parts[0]); }
    format!("{:>4}|{}", s + 1, parts.len())
}
// tests
#[test] fn t() { assert_eq!(norm(&[1, 2]), "small 5"); assert_eq!(norm(&[4, 4]), "  33|2"); }
