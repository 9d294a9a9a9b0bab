//! Adapters: PEFT's files, fresh ones, and what does not fit.

mod common;

use std::fs;

use common::{golden, small};
use model::adapter::{Adapter, CONFIG_FILE, FILE, LoraConfig, expected, name};
use model::config::Config;
use model::names::{LORA_TARGETS, Projection};
use model::{Tensor, init};
use serde_json::{Value, json};

#[test]
fn adapters_of_peft_load_and_save_to_the_same_tensors() {
    for case in ["qwen2-tiny", "qwen2-gqa7"] {
        let model = Config::from_dir(&golden(&format!("{case}/model"))).unwrap();
        let adapter = Adapter::load(&golden(&format!("{case}/adapter_start")), &model).unwrap();
        assert_eq!((adapter.config.r, adapter.config.alpha, adapter.config.scaling()), (16, 32.0, 2.0));
        assert_eq!(adapter.config.target_modules, Projection::ALL);
        assert_eq!(adapter.tensors.len(), model.num_hidden_layers * 14);
        let dir = tempfile::tempdir().unwrap();
        adapter.save(dir.path()).unwrap();
        assert_eq!(Adapter::load(dir.path(), &model).unwrap(), adapter);
        let written: Value =
            serde_json::from_str(&fs::read_to_string(dir.path().join(CONFIG_FILE)).unwrap()).unwrap();
        let theirs = fs::read_to_string(golden(&format!("{case}/adapter_start/{CONFIG_FILE}"))).unwrap();
        let theirs: Value = serde_json::from_str(&theirs).unwrap();
        for field in [
            "peft_type",
            "task_type",
            "r",
            "lora_alpha",
            "bias",
            "fan_in_fan_out",
            "inference_mode",
            "use_dora",
        ] {
            assert_eq!(written[field], theirs[field], "{field}");
        }
        let bytes = fs::read(dir.path().join(FILE)).unwrap();
        adapter.save(dir.path()).unwrap();
        assert_eq!(fs::read(dir.path().join(FILE)).unwrap(), bytes);
    }
}

#[test]
fn the_default_shape_has_336_tensors_and_8_798_208_parameters() {
    let model = init::architecture("qwen2.5-coder-0.5b").unwrap();
    let lora = LoraConfig::default();
    let tensors = expected(&model, &lora);
    assert_eq!(tensors.len(), 336);
    assert_eq!(tensors.iter().map(|(_, s)| s.iter().product::<usize>()).sum::<usize>(), 8_798_208);
    let fresh = Adapter::init(&model, &lora, 42);
    assert_eq!((fresh.tensors.len(), fresh.n_parameters()), (336, 8_798_208));
    fresh.check(&model, "fresh").unwrap();
}

#[test]
fn a_fresh_adapter_changes_nothing_and_depends_on_the_seed_alone() {
    let (model, lora) = (small(true), LoraConfig { r: 4, ..LoraConfig::default() });
    let a = Adapter::init(&model, &lora, 1);
    assert_eq!(a, Adapter::init(&model, &lora, 1));
    assert_ne!(a.sha256(), Adapter::init(&model, &lora, 2).sha256());
    for layer in 0..2 {
        for module in Projection::ALL {
            assert!(a.values(layer, module, 'B').unwrap().iter().all(|v| *v == 0.0));
            let (_, inputs) = module.shape(&model);
            let bound = 1.0 / (inputs as f32).sqrt();
            let values = a.values(layer, module, 'A').unwrap();
            assert!(values.iter().all(|v| v.abs() <= bound));
            assert!(values.iter().any(|v| v.abs() > bound / 2.0));
        }
    }
    assert_ne!(a.values(0, Projection::Q, 'A'), a.values(1, Projection::Q, 'A'));
    assert_ne!(a.values(0, Projection::Q, 'A'), a.values(0, Projection::K, 'A'));
}

