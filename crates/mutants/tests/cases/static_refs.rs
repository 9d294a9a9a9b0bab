// items

// function
pub fn table(i: usize) -> &'static [u8] { const N: usize = 2 + 1; static T: [u8; N] = [1, 2, 3]; let s: &'static [u8] = &[7, 8]; if i == 0 { &T } else { s } }
// tests
#[test] fn t() { assert_eq!(table(0), [1, 2, 3]); assert_eq!(table(1), [7, 8]); }
