// items

// function
pub fn neg(x: i8) -> i8 { let r: i8 = -128; if x == r { 127 } else { -x } }
// tests
#[test] fn t() { assert_eq!(neg(-128), 127); assert_eq!(neg(3), -3); }
