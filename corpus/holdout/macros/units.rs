macro_rules! in_units {
    ($value:expr; $($limit:expr => $unit:expr),+; $largest:expr) => {{
        let mut left = $value;
        let mut unit = $largest;
        let mut found = false;
        $(
            if !found {
                if left < $limit {
                    unit = $unit;
                    found = true;
                } else {
                    left /= $limit;
                }
            }
        )+
        let _ = found;
        (left, unit)
    }};
}

/// Seconds in the largest unit that is at least one, rounded down.
// focal
pub fn age(seconds: u64) -> String {
    if seconds == 0 {
        return "now".to_string();
    }
    let (count, unit) = in_units!(seconds; 60 => "second", 60 => "minute", 24 => "hour"; "day");
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {unit}{plural}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_now() {
        assert_eq!(age(0), "now");
    }

    #[test]
    fn test_each_unit() {
        assert_eq!(age(59), "59 seconds");
        assert_eq!(age(120), "2 minutes");
        assert_eq!(age(2 * 3600 + 59), "2 hours");
        assert_eq!(age(3 * 86_400), "3 days");
    }

    #[test]
    fn test_one_has_no_plural() {
        assert_eq!(age(1), "1 second");
        assert_eq!(age(60), "1 minute");
        assert_eq!(age(3600), "1 hour");
        assert_eq!(age(86_400), "1 day");
    }
}
