/// Price of a parcel in cents, by weight and longest side; `None` for what the counter does not take.
// focal
pub fn parcel_price(grams: u32, longest_cm: u32, express: bool) -> Option<u32> {
    if grams == 0 || longest_cm == 0 {
        return None;
    }
    let base = match grams {
        1..=1_000 => 450,
        1_001..=5_000 => 700,
        5_001..=10_000 => 950,
        10_001..=31_500 => 1_650,
        _ => return None,
    };
    let bulky = if longest_cm > 200 {
        return None;
    } else if longest_cm > 120 {
        2_000
    } else if longest_cm > 60 && grams <= 5_000 {
        250
    } else {
        0
    };
    let price = base + bulky;
    if express { Some(price + price / 2) } else { Some(price) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_price_follows_the_weight() {
        assert_eq!(parcel_price(1, 10, false), Some(450));
        assert_eq!(parcel_price(1_000, 10, false), Some(450));
        assert_eq!(parcel_price(1_001, 10, false), Some(700));
        assert_eq!(parcel_price(5_000, 10, false), Some(700));
        assert_eq!(parcel_price(5_001, 10, false), Some(950));
        assert_eq!(parcel_price(10_000, 10, false), Some(950));
        assert_eq!(parcel_price(10_001, 10, false), Some(1_650));
        assert_eq!(parcel_price(31_500, 10, false), Some(1_650));
    }

    #[test]
    fn test_long_parcels_cost_more() {
        assert_eq!(parcel_price(500, 60, false), Some(450));
        assert_eq!(parcel_price(500, 61, false), Some(700));
        assert_eq!(parcel_price(500, 120, false), Some(700));
        assert_eq!(parcel_price(500, 121, false), Some(2_450));
        assert_eq!(parcel_price(500, 200, false), Some(2_450));
    }

    #[test]
    fn test_heavy_parcels_may_be_a_little_longer() {
        assert_eq!(parcel_price(5_000, 100, false), Some(950));
        assert_eq!(parcel_price(5_001, 100, false), Some(950));
        assert_eq!(parcel_price(5_001, 121, false), Some(2_950));
    }

    #[test]
    fn test_express_costs_half_again() {
        assert_eq!(parcel_price(800, 20, true), Some(675));
        assert_eq!(parcel_price(800, 150, true), Some(3_675));
    }

    #[test]
    fn test_what_is_refused() {
        assert_eq!(parcel_price(0, 10, false), None);
        assert_eq!(parcel_price(10, 0, true), None);
        assert_eq!(parcel_price(31_501, 10, false), None);
        assert_eq!(parcel_price(10, 201, true), None);
    }
}
