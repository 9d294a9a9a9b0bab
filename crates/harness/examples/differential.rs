//! Do our verdicts agree with those of the standard test harness? Runs every row's own tests both ways and prints each
//! disagreement. Exits 1 when there is one, or a row that does not build.
//!
//! `cargo run --release -p harness --example differential ROWS.jsonl LIBS`

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use harness::{Build, Harness, Libraries, Limits, RunOptions, TestProgram, Toolchain, parallel_map};
use record::corpus::CorpusRow;
use record::mutation::Verdict;
use sandbox::{Command, Profile, Sandbox, Status};

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> Result<ExitCode, Failure> {
    let args: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [rows, libs] = args.as_slice() else { return Err("usage: differential ROWS.jsonl LIBS".into()) };
    let rows: Vec<CorpusRow> =
        std::fs::read_to_string(rows)?.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let scratch = std::env::temp_dir().join(format!("differential-{}", std::process::id()));
    let toolchain = Toolchain::find()?;
    let libraries = Libraries::load(libs, &toolchain)?;
    let harness = Harness::new(toolchain, libraries, Sandbox::probe(), scratch.clone(), Limits::default());
    let found =
        parallel_map(2, &rows, |idx, row| compare(&harness, &scratch.join(format!("std-{idx}")), row));
    let _ = std::fs::remove_dir_all(&scratch);
    let (mut n_tests, mut n_differ, mut n_unbuilt) = (0, 0, 0);
    for (row, found) in rows.iter().zip(found) {
        match found {
            Ok((n, differences)) => {
                n_tests += n;
                n_differ += differences.len();
                for difference in differences {
                    writeln!(std::io::stdout(), "{}: {difference}", row.id)?;
                }
            }
            Err(error) => {
                n_unbuilt += 1;
                writeln!(std::io::stdout(), "{}: {error}", row.id)?;
            }
        }
    }
    writeln!(
        std::io::stdout(),
        "{} rows, {n_unbuilt} do not build, {n_tests} tests, {n_differ} disagreements",
        rows.len()
    )?;
    Ok(if n_differ + n_unbuilt == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn compare(harness: &Harness, dir: &Path, row: &CorpusRow) -> Result<(usize, Vec<String>), Failure> {
    let source = subject::assemble(row, None).source;
    let ours = match harness.build(&TestProgram::new(&source, None)?)? {
        Build::Ready(binary) => harness.run(&binary, &RunOptions::default())?,
        Build::Failed(compilation) => return Err(format!("does not build: {compilation:?}").into()),
    };
    let binary = standard(harness, dir, &source)?;
    let listed = run(harness, &binary, &["--list", "--format=terse"])?;
    let listed: Vec<String> = String::from_utf8(listed.1)?
        .lines()
        .filter_map(|line| line.strip_suffix(": test").map(str::to_owned))
        .collect();
    let mut differences = Vec::new();
    if listed.len() != ours.verdicts.len() {
        differences.push(format!("it lists {listed:?}, we have {:?}", ours.verdicts.keys()));
    }
    for path in &listed {
        let theirs = run(harness, &binary, &["--exact", path, "--test-threads=1"])?;
        let ignored = String::from_utf8_lossy(&theirs.1).contains("1 ignored");
        let name = path.strip_prefix("tests::").unwrap_or(path);
        let agrees = ours.verdicts.get(name).is_some_and(|outcome| match outcome.verdict {
            Verdict::Passed => theirs.0 == Status::Exit(0) && !ignored,
            Verdict::Ignored => ignored,
            _ => theirs.0 != Status::Exit(0),
        });
        if !agrees {
            differences.push(format!("{path}: it says {theirs:?}, we say {:?}", ours.verdicts.get(name)));
        }
    }
    Ok((listed.len(), differences))
}

/// `rustc --test`, as cargo would call it.
fn standard(harness: &Harness, dir: &Path, source: &str) -> Result<PathBuf, Failure> {
    std::fs::create_dir_all(dir)?;
    std::fs::write(dir.join("row.rs"), source)?;
    let (toolchain, libraries) = (harness.toolchain(), harness.libraries());
    let edition = format!("--edition={}", harness::EDITION);
    let mut args = vec![
        "row.rs".into(),
        "--test".into(),
        "--cap-lints=allow".into(),
        edition,
        "-o".into(),
        "row".into(),
    ];
    let mut readable = toolchain.path.clone();
    readable.push(toolchain.sysroot.clone());
    if let Some(libs) = &libraries.dir {
        args.extend(["-L".into(), format!("dependency={}", libs.display())]);
        args.extend(
            libraries.externs.iter().map(|(name, file)| format!("--extern={name}={}", file.display())),
        );
        readable.push(libs.clone());
    }
    let path = std::env::join_paths(&toolchain.path)?;
    let finished = harness.sandbox().run(&Command {
        program: toolchain.rustc.clone(),
        args: args.into_iter().map(Into::into).collect(),
        env: [("PATH".into(), path), ("TMPDIR".into(), dir.into())].into(),
        current_dir: dir.to_path_buf(),
        readable,
        writable: vec![dir.to_path_buf()],
        limits: limits(6 << 30),
        profile: Profile::Tool,
        verdict_fd_env: None,
    })?;
    if finished.status != Status::Exit(0) {
        return Err(format!("rustc --test: {}", String::from_utf8_lossy(&finished.stderr)).into());
    }
    Ok(dir.join("row"))
}

fn run(harness: &Harness, binary: &Path, args: &[&str]) -> Result<(Status, Vec<u8>), Failure> {
    let finished = harness.sandbox().run(&Command {
        program: binary.to_path_buf(),
        args: args.iter().map(Into::into).collect(),
        env: [
            ("PROPTEST_DISABLE_FAILURE_PERSISTENCE".into(), "true".into()),
            ("PROPTEST_RNG_SEED".into(), harness::PROPTEST_SEED.into()),
        ]
        .into(),
        current_dir: PathBuf::from("/"),
        readable: Vec::new(),
        writable: Vec::new(),
        limits: limits(2 << 30),
        profile: Profile::Program,
        verdict_fd_env: None,
    })?;
    Ok((finished.status, finished.stdout))
}

fn limits(memory_bytes: u64) -> sandbox::Limits {
    sandbox::Limits {
        wall: Duration::from_secs(20),
        cpu_s: 240,
        memory_bytes,
        file_bytes: 1 << 30,
        processes: 512,
        output_bytes: 1 << 20,
    }
}
