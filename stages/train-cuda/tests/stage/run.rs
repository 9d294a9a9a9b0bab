//! What a run leaves behind: weights that learned something, checkpoints, live files, logs.

use std::fs;
use std::path::Path;

use record::event::{Event, EventKind};
use record::model::ModelManifest;
use record::training::{
    StepRecord, TrainingManifest, TrainingMetrics, TrainingState, TrainingStatus, ValidationRecord,
};
use stage_kit::files::read_json;

use crate::support::{args, golden, jsonl, made_up_rows, program, stderr, tensors, tree, write_tokens};

fn tokens(dir: &Path) -> std::path::PathBuf {
    let tokens = dir.join("tokens");
    write_tokens(&tokens, &made_up_rows(30, 1, 640), &made_up_rows(6, 2, 640));
    tokens
}

/// Runs the program on the golden model and made-up rows.
fn run(out: &Path, tokens: &Path, more: &[&str], also: &[&str]) {
    let mut args = args(&golden("qwen2-tiny/model"), tokens, out, more);
    args.extend(also.iter().map(|a| (*a).to_owned()));
    let output = program(&args).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
}

fn steps(out: &Path) -> Vec<StepRecord> {
    jsonl(&out.join("checkpoints/steps.jsonl"))
}

const LORA: [&str; 7] =
    ["adapter", "mode=lora", "batch=2", "accumulation=2", "epochs=4", "lr=1e-2", "save_every=5"];

#[test]
fn an_adapter_learns_and_the_base_stays() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    run(&out, &tokens(dir.path()), &LORA, &[]);
    let manifest: TrainingManifest = read_json(&out.join("adapter/manifest.json")).unwrap();
    // 30 rows, 4 to a step: 8 steps an epoch, the last one of 2 rows.
    assert_eq!((manifest.steps, manifest.epochs, manifest.backend.as_str()), (32, 4, "cpu"));
    assert_eq!(manifest.base_model_sha256_after.as_ref(), Some(&manifest.base_model_sha256));
    let best = manifest.best_validation_loss.unwrap();
    assert!(best < manifest.validation_loss_before.unwrap(), "{manifest:?}");
    assert!(manifest.final_train_loss < 0.9 * manifest.first_train_loss, "{manifest:?}");
    let validations: Vec<ValidationRecord> = jsonl(&out.join("checkpoints/validation.jsonl"));
    assert_eq!(
        validations.iter().map(|v| (v.step, v.epoch)).collect::<Vec<_>>(),
        [(0, 0), (8, 1), (16, 2), (24, 3), (32, 4)]
    );
    let lowest = validations[1..].iter().min_by(|a, b| a.loss.total_cmp(&b.loss)).unwrap();
    assert_eq!((lowest.step, lowest.loss), (manifest.selected_step, best));
    let adapter = fs::read(out.join("adapter/adapter_model.safetensors")).unwrap();
    assert_eq!(stage_kit::digest::sha256_hex(&adapter), manifest.weights_sha256);
    assert_eq!(fs::read(out.join("checkpoints/best/adapter_model.safetensors")).unwrap(), adapter);
    assert_eq!(
        manifest.n_trainable,
        tensors(&out.join("adapter/adapter_model.safetensors"))
            .values()
            .map(|t| t.1.len() as u64)
            .sum::<u64>()
    );
}

#[test]
fn at_most_three_steps_are_kept_beside_the_best() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    run(&out, &tokens(dir.path()), &LORA, &[]);
    let mut names: Vec<String> = fs::read_dir(out.join("checkpoints"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["best", "step-25", "step-30", "step-32", "steps.jsonl", "validation.jsonl"]);
}

