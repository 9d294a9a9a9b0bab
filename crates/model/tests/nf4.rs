//! NF4 against bitsandbytes, and on inputs of odd shape.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use half::bf16;
use model::nf4::{AbsMax, BLOCK, LEVELS, Nf4, Nf4Error, dynamic_map};
use proptest::prelude::*;
use safetensors::SafeTensors;
use std::collections::BTreeSet;

struct Golden(Vec<u8>);

impl Golden {
    fn open() -> Self {
        Self(std::fs::read(common::golden("nf4/nf4.safetensors")).unwrap())
    }

    /// Made by `experiments/peers/nf4_cases.py` on a GPU.
    fn cases() -> Self {
        Self(std::fs::read(common::golden("nf4-cases/nf4-cases.safetensors")).unwrap())
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        SafeTensors::deserialize(&self.0).unwrap().tensor(name).unwrap().data().to_vec()
    }

    fn f32(&self, name: &str) -> Vec<f32> {
        self.bytes(name).chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    }

    fn bf16(&self, name: &str) -> Vec<f32> {
        self.bytes(name)
            .chunks_exact(2)
            .map(|b| bf16::from_le_bytes(b.try_into().unwrap()).to_f32())
            .collect()
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

const MATRICES: usize = 4;

#[test]
fn single_quantisation_is_that_of_bitsandbytes() {
    let golden = Golden::open();
    for i in 0..MATRICES {
        let weight = golden.bf16(&format!("{i}.weight_bf16"));
        let nf4 = Nf4::quantize(&weight, false).unwrap();
        assert_eq!(nf4.codes(), golden.bytes(&format!("{i}.codes_packed")), "codes of {i}");
        let AbsMax::Single(absmax) = nf4.absmax() else { panic!("not single") };
        assert_eq!(bits(absmax), bits(&golden.f32(&format!("{i}.absmax"))), "absmax of {i}");
        assert_eq!(bits(&LEVELS), bits(&golden.f32(&format!("{i}.code_table"))));
        assert_eq!(
            bits(&nf4.dequantize()),
            bits(&golden.bf16(&format!("{i}.dequant_bf16"))),
            "values of {i}"
        );
    }
}

#[test]
fn double_quantisation_is_that_of_bitsandbytes_given_its_offset() {
    let golden = Golden::open();
    for i in 0..MATRICES {
        let name = |part: &str| format!("{i}.double.{part}");
        assert_eq!(bits(dynamic_map()), bits(&golden.f32(&name("nested_code"))), "table of {i}");
        let weight = golden.bf16(&format!("{i}.weight_bf16"));
        let nf4 = Nf4::quantize(&weight, false).unwrap();
        let AbsMax::Single(maxima) = nf4.absmax() else { panic!("not single") };
        let offset = golden.f32(&name("offset"))[0];
        let absmax = AbsMax::quantize(maxima, offset);
        let AbsMax::Double { codes, nested, .. } = &absmax else { panic!("not double") };
        assert_eq!(*codes, golden.bytes(&name("absmax_u8")), "8-bit maxima of {i}");
        assert_eq!(bits(nested), bits(&golden.f32(&name("nested_absmax"))), "nested maxima of {i}");
        let nf4 = Nf4::from_parts(weight.len(), golden.bytes(&name("codes_packed")), absmax).unwrap();
        assert_eq!(bits(&nf4.dequantize()), bits(&golden.bf16(&name("dequant_bf16"))), "values of {i}");
    }
}

#[test]
fn our_own_offset_is_within_one_unit_in_the_last_place() {
    let golden = Golden::open();
    for i in 0..MATRICES {
        let nf4 = Nf4::quantize(&golden.bf16(&format!("{i}.weight_bf16")), true).unwrap();
        let AbsMax::Double { offset, .. } = nf4.absmax() else { panic!("not double") };
        let theirs = golden.f32(&format!("{i}.double.offset"))[0];
        assert!(offset.to_bits().abs_diff(theirs.to_bits()) <= 1, "{offset} against {theirs} in {i}");
    }
}

/// Numbers below the smallest normal one as zeros: their kernel has only those on the way back, ours keeps them.
fn normal(values: Vec<f32>) -> Vec<f32> {
    values.into_iter().map(|v| if v.is_subnormal() { v.signum() * 0.0 } else { v }).collect()
}

/// Whether a code that differs is what the reciprocal of the magnitude plus or minus one unit in the last place gives, which
/// is how far off the one of their kernel may be; and few do.
fn by_a_unit(values: &[f32], ours: &Nf4, theirs: &[u8]) -> bool {
    let AbsMax::Single(maxima) = ours.absmax() else { return false };
    let code =
        |bytes: &[u8], i: usize| if i.is_multiple_of(2) { bytes[i / 2] >> 4 } else { bytes[i / 2] & 15 };
    let differ: Vec<usize> =
        (0..values.len()).filter(|&i| code(ours.codes(), i) != code(theirs, i)).collect();
    let explained = |&i: &usize| {
        let inverse = 1.0 / maxima[i / BLOCK];
        [inverse.next_down(), inverse.next_up()].into_iter().any(|inverse| {
            // 1 is a block's magnitude as well, so that the value is scaled by 1.
            let scaled = Nf4::quantize(&[1.0, values[i] * inverse], false).unwrap();
            scaled.codes()[0] & 15 == code(theirs, i)
        })
    };
    differ.len() * 50 < values.len() && differ.iter().all(explained)
}

/// Odd lengths, zeros, ties, thresholds met and missed by one unit, both ends of what float32 holds.
#[test]
fn awkward_numbers_are_quantised_as_by_bitsandbytes() {
    let golden = Golden::cases();
    let tensors = SafeTensors::deserialize(&golden.0).unwrap();
    let names = tensors.names();
    let cases: BTreeSet<&str> = names.iter().filter_map(|name| name.strip_suffix(".input")).collect();
    assert!(cases.len() > 20, "{cases:?}");
    let mut wrong = Vec::new();
    for case in cases {
        let values = golden.f32(&format!("{case}.input"));
        let nf4 = Nf4::quantize(&values, false).unwrap();
        let AbsMax::Single(maxima) = nf4.absmax() else { panic!("not single") };
        let mut same = |what: &str, same: bool| {
            if !same {
                wrong.push(format!("{case}: {what}"));
            }
        };
        let theirs = golden.bytes(&format!("{case}.codes"));
        same(
            "codes",
            if case == "reciprocals" { by_a_unit(&values, &nf4, &theirs) } else { nf4.codes() == theirs },
        );
        same("absmax", bits(maxima) == bits(&golden.f32(&format!("{case}.absmax"))));
        if case == "reciprocals" {
            continue;
        }
        let rounded = |name: String| -> Vec<f32> {
            golden.f32(&name).iter().map(|v| bf16::from_f32(*v).to_f32()).collect()
        };
        same("values", bits(&normal(nf4.dequantize())) == bits(&rounded(format!("{case}.back"))));
        let offset = golden.f32(&format!("{case}.double.offset"))[0];
        let absmax = AbsMax::quantize(maxima, offset);
        let AbsMax::Double { codes, nested, .. } = &absmax else { panic!("not double") };
        same("double: codes", nf4.codes() == golden.bytes(&format!("{case}.double.codes")));
        same("double: 8-bit maxima", *codes == golden.bytes(&format!("{case}.double.absmax")));
        same("double: nested maxima", bits(nested) == bits(&golden.f32(&format!("{case}.double.nested"))));
        let nf4 = Nf4::from_parts(values.len(), nf4.codes().to_vec(), absmax).unwrap();
        same(
            "double: values",
            bits(&normal(nf4.dequantize())) == bits(&rounded(format!("{case}.double.back"))),
        );
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn bytes_per_number_are_those_of_the_format() {
    let values = vec![0.5; 896 * 4864];
    let single = Nf4::quantize(&values, false).unwrap();
    assert_eq!(single.n_bytes(), values.len() / 2 + values.len() / BLOCK * 4);
    let double = Nf4::quantize(&values, true).unwrap();
    let blocks = values.len() / BLOCK;
    assert_eq!(double.n_bytes(), values.len() / 2 + blocks + blocks.div_ceil(256) * 4 + 4);
}

#[test]
fn zeros_and_nothing_stay_what_they_are() {
    for double in [false, true] {
        let zeros = Nf4::quantize(&[0.0; 130], double).unwrap();
        assert!(zeros.dequantize().iter().all(|v| *v == 0.0), "{zeros:?}");
        assert!(Nf4::quantize(&[], double).unwrap().dequantize().is_empty());
    }
}

#[test]
fn what_is_not_finite_is_refused_by_place() {
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let error = Nf4::quantize(&[0.0, 1.0, value], false).unwrap_err();
        assert!(matches!(error, Nf4Error::NotFinite { index: 2, .. }), "{error}");
    }
}

#[test]
fn parts_of_the_wrong_length_are_refused() {
    let single = |n| AbsMax::Single(vec![1.0; n]);
    assert!(Nf4::from_parts(65, vec![0; 33], single(2)).is_ok());
    assert!(Nf4::from_parts(65, vec![0; 32], single(2)).is_err());
    assert!(Nf4::from_parts(65, vec![0; 33], single(1)).is_err());
    let double = |nested| AbsMax::Double { codes: vec![0; 2], offset: 0.0, nested: vec![1.0; nested] };
    assert!(Nf4::from_parts(65, vec![0; 33], double(1)).is_ok());
    assert!(Nf4::from_parts(65, vec![0; 33], double(2)).is_err());
}

proptest! {
    /// Each value comes back as the nearest level of its block, but for bfloat16's rounding.
    #[test]
    fn the_nearest_level_is_taken(values in proptest::collection::vec(-3.0f32..3.0, 1..200)) {
        let back = Nf4::quantize(&values, false).unwrap().dequantize();
        prop_assert_eq!(back.len(), values.len());
        for (block, got) in values.chunks(BLOCK).zip(back.chunks(BLOCK)) {
            let max = block.iter().fold(0.0f32, |m, v| m.max(v.abs()));
            for (v, g) in block.iter().zip(got) {
                let best = LEVELS.iter().map(|l| (l * max - v).abs()).fold(f32::INFINITY, f32::min);
                prop_assert!((g - v).abs() <= best + max * 0.005, "{} became {} under {}", v, g, max);
            }
        }
    }
}
