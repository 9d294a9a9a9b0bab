//! One `[stage.NAME]` table to a [`StageConfig`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use record::protocol::Resources;

use super::error::suggestion;
use super::node::{Entry, Kind, Span, Table};
use super::reader::Reader;
use super::refs::{self, Piece, pieces};
use super::{Axis, InputRef, Located, StageConfig};

pub(crate) const STAGE_KEYS: [&str; 19] = [
    "run",
    "inputs",
    "outputs",
    "volatile",
    "params",
    "env",
    "pass_env",
    "secrets",
    "tools",
    "platform",
    "resources",
    "timeout",
    "grace",
    "retries",
    "repeat",
    "seed",
    "matrix",
    "protocol",
    "code",
];

/// Names that the runner itself uses in a node's folder.
const RESERVED_OUTPUTS: [&str; 4] = ["live", "logs", "inputs", "scratch"];
const DEFAULT_GRACE: Duration = Duration::from_secs(10);
const DEFAULT_RETRIES: u32 = 3;
const MOST_INSTANCES: usize = 10_000;

pub(crate) fn stage(reader: &mut Reader<'_>, name: &str, entry: &Entry) -> Option<StageConfig> {
    let Kind::Table(table) = &entry.node.kind else {
        reader.fault(
            &entry.node.span,
            format!("`stage.{name}` must be a table"),
            format!("write [stage.{name}]"),
        );
        return None;
    };
    reader.unknown_keys(table, &STAGE_KEYS, &format!("[stage.{name}]"));
    let run = reader.texts(table, "run");
    if run.is_empty() {
        reader.fault(
            &entry.key_span,
            format!("the stage `{name}` has no `run`"),
            "name the program and its arguments: run = [\"program\", \"argument\"]",
        );
    }
    for argument in run.iter().filter(|a| a.value.contains('\0')) {
        let message = format!("stage `{name}`: an argument holds a zero byte, which no program can be given");
        reader.fault(&argument.span, message, "take it out");
    }
    let outputs = outputs(reader, name, table, &entry.key_span);
    let volatile = names(reader.texts(table, "volatile"));
    for output in &volatile {
        if !outputs.contains_key(output) {
            let span = table.get("volatile").and_then(|e| e.node.span.clone());
            let help = suggestion(output, outputs.keys().map(String::as_str));
            reader.fault(
                &span,
                format!("`volatile` names `{output}`, which is not an output of `{name}`"),
                help,
            );
        }
    }
    let stage = StageConfig {
        name: name.to_owned(),
        span: entry.key_span.clone(),
        inputs: inputs(reader, table),
        params: params(reader, table),
        raw_params: BTreeMap::new(),
        env: variables(reader, table, "env"),
        pass_env: variables(reader, table, "pass_env"),
        secrets: variables(reader, table, "secrets"),
        tools: names(reader.texts(table, "tools")),
        platform: platform(reader, table),
        resources: resources(reader, table),
        timeout: reader.duration(table, "timeout"),
        grace: reader.duration(table, "grace").unwrap_or(DEFAULT_GRACE),
        retries: reader.number(table, "retries", 100).map_or(DEFAULT_RETRIES, |n| n as u32),
        repeat: reader.number(table, "repeat", u64::MAX).unwrap_or(0),
        seed: reader.number(table, "seed", u64::MAX),
        matrix: matrix(reader, name, table),
        protocol: reader.number(table, "protocol", 2).unwrap_or(1) as u8,
        code: reader.texts(table, "code"),
        run,
        outputs,
        volatile,
    };
    placeholders(reader, &stage);
    contradictions(reader, &stage, table);
    Some(stage)
}

/// Keys that are right alone and wrong together.
fn contradictions(reader: &mut Reader<'_>, stage: &StageConfig, table: &Table) {
    for secret in &stage.secrets {
        if stage.env.contains(secret) || stage.pass_env.contains(secret) {
            let span = table.get("secrets").and_then(|e| e.node.span.clone());
            let message = format!("`{secret}` is a secret and also stands in `env` or `pass_env`");
            reader.fault(
                &span,
                message,
                "leave it in `secrets` alone: what `env` names is written into the cache",
            );
        }
    }
    for axis in &stage.matrix {
        if let Some(param) = stage.params.get(&axis.param) {
            let message =
                format!("stage `{}`: `{}` is a parameter and an axis of the matrix", stage.name, axis.param);
            reader.fault(&param.span, message, "keep one of them");
        }
    }
}