#[test]
fn what_can_be_watched_and_what_is_logged() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    run(&out, &tokens(dir.path()), &LORA, &[]);
    let state: TrainingState = read_json(&out.join("live/training_state.json")).unwrap();
    assert_eq!(state.status, TrainingStatus::Completed);
    assert_eq!((state.epoch, state.total_epochs, state.step, state.steps_per_epoch), (4, 4, 8, 8));
    assert!(state.gpu.is_none() && state.sample.is_none() && state.tokens_per_second > 0.0);
    let events: Vec<Event> = jsonl(&out.join("log/events.jsonl"));
    let seen: Vec<StepRecord> = events
        .into_iter()
        .filter_map(|e| match e.kind {
            EventKind::Step(record) => Some(record),
            _ => None,
        })
        .collect();
    assert_eq!(seen, steps(&out));
    assert_eq!(state.loss_history, seen.iter().map(|s| s.loss).collect::<Vec<_>>());
    let log = fs::read_to_string(out.join("log/training.log")).unwrap();
    assert!(log.contains("step 32 epoch 4 loss") && log.contains("validation after step 0"), "{log}");
    let metrics: TrainingMetrics = read_json(&out.join("log/metrics.json")).unwrap();
    assert_eq!((metrics.backend.as_str(), metrics.steps, metrics.peak_vram_bytes), ("cpu", 32, None));
    assert!(metrics.tokens_per_s > 0.0 && metrics.planned_peak_bytes > 0);
}

/// Fields of a protocol buffer: number and, for length-delimited ones, the bytes.
fn fields(mut bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let (mut value, mut shift) = (0, 0);
        loop {
            let byte = bytes[0];
            *bytes = &bytes[1..];
            value |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte < 0x80 {
                return value;
            }
        }
    }
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let n = match key & 7 {
            0 => {
                found.push((key >> 3, varint(&mut bytes).to_le_bytes().to_vec()));
                continue;
            }
            1 => 8,
            5 => 4,
            2 => varint(&mut bytes) as usize,
            other => panic!("wire type {other}"),
        };
        found.push((key >> 3, bytes[..n].to_vec()));
        bytes = &bytes[n..];
    }
    found
}

#[test]
fn tensorboard_reads_loss_rate_gradient_and_validation() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    run(&out, &tokens(dir.path()), &LORA, &[]);
    let log = tree(&out.join("log"));
    let (_, bytes) = log.iter().find(|(name, _)| name.starts_with("events.out.tfevents.")).unwrap();
    let mut rest = bytes.as_slice();
    let mut scalars: Vec<(String, u64, f32)> = Vec::new();
    while !rest.is_empty() {
        let n = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
        let (head, sum) = (&rest[..8], u32::from_le_bytes(rest[8..12].try_into().unwrap()));
        assert_eq!(train_cuda::masked_crc32c(head), sum);
        let event = &rest[12..12 + n];
        assert_eq!(
            train_cuda::masked_crc32c(event),
            u32::from_le_bytes(rest[12 + n..16 + n].try_into().unwrap())
        );
        rest = &rest[16 + n..];
        let event = fields(event);
        let step = event
            .iter()
            .find(|f| f.0 == 2)
            .map_or(0, |f| u64::from_le_bytes(f.1.as_slice().try_into().unwrap()));
        for (_, summary) in event.iter().filter(|f| f.0 == 5) {
            for (_, value) in fields(summary) {
                let value = fields(&value);
                let tag = String::from_utf8(value[0].1.clone()).unwrap();
                scalars.push((tag, step, f32::from_le_bytes(value[1].1.as_slice().try_into().unwrap())));
            }
        }
    }
    let of = |tag: &str| scalars.iter().filter(|s| s.0 == tag).map(|s| (s.1, s.2)).collect::<Vec<_>>();
    let records = steps(&out);
    assert_eq!(of("loss"), records.iter().map(|s| (s.step, s.loss as f32)).collect::<Vec<_>>());
    assert_eq!(of("lr"), records.iter().map(|s| (s.step, s.lr as f32)).collect::<Vec<_>>());
    assert_eq!(of("grad_norm"), records.iter().map(|s| (s.step, s.grad_norm as f32)).collect::<Vec<_>>());
    assert_eq!(of("val").iter().map(|v| v.0).collect::<Vec<_>>(), [0, 8, 16, 24, 32]);
}

