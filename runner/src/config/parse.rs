//! The whole file: profile and `--set` laid over the stages, then references between them checked.

use std::collections::BTreeMap;
use std::path::PathBuf;

use toml::de::DeTable;

use super::error::{ConfigError, Source, in_order, suggestion};
use super::node::{self, Entry, Kind, Node, Span, Table};
use super::reader::Reader;
use super::refs::parse_output_file;
use super::stage::{STAGE_KEYS, stage};
use super::{ConfigErrors, InputRef, Instance, Located, OutputFile, OutputRef, Pipeline, StageConfig};

const SCHEMA: u64 = 1;
const TOP_KEYS: [&str; 8] =
    ["schema", "gate", "enforce_gate", "defaults", "build", "view", "stage", "profile"];
/// What the runner itself writes at an experiment's root.
const RESERVED_VIEWS: [&str; 4] = ["stages", "config.yaml", "experiment.json", "reproducibility.lock"];
const PROFILE_KEYS: [&str; 6] = ["gate", "enforce_gate", "seed", "view", "remove", "stage"];

/// `--set STAGE.PARAM=VALUE` or `--set STAGE.inputs.NAME=REFERENCE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetParam {
    pub stage: String,
    /// `inputs` or `params`.
    pub table: &'static str,
    pub name: String,
    pub value: String,
}

impl std::str::FromStr for SetParam {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is neither STAGE.PARAM=VALUE nor STAGE.inputs.NAME=REFERENCE");
        let (left, value) = text.split_once('=').ok_or_else(wrong)?;
        let (stage, name) = left.split_once('.').ok_or_else(wrong)?;
        let (table, name) = match name.strip_prefix("inputs.") {
            Some(input) => ("inputs", input),
            None => ("params", name.strip_prefix("params.").unwrap_or(name)),
        };
        if stage.is_empty() || name.is_empty() {
            return Err(wrong());
        }
        Ok(Self { stage: stage.to_owned(), table, name: name.to_owned(), value: value.to_owned() })
    }
}

/// Reads the text of a pipeline; touches no file.
///
/// # Errors
/// Everything that is wrong with it, each with its place.
pub fn parse(
    source: Source,
    dir: PathBuf,
    profile: Option<&str>,
    set: &[SetParam],
) -> Result<Pipeline, ConfigErrors> {
    let mut root = match DeTable::parse(&source.text) {
        Ok(table) => node::from_table(table.get_ref()),
        Err(e) => return Err(ConfigError::at(&source, &e.span().or(Some(0..0)), e.message()).into()),
    };
    let mut reader = Reader::new(&source);
    check_top(&mut reader, &root);
    let own = take_stages(&mut reader, &mut root);
    let (mut stages, removed, over) = effective_stages(&mut reader, &root, own, profile);
    apply_set(&mut reader, &mut stages, set);
    let layered = |name: &str| over.and_then(|t| t.get(name).map(|_| t)).unwrap_or(&root);

    let gate = reader.text(layered("gate"), "gate").filter(|g| !g.value.is_empty());
    let gate = gate.and_then(|text| output_file(&mut reader, "gate", text));
    let enforce_gate = reader.boolean(layered("enforce_gate"), "enforce_gate").unwrap_or(true);
    let view = view(&mut reader, &root, over);
    let seed = seed(&mut reader, &root, over);
    let build = build(&mut reader, &root);
    let mut typed = BTreeMap::new();
    for (name, entry) in &stages {
        if reader.name("a stage", name, &entry.key_span)
            && let Some(stage) = stage(&mut reader, name, entry)
        {
            typed.insert(name.clone(), stage);
        }
    }
    for set in set.iter().filter(|set| set.table == "params") {
        if let Some(stage) = typed.get_mut(&set.stage) {
            stage.raw_params.insert(set.name.clone(), set.value.clone());
        }
    }
    let known = Known { stages: &typed, removed: &removed, broken: &stages };
    check_references(&mut reader, &known, gate.as_ref(), &view);
    if !reader.errors.is_empty() {
        return Err(ConfigErrors(in_order(reader.errors)));
    }
    let profile = profile.map(str::to_owned);
    Ok(Pipeline { dir, profile, seed, gate, enforce_gate, build, view, stages: typed, source })
}