/// Names of environment variables.
fn variables(reader: &mut Reader<'_>, table: &Table, key: &str) -> BTreeSet<String> {
    let texts = reader.texts(table, key);
    for text in &texts {
        if text.value.is_empty() || text.value.contains(['=', '\0']) {
            let help = "write the name alone: its value is taken from the runner's environment";
            reader.fault(
                &text.span,
                format!("`{key}`: {:?} is not the name of a variable", text.value),
                help,
            );
        }
    }
    names(texts)
}

fn names(texts: Vec<Located<String>>) -> BTreeSet<String> {
    texts.into_iter().map(|t| t.value).collect()
}

fn outputs(
    reader: &mut Reader<'_>,
    stage: &str,
    table: &Table,
    place: &Span,
) -> BTreeMap<String, Located<()>> {
    let mut found = BTreeMap::new();
    for output in reader.texts(table, "outputs") {
        if !reader.name("an output", &output.value, &output.span) {
            continue;
        }
        if RESERVED_OUTPUTS.contains(&output.value.as_str()) {
            let help = format!("the runner keeps `{}` in the same folder; choose another name", output.value);
            reader.fault(&output.span, format!("`{}` can't be an output", output.value), help);
        }
        let span = output.span.clone();
        if found.insert(output.value.clone(), Located { value: (), span: output.span }).is_some() {
            reader.fault(
                &span,
                format!("the output `{}` is named twice", output.value),
                "remove one of them",
            );
        }
    }
    if found.is_empty() && !table.contains_key("outputs") {
        let help = "name what it writes: outputs = [\"result\"]";
        reader.fault(place, format!("the stage `{stage}` has no `outputs`"), help);
    }
    found
}

fn inputs(reader: &mut Reader<'_>, table: &Table) -> BTreeMap<String, Located<InputRef>> {
    let mut found = BTreeMap::new();
    for (name, entry) in reader.table(table, "inputs").into_iter().flatten() {
        let Some(text) = reader.text_of(name, &entry.node) else { continue };
        // An empty reference removes an input that a profile inherits.
        if text.value.is_empty() || !reader.name("an input", name, &entry.key_span) {
            continue;
        }
        match InputRef::parse(&text.value) {
            Ok(value) => drop(found.insert(name.clone(), Located { value, span: text.span })),
            Err(message) => reader.fault(
                &text.span,
                format!("input `{name}`: {message}"),
                "write \"STAGE.OUTPUT\", \"STAGE[*].OUTPUT\" or \"file:PATH\"",
            ),
        }
    }
    found
}

fn params(reader: &mut Reader<'_>, table: &Table) -> BTreeMap<String, Located<serde_json::Value>> {
    let mut found = BTreeMap::new();
    for (name, entry) in reader.table(table, "params").into_iter().flatten() {
        if !reader.name("a parameter", name, &entry.key_span) {
            continue;
        }
        if let Some(value) = reader.json(entry) {
            found.insert(name.clone(), Located { value, span: entry.node.span.clone() });
        }
    }
    found
}

fn platform(reader: &mut Reader<'_>, table: &Table) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    if let Some(table) = reader.table(table, "platform") {
        reader.unknown_keys(table, &["arch", "os", "gpu_arch"], "`platform`");
        for (name, entry) in table {
            if let Some(text) = reader.text_of(name, &entry.node) {
                found.insert(name.clone(), text.value);
            }
        }
    }
    found
}

fn resources(reader: &mut Reader<'_>, table: &Table) -> Resources {
    let mut resources = Resources { cpus: 1, memory_mb: 0, gpus: 0 };
    if let Some(table) = reader.table(table, "resources") {
        reader.unknown_keys(table, &["cpus", "memory_mb", "gpus"], "`resources`");
        if let Some(n) = reader.number(table, "cpus", u64::from(u32::MAX)) {
            resources.cpus = (n as u32).max(1);
        }
        resources.memory_mb = reader.number(table, "memory_mb", u64::MAX).unwrap_or(0);
        resources.gpus = reader.number(table, "gpus", 1024).unwrap_or(0) as u32;
    }
    resources
}