#[test]
fn the_same_bytes_at_one_and_two_threads_and_another_seed_differs() {
    let dir = tempfile::tempdir().unwrap();
    let tokens = tokens(dir.path());
    let outputs = |name: &str, also: &[&str]| {
        let out = dir.path().join(name);
        run(&out, &tokens, &LORA, also);
        (tree(&out.join("adapter")), tree(&out.join("checkpoints")))
    };
    let one = outputs("one", &["--cpus", "1"]);
    assert!(one == outputs("two", &["--cpus", "2"]), "threads change the result");
    assert!(one != outputs("seed", &["--seed", "43"]), "the seed does not change the result");
}

#[test]
fn full_mode_writes_a_model_that_is_trained_on() {
    let dir = tempfile::tempdir().unwrap();
    let tokens = tokens(dir.path());
    let out = dir.path().join("full");
    run(
        &out,
        &tokens,
        &["model", "mode=full", "batch=4", "accumulation=1", "epochs=3", "lr=1e-3", "select=last"],
        &[],
    );
    let manifest: ModelManifest = read_json(&out.join("model/manifest.json")).unwrap();
    let training: TrainingManifest = read_json(&out.join("model/training_manifest.json")).unwrap();
    assert_eq!((training.kind.as_str(), training.base_model_sha256_after), ("model", None));
    assert_eq!(training.n_trainable, manifest.n_parameters);
    assert!(training.final_train_loss < training.first_train_loss);
    assert!(
        manifest.files.contains_key("generation_config.json")
            && manifest.files.contains_key("training_manifest.json")
    );
    assert_ne!(manifest.model_sha256, training.model_sha256);
    // The result is a model like any other: an adapter is trained on it, from the loss that it ended with.
    let next = dir.path().join("next");
    let mut args =
        args(&out.join("model"), &tokens, &next, &["adapter", "mode=qlora", "epochs=1", "dropout=0"]);
    args.push("--overwrite".into());
    let output = program(&args).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let adapter: TrainingManifest = read_json(&next.join("adapter/manifest.json")).unwrap();
    assert_eq!((adapter.mode.as_str(), adapter.model_sha256), ("qlora", manifest.model_sha256));
    let last: Vec<ValidationRecord> = jsonl(&out.join("checkpoints/validation.jsonl"));
    let (ended, begins) = (last.last().unwrap().loss, adapter.validation_loss_before.unwrap());
    assert!((begins / ended - 1.0).abs() < 0.1, "4-bit storage moved the loss from {ended} to {begins}");
}

#[test]
fn an_adapter_goes_on_from_an_adapter() {
    let dir = tempfile::tempdir().unwrap();
    let tokens = tokens(dir.path());
    let (first, second) = (dir.path().join("first"), dir.path().join("second"));
    run(&first, &tokens, &[&LORA[..], &["select=last"]].concat(), &[]);
    let start = format!("adapter_start={}", first.join("adapter").display());
    run(&second, &tokens, &LORA, &["--input", &start]);
    let manifest: TrainingManifest = read_json(&second.join("adapter/manifest.json")).unwrap();
    let ended: Vec<ValidationRecord> = jsonl(&first.join("checkpoints/validation.jsonl"));
    assert_eq!(manifest.validation_loss_before, Some(ended.last().unwrap().loss));
}

#[test]
fn max_steps_ends_the_run_and_its_schedule() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    run(
        &out,
        &tokens(dir.path()),
        &[&LORA[..], &["max_steps=6", "warmup_ratio=0", "min_lr_ratio=0"]].concat(),
        &[],
    );
    let rates: Vec<f64> = steps(&out).iter().map(|s| s.lr).collect();
    assert_eq!((rates.len(), rates[0]), (6, 1e-2));
    assert!((rates[3] - 5e-3).abs() < 1e-15, "half way down the cosine after half the steps: {rates:?}");
}

