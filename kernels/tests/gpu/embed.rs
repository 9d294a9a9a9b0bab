use crate::support::{Kind, Random, close, integers, padding_untouched, poisoned, random, run, same_twice};
use kernels::cuda::ops::embed;
use kernels::cuda::{Dtype, Tensor};

fn column(values: &[u32]) -> Tensor {
    integers(values, 1)
}

#[test]
fn embed_takes_rows_of_the_table() {
    let mut rng = Random::new("embed");
    let types = [Dtype::F32, Dtype::Bf16];
    for (table_type, out_type) in types.into_iter().flat_map(|a| types.map(|b| (a, b))) {
        for (tokens, cols, vocabulary, pad) in
            [(1, 1, 1, 0), (5, 33, 7, 3), (64, 896, 1000, 0), (33, 100, 50, 4), (300, 64, 9, 8)]
        {
            let what = format!("embed {tokens}x{cols} {table_type:?} to {out_type:?}");
            let table = random(&mut rng, (vocabulary, cols), pad, table_type, 1.0);
            let mut ids: Vec<u32> = (0..tokens).map(|_| rng.below(vocabulary) as u32).collect();
            ids[tokens / 2] = u32::MAX; // beyond the table: its last row
            let out = poisoned((tokens, cols), pad, out_type);
            let work = embed::forward(&column(&ids), &table.tensor, &out).unwrap();
            same_twice(&what, &work, &out);
            let expected: Vec<f64> = ids
                .iter()
                .map(|&id| (id as usize).min(vocabulary - 1))
                .flat_map(|id| table.host[id * cols..(id + 1) * cols].to_vec())
                .collect();
            close(&what, &out, &expected, Kind::Elementwise);
            padding_untouched(&what, &out);
        }
    }
}

/// Bit for bit: the order of the sum is part of what the kernel promises.
#[test]
fn embed_grad_adds_tokens_in_order() {
    let mut rng = Random::new("embed_grad");
    for dtype in [Dtype::F32, Dtype::Bf16] {
        for (tokens, listed, cols, vocabulary, pad) in [
            (1, 1, 1, 1, 0),
            (40, 31, 33, 7, 3),
            (500, 500, 896, 11, 0),
            (300, 0, 64, 9, 8),
            (64, 50, 2056, 60, 0),
        ] {
            let what = format!("embed_grad {tokens}x{cols} {dtype:?}");
            let d_out = random(&mut rng, (tokens, cols), pad, dtype, 1.0);
            let table = random(&mut rng, (vocabulary, cols), pad, Dtype::F32, 1.0);
            let before = table.tensor.download().unwrap();
            let ids: Vec<u32> = (0..tokens).map(|_| rng.below(vocabulary) as u32).collect();
            let (mut order, mut starts, count) = embed::runs(&ids[..listed]);
            order.resize(tokens, u32::MAX);
            starts.resize(tokens + 1, u32::MAX);
            let (order, starts, count) = (column(&order), column(&starts), column(&[count]));
            let runs = embed::Runs { order: &order, starts: &starts, count: &count };
            let work = embed::grad(&column(&ids), runs, &d_out.tensor, &table.tensor).unwrap();
            run(&work);
            let mut expected = before.clone();
            for (t, &id) in ids[..listed].iter().enumerate() {
                for c in 0..cols {
                    expected[id as usize * cols + c] += d_out.host[t * cols + c] as f32;
                }
            }
            let got = table.tensor.download().unwrap();
            let same = got.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same, "{what}: not the bits of the plain loop");
            padding_untouched(&what, &table.tensor);
            table.tensor.upload(&before).unwrap();
            run(&work);
            assert_eq!(got, table.tensor.download().unwrap(), "{what}: two runs differ");
        }
    }
}
