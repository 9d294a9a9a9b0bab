use super::*;

fn noise(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).max(1);
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 8) as f32 / 8_388_608.0 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

fn run(a: View<'_, f32>, b: View<'_, f32>, start: Option<&[f32]>, threads: usize) -> Vec<f32> {
    let mut c = start.map_or_else(|| vec![f32::NAN; a.rows * b.cols], <[f32]>::to_vec);
    let (rows, cols) = (a.rows, b.cols);
    let mut out = ViewMut { data: &mut c, rows, cols, row_stride: cols };
    product(a, b, start.is_some(), &mut out, threads);
    c
}

#[test]
fn bits_depend_on_neither_threads_nor_the_number_of_rows() {
    for (m, k, n) in [(37, 700, 130), (5, 256, 64), (64, 257, 200), (200, 31, 33), (90, 1024, 300)] {
        let (a, b) = (noise(m * k, 1), noise(k * n, 2));
        let plain = View::rows(&b, k, n, n);
        let stored_transposed = View::rows(&b, n, k, k).t();
        for b in [plain, stored_transposed] {
            let start = noise(m * n, 3);
            for start in [None, Some(&start[..])] {
                let whole = run(View::rows(&a, m, k, k), b, start, 1);
                for threads in [2, 3] {
                    assert_eq!(whole, run(View::rows(&a, m, k, k), b, start, threads));
                }
                for rows in [1, 2, 3, 4, 5, 7, 16] {
                    for first in (0..m - rows.min(m)).step_by(rows + 3) {
                        let part = View::rows(&a[first * k..], rows, k, k);
                        let start = start.map(|s| &s[first * n..(first + rows) * n]);
                        let got = run(part, b, start, 1);
                        assert_eq!(
                            got[..],
                            whole[first * n..(first + rows) * n],
                            "{rows} rows of {m}x{k}x{n}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn few_rows_over_a_large_factor_have_the_bits_of_many() {
    for (k, n) in [(1, 65), (7, 64), (261, 1100), (1031, 1040)] {
        let (a, b) = (noise(9 * k, 1), noise(k * n, 2));
        let (a, b, start) = (View::rows(&a, 9, k, k), View::rows(&b, k, n, n), noise(9 * n, 3));
        for start in [None, Some(&start[..])] {
            let whole = run(a, b, start, 1);
            for (first, rows) in [(0, 1), (3, 2), (5, 3), (2, 4)] {
                let start = start.map(|s| &s[first * n..(first + rows) * n]);
                let got = run(a.slice(first, rows), b, start, 2);
                assert_eq!(got[..], whole[first * n..(first + rows) * n], "{rows} rows of {k}x{n}");
            }
        }
    }
}

#[test]
fn bits_do_not_depend_on_the_number_of_columns() {
    for (m, k, n) in [(70, 300, 90), (40, 1000, 70), (200, 16, 100)] {
        let (a, b) = (noise(m * k, 6), noise(k * n, 7));
        let start = noise(m * n, 8);
        for b in [View::rows(&b, k, n, n), View::rows(&b, n, k, k).t()] {
            for accumulate in [false, true] {
                let start = accumulate.then_some(&start[..]);
                let whole = run(View::rows(&a, m, k, k), b, start, 1);
                for (first, cols) in [(0, 16), (3, 5), (10, 32), (7, 17), (60, 1)] {
                    let part: Option<Vec<f32>> = start.map(|s| cut(s, n, first, cols));
                    let got = run(View::rows(&a, m, k, k), b.columns(first, cols), part.as_deref(), 1);
                    assert_eq!(got, cut(&whole, n, first, cols), "{cols} columns of {m}x{k}x{n}");
                }
            }
        }
    }
}

/// Columns `first..first + cols` of rows of `n`.
fn cut(values: &[f32], n: usize, first: usize, cols: usize) -> Vec<f32> {
    values.chunks_exact(n).flat_map(|row| row[first..first + cols].to_vec()).collect()
}

#[test]
fn equals_the_definition_in_f64() {
    let (m, k, n) = (9, 300, 17);
    let a: Vec<f64> = noise(m * k, 4).into_iter().map(f64::from).collect();
    let b: Vec<f64> = noise(k * n, 5).into_iter().map(f64::from).collect();
    let mut c = vec![1.0; m * n];
    let mut out = ViewMut { data: &mut c, rows: m, cols: n, row_stride: n };
    product(View::rows(&a, m, k, k), View::rows(&b, k, n, n), true, &mut out, 2);
    for i in 0..m {
        for j in 0..n {
            let want = 1.0 + (0..k).map(|l| a[i * k + l] * b[l * n + j]).sum::<f64>();
            assert!((c[i * n + j] - want).abs() < 1e-12);
        }
    }
}

#[test]
fn an_empty_inner_dimension_gives_zeros() {
    let mut c = [5.0f32; 6];
    let mut out = ViewMut { data: &mut c, rows: 2, cols: 3, row_stride: 3 };
    product(View::rows(&[], 2, 0, 0), View::rows(&[], 0, 3, 3), false, &mut out, 1);
    assert_eq!(c, [0.0; 6]);
}
