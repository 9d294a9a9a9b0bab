//! What the stage does about a GPU's memory, failures and age, on a stand-in that computes nothing (`tests/data/stand_in_gpu.c`).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use record::training::{TokensFrom, TrainingManifest, TrainingMetrics};

use crate::support::{Row, args, golden, made_up_rows, program, stderr, write_tokens};

/// A fresh GPU, the tokens, and the outputs of the processes that use them.
struct Case {
    dir: tempfile::TempDir,
    more: Vec<&'static str>,
}

impl Case {
    fn new(rows: &[Row], more: &[&'static str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        write_tokens(&dir.path().join("tokens"), rows, &[]);
        let driver = dir.path().join("lib/libcuda.so");
        fs::create_dir(driver.parent().unwrap()).unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/stand_in_gpu.c");
        let built =
            Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).args([&driver, &source]).status();
        assert!(built.expect("a C compiler links Rust programs, and is needed here too").success());
        for library in ["libnvrtc.so", "libcublasLt.so"] {
            fs::copy(&driver, driver.with_file_name(library)).unwrap();
        }
        let own = ["adapter", "mode=lora", "device=cuda", "precision=bfloat16", "select=last"];
        Self { dir, more: [&own[..], more].concat() }
    }

    /// Many steps of few short rows.
    fn steps() -> Self {
        Self::new(&made_up_rows(40, 1, 640), &["batch=1", "accumulation=1", "epochs=1", "checkpoint_every=4"])
    }

    /// One step of more tokens than are enough for speed.
    fn tokens() -> Self {
        let long = |i: i32| {
            let ids: Vec<i32> = (0..400).map(|n| (7 * n + i) % 640).collect();
            Row::new(ids.clone(), ids)
        };
        let rows: Vec<Row> = (0..16).map(long).collect();
        Self::new(&rows, &["epochs=1", "checkpoint_every=1", "vram_limit_mb=0"])
    }

    fn out(&self) -> PathBuf {
        self.dir.path().join("out")
    }

    fn run(&self, more: &[&str], gpu: &[(&str, &str)]) -> (i32, String) {
        for done in ["adapter", "checkpoints", "log"] {
            let _ = fs::remove_dir_all(self.out().join(done));
        }
        let more = [&self.more[..], more].concat();
        let tokens = self.dir.path().join("tokens");
        let mut command = program(&args(&golden("qwen2-tiny/model"), &tokens, &self.out(), &more));
        command.env("LD_LIBRARY_PATH", self.dir.path().join("lib")).env_remove("CUDA_VISIBLE_DEVICES");
        // What the stand-in "compiles" must not reach the user's cache.
        command.env("TESTFORGE_KERNEL_CACHE", self.dir.path().join("cubins"));
        for (name, value) in gpu {
            command.env(format!("STAND_IN_{name}"), value);
        }
        let output = command.output().unwrap();
        let words = stderr(&output);
        let said = words.split_whitespace().filter(|w| *w != "│").collect::<Vec<_>>().join(" ");
        (output.status.code().unwrap_or(-1), said)
    }

    fn expect(&self, more: &[&str], gpu: &[(&str, &str)], code: i32, texts: &[&str]) -> String {
        let (ended, said) = self.run(more, gpu);
        assert_eq!(ended, code, "{said}");
        for text in texts {
            assert!(said.contains(text), "`{text}` is not in: {said}");
        }
        said
    }

    fn manifest(&self) -> TrainingManifest {
        stage_kit::files::read_json(&self.out().join("adapter/manifest.json")).unwrap()
    }
}

fn from(after_step: u64, tokens: u64) -> TokensFrom {
    TokensFrom { after_step, tokens }
}

#[test]
fn memory_that_a_graph_lacks_is_no_lost_gpu_and_the_next_process_takes_less() {
    let case = Case::steps();
    // What was run three times is captured.
    let short = [("FAIL", "cuGraphInstantiateWithFlags:2:2")];
    let texts =
        ["out of memory: cuGraphInstantiate", "after 3 steps", "the state after step 3 is in", "start again"];
    case.expect(&[], &short, 75, &texts);
    let texts = ["goes on after step 3 from", "memory ran out before", "are computed again"];
    case.expect(&[], &[], 0, &texts);
    assert_eq!(case.manifest().tokens_at_a_time.len(), 1, "the tokens at a time stay");
    assert_eq!(case.manifest().steps, 40);
}

