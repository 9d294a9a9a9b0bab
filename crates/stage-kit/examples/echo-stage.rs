//! The smallest stage program: copies a text as often as asked. Used by the tests of this crate.

use std::fs;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use stage_kit::{Alias, Context, Outcome, PortSpec, Result, Stage, StageError, Target};

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Params {
    /// How often the text is repeated.
    times: u32,
    /// Seconds to wait before each copy.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pause: Option<f64>,
    /// What is put between two copies.
    separator: String,
    /// Report an unmet gate after the work.
    gate: bool,
    /// Wait for a signal after writing half of the output.
    wait: bool,
}

impl Default for Params {
    fn default() -> Self {
        Self { times: 1, pause: None, separator: " ".to_owned(), gate: false, wait: false }
    }
}

#[derive(Debug)]
struct Echo;

impl Stage for Echo {
    type Params = Params;
    const NAME: &'static str = "echo-stage";
    const INPUTS: &'static [PortSpec] = &[PortSpec::required("text", "a text file")];
    const OUTPUTS: &'static [PortSpec] =
        &[PortSpec::required("copies", "copies.txt"), PortSpec::volatile("timings", "seconds.txt")];
    const ALIASES: &'static [Alias] = &[Alias { option: "gate", target: Target::Flag("gate") }];

    fn is_checkpoint(name: &str) -> bool {
        name == "done.txt"
    }

    fn run(params: Params, context: &Context) -> Result<Outcome> {
        let done = context.checkpoint_dir().join("done.txt");
        fs::write(&done, "nothing").map_err(|e| StageError::io("write", &done, e))?;
        let input = context.input("text")?;
        let text = fs::read_to_string(input).map_err(|e| StageError::io("read", input, e))?;
        let path = context.output_dir("copies")?.join("copies.txt");
        let progress = context.progress("copies", Some(u64::from(params.times)));
        let copies: Vec<&str> = (0..params.times).map(|_| text.trim()).inspect(|_| progress.inc(1)).collect();
        std::thread::sleep(std::time::Duration::from_secs_f64(params.pause.unwrap_or(0.0)));
        fs::write(&path, copies.join(&params.separator)).map_err(|e| StageError::io("write", &path, e))?;
        if context.wants("timings") {
            let path = context.output_dir("timings")?.join("seconds.txt");
            fs::write(&path, "0").map_err(|e| StageError::io("write", &path, e))?;
        }
        loop {
            if !params.wait {
                break;
            }
            context.check_cancelled()?;
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        Ok(if params.gate { Outcome::GateNotMet } else { Outcome::Done })
    }
}

fn main() -> std::process::ExitCode {
    stage_kit::main::<Echo>()
}
