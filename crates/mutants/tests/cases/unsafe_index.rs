// items

// function
pub unsafe fn get(v: *const u8, n: usize) -> u8 { if n > 2 { return 0 } unsafe { *v.add(n) } }
// tests
#[test] fn t() { let v = [1, 2, 3]; assert_eq!(unsafe { get(v.as_ptr(), 1) }, 2); assert_eq!(unsafe { get(v.as_ptr(), 9) }, 0); }