fn matrix(reader: &mut Reader<'_>, stage: &str, table: &Table) -> Vec<Axis> {
    let Some(table) = reader.table(table, "matrix") else { return Vec::new() };
    let mut axes: Vec<(&String, &Entry)> = table.iter().collect();
    axes.sort_by_key(|(_, entry)| entry.key_span.as_ref().map_or(0, |s| s.start));
    let mut found = Vec::new();
    for (param, entry) in axes {
        if !reader.name("a parameter", param, &entry.key_span) {
            continue;
        }
        let Kind::Array(items) = &entry.node.kind else {
            let help = format!("write {param} = [VALUE, VALUE]");
            reader.fault(&entry.node.span, format!("`matrix.{param}` must be an array of values"), help);
            continue;
        };
        if items.is_empty() {
            reader.fault(&entry.node.span, format!("`matrix.{param}` is empty: the stage would vanish"), "");
        }
        let mut values: Vec<(String, serde_json::Value)> = Vec::new();
        for item in items {
            if matches!(item.kind, Kind::Array(_) | Kind::Table(_)) {
                reader.fault(&item.span, format!("`matrix.{param}` may hold only plain values"), "");
                continue;
            }
            let entry = Entry { key_span: None, node: item.clone() };
            let Some(value) = reader.json(&entry) else { continue };
            let written = match &item.kind {
                Kind::Text(text) => text.clone(),
                _ => item.span.as_ref().map_or_else(String::new, |s| reader.source.snippet(s).to_owned()),
            };
            let label: String = written.chars().map(|c| if label_char(c) { c } else { '_' }).collect();
            if values.iter().any(|(l, v)| *l == label || *v == value) {
                reader.fault(
                    &item.span,
                    format!("`matrix.{param}` holds `{written}` twice"),
                    "remove one of them",
                );
                continue;
            }
            values.push((label, value));
        }
        found.push(Axis { param: param.clone(), values });
    }
    let span = || found.iter().map(|axis| axis.param.as_str()).find_map(|p| table.get(p)?.key_span.clone());
    let instances = found.iter().try_fold(1_usize, |n, axis| n.checked_mul(axis.values.len()));
    if instances.is_none_or(|n| n > MOST_INSTANCES) {
        let help = format!("a matrix makes at most {MOST_INSTANCES} instances: shorten it");
        reader.fault(&span(), "the matrix has too many combinations", help);
        return Vec::new();
    }
    let longest =
        |axis: &Axis| axis.param.len() + 2 + axis.values.iter().map(|(l, _)| l.len()).max().unwrap_or(0);
    if !found.is_empty()
        && stage.len() + 1 + found.iter().map(longest).sum::<usize>() > refs::LONGEST_NODE_NAME
    {
        let help =
            "an instance is named by its values: shorten them, or choose from a table inside the stage";
        reader.fault(&span(), "the names of the matrix's instances would be too long", help);
    }
    found
}

fn label_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '+' | ':')
}

/// Every placeholder of `run` must name something that the stage has.
fn placeholders(reader: &mut Reader<'_>, stage: &StageConfig) {
    for argument in &stage.run {
        for piece in pieces(&argument.value) {
            let (kind, name, known): (_, _, Vec<&str>) = match piece {
                Piece::Text(_) => continue,
                Piece::Input(name) => ("input", name, stage.inputs.keys().map(String::as_str).collect()),
                Piece::Output(name) => ("output", name, stage.outputs.keys().map(String::as_str).collect()),
                Piece::Param(name) => {
                    let axes = stage.matrix.iter().map(|a| a.param.as_str());
                    ("parameter", name, stage.params.keys().map(String::as_str).chain(axes).collect())
                }
            };
            if !known.contains(&name) {
                let message = format!(
                    "`{}` asks for the {kind} `{name}`, which `{}` has not",
                    argument.value, stage.name
                );
                reader.fault(&argument.span, message, suggestion(name, known));
            }
        }
    }
}