#[test]
fn names_are_those_of_peft() {
    assert_eq!(LORA_TARGETS, ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]);
    assert_eq!(name(3, Projection::Q, 'A'), "base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight");
    assert_eq!(name(0, Projection::Down, 'B'), "base_model.model.model.layers.0.mlp.down_proj.lora_B.weight");
}

#[test]
fn tensors_that_do_not_fit_the_model_are_named() {
    let (model, lora) = (small(true), LoraConfig { r: 4, ..LoraConfig::default() });
    let whole = Adapter::init(&model, &lora, 1);
    let key = name(1, Projection::Up, 'B');
    let check = |adapter: &Adapter| adapter.check(&model, "file").unwrap_err().to_string();
    let mut adapter = whole.clone();
    adapter.tensors.remove(&key);
    assert!(check(&adapter).contains(&format!("{key}: is missing")));
    let mut adapter = whole.clone();
    adapter.tensors.insert(key.clone(), Tensor::from_f32([4, 12], &[0.0; 48]).unwrap());
    assert!(check(&adapter).contains("[4, 12]") && check(&adapter).contains("[12, 4]"));
    let mut adapter = whole.clone();
    adapter.tensors.insert(name(2, Projection::Up, 'B'), Tensor::from_f32([12, 4], &[0.0; 48]).unwrap());
    assert!(check(&adapter).contains("unexpected"));
    let deeper = Config { num_hidden_layers: 3, ..model.clone() };
    assert!(whole.check(&deeper, "file").is_err());
}

#[test]
fn variants_of_lora_that_do_not_run_here_are_refused_by_field() {
    let whole = json!({"peft_type": "LORA", "r": 8, "lora_alpha": 16, "lora_dropout": 0.1, "target_modules": ["v_proj", "q_proj"], "bias": "none"});
    let config = LoraConfig::from_json(&whole.to_string(), "c").unwrap();
    assert_eq!(config.target_modules, [Projection::Q, Projection::V]);
    let faults = [
        ("peft_type", json!("IA3")),
        ("use_dora", json!(true)),
        ("use_rslora", json!(true)),
        ("fan_in_fan_out", json!(true)),
        ("modules_to_save", json!(["lm_head"])),
        ("rank_pattern", json!({"q_proj": 4})),
        ("alpha_pattern", json!({"q_proj": 4})),
        ("layers_to_transform", json!([1])),
        ("init_lora_weights", json!("pissa")),
        ("init_lora_weights", json!("pissa_niter_4")),
        ("init_lora_weights", json!("olora")),
        ("use_bdlora", json!({"nblocks": 2})),
        ("alora_invocation_tokens", json!([1, 2])),
        ("loftq_config", json!({"loftq_bits": 4})),
        ("megatron_config", json!({"a": 1})),
        ("bias", json!("all")),
        ("target_modules", json!(["lm_head"])),
        ("target_modules", json!([])),
        ("target_modules", json!(".*_proj")),
        ("r", json!(0)),
        ("r", json!("8")),
        ("lora_alpha", json!("x")),
        ("lora_dropout", json!(1.0)),
    ];
    for (field, value) in faults {
        let mut json = whole.clone();
        json[field] = value.clone();
        let error = LoraConfig::from_json(&json.to_string(), "c")
            .expect_err(&format!("{field} = {value}"))
            .to_string();
        assert!(error.contains(&format!("`{field}`")), "{error}");
    }
    for (field, value) in [
        ("init_lora_weights", json!("gaussian")),
        ("init_lora_weights", json!(true)),
        ("loftq_config", json!({})),
        ("use_bdlora", Value::Null),
        ("alora_invocation_tokens", Value::Null),
    ] {
        let mut json = whole.clone();
        json[field] = value;
        assert_eq!(LoraConfig::from_json(&json.to_string(), "c").unwrap(), config, "{field}");
    }
    let written = LoraConfig { alpha: 1.5, ..config };
    assert_eq!(LoraConfig::from_json(&written.to_json(), "c").unwrap(), written);
}
