//! The command line of a stage program, and its parameters.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, ArgMatches, Command};
use record::Map;
use record::exit::ExitCode;
use record::protocol::{Description, PROTOCOL, Port, REQUEST_VARIABLE, Request, Resources};
use serde_json::Value;

use crate::places::is_taken;
use crate::stage::{PortSpec, Stage, Target};
use crate::{Result, StageError, files};

pub(crate) enum Call {
    Run(Box<RunCall>),
    Print { text: String, code: ExitCode },
}

pub(crate) struct RunCall {
    pub(crate) request: Request,
    pub(crate) by_hand: bool,
    pub(crate) overwrite: bool,
}

pub(crate) fn parse<S: Stage>(args: impl IntoIterator<Item = OsString>) -> Result<Call> {
    let matches = match command::<S>().try_get_matches_from(args) {
        Ok(matches) => matches,
        Err(e) => {
            let code = if e.use_stderr() { ExitCode::Usage } else { ExitCode::Ok };
            return Ok(Call::Print { text: e.render().to_string(), code });
        }
    };
    if matches.get_flag("describe") {
        let mut text = serde_json::to_string_pretty(&describe::<S>())
            .map_err(|e| StageError::internal(format!("can't write the description: {e}")))?;
        text.push('\n');
        return Ok(Call::Print { text, code: ExitCode::Ok });
    }
    if let Some(path) = std::env::var_os(REQUEST_VARIABLE) {
        let request: Request = files::read_json(Path::new(&path))?;
        if request.protocol != PROTOCOL {
            return Err(StageError::usage(format!(
                "protocol {} is asked for, this program speaks {PROTOCOL}",
                request.protocol
            ))
            .at(Path::new(&path).display().to_string())
            .next("use a runner and stages of the same build"));
        }
        return Ok(Call::Run(Box::new(RunCall { request, by_hand: false, overwrite: false })));
    }
    let request = request_by_hand::<S>(&matches)?;
    let overwrite = matches.get_flag("overwrite");
    if !overwrite {
        refuse_existing(&request)?;
    }
    Ok(Call::Run(Box::new(RunCall { request, by_hand: true, overwrite })))
}

fn command<S: Stage>() -> Command {
    let mut command = Command::new(S::NAME)
        .version(env!("CARGO_PKG_VERSION"))
        .after_help(help::<S>())
        .arg(Arg::new("describe").long("describe").action(ArgAction::SetTrue).help("Print ports and parameters as JSON"))
        .arg(pair("input", "NAME=PATH", "An input; see below"))
        .arg(pair("output", "NAME=PATH", "An output to write; see below"))
        .arg(pair("set", "PARAM=VALUE", "A parameter; see below"))
        .arg(Arg::new("seed").long("seed").default_value("42").value_parser(clap::value_parser!(u64)).help("Seed of all randomness"))
        .arg(Arg::new("cpus").long("cpus").value_parser(clap::value_parser!(u32)).help("Threads to use [default: all]"))
        .arg(Arg::new("checkpoint-dir").long("checkpoint-dir").value_parser(clap::value_parser!(PathBuf)).help("Where an interrupted run leaves what it needs to go on [default: FIRST-OUTPUT.checkpoint]"))
        .arg(Arg::new("live-dir").long("live-dir").value_parser(clap::value_parser!(PathBuf)).help("Where events go while it runs [default: FIRST-OUTPUT.live]"))
        .arg(Arg::new("overwrite").long("overwrite").action(ArgAction::SetTrue).help("Replace outputs that exist"));
    for alias in S::ALIASES {
        let arg = Arg::new(alias.option).long(alias.option);
        command = command.arg(match alias.target {
            Target::Flag(name) => arg.action(ArgAction::SetTrue).help(format!("Same as --set {name}=true")),
            Target::Input(name) => arg.value_name("PATH").help(format!("Same as --input {name}=PATH")),
            Target::Output(name) => arg.value_name("PATH").help(format!("Same as --output {name}=PATH")),
            Target::Param(name) => arg.value_name("VALUE").help(format!("Same as --set {name}=VALUE")),
        });
    }
    command
}

fn pair(name: &'static str, value: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).value_name(value).action(ArgAction::Append).help(help)
}