/// The slabs of such a step may be those of the next one: no state of it is saved.
#[test]
fn memory_that_an_update_lacks_leaves_the_last_saved_state() {
    // The fourth step replays two graphs: what makes the gradients zero, then the update.
    let short = [("FAIL", "cuGraphLaunch:2:2")];
    let refused = "the update of step 4 was begun, and how far it came is not known";
    let case = Case::steps();
    case.expect(&[], &short, 75, &["after 3 steps", refused, "no state was saved before", "start again"]);
    let said = case.expect(&[], &[], 0, &["trained 40 steps"]);
    assert!(!said.contains("goes on after"), "{said}");

    let case = Case::steps();
    let texts = ["after 3 steps", refused, "the state after step 3 is in"];
    case.expect(&["checkpoint_every=1"], &short, 75, &texts);
    case.expect(&[], &[], 0, &["goes on after step 3 from", "memory ran out before", "are computed again"]);
}

/// Wherever a copy lacks memory, in a step, a validation, a saved state or the outputs.
#[test]
fn memory_that_is_short_once_is_got_around_or_retryable() {
    let case = Case::steps();
    let more = ["save_every=3", "max_steps=9"];
    let mut codes = std::collections::BTreeSet::new();
    for call in (5..200).step_by(13) {
        let _ = fs::remove_dir_all(case.out());
        let (code, said) = case.run(&more, &[("FAIL", &format!("cuMemcpyDtoHAsync_v2:{call}:2:{call}"))]);
        assert!(matches!(code, 0 | 75), "call {call} ends with {code}: {said}");
        assert!(!said.contains("check the model's files"), "call {call}: {said}");
        codes.insert(code);
        if code == 75 {
            case.expect(&more, &[], 0, &["trained 9 steps"]);
        }
    }
    assert_eq!(codes.len(), 2, "the calls are not those of a run: {codes:?}");
}

/// A restart goes on from the state that the error named, whichever copy it was: the weights of the best validation too.
#[test]
fn the_state_that_is_named_is_the_one_that_a_restart_goes_on_from() {
    let case = Case::steps();
    write_tokens(&case.dir.path().join("tokens"), &made_up_rows(6, 1, 640), &made_up_rows(2, 2, 640));
    let more = ["validate_every=2", "checkpoint_every=0", "save_every=0"];
    let mut named = std::collections::BTreeSet::new();
    for call in 1..80 {
        let _ = fs::remove_dir_all(case.out());
        let (code, said) = case.run(&more, &[("FAIL", &format!("cuMemcpyDtoHAsync_v2:{call}:2:{call}"))]);
        let Some((_, step)) = said.split_once("the state after step ").filter(|_| code == 75) else {
            continue;
        };
        let step = step.split(' ').next().unwrap();
        let said =
            case.expect(&more, &[], 0, &["trained 6 steps", &format!("goes on after step {step} from")]);
        assert!(!said.contains("is not used"), "call {call}: {said}");
        named.insert(step.to_owned());
    }
    assert!(named.len() > 2, "the calls are not those of a run: {named:?}");
}

/// A device that fails while a state is put on it says nothing of the state.
#[test]
fn a_state_outlives_a_device_that_fails_while_it_is_loaded() {
    for (number, code, text) in [("214", 3, "runner doctor"), ("2", 75, "start again")] {
        let case = Case::steps();
        let lost = [("FAIL", "cuGraphLaunch:9:214")];
        case.expect(&["checkpoint_every=1"], &lost, 3, &["the state after step"]);
        let mut last = (0, String::new());
        for call in 1..400 {
            let fail = format!("cuMemcpyHtoDAsync_v2:{call}:{number}");
            let (ended, said) = case.run(&[], &[("FAIL", &fail)]);
            if said.contains("goes on after step") {
                break;
            }
            assert!(ended != 0 && !said.contains("from the beginning"), "call {call}: {said}");
            last = (ended, said);
        }
        // The last one that was met is a copy of the state: with the next one training had begun.
        assert!(last.0 == code && last.1.contains(text), "{last:?}");
        case.expect(&[], &[], 0, &["goes on after step", "trained 40 steps"]);
    }
}