#[test]
fn qlora_is_lora_on_the_base_that_4_bit_storage_gives_back() {
    use model::config::Config;
    use model::names::Projection;
    use model::nf4::Nf4;
    use model::weights::Weights;
    use model::{Dtype, Tensor};
    let dir = tempfile::tempdir().unwrap();
    let tokens = tokens(dir.path());
    let source = golden("qwen2-tiny/model");
    let config = Config::from_dir(&source).unwrap();
    let stored = |(name, tensor): (&str, &Tensor)| {
        let is_projection = Projection::ALL.iter().any(|p| name.ends_with(&format!("{}.weight", p.path())));
        let values = if is_projection {
            Nf4::quantize(&tensor.to_f32(), true).unwrap().dequantize()
        } else {
            tensor.to_f32()
        };
        (name.to_owned(), Tensor::from_f32(tensor.shape(), &values).unwrap())
    };
    let weights = Weights::load(&source, &config).unwrap();
    let dequantised = dir.path().join("dequantised");
    fs::create_dir(&dequantised).unwrap();
    let given_back = Weights::from_tensors(weights.iter().map(stored).collect(), &config).unwrap();
    assert_ne!(given_back, weights);
    given_back.save(&dequantised, None).unwrap();
    fs::write(dequantised.join("config.json"), config.to_json(Dtype::F32)).unwrap();
    let train = |name: &str, model: &Path, mode: &str| {
        let out = dir.path().join(name);
        let output = program(&args(model, &tokens, &out, &[&LORA[..], &[mode]].concat())).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        (steps(&out), fs::read(out.join("adapter/adapter_model.safetensors")).unwrap())
    };
    let qlora = train("qlora", &source, "mode=qlora");
    assert!(qlora == train("lora", &dequantised, "mode=lora"), "qlora trained on another base");
    assert!(qlora != train("plain", &source, "mode=lora"), "4-bit storage changed nothing");
}

#[test]
fn accumulation_is_a_larger_batch() {
    let dir = tempfile::tempdir().unwrap();
    let tokens = tokens(dir.path());
    let train = |name: &str, batch: &str, accumulation: &str| {
        let out = dir.path().join(name);
        run(
            &out,
            &tokens,
            &["adapter", "mode=lora", "epochs=2", "dropout=0.1", "select=last", batch, accumulation],
            &[],
        );
        (steps(&out), tensors(&out.join("adapter/adapter_model.safetensors")))
    };
    let (one, adapter) = train("one", "batch=16", "accumulation=1");
    let (many, accumulated) = train("many", "batch=4", "accumulation=4");
    assert_eq!(one.len(), many.len());
    for (a, b) in one.iter().zip(&many) {
        assert_eq!((a.label_tokens, a.tokens), (b.label_tokens, b.tokens));
        assert!(
            (a.loss / b.loss - 1.0).abs() < 1e-6 && (a.grad_norm / b.grad_norm - 1.0).abs() < 1e-5,
            "{a:?} {b:?}"
        );
    }
    let sum = |f: &dyn Fn(f64, f64) -> f64| -> f64 {
        adapter
            .iter()
            .flat_map(|(name, (_, a))| a.iter().zip(&accumulated[name].1))
            .map(|(&a, &b)| f(a, b))
            .sum()
    };
    let off = (sum(&|a, b| (a - b) * (a - b)) / sum(&|_, b| b * b)).sqrt();
    assert!(off < 1e-5, "{off}");
}

#[test]
fn alpha_scales_what_an_adapter_does() {
    let dir = tempfile::tempdir().unwrap();
    let tokens = tokens(dir.path());
    let first = |name: &str, alpha: &str| {
        let out = dir.path().join(name);
        run(&out, &tokens, &[&LORA[..], &["max_steps=1", "dropout=0", alpha]].concat(), &[]);
        steps(&out).remove(0)
    };
    let (once, twice) = (first("once", "alpha=32"), first("twice", "alpha=64"));
    // B is zero at first: the model is the base whatever alpha is, and B's gradient carries the scale.
    assert_eq!(once.loss, twice.loss);
    assert!((twice.grad_norm / once.grad_norm - 2.0).abs() < 1e-4, "{once:?} {twice:?}");
}