fn check_top(reader: &mut Reader<'_>, root: &Table) {
    reader.unknown_keys(root, &TOP_KEYS, "the pipeline");
    match reader.number(root, "schema", u64::MAX) {
        Some(SCHEMA) => {}
        Some(other) => {
            let span = root.get("schema").and_then(|e| e.node.span.clone());
            reader.fault(
                &span,
                format!("schema {other} is not known"),
                format!("this runner reads schema = {SCHEMA}"),
            );
        }
        None if root.contains_key("schema") => {}
        None => reader.fault(
            &Some(0..0),
            "`schema` is missing",
            format!("begin the file with `schema = {SCHEMA}`"),
        ),
    }
    for (name, entry) in reader.table(root, "profile").into_iter().flatten() {
        let Kind::Table(profile) = &entry.node.kind else {
            reader.fault(&entry.node.span, format!("`profile.{name}` must be a table"), "");
            continue;
        };
        reader.unknown_keys(profile, &PROFILE_KEYS, &format!("[profile.{name}]"));
        for (stage, entry) in reader.table(profile, "stage").into_iter().flatten() {
            if let Kind::Table(keys) = &entry.node.kind {
                reader.unknown_keys(keys, &STAGE_KEYS, &format!("[profile.{name}.stage.{stage}]"));
            }
        }
    }
    if !root.contains_key("stage") {
        reader.fault(
            &Some(0..0),
            "the pipeline has no stage",
            "add a table [stage.NAME] with `run` and `outputs`",
        );
    }
}

type Effective<'t> = (Table, BTreeMap<String, Span>, Option<&'t Table>);

fn take_stages(reader: &mut Reader<'_>, root: &mut Table) -> Table {
    reader.table(root, "stage");
    match root.remove("stage").map(|entry| entry.node.kind) {
        Some(Kind::Table(stages)) => stages,
        _ => Table::new(),
    }
}

fn effective_stages<'t>(
    reader: &mut Reader<'_>,
    root: &'t Table,
    mut stages: Table,
    profile: Option<&str>,
) -> Effective<'t> {
    let mut removed = BTreeMap::new();
    let Some(wanted) = profile else { return (stages, removed, None) };
    let profiles = reader.table(root, "profile");
    let Some(over) = profiles.and_then(|p| reader.table(p, wanted)) else {
        let names: Vec<&str> = profiles.into_iter().flatten().map(|(name, _)| name.as_str()).collect();
        let message = format!("{}: there is no profile `{wanted}`", reader.source.path.display());
        let help = suggestion(wanted, names.iter().copied());
        let help = if names.is_empty() { "the file has no [profile.NAME]".to_owned() } else { help };
        reader.fault(&None, message, help);
        return (stages, removed, None);
    };
    for name in reader.texts(over, "remove") {
        if stages.remove(&name.value).is_some() {
            removed.insert(name.value, name.span);
        } else {
            let help = suggestion(&name.value, stages.keys().map(String::as_str));
            reader.fault(&name.span, format!("there is no stage `{}` to remove", name.value), help);
        }
    }
    for (name, entry) in reader.table(over, "stage").into_iter().flatten() {
        match (stages.get_mut(name).map(|e| &mut e.node.kind), &entry.node.kind) {
            (Some(Kind::Table(base)), Kind::Table(keys)) => node::overlay_stage(base, keys),
            _ => drop(stages.insert(name.clone(), entry.clone())),
        }
    }
    (stages, removed, Some(over))
}

fn apply_set(reader: &mut Reader<'_>, stages: &mut Table, set: &[SetParam]) {
    for set in set {
        let place = format!("--set {}.{}", set.stage, set.name);
        let Some(entry) = stages.get_mut(&set.stage) else {
            let help = suggestion(&set.stage, stages.keys().map(String::as_str));
            reader.fault(&None, format!("{place}: there is no stage `{}`", set.stage), help);
            continue;
        };
        let Kind::Table(keys) = &mut entry.node.kind else { continue };
        if let Some((what, help)) = refusal(keys, set) {
            reader.fault(&None, format!("{place}: `{}` {what}", set.name), help);
            continue;
        }
        let empty = Entry { key_span: None, node: Node { span: None, kind: Kind::Table(Table::new()) } };
        let table = keys.entry(set.table.to_owned()).or_insert(empty);
        if let Kind::Table(table) = &mut table.node.kind {
            let node = if set.table == "inputs" {
                Node::text(&set.value)
            } else {
                node::from_command_line(&set.value)
            };
            table.insert(set.name.clone(), Entry { key_span: None, node });
        }
    }
}