fn help<S: Stage>() -> String {
    let ports = |title: &str, ports: &[PortSpec]| {
        let lines: Vec<String> = ports
            .iter()
            .map(|p| {
                format!("  {}{}: {}", p.name, if p.required { "" } else { " (optional)" }, p.description)
            })
            .collect();
        format!("{title}:\n{}", lines.join("\n"))
    };
    let schema = params_schema::<S>();
    let mut params = String::from("Parameters:");
    for (name, property) in properties(&schema) {
        let text = property.get("description").and_then(Value::as_str).unwrap_or("").replace('\n', " ");
        let default = property.get("default").map_or(String::new(), |d| format!(" [default: {d}]"));
        params.push_str(&format!("\n  {name}: {text}{default}"));
    }
    if !S::MORE_HELP.is_empty() {
        params.push_str("\n\n");
        params.push_str(S::MORE_HELP);
    }
    format!("{}\n\n{}\n\n{params}", ports("Inputs", S::INPUTS), ports("Outputs", S::OUTPUTS))
}

pub(crate) fn describe<S: Stage>() -> Description {
    let ports = |ports: &[PortSpec]| {
        let port = |p: &PortSpec| Port {
            name: p.name.to_owned(),
            description: p.description.to_owned(),
            required: p.required,
            volatile: p.volatile,
        };
        ports.iter().map(port).collect()
    };
    Description {
        name: S::NAME.to_owned(),
        protocol: 2,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        inputs: ports(S::INPUTS),
        outputs: ports(S::OUTPUTS),
        params: params_schema::<S>(),
    }
}

fn params_schema<S: Stage>() -> Value {
    schemars::schema_for!(S::Params).to_value()
}

fn properties(schema: &Value) -> impl Iterator<Item = (&String, &Value)> {
    schema.get("properties").and_then(Value::as_object).into_iter().flatten()
}

/// Parameters from a request, with an error that names the parameter.
pub(crate) fn params<S: Stage>(given: &Map<Value>) -> Result<S::Params> {
    let schema = params_schema::<S>();
    let known: Vec<&String> = properties(&schema).map(|(name, _)| name).collect();
    for name in given.keys() {
        if !known.contains(&name) {
            let list = known.iter().map(|k| k.as_str()).collect::<Vec<_>>().join(", ");
            return Err(StageError::usage(format!("there is no parameter `{name}`"))
                .at(S::NAME)
                .next(format!("its parameters are: {list}")));
        }
    }
    let object = Value::Object(given.clone().into_iter().collect());
    serde_json::from_value(object).map_err(|e| {
        let culprit = given.iter().find(|(name, value)| {
            let alone = Value::Object([((*name).clone(), (*value).clone())].into_iter().collect());
            serde_json::from_value::<S::Params>(alone).is_err()
        });
        let (place, message) = match culprit {
            None => ("", e.to_string()),
            Some((name, value)) => (name.as_str(), misfit(&schema, name, value, &e)),
        };
        StageError::usage(message)
            .at(format!("{} parameter {place}", S::NAME))
            .next(format!("see `{} --help`", S::NAME))
    })
}

/// Why a parameter does not take the value: where it wants a number and the value is none, which numbers it takes.
fn misfit(schema: &Value, name: &str, value: &Value, e: &serde_json::Error) -> String {
    let property = schema.pointer(&format!("/properties/{name}"));
    let keyword = |key: &str| property.and_then(|p| p.get(key));
    let is_kind = |kind: &str| match keyword("type") {
        Some(Value::Array(kinds)) => kinds.iter().any(|k| k == kind),
        only => only.is_some_and(|k| k == kind),
    };
    let wanted = match (is_kind("integer"), is_kind("number")) {
        (true, _) if !(value.is_i64() || value.is_u64()) => "a whole number",
        (_, true) if !value.is_number() => "a finite number",
        _ => return format!("`{value}`: {e}"),
    };
    let bound = match (keyword("exclusiveMinimum"), keyword("minimum")) {
        (Some(bound), _) => format!(" above {bound}"),
        (None, Some(bound)) => format!(", {bound} or more"),
        (None, None) => String::new(),
    };
    let shown = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    format!("`{shown}` is not {wanted}{bound}")
}

