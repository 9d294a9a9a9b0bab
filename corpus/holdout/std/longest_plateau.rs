/// Start and length of the longest run of equal values; the first of several.
// focal
pub fn longest_plateau(heights: &[i32]) -> Option<(usize, usize)> {
    let mut best: Option<(usize, usize)> = None;
    let mut start = 0;
    for i in 0..heights.len() {
        if i > 0 && heights[i] != heights[i - 1] {
            start = i;
        }
        let length = i - start + 1;
        match best {
            Some((_, longest)) if longest >= length => {}
            _ => best = Some((start, length)),
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_empty_has_no_plateau() {
        assert_eq!(longest_plateau(&[]), None);
    }

    #[test]
    fn test_single_value_is_a_plateau_of_one() {
        assert_eq!(longest_plateau(&[4]), Some((0, 1)));
    }

    #[test]
    fn test_later_longer_run_wins() {
        assert_eq!(longest_plateau(&[1, 1, 2, 2, 2, 3]), Some((2, 3)));
    }

    #[test]
    fn test_first_of_equal_runs_wins() {
        assert_eq!(longest_plateau(&[5, 5, 6, 6]), Some((0, 2)));
        assert_eq!(longest_plateau(&[1, 2, 3]), Some((0, 1)));
    }
}
