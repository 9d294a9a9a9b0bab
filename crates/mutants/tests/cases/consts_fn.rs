// items

// function
pub const fn pow(base: u64, mut exp: u32) -> u64 { let mut acc = 1; let mut b = base; while exp > 0 { if exp & 1 == 1 { acc *= b; } exp >>= 1; if exp > 0 { b *= b; } } acc }
// tests

#[test] fn t() { assert_eq!(pow(3, 4), 81); }
