// items
pub struct Stack<T> { items: Vec<T> }
// function
impl<T: Clone> Stack<T> {
    pub fn pop_or(&mut self, other: T) -> T {
        if self.items.len() > 1 { self.items.pop().unwrap_or(other) } else { other.clone() }
    }
}
// tests
#[test] fn t() { let mut s = Stack { items: vec![1, 2] }; assert_eq!(s.pop_or(9), 2); assert_eq!(s.pop_or(9), 9); }
