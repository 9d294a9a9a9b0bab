// items

// function
pub fn evens(n: u32) -> impl Iterator<Item = u32> { (0..n).filter(|x| x % 2 == 0).map(move |x| x + n) }
// tests
#[test] fn t() { assert_eq!(evens(5).collect::<Vec<_>>(), [5, 7, 9]); }
