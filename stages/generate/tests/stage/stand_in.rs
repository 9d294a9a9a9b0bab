//! What the stage does about a GPU's failures, on a stand-in that computes nothing (`tests/data/stand_in_gpu.c`).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{args, command, rows, stderr, tiny_model, write_corpus};

/// A fresh GPU, a model and three functions.
struct Case {
    dir: tempfile::TempDir,
    model: PathBuf,
    corpus: PathBuf,
}

impl Case {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let [a, b, c] = rows();
        let (model, corpus) = (tiny_model(dir.path(), 256), write_corpus(dir.path(), &[a, b], &[c]));
        let driver = dir.path().join("lib/libcuda.so");
        fs::create_dir(driver.parent().unwrap()).unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/stand_in_gpu.c");
        let built =
            Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).args([&driver, &source]).status();
        assert!(built.expect("a C compiler links Rust programs, and is needed here too").success());
        for library in ["libnvrtc.so", "libcublasLt.so"] {
            fs::copy(&driver, driver.with_file_name(library)).unwrap();
        }
        Self { dir, model, corpus }
    }

    fn forget(&self) {
        let _ = fs::remove_dir_all(self.dir.path().join("out"));
    }

    /// Its exit code, what it said, and the samples.
    fn run(&self, set: &str, gpu: &[(&str, &str)]) -> (i32, String, Option<Vec<u8>>) {
        let out = self.dir.path().join("out");
        let inputs = [("model", self.model.as_path()), ("corpus", &self.corpus)];
        let own = ["device=cuda", "precision=bfloat16", "max_new_tokens=6", "ignore_stop=true"];
        let more: Vec<&str> = own.into_iter().chain(set.split(' ')).collect();
        let mut command = command(&args(&inputs, &out, &more));
        command.env("LD_LIBRARY_PATH", self.dir.path().join("lib")).env_remove("CUDA_VISIBLE_DEVICES");
        // What the stand-in "compiles" must not reach the user's cache.
        command.env("TESTFORGE_KERNEL_CACHE", self.dir.path().join("cubins"));
        for (name, value) in gpu {
            command.env(format!("STAND_IN_{name}"), value);
        }
        let output = command.output().unwrap();
        let words = stderr(&output);
        let said = words.split_whitespace().filter(|w| *w != "│").collect::<Vec<_>>().join(" ");
        let samples = fs::read(out.join("samples/samples.jsonl")).ok();
        (output.status.code().unwrap_or(-1), said, samples)
    }

    fn expect(&self, set: &str, fail: &str, code: i32, texts: &[&str]) -> Option<Vec<u8>> {
        self.expect_on(set, &[("FAIL", fail)], code, texts)
    }

    fn expect_on(&self, set: &str, gpu: &[(&str, &str)], code: i32, texts: &[&str]) -> Option<Vec<u8>> {
        self.forget();
        let (ended, said, samples) = self.run(set, gpu);
        assert_eq!(ended, code, "{gpu:?}: {said}");
        assert!(texts.iter().all(|text| said.contains(text)), "{gpu:?}: {texts:?} are not all in: {said}");
        assert_eq!(samples.is_some(), code == 0, "{gpu:?}: {said}");
        samples
    }
}

#[test]
fn a_gpu_that_fails_is_named_with_what_to_do() {
    let case = Case::new();
    let expect = |set: &str, fail: &str, code: i32, texts: &[&str]| case.expect(set, fail, code, texts);
    let whole = expect("batch=1", "nothing:1:1", 0, &[]);
    expect(
        "batch=1",
        "cuGraphLaunch:2:214",
        3,
        &["CUDA_ERROR_ECC_UNCORRECTABLE", "runner doctor", "what is done is kept"],
    );
    expect("batch=1", "cublasLtMatmul:1:13", 3, &["CUBLAS_STATUS_EXECUTION_FAILED", "runner doctor"]);
    // Memory that others take in the middle: half as many at a time, as long as there are two.
    let short = "out of memory: cuGraphInstantiate";
    let [three, one] = ["3 sequences at a time instead", "1 sequence at a time instead"];
    let kept = "what is done is kept";
    expect("batch=1", "cuGraphInstantiateWithFlags:1:2", 75, &[short, kept]);
    let samples = expect("batch=4", "cuGraphInstantiateWithFlags:1:2:1", 0, &[short, one]);
    assert!(samples == whole, "other samples");
    expect("batch=4", "cuGraphInstantiateWithFlags:1:2", 75, &[short, one, kept]);
    let whole = expect("batch=1 samples=2", "nothing:1:1", 0, &[]);
    let samples = expect("batch=9 samples=2", "cuGraphInstantiateWithFlags:1:2:2", 0, &[short, three, one]);
    assert!(samples == whole, "other samples");
    expect("batch=4", "cuModuleLoadData:1:2", 75, &[one, "out of memory: cuModuleLoadData", kept]);
    expect("batch=1", "cuDevicePrimaryCtxRetain:1:2", 75, &["Stand-in 0 has no room for a context"]);
}

