/// The number whose reflected binary (Gray) code is `code`.
// focal
pub fn gray_decode(code: u32) -> u32 {
    let mut number = code;
    let mut shift = 1;
    while shift < 32 {
        number ^= number >> shift;
        shift *= 2;
    }
    number
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encode(number: u32) -> u32 {
        number ^ (number >> 1)
    }

    #[test]
    fn test_first_codes() {
        let decoded: Vec<u32> = [0b000, 0b001, 0b011, 0b010, 0b110].iter().map(|c| gray_decode(*c)).collect();
        assert_eq!(decoded, [0, 1, 2, 3, 4]);
    }

    #[test]
    fn test_highest_bit() {
        assert_eq!(gray_decode(0x8000_0000), u32::MAX);
    }

    proptest! {
        #[test]
        fn decoding_undoes_encoding(number in any::<u32>()) {
            prop_assert_eq!(gray_decode(encode(number)), number);
        }
    }
}