#[test]
fn memory_that_is_short_from_the_start_is_said_to_be_that() {
    let case = Case::steps();
    for fail in ["cuModuleLoadData:1:2", "cuMemAllocHost_v2:1:2", "cuMemAlloc_v2:1:2"] {
        let said = case.expect(&[], &[("FAIL", fail)], 3, &["does not fit: out of"]);
        assert!(said.contains("memory") && said.contains("raise vram_limit_mb"), "{said}");
    }
    // Not even a context: others hold the GPU, and may leave it.
    for fail in ["cuDevicePrimaryCtxRetain:1:2", "cublasLtCreate:1:3"] {
        case.expect(&[], &[("FAIL", fail)], 75, &["Stand-in 0 has no room for a context"]);
    }
}

/// Others hold nearly all of it: that may change, and no smaller work would do.
#[test]
fn a_gpu_that_is_full_before_any_work_is_named() {
    let case = Case::steps();
    let room = "out of GPU memory: Stand-in 0 has no room for a context";
    for fail in ["cuDevicePrimaryCtxRetain:1:2", "cuStreamCreateWithPriority:2:2", "cublasLtCreate:1:3"] {
        let texts = [room, "nearly all of its 80000 MB", "--set device=cuda:N", "--set device=cpu"];
        case.expect(&[], &[("FAIL", fail)], 75, &texts);
    }
    case.expect(&[], &[], 0, &["trained 40 steps"]);
}

#[test]
fn a_gpu_that_is_lost_is_named_with_the_state_that_is_left() {
    for (fail, texts) in [
        ("cuGraphLaunch:60:214", ["CUDA_ERROR_ECC_UNCORRECTABLE", "the state after step"]),
        ("cublasLtMatmul:1:13", ["CUBLAS_STATUS_EXECUTION_FAILED", "no state was saved before"]),
    ] {
        let case = Case::steps();
        let said = case.expect(&[], &[("FAIL", fail)], 3, &texts);
        assert!(said.contains("the GPU does not answer after") && said.contains("runner doctor"), "{said}");
        let said = case.expect(&[], &[], 0, &[]);
        assert_eq!(said.contains("goes on after step"), texts[1].starts_with("the state"), "{said}");
    }
}

/// The tokens at a time decide the order of sums: they are kept, whatever the memory that is free later.
#[test]
fn tokens_at_a_time_follow_from_memory_once() {
    let case = Case::tokens();
    case.expect(&[], &[], 0, &["6400 tokens at a time through Stand-in 0"]);
    assert_eq!(case.manifest().tokens_at_a_time, [from(0, 6400)]);
    let metrics: TrainingMetrics = stage_kit::files::read_json(&case.out().join("log/metrics.json")).unwrap();
    let total_mb = (metrics.planned_peak_bytes / 1_000_000).to_string();
    let small = [("TOTAL_MB", &*total_mb)];

    let case = Case::tokens();
    let more = ["epochs=6"];
    let warned = "4800 tokens at a time, where 6400 were possible on a GPU that nobody else uses";
    let lost = [("TOTAL_MB", &*total_mb), ("FAIL", "cuGraphLaunch:3:214")];
    case.expect(&more, &lost, 3, &[warned, "tokens_at_a_time=4800", "4800 tokens at a time through"]);
    let said = case.expect(&more, &[], 0, &["goes on after step", "4800 tokens at a time through"]);
    assert!(!said.contains("the same bytes"), "{said}");
    assert_eq!(case.manifest().tokens_at_a_time, [from(0, 4800)]);

    // Where less is kept of each token, so many as before still fit; then fewer.
    let lost = [("FAIL", "cuGraphLaunch:3:214")];
    let case = Case::tokens();
    case.expect(&more, &lost, 3, &["6400 tokens at a time through"]);
    let texts = ["goes on after step", "are computed again", "6400 tokens at a time through"];
    case.expect(&more, &small, 0, &texts);
    assert_eq!(case.manifest().tokens_at_a_time, [from(0, 6400)]);

    let case = Case::tokens();
    case.expect(&more, &lost, 3, &["6400 tokens at a time through"]);
    let texts = ["6400 tokens at a time, as before, do not fit any more", "goes on after step"];
    case.expect(&more, &[("TOTAL_MB", "85")], 0, &texts);
    let tokens = case.manifest().tokens_at_a_time;
    assert!(tokens.len() == 2 && tokens[0] == from(0, 6400) && tokens[1].after_step > 0, "{tokens:?}");

    let case = Case::tokens();
    let fixed = "tokens_at_a_time=4800";
    case.expect(&[fixed], &[], 0, &["4800 tokens at a time through"]);
    case.expect(&["tokens_at_a_time=399"], &[], 2, &["399 tokens are fewer than the longest row's 400"]);
    case.expect(&["tokens_at_a_time=6400"], &[("TOTAL_MB", "40")], 3, &["6400 tokens at a time do not fit"]);
}

