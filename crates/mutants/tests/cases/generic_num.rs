// items
use std::ops::{Add, Mul};
// function
pub fn dot<T>(a: &[T], b: &[T]) -> T where T: Copy + Default + Add<Output = T> + Mul<Output = T> {
    let mut acc = T::default();
    for i in 0..a.len().min(b.len()) { acc = acc + a[i] * b[i]; }
    acc
}
// tests
#[test] fn t() { assert_eq!(dot(&[1, 2, 3], &[4, 5]), 14); }
