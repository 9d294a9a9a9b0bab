// items

// function
pub fn shadow(x: &str) -> usize { let x = x.trim(); let x = x.split_once('=').map(|(k, v)| k.len() * 10 + v.len()).unwrap_or(0); x }
// tests
#[test] fn t() { assert_eq!(shadow(" ab=c "), 21); assert_eq!(shadow(""), 0); }
