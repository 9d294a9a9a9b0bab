//! Bad input: a clear error that names the place and the next step, the right exit code, and nothing left behind.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::{
    COLUMNS, Metadata, Row, args, golden, made_up_rows, model_copy, program, stderr, write_compressed,
    write_parquet, write_tokens,
};

struct Case {
    dir: tempfile::TempDir,
    model: PathBuf,
    tokens: PathBuf,
}

impl Case {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let tokens = dir.path().join("tokens");
        write_tokens(&tokens, &made_up_rows(8, 1, 640), &made_up_rows(4, 2, 640));
        Self { model: model_copy(dir.path()), tokens, dir }
    }

    fn train(&self) -> PathBuf {
        self.tokens.join("train.parquet")
    }

    fn out(&self) -> PathBuf {
        self.dir.path().join("out")
    }

    /// Runs the program and expects `code` and all of `texts` in what it says.
    fn fails(&self, more: &[&str], also: &[String], code: i32, texts: &[&str]) {
        let base: &[&str] =
            if more.iter().any(|m| m.starts_with("mode=")) { &[] } else { &["adapter", "mode=lora"] };
        let mut args = args(&self.model, &self.tokens, &self.out(), &[base, &["epochs=1"], more].concat());
        args.extend(also.iter().cloned());
        let output = program(&args).output().unwrap();
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{said}");
        // Lines are wrapped and indented by the renderer.
        let flat: String = said.split_whitespace().filter(|w| *w != "│").collect::<Vec<_>>().join(" ");
        for text in texts {
            assert!(flat.contains(text), "`{text}` is not in: {said}");
        }
        assert!(said.contains("help:"), "no next step: {said}");
        for output in ["adapter", "model", "checkpoints", "log"] {
            let left = [self.out().join(output), self.out().join(format!("{output}.partial"))];
            assert!(left.iter().all(|p| !p.exists()), "{output} was left behind");
        }
    }
}

fn truncate(path: &Path) {
    let bytes = fs::read(path).unwrap();
    fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
}

#[test]
fn damaged_and_missing_token_files() {
    let case = Case::new();
    truncate(&case.train());
    case.fails(&[], &[], 3, &["damaged, or no parquet file", "tokenize-to-parquet"]);
    fs::write(case.train(), "PAR1 nonsense").unwrap();
    case.fails(&[], &[], 3, &["damaged, or no parquet file"]);
    fs::remove_file(case.train()).unwrap();
    case.fails(&[], &[], 3, &["can't be opened"]);
}

#[test]
fn token_files_of_other_codecs() {
    use parquet::basic::{Compression, GzipLevel};
    let case = Case::new();
    let rows = [Row::new(vec![1, 9999], vec![1, 2])];
    let write = |codec| write_compressed(&case.train(), &rows, &Metadata::default(), &COLUMNS, codec);
    let gzip = Compression::GZIP(GzipLevel::default());
    // That these are read shows in what is said of their row.
    for codec in [Compression::SNAPPY, gzip, Compression::LZ4, Compression::LZ4_RAW] {
        write(codec);
        case.fails(&[], &[], 3, &["row 0 (`r0`): token id 9999"]);
    }
    // The footer of a plain file, made to name the codecs that can't even be written here: after the path of the column `id`,
    // a field of 32 bits and the codec's number, twice as large.
    write(Compression::UNCOMPRESSED);
    let plain = fs::read(case.train()).unwrap();
    let footer = b"\x18\x02id\x15\x00";
    let found: Vec<usize> = (0..plain.len()).filter(|&i| plain[i..].starts_with(footer)).collect();
    let &[at] = &found[..] else { panic!("the footer is not as expected: {found:?}") };
    for (number, name) in [(3, "lzo"), (4, "brotli"), (6, "zstd")] {
        let mut bytes = plain.clone();
        bytes[at + footer.len() - 1] = 2 * number;
        fs::write(case.train(), bytes).unwrap();
        let named = format!("the column `id` is compressed with {name}, which can't be read here");
        case.fails(&[], &[], 3, &[&named, "without compression, or with Snappy, gzip or LZ4"]);
    }
}

