/// The largest number whose square is at most `n`.
// focal
pub fn integer_root(n: u64) -> u64 {
    if n < 2 {
        return n;
    }
    let mut guess = n / 2 + 1;
    loop {
        let next = (guess + n / guess) / 2;
        if next >= guess {
            return guess;
        }
        guess = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn test_squares_and_their_neighbours() {
        assert_eq!([0, 1, 2, 3, 4, 8, 9, 10].map(integer_root), [0, 1, 1, 1, 2, 2, 3, 3]);
    }

    #[test]
    fn test_largest_number() {
        assert_eq!(integer_root(u64::MAX), 4_294_967_295);
    }

    proptest! {
        #[test]
        fn root_is_the_largest_that_fits(n in any::<u64>()) {
            let root = u128::from(integer_root(n));
            prop_assert!(root * root <= u128::from(n));
            prop_assert!((root + 1) * (root + 1) > u128::from(n));
        }
    }
}
