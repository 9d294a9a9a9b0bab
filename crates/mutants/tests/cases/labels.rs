// items

// function
pub fn first_dup(rows: &[&[u8]]) -> Option<u8> {
    let r = 'outer: {
        for row in rows {
            'row: for (i, x) in row.iter().enumerate() {
                for y in &row[..i] {
                    if x == y { break 'outer Some(*x); }
                    if *y == 0 { continue 'row; }
                }
            }
        }
        None
    };
    let mut k = 0;
    let n = loop { k += 1; if k > 3 { break k * 2; } };
    r.map(|x| x + n - 8)
}
// tests
#[test] fn t() { assert_eq!(first_dup(&[&[1, 2], &[3, 4, 3]]), Some(3)); assert_eq!(first_dup(&[&[1, 2]]), None); }
