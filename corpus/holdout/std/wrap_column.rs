/// Moves a cursor by `delta` columns on a line of `width` columns that wraps around at both ends.
// focal
pub fn wrap_column(column: usize, delta: i64, width: usize) -> usize {
    if width == 0 {
        return 0;
    }
    let width = width as i64;
    let moved = (column as i64 + delta) % width;
    if moved < 0 { (moved + width) as usize } else { moved as usize }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_moves_inside_the_line() {
        assert_eq!(wrap_column(3, 2, 10), 5);
        assert_eq!(wrap_column(3, -2, 10), 1);
    }

    #[test]
    fn test_wraps_at_the_right_end() {
        assert_eq!(wrap_column(8, 3, 10), 1);
        assert_eq!(wrap_column(9, 1, 10), 0);
    }

    #[test]
    fn test_wraps_at_the_left_end() {
        assert_eq!(wrap_column(1, -3, 10), 8);
        assert_eq!(wrap_column(0, -21, 10), 9);
    }

    #[test]
    fn test_full_turns_come_back() {
        assert_eq!(wrap_column(4, -10, 10), 4);
        assert_eq!(wrap_column(4, 30, 10), 4);
    }

    #[test]
    fn test_a_line_without_columns_has_column_zero() {
        assert_eq!(wrap_column(7, 5, 0), 0);
    }
}
