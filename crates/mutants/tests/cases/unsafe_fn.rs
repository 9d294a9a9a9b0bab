// items

// function
/// # Safety
/// `p` must point at `n` bytes.
pub unsafe fn sum_raw(p: *const u8, n: usize) -> u32 {
    let mut t = 0u32;
    let mut i = 0;
    while i < n {
        unsafe { t += *p.add(i) as u32; }
        i += 1;
    }
    t
}
// tests
#[test] fn t() { let v = [1u8, 2, 3]; assert_eq!(unsafe { sum_raw(v.as_ptr(), 3) }, 6); }
