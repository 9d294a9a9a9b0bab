//! `monitor --experiment DIR`: one line block per change of the trainer's state.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use monitor::{headless, source, state};
use record::exit;

/// Watch a training run from its experiment folder.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The experiment's folder, or a folder that holds training_state.json
    #[arg(long)]
    experiment: PathBuf,
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// Print the present state and leave
    #[arg(long)]
    once: bool,
    /// Time between two looks, in milliseconds
    #[arg(long, default_value_t = 500)]
    refresh_ms: u64,
    /// How long to wait for a run to appear, in seconds
    #[arg(long, default_value_t = 60)]
    wait_s: u64,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    Text,
    Json,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match watch(&arguments) {
        Ok(()) => exit::ExitCode::Ok.into(),
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "{:?}", miette::Report::new(error));
            exit::ExitCode::StageFailed.into()
        }
    }
}

fn watch(arguments: &Arguments) -> Result<(), source::SourceError> {
    let started = Instant::now();
    let mut last = None;
    loop {
        match source::read(&arguments.experiment) {
            Ok(snapshot) => {
                let now = state::reduce(&snapshot);
                if last.as_ref() != Some(&now) {
                    let text = match arguments.format {
                        Format::Text => headless::text(&now),
                        Format::Json => headless::json(&now),
                    };
                    let mut out = std::io::stdout().lock();
                    if out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err() {
                        return Ok(());
                    }
                }
                if arguments.once || now.is_over() {
                    return Ok(());
                }
                last = Some(now);
            }
            Err(error) if arguments.once || !error.may_appear() => return Err(error),
            Err(error) if started.elapsed().as_secs() >= arguments.wait_s => return Err(error),
            Err(_) => {}
        }
        sleep(Duration::from_millis(arguments.refresh_ms.max(10)));
    }
}
