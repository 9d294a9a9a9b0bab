//! `config.json` and `generation_config.json`: what loads and what is refused.

mod common;

use std::collections::BTreeMap;

use model::config::{Config, GenerationConfig};
use model::names::Projection;
use model::{Dtype, init, names};
use serde_json::{Value, json};

fn published() -> Value {
    json!({
        "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151645,
        "hidden_act": "silu", "hidden_size": 896, "initializer_range": 0.02, "intermediate_size": 4864,
        "max_position_embeddings": 32768, "max_window_layers": 24, "model_type": "qwen2", "num_attention_heads": 14,
        "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
        "sliding_window": 32768, "tie_word_embeddings": true, "torch_dtype": "bfloat16", "use_sliding_window": false,
        "vocab_size": 151936
    })
}

#[test]
fn both_spellings_of_rope_theta_load() {
    let config = Config::from_json(&published().to_string()).unwrap();
    assert_eq!(Some(&config), init::architecture("qwen2.5-coder-0.5b").as_ref());
    let mut nested = published();
    nested.as_object_mut().unwrap().remove("rope_theta");
    nested["rope_parameters"] = json!({"rope_theta": 1000000.0, "rope_type": "default"});
    assert_eq!(Config::from_json(&nested.to_string()).unwrap(), config);
    nested["rope_theta"] = json!(10.0);
    assert!(Config::from_json(&nested.to_string()).unwrap_err().to_string().contains("rope_theta"));
    let golden = Config::from_dir(&common::golden("qwen2-gqa7/model")).unwrap();
    assert_eq!((golden.rope_theta, golden.group_size(), golden.head_dim), (1e6, 7, 64));
}

#[test]
fn the_shape_of_the_default_model_has_its_published_counts() {
    let config = Config::from_json(&published().to_string()).unwrap();
    let tensors = names::expected(&config);
    assert_eq!(tensors.len(), 290);
    assert_eq!(names::n_parameters(&config), 494_032_768);
    assert_eq!((config.head_dim, config.kv_dim(), config.group_size()), (64, 128, 7));
    let mut untied = published();
    untied["tie_word_embeddings"] = json!(false);
    assert_eq!(names::expected(&Config::from_json(&untied.to_string()).unwrap()).len(), 291);
}

#[test]
fn heads_may_be_wider_or_narrower_than_the_hidden_size() {
    for (hidden, head_dim) in [(896, 128), (896, 32), (897, 64)] {
        let mut json = published();
        json["hidden_size"] = json!(hidden);
        json["head_dim"] = json!(head_dim);
        let config = Config::from_json(&json.to_string()).unwrap();
        assert_eq!((config.q_dim(), config.kv_dim()), (14 * head_dim, 2 * head_dim));
        let shapes: BTreeMap<String, Vec<usize>> = names::expected(&config).into_iter().collect();
        let shape = |projection| shapes[&names::weight(0, projection)].clone();
        assert_eq!(shape(Projection::Q), [14 * head_dim, hidden]);
        assert_eq!(shape(Projection::K), [2 * head_dim, hidden]);
        assert_eq!(shape(Projection::O), [hidden, 14 * head_dim]);
        assert_eq!(Config::from_json(&config.to_json(Dtype::F32)).unwrap(), config);
    }
}

#[test]
fn what_was_written_reads_the_same() {
    for name in init::ARCHITECTURES {
        let config = init::architecture(name).unwrap();
        assert_eq!(Config::from_json(&config.to_json(Dtype::Bf16)).unwrap(), config);
    }
    assert_eq!(init::architecture("nothing"), None);
}

#[test]
fn a_fault_is_refused_and_its_field_named() {
    let faults = [
        ("model_type", json!("llama")),
        ("hidden_act", json!("gelu")),
        ("hidden_size", json!(0)),
        ("hidden_size", json!(-4)),
        ("hidden_size", json!("896")),
        ("hidden_size", json!(897)),
        ("num_hidden_layers", json!(1_000_000)),
        ("num_key_value_heads", json!(3)),
        ("num_key_value_heads", json!(0)),
        ("vocab_size", json!(18_446_744_073_709_551_615u64)),
        ("rope_theta", json!(0.0)),
        ("rope_theta", json!("big")),
        ("rms_norm_eps", json!(-1e-6)),
        ("use_sliding_window", json!(true)),
        ("rope_scaling", json!({"type": "yarn", "factor": 4.0})),
        ("rope_parameters", json!({"rope_type": "linear", "rope_theta": 1e6})),
        ("quantization_config", json!({"bits": 4})),
        ("layer_types", json!(["full_attention"])),
        ("head_dim", json!(63)),
        ("head_dim", json!(0)),
        ("head_dim", json!(1 << 25)),
        ("tie_word_embeddings", json!("yes")),
    ];
    for (field, value) in faults {
        let mut json = published();
        json[field] = value.clone();
        let error = Config::from_json(&json.to_string()).expect_err(&format!("{field} = {value}"));
        assert!(error.to_string().contains(&format!("`{field}`")), "{field} = {value}: {error}");
    }
    for field in [
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "vocab_size",
        "model_type",
    ] {
        let mut json = published();
        json.as_object_mut().unwrap().remove(field);
        let error = Config::from_json(&json.to_string()).unwrap_err().to_string();
        assert!(error.contains(field) && error.contains("missing"), "{error}");
    }
}

#[test]
fn a_missing_or_damaged_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let error = Config::from_dir(dir.path()).unwrap_err();
    assert!(error.place().ends_with("config.json"));
    for text in ["", "{", "[]", "{\"model_type\": \"qwen2\""] {
        std::fs::write(dir.path().join("config.json"), text).unwrap();
        let error = Config::from_dir(dir.path()).unwrap_err();
        assert!(error.place().contains("config.json"), "{error}");
    }
}

#[test]
fn stop_tokens_come_from_the_generation_config_then_from_the_config() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, value: Value| std::fs::write(dir.path().join(name), value.to_string()).unwrap();
    assert_eq!(GenerationConfig::from_dir(dir.path()).unwrap(), GenerationConfig::default());
    write("config.json", json!({"eos_token_id": 5, "bos_token_id": null}));
    assert_eq!(GenerationConfig::from_dir(dir.path()).unwrap().eos_token_ids, [5]);
    write("generation_config.json", json!({"eos_token_id": [7, 8], "pad_token_id": 9}));
    let config = GenerationConfig::from_dir(dir.path()).unwrap();
    assert_eq!((config.eos_token_ids.as_slice(), config.pad_token_id), ([7, 8].as_slice(), Some(9)));
    std::fs::write(dir.path().join("generation_config.json"), config.to_json()).unwrap();
    assert_eq!(GenerationConfig::from_dir(dir.path()).unwrap(), config);
    write("generation_config.json", json!({"eos_token_id": "x"}));
    assert!(GenerationConfig::from_dir(dir.path()).unwrap_err().to_string().contains("eos_token_id"));
}
