/// Days of a month (1 to 12) in the Gregorian calendar.
// focal
pub fn days_in_month(year: i32, month: u32) -> Option<u32> {
    let leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    match month {
        4 | 6 | 9 | 11 => Some(30),
        2 if leap => Some(29),
        2 => Some(28),
        1..=12 => Some(31),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn test_february_follows_the_leap_rule() {
        assert_eq!(days_in_month(2024, 2), Some(29));
        assert_eq!(days_in_month(2023, 2), Some(28));
        assert_eq!(days_in_month(1900, 2), Some(28));
        assert_eq!(days_in_month(2000, 2), Some(29));
    }

    #[test]
    fn test_long_and_short_months() {
        assert_eq!(days_in_month(2023, 1), Some(31));
        assert_eq!(days_in_month(2023, 4), Some(30));
        assert_eq!(days_in_month(2023, 11), Some(30));
        assert_eq!(days_in_month(2023, 12), Some(31));
    }

    #[test]
    fn test_months_outside_the_year() {
        assert_eq!(days_in_month(2023, 0), None);
        assert_eq!(days_in_month(2023, 13), None);
    }

    proptest! {
        #[test]
        fn a_year_has_365_or_366_days(year in -4000i32..4000) {
            let days: u32 = (1..=12).filter_map(|m| days_in_month(year, m)).sum();
            prop_assert!(days == 365 || days == 366);
        }
    }
}
