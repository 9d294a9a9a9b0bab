use crate::lora::bytes_of;
use crate::support::{Random, given, gpu, padding_untouched, poisoned, same_twice};
use kernels::cuda::ops::nf4;
use kernels::cuda::{Dtype, Tensor, bf16_bits};

/// As in Appendix E of the QLoRA paper, and in bitsandbytes.
const LEVELS: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

struct Quantized {
    codes: Vec<u8>,
    absmax: Vec<f32>,
}

impl Quantized {
    fn new(rng: &mut Random, count: usize) -> Self {
        let codes = (0..count.div_ceil(2)).map(|_| rng.bits() as u8).collect();
        // From far below the smallest normal number to large ones.
        let absmax =
            (0..count.div_ceil(64)).map(|_| rng.unit().abs() * 10f32.powi(rng.below(44) as i32 - 40));
        Quantized { codes, absmax: absmax.collect() }
    }

    fn bits(&self, count: usize) -> Vec<u16> {
        let code = |i: usize| {
            let pair = self.codes[i / 2];
            usize::from(if i.is_multiple_of(2) { pair >> 4 } else { pair & 15 })
        };
        (0..count).map(|i| bf16_bits(LEVELS[code(i)] * self.absmax[i / 64])).collect()
    }
}

/// The rounded numbers, whatever type holds them.
fn bits_of(out: &Tensor) -> Vec<u16> {
    let values = out.download().unwrap();
    values
        .into_iter()
        .map(|value| {
            assert_eq!(value.to_bits() & 0xFFFF, 0, "{value} is not a bfloat16");
            (value.to_bits() >> 16) as u16
        })
        .collect()
}

fn shapes() -> Vec<(usize, usize, usize)> {
    vec![(1, 1, 0), (3, 7, 2), (5, 65, 0), (7, 40, 8), (9, 72, 0), (1, 200, 0), (130, 896, 48), (33, 4864, 3)]
}

#[test]
fn nf4_equals_the_cpu_bit_for_bit() {
    let mut rng = Random::new("nf4");
    for (rows, cols, pad) in shapes() {
        for dtype in [Dtype::Bf16, Dtype::F32] {
            let (count, what) = (rows * cols, format!("nf4 {rows}x{cols}+{pad} {dtype:?}"));
            let source = Quantized::new(&mut rng, count);
            let absmax = given(&source.absmax, (1, source.absmax.len()), 0, Dtype::F32);
            let out = poisoned((rows, cols), pad, dtype);
            let work = nf4::dequantize(&bytes_of(&source.codes), &absmax.tensor, &out).unwrap();
            let wide = cols % 8 == 0 && pad % 8 == 0;
            assert_eq!(work.name().contains("wide"), wide, "{what}: {}", work.name());
            same_twice(&what, &work, &out);
            assert!(bits_of(&out) == source.bits(count), "{what}");
            padding_untouched(&what, &out);
        }
    }
}

#[test]
fn nf4_with_quantised_maxima_equals_the_cpu_bit_for_bit() {
    let mut rng = Random::new("nf4 double");
    let types = [Dtype::Bf16, Dtype::F32];
    for ((rows, cols, pad), dtype) in shapes().into_iter().flat_map(|shape| types.map(|dtype| (shape, dtype)))
    {
        let (count, what) = (rows * cols, format!("nf4 double {rows}x{cols}+{pad} {dtype:?}"));
        let mut source = Quantized::new(&mut rng, count);
        let blocks = count.div_ceil(64);
        let absmax_codes: Vec<u8> = (0..blocks).map(|_| rng.bits() as u8).collect();
        let (table, nested) = (rng.values(256, 1.0), rng.values(blocks.div_ceil(256), 0.3));
        let offset = 0.123_456_7f32;
        let maximum = |(i, &code): (usize, &u8)| table[usize::from(code)] * nested[i / 256] + offset;
        source.absmax = absmax_codes.iter().enumerate().map(maximum).collect();
        let out = poisoned((rows, cols), pad, dtype);
        let row = |values: &[f32]| given(values, (1, values.len()), 0, Dtype::F32).tensor;
        let work = nf4::dequantize_double(
            &bytes_of(&source.codes),
            &bytes_of(&absmax_codes),
            &row(&[offset]),
            &row(&nested),
            &row(&table),
            &out,
        )
        .unwrap();
        same_twice(&what, &work, &out);
        assert!(bits_of(&out) == source.bits(count), "{what}");
        padding_untouched(&what, &out);
    }
}

#[test]
fn nf4_operands_that_do_not_fit_are_refused() {
    let (out, absmax) = (poisoned((3, 43), 0, Dtype::Bf16), poisoned((1, 3), 0, Dtype::F32));
    let error = nf4::dequantize(&bytes_of(&[0; 64]), &absmax, &out).unwrap_err().to_string();
    assert!(error.contains("codes has 64 elements, not 65"), "{error}");
    let error = nf4::dequantize(&bytes_of(&[0; 65]), &out, &out).unwrap_err().to_string();
    assert!(error.contains("absmax is Bf16, not F32"), "{error}");
    gpu().synchronize().unwrap();
}
