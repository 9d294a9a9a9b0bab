// items

// function
pub fn find(grid: &[Vec<i32>], x: i32) -> Option<(usize, usize)> {
    let mut found = None;
    'rows: for (i, row) in grid.iter().enumerate() {
        for (j, &cell) in row.iter().enumerate() {
            if cell < 0 { continue 'rows; }
            if cell == x { found = Some((i, j)); break 'rows; }
        }
    }
    found
}
// tests
#[test] fn t() { let g = vec![vec![1, -1, 7], vec![7]]; assert_eq!(find(&g, 7), Some((1, 0))); assert_eq!(find(&g, 8), None); }
