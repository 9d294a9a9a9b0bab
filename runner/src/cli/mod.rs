//! The command line.

mod inspect;
mod run;

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use clap::{Args, Parser, Subcommand, ValueEnum};
use record::exit::ExitCode;
use serde_json::json;

use crate::config::SetParam;
use crate::error::{Result, RunnerError};
use crate::interrupt::Cancellation;

/// Runs pipelines of stage programs; what is unchanged comes from the cache.
#[derive(Debug, Parser)]
#[command(name = "runner", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the pipeline: cached stages are served, the others execute
    Run(RunArgs),
    /// Show for every stage whether it would hit or run, and why; runs nothing
    Plan(PlanArgs),
    /// Explain one stage: its key and every difference to its nearest earlier run
    Why {
        /// Name of a stage or of one instance
        stage: String,
        #[command(flatten)]
        common: Common,
    },
    /// Show the state of the latest (or the named) experiment
    Status {
        #[command(flatten)]
        common: Common,
        /// Experiment to show [default: the latest]
        #[arg(long, value_name = "ID")]
        experiment: Option<String>,
    },
    /// Print the stages and what they take from each other
    Graph {
        #[command(flatten)]
        common: Common,
        #[arg(long, value_enum, default_value = "text")]
        format: GraphFormat,
    },
    /// Print the log of a stage's last attempt
    Log {
        stage: String,
        #[command(flatten)]
        common: Common,
        /// Experiment to look in [default: the latest]
        #[arg(long, value_name = "ID")]
        experiment: Option<String>,
    },
    /// Say what this machine has and lacks
    Doctor {
        #[arg(long, value_enum, default_value = "human")]
        format: Format,
    },
    /// The reproducibility lock of an experiment
    Lock {
        #[command(subcommand)]
        command: LockCommand,
    },
    #[command(name = "guard-stages", hide = true)]
    Guard,
}

#[derive(Debug, Subcommand)]
enum LockCommand {
    /// Recompute the lock and name every field that differs; exit code 5 when one does
    Verify {
        #[command(flatten)]
        common: Common,
        /// Experiment to verify [default: the latest]
        #[arg(long, value_name = "ID")]
        experiment: Option<String>,
        #[arg(long, value_enum, default_value = "human")]
        format: Format,
    },
}

#[derive(Debug, Clone, Args)]
struct Common {
    /// The pipeline file
    #[arg(default_value = "pipeline.toml")]
    pipeline: PathBuf,
    /// Lay [profile.NAME] over the pipeline
    #[arg(long, value_name = "NAME")]
    profile: Option<String>,
    /// Set a parameter, or an input (STAGE.inputs.NAME=REFERENCE); may be repeated
    #[arg(long, value_name = "STAGE.PARAM=VALUE")]
    set: Vec<SetParam>,
}

#[derive(Debug, Clone, Args)]
struct SelectArgs {
    /// Only this stage; what it needs must be cached. May be repeated
    #[arg(long, value_name = "STAGE", conflicts_with_all = ["from", "until"])]
    only: Vec<String>,
    /// This stage and everything after it
    #[arg(long, value_name = "STAGE")]
    from: Option<String>,
    /// This stage and everything it needs
    #[arg(long, value_name = "STAGE")]
    until: Option<String>,
    /// Execute this stage even if it is cached; may be repeated
    #[arg(long, value_name = "STAGE")]
    force: Vec<String>,
}

#[derive(Debug, Clone, Args)]
struct PlanArgs {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    select: SelectArgs,
    #[arg(long, value_enum, default_value = "human")]
    format: Format,
}

