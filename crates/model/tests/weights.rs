//! Weights from files: whole, sharded, and damaged in every way.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use common::{golden, numbered, small};
use model::config::Config;
use model::weights::{FILE, INDEX, Weights, read_file, write_file};
use model::{Dtype, Tensor, init, names};
use serde_json::json;

fn error(dir: &Path, config: &Config) -> String {
    Weights::load(dir, config).unwrap_err().to_string()
}

#[test]
fn reference_models_load_whole() {
    for (name, tensors) in [("qwen2-tiny/model", 26), ("qwen2-gqa7/model", 14)] {
        let config = Config::from_dir(&golden(name)).unwrap();
        let weights = Weights::load(&golden(name), &config).unwrap();
        assert_eq!(weights.len(), tensors);
        assert_eq!(weights.n_parameters(), names::n_parameters(&config));
        let embedding = weights.get(names::EMBEDDING).unwrap();
        assert_eq!(embedding.shape(), [config.vocab_size, config.hidden_size]);
        assert!(weights.get("nothing").is_none());
    }
}

#[test]
fn what_was_saved_loads_the_same_in_every_dtype() {
    let config = small(true);
    let weights = Weights::from_tensors(numbered(&config), &config).unwrap();
    for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
        let dir = tempfile::tempdir().unwrap();
        weights.save(dir.path(), Some(dtype)).unwrap();
        let loaded = Weights::load(dir.path(), &config).unwrap();
        assert_eq!(loaded.dtype(), dtype);
        for (name, tensor) in weights.iter() {
            assert_eq!(loaded.get(name).unwrap().to_f32(), tensor.to_dtype(dtype).to_f32(), "{name}");
        }
        let again = tempfile::tempdir().unwrap();
        weights.save(again.path(), Some(dtype)).unwrap();
        assert_eq!(fs::read(dir.path().join(FILE)).unwrap(), fs::read(again.path().join(FILE)).unwrap());
    }
}

#[test]
fn numbers_that_are_not_finite_are_refused_by_name() {
    let config = small(true);
    for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
        for (value, text) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (f32::NEG_INFINITY, "-inf")] {
            let mut tensors = numbered(&config);
            let mut values = tensors[names::FINAL_NORM].to_f32();
            values[3] = value;
            let bad = Tensor::from_f32([values.len()], &values).unwrap().to_dtype(dtype);
            assert!(bad.first_not_finite().is_some_and(|(i, v)| i == 3 && !v.is_finite()));
            tensors.insert(names::FINAL_NORM.to_owned(), bad);
            let error = Weights::from_tensors(tensors, &config).unwrap_err().to_string();
            let wanted = format!("{}: value 3 of 8 is {text}", names::FINAL_NORM);
            assert!(error.contains(&wanted), "{error}");
        }
    }
    let largest = Tensor::from_f32([2], &[f32::MAX, f32::MIN_POSITIVE / 2.0]).unwrap();
    assert_eq!(largest.first_not_finite(), None);
}

#[test]
fn shards_load_as_one_file_does() {
    let config = small(false);
    let tensors = numbered(&config);
    let dir = tempfile::tempdir().unwrap();
    let (mut map, mut parts) = (BTreeMap::new(), [BTreeMap::new(), BTreeMap::new()]);
    for (i, (name, tensor)) in tensors.iter().enumerate() {
        map.insert(name.clone(), format!("model-{}.safetensors", i % 2));
        parts[i % 2].insert(name.clone(), tensor.clone());
    }
    for (i, part) in parts.iter().enumerate() {
        write_file(&dir.path().join(format!("model-{i}.safetensors")), part).unwrap();
    }
    let index = dir.path().join(INDEX);
    fs::write(&index, json!({"metadata": {}, "weight_map": map}).to_string()).unwrap();
    let whole = Weights::from_tensors(tensors, &config).unwrap();
    let sharded = Weights::load(dir.path(), &config).unwrap();
    assert_eq!(sharded, whole);
    assert_eq!(sharded.sha256(), whole.sha256());

    let mut wrong = map.clone();
    wrong.insert(names::HEAD.to_owned(), "../model-0.safetensors".to_owned());
    fs::write(&index, json!({"weight_map": wrong}).to_string()).unwrap();
    assert!(error(dir.path(), &config).contains("no safetensors file of this folder"));
    wrong.insert(
        names::HEAD.to_owned(),
        if map[names::HEAD].ends_with("0.safetensors") {
            "model-1.safetensors"
        } else {
            "model-0.safetensors"
        }
        .to_owned(),
    );
    fs::write(&index, json!({"weight_map": wrong}).to_string()).unwrap();
    assert!(error(dir.path(), &config).contains(names::HEAD));
    fs::remove_file(dir.path().join("model-1.safetensors")).unwrap();
    fs::write(&index, json!({"weight_map": map}).to_string()).unwrap();
    assert!(error(dir.path(), &config).contains("model-1.safetensors"));
}

