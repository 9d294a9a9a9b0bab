/// Why a text is no duration.
#[derive(Debug, PartialEq, Eq)]
pub enum DurationError {
    Empty,
    MissingNumber,
    UnknownUnit(char),
    TooLong,
}

/// Minutes of a text such as `90m`, `2h` or `1d6h30m`.
// focal
pub fn parse_minutes(text: &str) -> Result<u32, DurationError> {
    if text.is_empty() {
        return Err(DurationError::Empty);
    }
    let mut total: u32 = 0;
    let mut number: Option<u32> = None;
    for c in text.chars() {
        if let Some(digit) = c.to_digit(10) {
            let grown = number.unwrap_or(0).checked_mul(10).and_then(|n| n.checked_add(digit));
            number = Some(grown.ok_or(DurationError::TooLong)?);
            continue;
        }
        let unit = match c {
            'm' => 1,
            'h' => 60,
            'd' => 24 * 60,
            other => return Err(DurationError::UnknownUnit(other)),
        };
        let amount = number.take().ok_or(DurationError::MissingNumber)?;
        total = amount.checked_mul(unit).and_then(|n| total.checked_add(n)).ok_or(DurationError::TooLong)?;
    }
    if number.is_some() { Err(DurationError::UnknownUnit(' ')) } else { Ok(total) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn test_units_add_up() {
        assert_eq!(parse_minutes("90m"), Ok(90));
        assert_eq!(parse_minutes("2h"), Ok(120));
        assert_eq!(parse_minutes("1d6h30m"), Ok(1830));
        assert_eq!(parse_minutes("0m"), Ok(0));
    }

    #[test]
    fn test_empty_and_unitless_texts() {
        assert_eq!(parse_minutes(""), Err(DurationError::Empty));
        assert_eq!(parse_minutes("15"), Err(DurationError::UnknownUnit(' ')));
    }

    #[test]
    fn test_a_unit_needs_a_number() {
        assert_eq!(parse_minutes("h"), Err(DurationError::MissingNumber));
        assert_eq!(parse_minutes("1hm"), Err(DurationError::MissingNumber));
    }

    #[test]
    fn test_other_units_are_refused() {
        assert_eq!(parse_minutes("3w"), Err(DurationError::UnknownUnit('w')));
        assert_eq!(parse_minutes("-3m"), Err(DurationError::UnknownUnit('-')));
    }

    #[test]
    fn test_what_does_not_fit_is_refused() {
        assert_eq!(parse_minutes("4294967295m"), Ok(u32::MAX));
        assert_eq!(parse_minutes("4294967296m"), Err(DurationError::TooLong));
        assert_eq!(parse_minutes("4294967295d"), Err(DurationError::TooLong));
        assert_eq!(parse_minutes("4294967295m1m"), Err(DurationError::TooLong));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(days in 0u32..1000, hours in 0u32..1000, minutes in 0u32..1000) {
            let text = format!("{days}d{hours}h{minutes}m");
            prop_assert_eq!(parse_minutes(&text), Ok((days * 24 + hours) * 60 + minutes));
        }
    }
}