fn request_by_hand<S: Stage>(matches: &ArgMatches) -> Result<Request> {
    let mut inputs = pairs(matches, "input")?;
    let mut outputs = pairs(matches, "output")?;
    let mut set = pairs(matches, "set")?;
    for alias in S::ALIASES {
        let value = match alias.target {
            Target::Flag(_) => matches.get_flag(alias.option).then(|| "true".to_owned()),
            _ => matches.get_one::<String>(alias.option).cloned(),
        };
        let Some(value) = value else { continue };
        match alias.target {
            Target::Input(name) => inputs.insert(name.to_owned(), value),
            Target::Output(name) => outputs.insert(name.to_owned(), value),
            Target::Param(name) | Target::Flag(name) => set.insert(name.to_owned(), value),
        };
    }
    known_ports("input", &inputs, S::INPUTS)?;
    known_ports("output", &outputs, S::OUTPUTS)?;
    let schema = params_schema::<S>();
    let params = set.into_iter().map(|(name, text)| (name.clone(), value_of(&schema, &name, text))).collect();
    let here = std::env::current_dir().map_err(|e| StageError::failed(format!("no current folder: {e}")))?;
    let absolute =
        |map: Map<String>| -> Map<PathBuf> { map.into_iter().map(|(k, v)| (k, here.join(v))).collect() };
    let outputs = absolute(outputs);
    let beside = |suffix: &str| {
        let first = outputs.values().next().cloned().unwrap_or_else(|| here.join(S::NAME));
        let mut name = first.file_name().unwrap_or_default().to_owned();
        name.push(suffix);
        first.with_file_name(name)
    };
    let cpus = matches.get_one::<u32>("cpus").copied();
    let cpus = cpus.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get() as u32));
    let folder = |name: &str, suffix: &str| {
        matches.get_one::<PathBuf>(name).map_or_else(|| beside(suffix), |p| here.join(p))
    };
    Ok(Request {
        protocol: PROTOCOL,
        stage: S::NAME.to_owned(),
        key: String::new(),
        inputs: absolute(inputs),
        scratch: beside(&format!(".scratch-{}", std::process::id())),
        checkpoint_dir: folder("checkpoint-dir", ".checkpoint"),
        live_dir: folder("live-dir", ".live"),
        outputs,
        params,
        seed: matches.get_one::<u64>("seed").copied().unwrap_or(42),
        resources: Resources { cpus, memory_mb: 0, gpus: 0 },
        deadline_ms: None,
    })
}

/// A parameter's text as its schema wants it: text stays text, anything else is read as JSON where it is JSON.
fn value_of(schema: &Value, name: &str, text: String) -> Value {
    let kind = schema.pointer(&format!("/properties/{name}/type"));
    let is_text = kind.is_some_and(|k| k == "string");
    if is_text { Value::String(text) } else { serde_json::from_str(&text).unwrap_or(Value::String(text)) }
}

fn pairs(matches: &ArgMatches, option: &str) -> Result<Map<String>> {
    let mut found = Map::new();
    for text in matches.get_many::<String>(option).into_iter().flatten() {
        let Some((name, value)) = text.split_once('=') else {
            return Err(StageError::usage(format!("`--{option} {text}` has no `=`"))
                .next(format!("write --{option} NAME=VALUE")));
        };
        found.insert(name.to_owned(), value.to_owned());
    }
    Ok(found)
}

fn known_ports(kind: &str, given: &Map<String>, ports: &[PortSpec]) -> Result<()> {
    for name in given.keys() {
        if !ports.iter().any(|p| p.name == name) {
            let list = ports.iter().map(|p| p.name).collect::<Vec<_>>().join(", ");
            return Err(StageError::usage(format!("there is no {kind} `{name}`"))
                .next(format!("the {kind}s are: {list}")));
        }
    }
    Ok(())
}

fn refuse_existing(request: &Request) -> Result<()> {
    match request.outputs.values().find(|path| is_taken(path)) {
        Some(path) => Err(StageError::usage("the output exists already")
            .at(path.display().to_string())
            .next("choose another folder, or add --overwrite to replace it")),
        None => Ok(()),
    }
}