/// From the beginning is from the beginning: no number of a state that can't be used is taken over.
#[test]
fn a_start_after_a_damaged_state_has_the_tokens_of_any_start() {
    let case = Case::tokens();
    case.expect(&[], &[], 0, &[]);
    let metrics: TrainingMetrics = stage_kit::files::read_json(&case.out().join("log/metrics.json")).unwrap();
    let total_mb = (metrics.planned_peak_bytes / 1_000_000).to_string();
    let more = ["epochs=6"];
    let lost = [("TOTAL_MB", &*total_mb), ("FAIL", "cuGraphLaunch:3:214")];
    case.expect(&more, &lost, 3, &["4800 tokens at a time through"]);
    let mut damaged = 0;
    for file in ["newest.safetensors", "state.safetensors"] {
        let path = case.out().join("resume").join(file);
        let Ok(mut bytes) = fs::read(&path) else { continue };
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&path, bytes).unwrap();
        damaged += 1;
    }
    assert!(damaged > 0, "no state was saved");
    let texts = ["damaged", "training starts from the beginning", "6400 tokens at a time through"];
    case.expect(&more, &[], 0, &texts);
    assert_eq!(case.manifest().tokens_at_a_time, [from(0, 6400)]);
}

/// Layers, counts of rows and plans share their products: the library is asked about each once.
#[test]
fn the_library_is_asked_once_about_each_product() {
    let case = Case::steps();
    let said = case.expect(&[], &[], 0, &["planned ", "buckets of rows in"]);
    let before = said.split(" different matrix products").next().unwrap();
    let products: usize = before.rsplit(' ').next().unwrap().parse().unwrap();
    let fail = |call: usize| format!("cublasLtMatmulAlgoGetHeuristic:{call}:15");
    case.expect(&[], &[("FAIL", &fail(products + 1))], 0, &["trained 40 steps"]);
    case.expect(&[], &[("FAIL", &fail(products))], 3, &["CUBLAS_STATUS_NOT_SUPPORTED"]);
}

#[test]
fn old_gpus_are_passed_over_or_refused_by_name() {
    let case = Case::steps();
    let both = [("CAPABILITIES", "7.5,9.0")];
    let old = "GPU 0 can't be used: Stand-in 0 has compute capability 7.5";
    case.expect(&["device=auto"], &both, 0, &[old, "through Stand-in 1"]);
    case.expect(&["device=cuda"], &both, 2, &[old, "device=cpu"]);
    if !cfg!(feature = "cpu-fallback") {
        case.expect(&["device=auto"], &[("CAPABILITIES", "7.5")], 2, &["no device is left to choose", old]);
    }
}

/// More passes in one step than a backend keeps losses of.
#[test]
fn a_step_of_very_many_passes() {
    let rows: Vec<Row> = (0..5000).map(|i| Row::new(vec![i % 640, 1, 2], vec![-100, 1, 2])).collect();
    let case = Case::new(&rows, &["batch=4096", "accumulation=2", "epochs=1", "tokens_at_a_time=3"]);
    let planned = "5000 training rows (10000 label tokens), 0 validation rows, 1 step of 1 epoch";
    case.expect(&[], &[], 0, &[planned, "trained 1 step; outputs"]);
}
