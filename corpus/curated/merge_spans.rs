/// A half-open span `start..end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    pub start: u32,
    pub end: u32,
}

/// Joins spans that overlap or touch; empty spans vanish. The result is sorted.
// focal
pub fn merge_spans(mut spans: Vec<Span>) -> Vec<Span> {
    spans.retain(|s| s.start < s.end);
    spans.sort_by_key(|s| s.start);
    let mut merged: Vec<Span> = Vec::new();
    for span in spans {
        match merged.last_mut() {
            Some(last) if span.start <= last.end => last.end = last.end.max(span.end),
            _ => merged.push(span),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn spans(pairs: &[(u32, u32)]) -> Vec<Span> {
        pairs.iter().map(|&(start, end)| Span { start, end }).collect()
    }

    #[test]
    fn test_overlapping_spans_join() {
        assert_eq!(merge_spans(spans(&[(1, 4), (3, 6)])), spans(&[(1, 6)]));
    }

    #[test]
    fn test_touching_spans_join_and_distant_ones_do_not() {
        assert_eq!(merge_spans(spans(&[(5, 7), (1, 3), (3, 4)])), spans(&[(1, 4), (5, 7)]));
    }

    #[test]
    fn test_a_span_inside_another_adds_nothing() {
        assert_eq!(merge_spans(spans(&[(0, 9), (2, 3)])), spans(&[(0, 9)]));
    }

    #[test]
    fn test_empty_and_backward_spans_vanish() {
        assert!(merge_spans(spans(&[(2, 2), (4, 1)])).is_empty());
    }

    proptest! {
        #[test]
        fn merged_spans_cover_the_same_points_and_keep_apart(pairs in prop::collection::vec((0u32..30, 0u32..30), 0..8)) {
            let covers = |all: &[Span], point: u32| all.iter().any(|s| (s.start..s.end).contains(&point));
            let before = spans(&pairs);
            let merged = merge_spans(before.clone());
            for point in 0..30 {
                prop_assert_eq!(covers(&merged, point), covers(&before, point));
            }
            prop_assert!(merged.windows(2).all(|two| two[0].end < two[1].start));
        }
    }
}