/// Why a stage can't have this set, and what to do.
fn refusal(keys: &Table, set: &SetParam) -> Option<(String, String)> {
    // A stage of protocol 2 says itself which inputs and parameters it has.
    let described = matches!(keys.get("protocol").map(|e| &e.node.kind), Some(Kind::Integer(2)));
    let known = |table: &str| -> Vec<&str> {
        match keys.get(table).map(|e| &e.node.kind) {
            Some(Kind::Table(found)) => found.keys().map(String::as_str).collect(),
            _ => Vec::new(),
        }
    };
    if set.table == "params" && known("matrix").contains(&set.name.as_str()) {
        let help = "change `matrix` in the pipeline, or in a profile";
        return Some(("is an axis of its matrix".to_owned(), help.to_owned()));
    }
    let there = known(set.table);
    if described || there.contains(&set.name.as_str()) {
        return None;
    }
    let what = if set.table == "inputs" { "input" } else { "parameter" };
    let help = suggestion(&set.name, there);
    let help =
        if help.is_empty() { format!("the stage has no `{}` in the pipeline", set.table) } else { help };
    Some((format!("is no {what} of that stage"), help))
}

fn seed(reader: &mut Reader<'_>, root: &Table, over: Option<&Table>) -> u64 {
    let over = over.and_then(|t| reader.number(t, "seed", u64::MAX));
    let defaults = reader.table(root, "defaults");
    if let Some(table) = defaults {
        reader.unknown_keys(table, &["seed"], "[defaults]");
    }
    let base = defaults.and_then(|t| reader.number(t, "seed", u64::MAX));
    over.or(base).unwrap_or(42)
}

fn build(reader: &mut Reader<'_>, root: &Table) -> Option<Vec<String>> {
    let table = reader.table(root, "build")?;
    reader.unknown_keys(table, &["command"], "[build]");
    let command: Vec<String> = reader.texts(table, "command").into_iter().map(|t| t.value).collect();
    if command.is_empty() {
        let span = root.get("build").and_then(|e| e.key_span.clone());
        reader.fault(&span, "[build] has no `command`", "write command = [\"cargo\", \"build\"]");
    }
    Some(command)
}

fn view(
    reader: &mut Reader<'_>,
    root: &Table,
    over: Option<&Table>,
) -> BTreeMap<String, Located<OutputFile>> {
    let mut entries: BTreeMap<&String, &Entry> = reader.table(root, "view").into_iter().flatten().collect();
    entries.extend(over.and_then(|t| reader.table(t, "view")).into_iter().flatten());
    let mut found = BTreeMap::new();
    for (path, entry) in entries {
        let Some(text) = reader.text_of(path, &entry.node) else { continue };
        if text.value.is_empty() {
            continue;
        }
        let first = path.split('/').next().unwrap_or_default();
        if path.split('/').any(|part| part.is_empty() || part.starts_with('.'))
            || RESERVED_VIEWS.contains(&first)
        {
            let help = "write a path below the experiment's folder, such as \"evaluation/results.json\"";
            reader.fault(&entry.key_span, format!("`{path}` can't be a path of the view"), help);
        }
        if let Some(file) = output_file(reader, "view", text) {
            found.insert(path.clone(), file);
        }
    }
    found
}

fn output_file(reader: &mut Reader<'_>, key: &str, text: Located<String>) -> Option<Located<OutputFile>> {
    match parse_output_file(&text.value) {
        Ok((output, file)) => Some(Located { value: OutputFile { output, file }, span: text.span }),
        Err(message) => {
            reader.fault(&text.span, format!("`{key}`: {message}"), "write \"STAGE.OUTPUT/FILE\"");
            None
        }
    }
}

struct Known<'a> {
    stages: &'a BTreeMap<String, StageConfig>,
    removed: &'a BTreeMap<String, Span>,
    /// Also those whose tables are faulty: a reference to them is not a second fault.
    broken: &'a Table,
}

