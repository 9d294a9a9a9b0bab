// items
pub struct Fib { a: u64, b: u64 }
// function
impl Iterator for Fib {
    type Item = u64;
    fn next(&mut self) -> Option<Self::Item> {
        let r = self.a;
        let n = self.a.checked_add(self.b)?;
        self.a = self.b;
        self.b = n;
        Some(r)
    }
}
// tests
#[test] fn t() { let v: Vec<u64> = Fib { a: 0, b: 1 }.take(7).collect(); assert_eq!(v, [0, 1, 1, 2, 3, 5, 8]); assert!(Fib { a: 0, b: 1 }.count() > 50); }
