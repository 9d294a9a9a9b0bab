/// Splits a fare between riders; the first riders pay the cents that do not divide.
// focal
pub fn split_fare(total_cents: u32, riders: usize) -> Vec<u32> {
    if riders == 0 {
        return Vec::new();
    }
    let base = total_cents / riders as u32;
    let rest = (total_cents % riders as u32) as usize;
    (0..riders).map(|rider| if rider < rest { base + 1 } else { base }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_even_fare_is_shared_equally() {
        assert_eq!(split_fare(900, 3), vec![300, 300, 300]);
    }

    #[test]
    fn test_first_riders_pay_the_rest() {
        assert_eq!(split_fare(1000, 3), vec![334, 333, 333]);
        assert_eq!(split_fare(5, 4), vec![2, 1, 1, 1]);
        assert_eq!(split_fare(7, 4), vec![2, 2, 2, 1]);
    }

    #[test]
    fn test_nobody_pays_when_nobody_rides() {
        assert!(split_fare(100, 0).is_empty());
    }

    #[test]
    fn test_zero_fare() {
        assert_eq!(split_fare(0, 2), vec![0, 0]);
    }
}