#[derive(Debug, Clone, Args)]
struct RunArgs {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    select: SelectArgs,
    /// Run at most N stages at once [default: as resources allow]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    jobs: Option<u32>,
    /// After a failure, go on with stages that don't need the failed one
    #[arg(long)]
    keep_going: bool,
    /// Fail (exit code 5) instead of executing anything
    #[arg(long)]
    require_cached: bool,
    /// Skip the pipeline's [build] command; programs older than their sources are refused
    #[arg(long)]
    no_build: bool,
    /// Name of the experiment's folder [default: PROFILE-NNN]
    #[arg(long, value_name = "ID")]
    experiment: Option<String>,
    #[arg(long, value_enum, default_value = "human")]
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Human,
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum GraphFormat {
    Text,
    Dot,
}

/// The whole program.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(e) if e.use_stderr() => {
            if wants_json(&arguments) {
                let text = e.to_string();
                let message = text.strip_prefix("error: ").unwrap_or(&text).trim();
                print_error(ExitCode::Usage, &[(message.to_owned(), None)]);
            }
            let _ = e.print();
            return ExitCode::Usage;
        }
        Err(e) => {
            let _ = e.print();
            return ExitCode::Ok;
        }
    };
    let _ = miette::set_hook(Box::new(|_| {
        Box::new(miette::MietteHandlerOpts::new().wrap_lines(false).break_words(false).build())
    }));
    let format = cli.command.format();
    let told = !matches!(cli.command, Command::Run(_));
    let result = cli.command.run().and_then(|code| if told { answered(code) } else { Ok(code) });
    // What was broken off may have failed in any words.
    let result = result
        .map_err(|error| if Cancellation::default().asked() { RunnerError::interrupted() } else { error });
    result.unwrap_or_else(|error| show_error(error, format))
}

impl Command {
    fn run(self) -> Result<ExitCode> {
        let asks_others = matches!(
            self,
            Self::Run(_) | Self::Plan(_) | Self::Why { .. } | Self::Doctor { .. } | Self::Lock { .. }
        );
        if asks_others {
            Cancellation::listen()?;
        }
        match self {
            Self::Run(args) => run::run(&args),
            Self::Plan(args) => inspect::plan(&args),
            Self::Why { stage, common } => inspect::why(&stage, &common),
            Self::Status { common, experiment } => inspect::status(&common, experiment.as_deref()),
            Self::Graph { common, format } => inspect::graph(&common, format),
            Self::Log { stage, common, experiment } => inspect::log(&stage, &common, experiment.as_deref()),
            Self::Doctor { format } => inspect::doctor(format),
            Self::Lock { command: LockCommand::Verify { common, experiment, format } } => {
                inspect::verify_lock(&common, experiment.as_deref(), format)
            }
            Self::Guard => Ok(crate::exec::guard_main()),
        }
    }

    fn format(&self) -> Format {
        match self {
            Self::Run(args) => args.format,
            Self::Plan(args) => args.format,
            Self::Doctor { format } | Self::Lock { command: LockCommand::Verify { format, .. } } => *format,
            _ => Format::Human,
        }
    }
}

fn show_error(error: RunnerError, format: Format) -> ExitCode {
    let code = error.code();
    if format == Format::Json {
        print_error(code, &error.messages());
    }
    for report in error.into_reports() {
        let _ = writeln!(std::io::stderr().lock(), "{report:?}");
    }
    code
}

fn print_error(code: ExitCode, messages: &[(String, Option<String>)]) {
    let faults: Vec<_> =
        messages.iter().map(|(message, next)| json!({"message": message, "next": next})).collect();
    print_line(&json!({"event": "error", "exit_code": code as u8, "faults": faults}).to_string());
}

/// Whether a command line that could not be read asked for output as data.
fn wants_json(arguments: &[OsString]) -> bool {
    let pairs = arguments.windows(2).any(|pair| pair[0] == "--format" && pair[1] == "json");
    pairs || arguments.iter().any(|a| a == "--format=json")
}

/// The first line that could not be written: a full disk, say.
static UNWRITTEN: OnceLock<std::io::Error> = OnceLock::new();

/// A line on standard output. A closed pipe ends nothing: whoever read it has seen enough.
fn print_line(text: &str) {
    keep_failure(writeln!(std::io::stdout().lock(), "{text}"));
}

fn keep_failure(written: std::io::Result<()>) {
    if let Err(error) = written
        && error.kind() != std::io::ErrorKind::BrokenPipe
    {
        let _ = UNWRITTEN.set(error);
    }
}

/// An answer that nobody could be given is a failure; a run's outcome is told by its folder as well.
fn answered(code: ExitCode) -> Result<ExitCode> {
    match UNWRITTEN.get() {
        Some(error) if code == ExitCode::Ok => {
            let source = std::io::Error::new(error.kind(), error.to_string());
            Err(RunnerError::io("write", Path::new("standard output"), source))
        }
        _ => Ok(code),
    }
}
