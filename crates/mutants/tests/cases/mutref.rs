// items

// function
pub fn bump<'a>(v: &'a mut Vec<u32>, i: usize) -> &'a mut u32 {
    if i >= v.len() { v.resize(i + 1, 0); }
    let slot = &mut v[i];
    *slot += 1;
    slot
}
// tests
#[test] fn t() { let mut v = vec![]; *bump(&mut v, 2) += 5; assert_eq!(v, [0, 0, 6]); bump(&mut v, 0); assert_eq!(v, [1, 0, 6]); }
