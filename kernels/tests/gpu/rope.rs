use crate::support::{Kind, Random, close, close_each, given, integers, padding_untouched, run_twice};
use kernels::cuda::Dtype;
use kernels::cuda::ops::rope;

#[test]
fn rope_equals_plain_loops_and_turns_back() {
    let mut rng = Random::new("rope");
    let shapes = [
        (1, 1, 2, 0),
        (5, 3, 6, 1),
        (37, 16, 64, 8),
        (37, 16, 64, 1),
        (9, 2, 128, 0),
        (21, 5, 96, 8),
        (300, 14, 64, 256),
    ];
    for (rows, heads, dim, pad) in shapes {
        for dtype in [Dtype::F32, Dtype::Bf16] {
            let what = format!("rope {rows} x {heads} heads of {dim}, pad {pad}, {dtype:?}");
            let (cols, half, table_rows) = (heads * dim, dim / 2, 50);
            let angles = rng.values(table_rows * half, 3.0);
            let table: Vec<f32> = angles
                .chunks(half)
                .flat_map(|row| row.iter().map(|a| a.cos()).chain(row.iter().map(|a| a.sin())))
                .collect();
            let table = given(&table, (table_rows, dim), 0, Dtype::F32);
            // Positions beyond the table take its last row.
            let positions: Vec<u32> = (0..rows).map(|_| rng.below(table_rows + 5) as u32).collect();
            let positions_there = integers(&positions, 1);
            for inverse in [false, true] {
                let x = given(&rng.values(rows * cols, 2.0), (rows, cols), pad, dtype);
                let sign = if inverse { -1.0 } else { 1.0 };
                let expected: Vec<f64> = (0..rows * cols)
                    .map(|at| {
                        let (row, column) = (at / cols, at % cols % dim);
                        let angle = (positions[row] as usize).min(table_rows - 1) * dim;
                        let (cos, sin) = (
                            table.host[angle + column % half],
                            sign * table.host[angle + half + column % half],
                        );
                        if column < half {
                            x.host[at] * cos - x.host[at + half] * sin
                        } else {
                            x.host[at] * cos + x.host[at - half] * sin
                        }
                    })
                    .collect();
                let work = rope::apply(&x.tensor, &positions_there, &table.tensor, dim, inverse).unwrap();
                run_twice(&what, &work, &[&x.tensor]);
                close(&what, &x.tensor, &expected, Kind::Elementwise);
                // two products and their sum, each off by half a unit at most
                let size = |at: usize| {
                    let (row, column) = (at / cols, at % cols % dim);
                    let other = if column < half { at + half } else { at - half };
                    let angle = (positions[row] as usize).min(table_rows - 1) * dim + column % half;
                    (x.host[at] * table.host[angle]).abs() + (x.host[other] * table.host[angle + half]).abs()
                };
                close_each(&what, &x.tensor, &expected, size, 1.0);
                padding_untouched(&what, &x.tensor);
            }
        }
    }
}

#[test]
fn rope_refuses_operands_that_do_not_fit() {
    let x = given(&[0.0; 24], (2, 12), 0, Dtype::F32);
    let table = given(&[0.0; 12], (2, 6), 0, Dtype::F32);
    let positions = integers(&[0, 1], 1);
    let error = rope::apply(&x.tensor, &positions, &table.tensor, 5, false).unwrap_err();
    assert!(error.to_string().contains("12 columns are not heads of 5"), "{error}");
    let error = rope::apply(&x.tensor, &positions, &table.tensor, 4, false).unwrap_err();
    assert!(error.to_string().contains("table is 2 x 6, not 2 x 4"), "{error}");
}