#[test]
fn missing_unexpected_and_misshapen_tensors_are_named() {
    let config = small(true);
    let check =
        |tensors: BTreeMap<String, Tensor>| Weights::from_tensors(tensors, &config).unwrap_err().to_string();
    let mut tensors = numbered(&config);
    tensors.remove("model.layers.1.mlp.up_proj.weight");
    let message = check(tensors);
    assert!(
        message.contains("missing: `model.layers.1.mlp.up_proj.weight`") && message.contains("26"),
        "{message}"
    );
    let mut tensors = numbered(&config);
    tensors.insert("model.layers.2.mlp.up_proj.weight".to_owned(), Tensor::from_f32([1], &[0.0]).unwrap());
    assert!(check(tensors).contains("unexpected: `model.layers.2.mlp.up_proj.weight`"));
    let mut tensors = numbered(&config);
    let name = "model.layers.0.mlp.down_proj.weight";
    let transposed = Tensor::from_f32([12, 8], &vec![0.0; 96]).unwrap();
    tensors.insert(name.to_owned(), transposed);
    let message = check(tensors);
    assert!(
        message.contains(name) && message.contains("[12, 8]") && message.contains("[8, 12]"),
        "{message}"
    );
}

#[test]
fn a_head_of_a_tied_model_must_be_its_embedding() {
    let config = small(true);
    let mut tensors = numbered(&config);
    tensors.insert(names::HEAD.to_owned(), tensors[names::EMBEDDING].clone());
    assert_eq!(Weights::from_tensors(tensors.clone(), &config).unwrap().len(), 26);
    tensors.insert(names::HEAD.to_owned(), Tensor::from_f32([10, 8], &[0.5; 80]).unwrap());
    assert!(Weights::from_tensors(tensors, &config).unwrap_err().to_string().contains("tie_word_embeddings"));
    let untied = small(false);
    assert!(
        Weights::from_tensors(numbered(&config), &untied)
            .unwrap_err()
            .to_string()
            .contains("missing: `lm_head.weight`")
    );
}

#[test]
fn damaged_files_are_errors_that_name_the_file() {
    let config = small(true);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE);
    assert!(error(dir.path(), &config).contains(FILE), "a missing file");
    write_file(&path, &numbered(&config)).unwrap();
    let whole = fs::read(&path).unwrap();
    for length in [0, 4, 8, 100, whole.len() / 2, whole.len() - 1] {
        fs::write(&path, &whole[..length]).unwrap();
        let message = error(dir.path(), &config);
        assert!(message.contains(FILE) && message.contains("damaged"), "{length}: {message}");
    }
    let mut longer = whole.clone();
    longer.push(0);
    fs::write(&path, longer).unwrap();
    assert!(error(dir.path(), &config).contains("damaged"));
    let mut header = whole.clone();
    header[20] = 0xff;
    fs::write(&path, header).unwrap();
    assert!(error(dir.path(), &config).contains("damaged"));
    let mut huge = whole;
    huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    fs::write(&path, huge).unwrap();
    assert!(error(dir.path(), &config).contains("damaged"));
}

#[test]
fn a_dtype_that_is_no_weight_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE);
    let bytes = [0u8; 8];
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::I64, vec![1], &bytes).unwrap();
    safetensors::serialize_to_file([("x", view)], None, &path).unwrap();
    let message = read_file(&path).unwrap_err().to_string();
    assert!(message.contains("x: ") && message.contains("I64"), "{message}");
}

#[test]
fn seeded_weights_depend_on_the_seed_alone() {
    let config = small(false);
    let a = init::random_weights(&config, 1);
    assert_eq!(a, init::random_weights(&config, 1));
    assert_ne!(a.sha256(), init::random_weights(&config, 2).sha256());
    assert_eq!(
        Weights::from_tensors(a.iter().map(|(n, t)| (n.to_owned(), t.clone())).collect(), &config).unwrap(),
        a
    );
    assert!(a.get(names::FINAL_NORM).unwrap().to_f32().iter().all(|v| *v == 1.0));
    assert!(a.get("model.layers.0.self_attn.q_proj.bias").unwrap().to_f32().iter().all(|v| *v == 0.0));
    let rounded = init::random_weights_in(&config, 1, Dtype::Bf16);
    assert_eq!(rounded.get(names::EMBEDDING), Some(&a.get(names::EMBEDDING).unwrap().to_dtype(Dtype::Bf16)));
}

#[test]
fn seeded_weights_have_the_deviation_of_the_initializer() {
    let config = init::architecture("tiny").unwrap();
    let values = init::random_weights(&config, 42).get(names::EMBEDDING).unwrap().to_f32();
    let n = values.len() as f64;
    let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / n;
    let deviation = (values.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / n).sqrt();
    assert!(mean.abs() < 1e-4 && (deviation / init::STD - 1.0).abs() < 0.01, "{mean} {deviation}");
}

/// These bytes must be the same on every machine: they are the model that the embedded profile starts from.
#[test]
fn seeded_weights_are_the_same_on_every_machine() {
    let config = init::architecture("tiny").unwrap();
    let found = init::random_weights(&config, 42).sha256();
    assert_eq!(found, include_str!("data/tiny-42.sha256").trim());
}
