//! Byte offsets as lines and columns.

use std::ops::Range;

use record::mutation::{Location, Position};

/// Starts of the lines of a text.
#[derive(Debug, Clone)]
pub(crate) struct LineIndex {
    starts: Vec<usize>,
}

impl LineIndex {
    pub(crate) fn new(text: &str) -> Self {
        let starts = std::iter::once(0).chain(text.match_indices('\n').map(|(i, _)| i + 1)).collect();
        Self { starts }
    }

    /// Line and column from 1; columns count characters.
    pub(crate) fn position(&self, text: &str, offset: usize) -> Position {
        let line = self.starts.partition_point(|&start| start <= offset);
        let start = self.starts.get(line.saturating_sub(1)).copied().unwrap_or(0);
        let column = text.get(start..offset).map_or(0, |before| before.chars().count()) + 1;
        Position { line: narrow(line), column: narrow(column) }
    }

    pub(crate) fn location(&self, text: &str, range: &Range<usize>) -> Location {
        Location { start: self.position(text, range.start), end: self.position(text, range.end) }
    }

    /// The offset where a line (from 1) starts; the text's end for a line after the last.
    pub(crate) fn start_of(&self, text: &str, line: usize) -> usize {
        self.starts.get(line.saturating_sub(1)).copied().unwrap_or(text.len())
    }
}

fn narrow(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod test {
    use super::LineIndex;

    #[test]
    fn positions_count_characters_from_one() {
        let text = "é+1\n\nab";
        let index = LineIndex::new(text);
        let at = |offset| (index.position(text, offset).line, index.position(text, offset).column);
        assert_eq!((at(0), at(2), at(5), at(6), at(8)), ((1, 1), (1, 2), (2, 1), (3, 1), (3, 3)));
        assert_eq!(index.start_of(text, 3), 6);
    }
}
