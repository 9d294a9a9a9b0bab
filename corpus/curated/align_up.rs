/// The smallest multiple of `step` that is at least `value`; `None` for a step of 0 or when it does not fit.
// focal
pub fn align_up(value: u32, step: u32) -> Option<u32> {
    if step == 0 {
        return None;
    }
    match value % step {
        0 => Some(value),
        rest => value.checked_add(step - rest),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn test_multiples_stay() {
        assert_eq!(align_up(0, 8), Some(0));
        assert_eq!(align_up(16, 8), Some(16));
    }

    #[test]
    fn test_others_grow() {
        assert_eq!(align_up(1, 8), Some(8));
        assert_eq!(align_up(17, 5), Some(20));
    }

    #[test]
    fn test_no_step_and_no_room() {
        assert_eq!(align_up(4, 0), None);
        assert_eq!(align_up(u32::MAX, 2), None);
        assert_eq!(align_up(u32::MAX, 5), Some(u32::MAX));
    }

    proptest! {
        #[test]
        fn aligned_is_the_next_multiple(value in 0u32..100_000, step in 1u32..500) {
            let aligned = align_up(value, step).unwrap();
            prop_assert_eq!(aligned % step, 0);
            prop_assert!(aligned >= value && aligned - value < step);
        }
    }
}