#[test]
fn token_files_of_other_columns() {
    let case = Case::new();
    for missing in COLUMNS {
        let columns: Vec<&str> = COLUMNS.into_iter().filter(|c| *c != missing).collect();
        write_parquet(&case.train(), &made_up_rows(3, 1, 640), &Metadata::default(), &columns);
        case.fails(&[], &[], 3, &[&format!("there is no column `{missing}`")]);
    }
    for key in ["tokenizer_sha256", "template_sha256", "holdout_sha256"] {
        let mut metadata = Metadata::default();
        metadata.0.retain(|(k, _)| *k != key);
        write_parquet(&case.train(), &made_up_rows(3, 1, 640), &metadata, &COLUMNS);
        case.fails(&[], &[], 3, &[&format!("the file's metadata has no `{key}`")]);
    }
}

#[test]
fn rows_that_do_not_fit_the_model() {
    let case = Case::new();
    let good = made_up_rows(2, 1, 640).remove(0);
    let with = |bad: Row| {
        write_parquet(&case.train(), &[good.clone(), bad], &Metadata::default(), &COLUMNS);
    };
    with(Row::new(vec![1, 640], vec![-100, 640]));
    case.fails(&[], &[], 3, &["row 1 (`r1`)", "token id 640", "640 rows"]);
    with(Row::new(vec![1, -5], vec![-100, 1]));
    case.fails(&[], &[], 3, &["row 1 (`r1`)", "-5 is negative"]);
    with(Row::new(vec![7; 513], vec![7; 513]));
    case.fails(&[], &[], 3, &["513 tokens", "512 positions"]);
    with(Row::new(vec![1, 2, 3], vec![-100, 2]));
    case.fails(&[], &[], 3, &["3 input_ids and 2 labels"]);
    with(Row::new(vec![], vec![]));
    case.fails(&[], &[], 3, &["no tokens"]);
}

#[test]
fn nothing_to_learn() {
    let case = Case::new();
    write_parquet(&case.train(), &[], &Metadata::default(), &COLUMNS);
    case.fails(&[], &[], 3, &["there are no training rows"]);
    write_parquet(&case.train(), &[Row::new(vec![1, 2], vec![1, -100])], &Metadata::default(), &COLUMNS);
    case.fails(&[], &[], 3, &["no training row has a label"]);
}

/// Found before the first step, not after the hours until that step.
#[test]
fn a_step_whose_rows_have_no_label() {
    let case = Case::new();
    let mut rows = made_up_rows(7, 1, 640);
    for row in &mut rows[4..] {
        row.labels.fill(-100);
    }
    write_parquet(&case.train(), &rows, &Metadata::default(), &COLUMNS);
    let more = ["batch=2", "accumulation=2", "shuffle=false"];
    case.fails(&more, &[], 3, &["no row of step 2 has a label", "`r4`, `r5`, `r6`", "train.parquet"]);
    let enough = ["batch=4", "accumulation=2", "shuffle=false", "adapter", "mode=lora", "epochs=1"];
    let output = program(&args(&case.model, &case.tokens, &case.out(), &enough)).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
}

#[test]
fn a_holdout_function_among_the_rows() {
    let case = Case::new();
    let mut rows = made_up_rows(3, 1, 640);
    rows[2].function_sha256 = "h2".into();
    write_parquet(&case.train(), &rows, &Metadata::default(), &COLUMNS);
    case.fails(&[], &[], 3, &["row `r2` is a function of the holdout", "h2"]);
    let case = Case::new();
    write_parquet(&case.tokens.join("validation.parquet"), &rows, &Metadata::default(), &COLUMNS);
    case.fails(&[], &[], 3, &["validation.parquet", "row `r2` is a function of the holdout"]);
}

#[test]
fn tokens_of_another_tokenizer() {
    let case = Case::new();
    fs::write(case.model.join("tokenizer.json"), "{}").unwrap();
    case.fails(&[], &[], 3, &["another tokenizer", "run tokenize-to-parquet with this model"]);
}

#[test]
fn damaged_models() {
    let case = Case::new();
    truncate(&case.model.join("model.safetensors"));
    case.fails(&[], &[], 3, &["model.safetensors"]);
    let case = Case::new();
    fs::remove_file(case.model.join("config.json")).unwrap();
    case.fails(&[], &[], 3, &["config.json"]);
    let case = Case::new();
    let config = fs::read_to_string(case.model.join("config.json")).unwrap();
    fs::write(
        case.model.join("config.json"),
        config.replace("\"intermediate_size\": 320", "\"intermediate_size\": 321"),
    )
    .unwrap();
    case.fails(&[], &[], 3, &["321", "320"]);
}