#[test]
fn a_driver_that_is_too_old_is_named() {
    let case = Case::new();
    let why = "the NVIDIA driver is one for CUDA 11.2; 11.4 is the least";
    case.expect_on("batch=1", &[("DRIVER", "11020")], 2, &[why, "--set device=cpu"]);
    case.expect_on("batch=1", &[("DRIVER", "11040")], 0, &[]);
}

/// A wait tells of what went wrong before it, while weights are loaded or tokens are made: all of it can be done again.
#[test]
fn memory_that_a_wait_finds_short_is_like_any_other() {
    let case = Case::new();
    let whole = case.expect("batch=1", "nothing:1:1", 0, &[]);
    let one = "CUDA_ERROR_OUT_OF_MEMORY (as the test wants it); 1 sequence at a time instead";
    let alone =
        ["cuStreamSynchronize", "with one sequence at a time", "free memory of the GPU", "start again"];
    let mut met = 0;
    for call in (1..).step_by(3) {
        case.forget();
        let once = format!("cuStreamSynchronize:{call}:2:{call}");
        let (code, said, samples) = case.run("batch=4", &[("FAIL", &once)]);
        if code == 0 && !said.contains("cuStreamSynchronize") {
            break;
        }
        assert!(code == 0 && samples == whole, "call {call} ends with {code}: {said}");
        assert!(said.contains(one), "call {call}: {said}");
        met += 1;
        case.expect("batch=1", &format!("cuStreamSynchronize:{call}:2"), 75, &alone);
        let (code, said, samples) = case.run("batch=1", &[]);
        assert!(code == 0 && samples == whole, "after call {call} it ends with {code}: {said}");
    }
    assert!(met > 3, "the calls are not those of a run: {met}");
}

/// A restart does not take over what changed on the disk, and ends with the same bytes.
#[test]
fn a_damaged_line_of_the_journal_is_generated_again() {
    let case = Case::new();
    let set = "batch=1 samples=2";
    let whole = case.expect(set, "nothing:1:1", 0, &[]);
    let journal = || {
        let dir = fs::read_dir(case.dir.path().join("out/resume")).unwrap();
        let path = dir.flatten().next().unwrap().path();
        (fs::read(&path).unwrap(), path)
    };
    let kept = |bytes: &[u8]| bytes.iter().filter(|&&b| b == b'\n').count();
    for call in (20..).step_by(3) {
        case.expect(set, &format!("cuStreamSynchronize:{call}:2"), 75, &["what is done is kept"]);
        if kept(&journal().0) > 3 {
            break;
        }
    }
    let (mut bytes, path) = journal();
    let text = String::from_utf8(bytes.clone()).unwrap();
    let second = text.match_indices("\"completion\":\"").nth(1).unwrap().0;
    bytes[second + 16] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let (code, said, samples) = case.run(set, &[]);
    assert!(code == 0 && samples == whole, "{said}");
    let after = kept(&bytes) - 2;
    let told =
        format!("line 2 is not as it was written: its sample is generated again, and the {after} after");
    assert!(said.contains(&told) && said.contains("goes on: 1 of 6 samples are done"), "{said}");
}

/// What others hold may come free; what no GPU of this size has, won't.
#[test]
fn a_sequence_that_does_not_fit_is_retryable_where_others_hold_the_memory() {
    let case = Case::new();
    let [one, alone] = ["1 sequence at a time instead", "with one sequence at a time"];
    let free = ["free memory of the GPU (nvidia-smi shows who holds it) and start again", "--set device=cpu"];
    let mut seen = [false; 3];
    for megabytes in (30..44).map(|n| n.to_string()) {
        let [alone_on_it, shared] =
            [(megabytes.as_str(), "0"), ("80", &*(80 - megabytes.parse::<u32>().unwrap()).to_string())].map(
                |(total, others)| {
                    case.forget();
                    let (code, said, _) = case.run("batch=4", &[("TOTAL_MB", total), ("OTHERS_MB", others)]);
                    (code, said)
                },
            );
        match (alone_on_it.0, shared.0) {
            (0, 0) => seen[0] = true,
            (3, 75) => {
                let (small, said) = (&alone_on_it.1, &shared.1);
                assert!([small, said].iter().all(|s| s.contains(one) && s.contains(alone)), "{small} {said}");
                assert!(small.contains("cuda:0 is too small, even where nobody else uses it"), "{small}");
                assert!(free.iter().all(|text| said.contains(text)), "{said}");
                seen[1] |= said.contains("the workspace of matrix products");
                seen[2] |= said.contains("the model's weights");
            }
            _ => panic!("{megabytes} MB: {alone_on_it:?}, {shared:?}"),
        }
    }
    assert_eq!(seen, [true; 3], "the sizes are not those of this model");
}
