//! The program on a GPU; these tests fail where there is none.

use std::collections::BTreeMap;
use std::path::Path;

use record::training::{StepRecord, TrainingState, ValidationRecord};
use rustix::process::Signal;

use crate::resume::{Setup, compare, complete, setup, stop_after};
use crate::support::{jsonl, stderr};

const ON_GPU: [&str; 3] = ["device=cuda", "checkpoint_every=7", "validate_every=11"];

fn on_gpu(dir: &Path, result: &'static str, more: &[&'static str]) -> Setup {
    Setup { sees_gpu: true, ..setup(dir, [&[result], &ON_GPU[..], more].concat()) }
}

#[test]
fn two_processes_and_one_that_was_stopped_twice_write_the_same_bytes() {
    let cases: [(&str, &[&str]); 4] = [
        (
            "adapter",
            &["mode=qlora", "precision=bfloat16", "batch=2", "accumulation=2", "epochs=60", "dropout=0.1"],
        ),
        (
            "adapter",
            &["mode=qlora", "precision=bfloat16", "preset=budget", "batch=2", "accumulation=2", "epochs=60"],
        ),
        (
            "adapter",
            &["mode=lora", "precision=float32", "batch=3", "accumulation=1", "epochs=60", "dropout=0.3"],
        ),
        ("model", &["mode=full", "precision=bfloat16", "batch=4", "accumulation=1", "epochs=60", "lr=1e-4"]),
    ];
    for (result, more) in cases {
        let dir = tempfile::tempdir().unwrap();
        let setup = on_gpu(dir.path(), result, more);
        let out = |name: &str| dir.path().join(name);
        complete(&setup, &out("one"));
        complete(&setup, &out("two"));
        compare(&setup, &out("one"), &out("two"));
        assert_eq!(stop_after(&setup, &out("stopped"), 9, Signal::TERM), Some(130), "{more:?}");
        assert_eq!(stop_after(&setup, &out("stopped"), 15, Signal::KILL), None, "{more:?}");
        complete(&setup, &out("stopped"));
        compare(&setup, &out("one"), &out("stopped"));
    }
}

fn steps(out: &Path) -> Vec<StepRecord> {
    jsonl(&out.join("checkpoints/steps.jsonl"))
}

/// In float32 the GPU's losses are the CPU's, step by step, whatever memory allows at a time.
#[test]
fn losses_are_the_cpu_s_however_many_tokens_go_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let more = ["mode=lora", "batch=4", "accumulation=2", "epochs=3", "dropout=0.1", "lr=1e-3"];
    let out = |name: &str| dir.path().join(name);
    let cpu = setup(dir.path(), [&["adapter"], &more[..]].concat());
    complete(&cpu, &out("cpu"));
    let mut outputs = vec!["cpu"];
    for (name, tokens) in [("many", "tokens_at_a_time=4096"), ("few", "tokens_at_a_time=48")] {
        complete(&on_gpu(dir.path(), "adapter", &[&more[..], &[tokens]].concat()), &out(name));
        outputs.push(name);
    }
    let seen: BTreeMap<&str, Vec<StepRecord>> =
        outputs.iter().map(|&name| (name, steps(&out(name)))).collect();
    for name in ["many", "few"] {
        assert_eq!(seen[name].len(), seen["cpu"].len());
        for (gpu, cpu) in seen[name].iter().zip(&seen["cpu"]) {
            let error = (gpu.loss / cpu.loss - 1.0).abs();
            assert!(error < 1e-5 && gpu.tokens == cpu.tokens, "{name}: {gpu:?} {cpu:?}");
        }
        let validations: Vec<ValidationRecord> = jsonl(&out(name).join("checkpoints/validation.jsonl"));
        let cpu: Vec<ValidationRecord> = jsonl(&out("cpu").join("checkpoints/validation.jsonl"));
        let (gpu, cpu) = (validations.last().unwrap().loss, cpu.last().unwrap().loss);
        assert!((gpu / cpu - 1.0).abs() < 1e-5, "{name}: {gpu} {cpu}");
    }
}

#[test]
fn a_loss_that_is_not_finite_stops_a_run() {
    let dir = tempfile::tempdir().unwrap();
    let more = ["mode=lora", "lr=1e30", "clip=0", "warmup_ratio=0", "batch=1", "accumulation=1", "epochs=2"];
    let setup = on_gpu(dir.path(), "adapter", &more);
    let output = setup.program(&dir.path().join("out")).output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    assert!(stderr(&output).contains("not finite"), "{}", stderr(&output));
}

#[test]
fn the_state_names_the_gpu_and_what_nvml_says() {
    let dir = tempfile::tempdir().unwrap();
    let setup = on_gpu(dir.path(), "adapter", &["mode=qlora", "batch=2", "epochs=400"]);
    complete(&setup, &dir.path().join("out"));
    let state: TrainingState =
        stage_kit::files::read_json(&dir.path().join("out/live/training_state.json")).unwrap();
    let gpu = state.gpu.expect("the state tells of the GPU");
    assert!(!gpu.device_name.is_empty(), "{gpu:?}");
    assert!(gpu.vram_used_gb.is_some_and(|gb| gb > 0.1), "{gpu:?}");
}
