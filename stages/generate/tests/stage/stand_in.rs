//! What the stage does about a GPU's failures, on a stand-in that computes nothing (`tests/data/stand_in_gpu.c`).

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::support::{args, command, rows, stderr, tiny_model, write_corpus};

#[test]
fn a_gpu_that_fails_is_named_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let [a, b, c] = rows();
    let (model, corpus) = (tiny_model(dir.path(), 256), write_corpus(dir.path(), &[a, b], &[c]));
    let driver = dir.path().join("lib/libcuda.so");
    fs::create_dir(driver.parent().unwrap()).unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/stand_in_gpu.c");
    let built = Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).args([&driver, &source]).status();
    assert!(built.expect("a C compiler links Rust programs, and is needed here too").success());
    for library in ["libnvrtc.so", "libcublasLt.so"] {
        fs::copy(&driver, driver.with_file_name(library)).unwrap();
    }
    let expect = |batch: &str, fail: &str, code: i32, texts: &[&str]| {
        let out = dir.path().join("out");
        let _ = fs::remove_dir_all(&out);
        let inputs = [("model", model.as_path()), ("corpus", &corpus)];
        let own = ["device=cuda", "precision=bfloat16", "max_new_tokens=6", "ignore_stop=true"];
        let more: Vec<&str> = own.into_iter().chain(batch.split(' ')).collect();
        let args = args(&inputs, &out, &more);
        let output = command(&args)
            .env("LD_LIBRARY_PATH", dir.path().join("lib"))
            // What the stand-in "compiles" must not reach the user's cache.
            .env("TESTFORGE_KERNEL_CACHE", dir.path().join("cubins"))
            .env("STAND_IN_FAIL", fail)
            .env_remove("CUDA_VISIBLE_DEVICES")
            .output()
            .unwrap();
        let words = stderr(&output);
        let said = words.split_whitespace().filter(|w| *w != "│").collect::<Vec<_>>().join(" ");
        assert_eq!(output.status.code(), Some(code), "{fail}: {said}");
        assert!(texts.iter().all(|text| said.contains(text)), "{fail}: {texts:?} are not all in: {said}");
        let samples = fs::read(out.join("samples/samples.jsonl")).ok();
        assert_eq!(samples.is_some(), code == 0, "{fail}: {said}");
        samples
    };
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
    expect("batch=4", "cuModuleLoadData:1:2", 3, &[one, "out of memory: cuModuleLoadData", "lower `batch`"]);
    expect("batch=1", "cuDevicePrimaryCtxRetain:1:2", 75, &["Stand-in 0 has no room for a context"]);
}
