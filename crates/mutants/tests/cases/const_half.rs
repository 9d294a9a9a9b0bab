// items

// function
pub const fn half(n: u32) -> u32 { if n % 2 == 0 { n / 2 } else { 0 } }
// tests
#[test] fn t() { assert_eq!(half(8), 4); assert_eq!(half(7), 0); }
