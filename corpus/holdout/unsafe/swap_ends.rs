/// Swaps the values at `a` and `b` through raw pointers.
///
/// # Safety
/// Both must be below the slice's length.
// focal
pub unsafe fn swap_at<T>(values: &mut [T], a: usize, b: usize) -> bool {
    if a == b {
        return false;
    }
    let base = values.as_mut_ptr();
    // SAFETY: the caller keeps both inside, and they differ.
    unsafe {
        std::ptr::swap_nonoverlapping(base.add(a), base.add(b), 1);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_swaps_two_places() {
        let mut values = vec![1, 2, 3];
        assert!(unsafe { swap_at(&mut values, 0, 2) });
        assert_eq!(values, vec![3, 2, 1]);
    }

    #[test]
    fn test_order_of_places_does_not_matter() {
        let mut values = vec!["a".to_string(), "b".to_string()];
        assert!(unsafe { swap_at(&mut values, 1, 0) });
        assert_eq!(values, vec!["b", "a"]);
    }

    #[test]
    fn test_the_same_place_is_left_alone() {
        let mut values = [5, 6];
        assert!(!unsafe { swap_at(&mut values, 1, 1) });
        assert_eq!(values, [5, 6]);
    }
}