#[test]
fn outputs_and_inputs_that_do_not_belong_to_the_mode() {
    let case = Case::new();
    case.fails(&["mode=full", "adapter"], &[], 2, &["mode full writes no output `adapter`"]);
    case.fails(&["mode=lora"], &[], 2, &["nowhere to write its result", "--output adapter=DIR"]);
    let start = format!("adapter_start={}", golden("qwen2-tiny/adapter_start").display());
    let start = ["--input".to_owned(), start];
    case.fails(&["mode=full", "model"], &start, 2, &["mode full trains no adapter"]);
    case.fails(&["rank=8"], &start, 2, &["the adapter has rank 16, and the parameter says 8"]);
    case.fails(&["alpha=16"], &start, 2, &["the adapter has alpha 32, and the parameter says 16"]);
    case.fails(&["target_modules=[\"q_proj\"]"], &start, 2, &["target_modules"]);
    let other = format!("adapter_start={}", golden("qwen2-gqa7/adapter_start").display());
    case.fails(&[], &["--input".to_owned(), other], 3, &["adapter_model.safetensors", "shape"]);
}

#[test]
fn numbers_that_are_none() {
    let case = Case::new();
    for (name, value) in [("lr", "nan"), ("eps", "inf"), ("alpha", "-inf"), ("lr", "much")] {
        let named = format!("train-cuda parameter {name}: `{value}` is not a finite number above 0");
        case.fails(&[&format!("{name}={value}")], &[], 2, &[&named]);
    }
}

#[test]
fn the_best_of_nothing() {
    let case = Case::new();
    fs::remove_file(case.tokens.join("validation.parquet")).unwrap();
    case.fails(&[], &[], 2, &["select=best needs validation rows", "select=last"]);
}

#[test]
fn devices_that_are_not_there() {
    let case = Case::new();
    case.fails(&["device=wgpu"], &[], 2, &["no wgpu backend", "device=cpu"]);
    case.fails(&["device=gpu"], &[], 2, &["there is no device `gpu`"]);
    let why = if cfg!(feature = "cuda") { "no NVIDIA GPU can be used" } else { "without the feature cuda" };
    case.fails(&["device=cuda"], &[], 2, &[why, "device=cpu"]);
    if !cfg!(feature = "cpu-fallback") {
        case.fails(&["device=auto"], &[], 2, &["no device is left to choose", "device=cpu"]);
    }
}

#[test]
fn unknown_and_wrong_parameters() {
    let case = Case::new();
    case.fails(&["learning_rate=1"], &[], 2, &["there is no parameter `learning_rate`"]);
    case.fails(&["batch=0"], &[], 2, &["parameter batch"]);
    case.fails(&["preset=h8"], &[], 2, &["preset", "h9"]);
    for (name, value) in
        [("eps", "1e-300"), ("eps", "0"), ("lr", "1e300"), ("lr", "1e-60"), ("alpha", "1e39")]
    {
        case.fails(&[&format!("{name}={value}")], &[], 2, &[&format!("parameter {name}"), "1.2e-38"]);
    }
    case.fails(&["tokens_at_a_time=2000000"], &[], 2, &["parameter tokens_at_a_time"]);
}

/// What measures is found by whoever asks for help, and stands where one likes.
#[test]
fn the_benchmark_is_named_and_takes_its_option_anywhere() {
    let run = |args: &[&str]| {
        let output = program(&args.iter().map(|&a| a.to_owned()).collect::<Vec<_>>()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &stderr(&output);
        (output.status.code(), said)
    };
    let (code, said) = run(&["--help"]);
    assert!(code == Some(0) && said.contains("train-cuda --bench --help"), "{said}");
    for option in ["--bench", "--profile-ops"] {
        for args in
            [[option, "--device", "cpu", "--shape", "1x0"], ["--device", "cpu", "--shape", "1x0", option]]
        {
            let (code, said) = run(&args);
            assert!(code == Some(2) && said.contains("`1x0` is no shape"), "{args:?}: {said}");
        }
    }
}

/// 790 TFLOP/s are a GPU's: a processor's share of them would be no measurement.
#[test]
fn the_benchmark_says_no_flops_utilisation_on_a_cpu() {
    let args = "--bench --device cpu --model tiny --shape 1x8 --steps 1 --warmup 0";
    let output = program(&args.split(' ').map(str::to_owned).collect::<Vec<_>>()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(said.contains(r#""mfu":null"#) && !said.contains("MFU"), "{said}");
    assert!(said.contains(" tokens/s, ") && !said.contains(" 0.0k "), "{said}");
}
