// items
pub struct Grid { w: usize, cells: Vec<u8> }
// function
impl Grid {
    #[inline]
    #[must_use]
    pub fn at(&self, x: usize, y: usize) -> Option<&u8> {
        if x >= self.w { return None; }
        self.cells.get(y * self.w + x)
    }
}
// tests
#[test] fn t() { let g = Grid { w: 2, cells: vec![1, 2, 3, 4] }; assert_eq!(g.at(1, 1), Some(&4)); assert_eq!(g.at(2, 0), None); assert_eq!(g.at(0, 2), None); }
