// items
#[derive(Debug, PartialEq, Default, Clone, Copy)] pub struct P { x: i8, y: i8 }
// function
impl std::ops::Add for P { type Output = P; fn add(self, o: P) -> P { P { x: self.x + o.x, ..self } } }
// tests
#[test] fn t() { assert_eq!(P { x: 1, y: 5 } + P { x: 2, y: 3 }, P { x: 3, y: 5 }); }
