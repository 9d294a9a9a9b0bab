use std::collections::BTreeMap;

/// Prices by name, and names that stand for others.
#[derive(Debug, Default)]
pub struct PriceList {
    prices: BTreeMap<String, u32>,
    discounts: BTreeMap<String, u32>,
}

impl PriceList {
    pub fn with(mut self, name: &str, price: u32) -> Self {
        self.prices.insert(name.to_owned(), price);
        self
    }

    pub fn less(mut self, name: &str, percent: u32) -> Self {
        self.discounts.insert(name.to_owned(), percent);
        self
    }

    /// Price of `count` pieces after the discount, which is at most 100 percent; `None` for an unknown name or a sum too large.
    // focal
    pub fn total(&self, name: &str, count: u32) -> Option<u32> {
        let full = self.prices.get(name)?.checked_mul(count)?;
        let percent = self.discounts.get(name).copied().unwrap_or(0).min(100);
        let off = u64::from(full) * u64::from(percent) / 100;
        Some(full - off as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn list() -> PriceList {
        PriceList::default().with("nut", 25).with("bolt", 40).less("bolt", 10).with("gift", 9).less("gift", 150)
    }

    #[test]
    fn test_price_times_count() {
        assert_eq!(list().total("nut", 3), Some(75));
        assert_eq!(list().total("nut", 0), Some(0));
    }

    #[test]
    fn test_discount_is_taken_off() {
        assert_eq!(list().total("bolt", 2), Some(72));
        assert_eq!(list().total("bolt", 1), Some(36));
    }

    #[test]
    fn test_discount_is_at_most_everything() {
        assert_eq!(list().total("gift", 5), Some(0));
    }

    #[test]
    fn test_unknown_name_and_overflow() {
        assert_eq!(list().total("screw", 1), None);
        assert_eq!(list().total("nut", u32::MAX), None);
    }

    proptest! {
        #[test]
        fn a_discount_never_raises_the_sum(price in 0u32..1000, percent in 0u32..200, count in 0u32..1000) {
            let full = PriceList::default().with("nut", price).total("nut", count);
            let less = PriceList::default().with("nut", price).less("nut", percent).total("nut", count);
            prop_assert_eq!(full, Some(price * count));
            prop_assert!(less <= full);
        }
    }
}
