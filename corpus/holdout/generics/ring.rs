/// Keeps the last `N` values.
#[derive(Debug)]
pub struct Ring<T, const N: usize> {
    slots: [Option<T>; N],
    next: usize,
}

impl<T: Copy, const N: usize> Ring<T, N> {
    pub fn new() -> Self {
        Ring { slots: [None; N], next: 0 }
    }

    /// The values from the oldest to the newest.
    pub fn values(&self) -> Vec<T> {
        (0..N).filter_map(|i| self.slots[(self.next + i) % N]).collect()
    }
}

impl<T: Copy, const N: usize> Ring<T, N> {
    /// Adds a value and returns the one that it pushes out; a ring without slots returns the value itself.
    // focal
    pub fn push(&mut self, value: T) -> Option<T> {
        if N == 0 {
            return Some(value);
        }
        let old = self.slots[self.next].replace(value);
        self.next = (self.next + 1) % N;
        old
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_fills_before_it_pushes_out() {
        let mut ring = Ring::<u8, 2>::new();
        assert_eq!(ring.push(1), None);
        assert_eq!(ring.push(2), None);
        assert_eq!(ring.push(3), Some(1));
        assert_eq!(ring.push(4), Some(2));
        assert_eq!(ring.values(), vec![3, 4]);
    }

    #[test]
    fn test_order_is_oldest_first() {
        let mut ring = Ring::<char, 3>::new();
        for c in "abcd".chars() {
            ring.push(c);
        }
        assert_eq!(ring.values(), vec!['b', 'c', 'd']);
    }

    #[test]
    fn test_a_ring_without_slots_keeps_nothing() {
        let mut ring = Ring::<i32, 0>::new();
        assert_eq!(ring.push(7), Some(7));
    }
}