fn check_references(
    reader: &mut Reader<'_>,
    known: &Known<'_>,
    gate: Option<&Located<OutputFile>>,
    view: &BTreeMap<String, Located<OutputFile>>,
) {
    for stage in known.stages.values() {
        for (name, input) in &stage.inputs {
            if let InputRef::Output(output) = &input.value {
                check_output(reader, known, &format!("input `{name}`"), output, &input.span);
            }
        }
    }
    for (what, file) in gate.map(|g| ("gate", g)).into_iter().chain(view.values().map(|v| ("view", v))) {
        check_output(reader, known, what, &file.value.output, &file.span);
        if file.value.output.instance == Instance::All {
            reader.fault(
                &file.span,
                format!("`{what}` must name one output"),
                "name one instance instead of `[*]`",
            );
        }
    }
}

fn check_output(reader: &mut Reader<'_>, known: &Known<'_>, what: &str, output: &OutputRef, span: &Span) {
    let Some(stage) = known.stages.get(&output.stage) else {
        if known.broken.contains_key(&output.stage) {
            return;
        }
        let help = match known.removed.get(&output.stage) {
            Some(_) => {
                "the profile removes that stage: take its output elsewhere, or set this to \"\"".to_owned()
            }
            None => suggestion(&output.stage, known.stages.keys().map(String::as_str)),
        };
        reader.fault(span, format!("{what}: there is no stage `{}`", output.stage), help);
        return;
    };
    if !stage.outputs.contains_key(&output.output) {
        let help = suggestion(&output.output, stage.outputs.keys().map(String::as_str));
        reader.fault(span, format!("{what}: `{}` has no output `{}`", output.stage, output.output), help);
    }
    match (&output.instance, stage.matrix.is_empty()) {
        (Instance::Only, false) => {
            let help = format!(
                "write \"{0}[*].{1}\" for all instances, or name one of them",
                output.stage, output.output
            );
            reader.fault(
                span,
                format!("{what}: `{}` has a matrix, so `{output}` is many", output.stage),
                help,
            );
        }
        (Instance::All | Instance::Named(_), true) => {
            let help = format!("write \"{}.{}\"", output.stage, output.output);
            reader.fault(span, format!("{what}: `{}` has no matrix", output.stage), help);
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOOD: &str = r#"schema = 1
gate = "b.o/gates.json"
[defaults]
seed = 1
[build]
command = ["cargo", "build"]
[view]
"x.json" = "b.o/x.json"
[stage.a]
run = ["p", "{out.o}", "{param.n}"]
outputs = ["o"]
params = { n = 1, t = "ä", l = [1.5, true] }
resources = { cpus = 1 }
timeout = "1h"
matrix = { m = [1, 2] }
[stage.b]
run = ["p", "{in.z}"]
inputs = { x = "a[*].o", y = "a[m=1].o", z = "file:z" }
outputs = ["o"]
[profile.p]
remove = ["a"]
[profile.p.stage.b]
inputs = { x = "", y = "" }
"#;

    fn read(text: &str, profile: Option<&str>) -> Result<Pipeline, ConfigErrors> {
        parse(Source { path: "p.toml".into(), text: text.into() }, "/".into(), profile, &[])
    }

    #[test]
    fn the_example_is_good() {
        assert!(read(GOOD, None).is_ok());
        assert_eq!(read(GOOD, Some("p")).unwrap().stages.len(), 1);
    }

    proptest! {
        /// Damage of any kind gives errors, never a panic, and every error says something.
        #[test]
        fn damaged_text_is_refused_in_words(cut in 0usize..600, length in 0usize..40, insert in "[\\PC\n]{0,12}", profile in any::<bool>()) {
            let characters: Vec<char> = GOOD.chars().collect();
            let from = cut.min(characters.len());
            let to = (from + length).min(characters.len());
            let text: String = characters[..from].iter().copied().chain(insert.chars()).chain(characters[to..].iter().copied()).collect();
            if let Err(errors) = read(&text, profile.then_some("p")) {
                prop_assert!(!errors.0.is_empty());
                prop_assert!(errors.0.iter().all(|e| !e.to_string().is_empty()));
            }
        }
    }
}
