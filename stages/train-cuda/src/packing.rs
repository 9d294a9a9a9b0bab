//! Which rows go through the model together.

/// How rows are put together for one pass through the model. Which rows make an optimizer step does not depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packing {
    /// So many rows each time.
    Rows(usize),
    /// As many rows, in order, as have at most so many tokens together.
    Tokens(usize),
}

impl Packing {
    /// Most tokens at a time, where that is how rows are cut.
    pub(crate) fn tokens(self) -> Option<u64> {
        match self {
            Self::Rows(_) => None,
            Self::Tokens(tokens) => Some(tokens as u64),
        }
    }

    /// Cuts rows into runs that go through the model together.
    pub(crate) fn cut<T: Copy>(self, rows: &[T], tokens: impl Fn(T) -> usize) -> Vec<&[T]> {
        let most = match self {
            Self::Rows(n) => return rows.chunks(n.max(1)).collect(),
            Self::Tokens(most) => most,
        };
        let (mut runs, mut first, mut sum) = (Vec::new(), 0, 0);
        for (i, &row) in rows.iter().enumerate() {
            if i > first && sum + tokens(row) > most {
                runs.push(&rows[first..i]);
                (first, sum) = (i, 0);
            }
            sum += tokens(row);
        }
        if first < rows.len() {
            runs.push(&rows[first..]);
        }
        runs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packing_keeps_the_order_and_fills_up() {
        let rows = [3usize, 4, 9, 2, 2, 1];
        let cut = |packing: Packing| packing.cut(&rows, |n| n);
        assert_eq!(cut(Packing::Rows(4)), [&rows[..4], &rows[4..]]);
        assert_eq!(cut(Packing::Tokens(7)), [&rows[..2], &rows[2..3], &rows[3..]]);
        assert_eq!(cut(Packing::Tokens(1)).len(), 6);
        assert_eq!(cut(Packing::Tokens(99)), [&rows[..]]);
        assert!(Packing::Tokens(7).cut(&rows[..0], |n| n).is_empty());
    }
}
