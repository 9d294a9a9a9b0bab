//! What one check, lint, link, build and run cost here, at each level of isolation.
//!
//! `cargo run --release -p harness --example costs [LIBS]`

use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

use harness::{
    Build, CrateKind, Harness, HarnessError, Libraries, Limits, RunOptions, TestProgram, Toolchain,
};
use sandbox::Sandbox;

const SOURCE: &str = "pub fn add(a: i32, b: i32) -> i32 { a + b }
#[cfg(test)]
mod tests { use super::*; #[test] fn adds() { assert_eq!(add(1, 2), 3); } }
";
const TIMES: u32 = 20;

fn main() -> Result<(), HarnessError> {
    let scratch = std::env::temp_dir().join(format!("costs-{}", std::process::id()));
    let toolchain = Toolchain::find()?;
    let libraries = match std::env::args_os().nth(1).map(PathBuf::from) {
        Some(dir) => Libraries::load(&dir, &toolchain)?,
        None => Libraries::none(),
    };
    let sandbox = Sandbox::probe();
    for level in 0..=sandbox.isolation().level {
        let (toolchain, libraries) = (toolchain.clone(), libraries.clone());
        let harness =
            Harness::new(toolchain, libraries, sandbox.at_most(level), scratch.clone(), Limits::default());
        measure(&harness, level)?;
    }
    let _ = std::fs::remove_dir_all(scratch);
    Ok(())
}

fn measure(harness: &Harness, level: u8) -> Result<(), HarnessError> {
    let program = TestProgram::new(SOURCE, None)?;
    time(level, "check", || harness.check(SOURCE, CrateKind::Test).map(drop))?;
    time(level, "lint", || harness.lint(SOURCE, CrateKind::Test).map(drop))?;
    time(level, "link", || harness.link(SOURCE).map(drop))?;
    time(level, "build", || harness.build(&program).map(drop))?;
    if let Build::Ready(binary) = harness.build(&program)? {
        time(level, "run", || harness.run(&binary, &RunOptions::default()).map(drop))?;
    }
    Ok(())
}

fn time(level: u8, what: &str, work: impl Fn() -> Result<(), HarnessError>) -> Result<(), HarnessError> {
    let began = Instant::now();
    for _ in 0..TIMES {
        work()?;
    }
    let each = began.elapsed().as_secs_f64() * 1000.0 / f64::from(TIMES);
    let _ = writeln!(std::io::stdout(), "level {level}: {what:5} {each:7.1} ms");
    Ok(())
}
