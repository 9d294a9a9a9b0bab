// items
pub trait Shape { fn area(&self) -> f64; fn scale(&mut self, k: f64); }
#[derive(Clone, Debug, PartialEq)] pub struct Sq(pub f64);
// function
impl Shape for Sq {
    fn area(&self) -> f64 { self.0 * self.0 }
    fn scale(&mut self, k: f64) { self.0 *= k.abs(); }
}
// tests
#[test] fn t() { assert_eq!(Sq(2.0).area(), 4.0); let mut s = Sq(1.0); s.scale(-3.0); assert_eq!(s, Sq(3.0)); }
