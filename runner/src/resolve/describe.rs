//! What a stage says of itself: `PROGRAM --describe`, asked once per content of the program.

use std::ffi::OsString;
use std::time::Duration;

use record::protocol::Description;

use super::{ResolvedStage, capture};
use crate::cache::Store;
use crate::config::{ConfigError, Piece, Pipeline, StageConfig, pieces};

const LIMIT: Duration = Duration::from_secs(30);

pub(super) fn describe(
    pipeline: &Pipeline,
    store: &Store,
    stage: &StageConfig,
    resolved: &ResolvedStage,
    environment: &[(OsString, OsString)],
) -> Result<Description, Vec<ConfigError>> {
    let fault = |reason: String| {
        let message = format!("stage `{}`: `{} --describe`: {reason}", stage.name, stage.run[0].value);
        let help =
            "a stage with `protocol = 2` must answer --describe; for any other program leave `protocol` out";
        let cause = format!("describe {}", stage.run[0].value);
        vec![ConfigError::at(&pipeline.source, &stage.run[0].span, message).help(help).cause(cause)]
    };
    let arguments = leading_arguments(pipeline, stage);
    let mut evidence = format!("{arguments:?}\n");
    for (name, digest) in &resolved.code {
        evidence.push_str(&format!("{name} {digest}\n"));
    }
    let name = blake3::hash(evidence.as_bytes()).to_hex().to_string();
    let known = store.recall("describe", &name);
    if let Some(description) = known.and_then(|text| serde_json::from_str(&text).ok()) {
        return Ok(description);
    }
    let Some(program) = &resolved.program else { return Err(fault("the program is not there".to_owned())) };
    let mut call = arguments;
    call.push("--describe".into());
    let text = capture(program, &call, &pipeline.dir, environment, LIMIT).map_err(&fault)?;
    let description: Description =
        serde_json::from_str(&text).map_err(|e| fault(format!("not a description: {e}")))?;
    if description.protocol != 2 {
        return Err(fault(format!("it speaks protocol {}, not 2", description.protocol)));
    }
    store.remember("describe", &name, &text);
    Ok(description)
}

/// What an interpreter needs to find the script: the arguments before the first option or placeholder.
fn leading_arguments(pipeline: &Pipeline, stage: &StageConfig) -> Vec<OsString> {
    let plain = |a: &&crate::config::Located<String>| {
        !a.value.starts_with('-') && pieces(&a.value).iter().all(|p| matches!(p, Piece::Text(_)))
    };
    let arguments = stage.run[1..].iter().take_while(plain);
    arguments
        .map(|a| match super::program::script(&pipeline.dir, &a.value) {
            Some(path) => path.into_os_string(),
            None => OsString::from(&a.value),
        })
        .collect()
}
