//! `pipeline.toml`: text to typed configuration, with every fault placed by line and column.
//!
//! [`load`] parses, lays a profile and `--set` values over it, and checks everything that can be known without running
//! anything. The pipeline's folder is the root of relative paths.

mod error;
mod node;
mod parse;
mod reader;
mod refs;
mod schema;
mod stage;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

pub use error::{ConfigError, Source, in_order, nearest, suggestion};
pub use node::Span;
pub use parse::{SetParam, parse};
pub use refs::{InputRef, Instance, OutputRef, Piece, is_name, pieces};
pub use schema::{check_params, check_ports};

/// Of a pipeline.
const LARGEST_FILE: u64 = 16 << 20;

/// A value and its place.
#[derive(Debug, Clone, PartialEq)]
pub struct Located<T> {
    pub value: T,
    pub span: Span,
}

/// A file inside an output: `STAGE.OUTPUT/FILE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputFile {
    pub output: OutputRef,
    pub file: String,
}

/// A pipeline with its profile laid over it.
#[derive(Debug, Clone)]
pub struct Pipeline {
    pub source: Source,
    /// Absolute.
    pub dir: PathBuf,
    pub profile: Option<String>,
    pub seed: u64,
    pub gate: Option<Located<OutputFile>>,
    /// With `false`, an unmet gate is reported and the run still exits 0.
    pub enforce_gate: bool,
    pub build: Option<Vec<String>>,
    /// Path below the experiment's folder -> file or folder of an output.
    pub view: BTreeMap<String, Located<OutputFile>>,
    pub stages: BTreeMap<String, StageConfig>,
}

#[derive(Debug, Clone)]
pub struct StageConfig {
    pub name: String,
    pub span: Span,
    pub run: Vec<Located<String>>,
    pub inputs: BTreeMap<String, Located<InputRef>>,
    pub outputs: BTreeMap<String, Located<()>>,
    /// Outputs of wall-clock values, as the pipeline declares them.
    pub volatile: BTreeSet<String>,
    pub params: BTreeMap<String, Located<Value>>,
    /// Parameters given as text on the command line: a schema that wants a string gets this text.
    pub raw_params: BTreeMap<String, String>,
    pub env: BTreeSet<String>,
    pub pass_env: BTreeSet<String>,
    pub secrets: BTreeSet<String>,
    pub tools: BTreeSet<String>,
    pub platform: BTreeMap<String, String>,
    pub resources: record::protocol::Resources,
    pub timeout: Option<Duration>,
    /// Between SIGTERM and SIGKILL.
    pub grace: Duration,
    /// How often exit code 75 is tried again.
    pub retries: u32,
    /// 0: none.
    pub repeat: u64,
    pub seed: Option<u64>,
    /// In the order of the file.
    pub matrix: Vec<Axis>,
    pub protocol: u8,
    /// Globs of files that belong to the program.
    pub code: Vec<Located<String>>,
}

/// One key of a matrix.
#[derive(Debug, Clone, PartialEq)]
pub struct Axis {
    pub param: String,
    /// The value as written, for names, and as JSON.
    pub values: Vec<(String, Value)>,
}

/// Every fault found in a pipeline file; never empty.
#[derive(Debug)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl From<ConfigError> for ConfigErrors {
    fn from(error: ConfigError) -> Self {
        Self(vec![error])
    }
}

/// Reads and checks a pipeline file.
///
/// # Errors
/// Everything that is wrong with it, each with its place.
pub fn load(path: &Path, profile: Option<&str>, set: &[SetParam]) -> Result<Pipeline, ConfigErrors> {
    let text = read(path)?;
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let dir = folder
        .canonicalize()
        .map_err(|e| ConfigError::of_file(folder, format!("can't open the pipeline's folder: {e}")))?;
    parse(Source { path: path.to_owned(), text: text.into() }, dir, profile, set)
}

fn read(path: &Path) -> Result<String, ConfigErrors> {
    let mut bytes = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(LARGEST_FILE + 1).read_to_end(&mut bytes));
    read.map_err(|e| {
        let help = match e.kind() {
            std::io::ErrorKind::NotFound => "name the pipeline file: `runner run PATH`",
            std::io::ErrorKind::IsADirectory => "name the file in it: `runner run PATH/pipeline.toml`",
            _ => "check the permissions of that path",
        };
        ConfigError::of_file(path, format!("can't read the pipeline: {e}")).help(help)
    })?;
    if bytes.len() as u64 > LARGEST_FILE {
        let message = format!("larger than {} MiB: not a pipeline", LARGEST_FILE >> 20);
        return Err(ConfigError::of_file(path, message)
            .help("name the pipeline file: `runner run PATH`")
            .into());
    }
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        let text: Arc<str> = String::from_utf8_lossy(e.as_bytes()).into();
        let source = Source { path: path.to_owned(), text };
        let message = format!("the byte 0x{:02x} is not UTF-8", e.as_bytes()[at]);
        ConfigError::at(&source, &Some(at..at), message).help("save the file as UTF-8 text").into()
    })
}
