#[derive(Debug, PartialEq, Eq)]
pub enum SizeError {
    Missing,
    NotANumber(String),
    Zero,
}

/// Reads `WIDTHxHEIGHT`; white space around the numbers is fine, zero is not.
// focal
pub fn parse_size(text: &str) -> Result<(u32, u32), SizeError> {
    let (width, height) = text.split_once('x').ok_or(SizeError::Missing)?;
    let number = |part: &str| {
        let part = part.trim();
        part.parse::<u32>().map_err(|_| SizeError::NotANumber(part.to_string()))
    };
    let size = (number(width)?, number(height)?);
    if size.0 == 0 || size.1 == 0 {
        return Err(SizeError::Zero);
    }
    Ok(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_reads_both_numbers() {
        assert_eq!(parse_size("640x480"), Ok((640, 480)));
        assert_eq!(parse_size(" 1 x 2 "), Ok((1, 2)));
    }

    #[test]
    fn test_needs_a_separator() {
        assert_eq!(parse_size("640"), Err(SizeError::Missing));
        assert_eq!(parse_size(""), Err(SizeError::Missing));
    }

    #[test]
    fn test_names_what_is_not_a_number() {
        assert_eq!(parse_size("ax2"), Err(SizeError::NotANumber("a".to_string())));
        assert_eq!(parse_size("2x-1"), Err(SizeError::NotANumber("-1".to_string())));
        assert_eq!(parse_size("2x"), Err(SizeError::NotANumber(String::new())));
    }

    #[test]
    fn test_zero_is_refused_on_either_side() {
        assert_eq!(parse_size("0x5"), Err(SizeError::Zero));
        assert_eq!(parse_size("5x0"), Err(SizeError::Zero));
    }
}
