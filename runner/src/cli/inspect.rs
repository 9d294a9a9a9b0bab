//! Commands that look and change nothing: plan, why, status, graph, log, doctor, lock verify.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use record::event::EventKind;
use record::exit::ExitCode;
use record::experiment::{ExperimentRecord, NodeRecord, NodeState, RunOutcome};
use serde_json::json;

use super::run::{load, select};
use super::{Common, Format, GraphFormat, PlanArgs, keep_failure, print_line};
use crate::cache::FileLock;
use crate::config::Pipeline;
use crate::error::{Result, RunnerError};
use crate::exec::EventTail;
use crate::experiment;
use crate::plan::{Graph, Source};
use crate::report::{seconds, state_word, table};
use crate::resolve::{Outlook, Workspace, graph_error};

pub(super) fn plan(args: &PlanArgs) -> Result<ExitCode> {
    let (pipeline, surroundings) = load(&args.common)?;
    let workspace = Workspace::open(pipeline, surroundings)?;
    let options = select(&workspace.pipeline, &workspace.graph, &args.select)?;
    workspace.check_machine(options.selected.union(&options.served))?;
    let assessment = workspace.assess(&options.forced);
    workspace.store.save();
    let chosen = || options.selected.iter().map(|i| (&workspace.graph.nodes[*i], &assessment.outlooks[*i]));
    if args.format == Format::Json {
        let nodes: Vec<_> = chosen().map(|(node, outlook)| outlook_json(&node.name, outlook)).collect();
        print_line(&json!({"nodes": nodes}).to_string());
        return Ok(ExitCode::Ok);
    }
    let rows: Vec<Vec<String>> = chosen().map(|(node, outlook)| outlook_row(&node.name, outlook)).collect();
    print_line(table(&rows).trim_end());
    let hits = chosen().filter(|(_, o)| matches!(o, Outlook::Hit(_))).count();
    let saved: f64 = chosen().map(|(_, o)| if let Outlook::Hit(e) = o { e.wall_s } else { 0.0 }).sum();
    print_line(&format!("{hits} of {} stages are cached ({} saved)", options.selected.len(), seconds(saved)));
    for (name, stage) in &workspace.stages {
        stage.warnings.iter().for_each(|w| print_line(&format!("warning: {w}")));
        if let Some(stale) = &stage.stale {
            let (program, source) = (stale.program.display(), stale.source.display());
            print_line(&format!(
                "warning: stage `{name}`: {program} is older than its source {source}: a build will change its key"
            ));
        }
    }
    Ok(ExitCode::Ok)
}

fn outlook_row(name: &str, outlook: &Outlook) -> Vec<String> {
    let (word, detail) = match outlook {
        Outlook::Hit(entry) => ("hit", format!("{} ({} saved)", &entry.key[..12], seconds(entry.wall_s))),
        Outlook::Miss { reasons, .. } => ("run", reasons.join("; ")),
        Outlook::Waits { producers, reasons } if reasons.is_empty() => {
            ("wait", format!("runs, unless {} comes out unchanged", producers.join(", ")))
        }
        Outlook::Waits { producers, reasons } => {
            ("run", format!("{} (after {})", reasons.join("; "), producers.join(", ")))
        }
        Outlook::NotBuilt { program } => ("run", format!("the program `{program}` is not built")),
    };
    vec![name.to_owned(), word.to_owned(), detail]
}

fn outlook_json(name: &str, outlook: &Outlook) -> serde_json::Value {
    match outlook {
        Outlook::Hit(entry) => {
            json!({"node": name, "state": "hit", "key": entry.key, "saved_s": entry.wall_s})
        }
        Outlook::Miss { key, reasons } => {
            json!({"node": name, "state": "miss", "key": key, "reasons": reasons})
        }
        Outlook::Waits { producers, reasons } => {
            json!({"node": name, "state": "waits", "producers": producers, "reasons": reasons})
        }
        Outlook::NotBuilt { program } => json!({"node": name, "state": "not_built", "program": program}),
    }
}

pub(super) fn why(stage: &str, common: &Common) -> Result<ExitCode> {
    let (pipeline, surroundings) = load(common)?;
    let workspace = Workspace::open(pipeline, surroundings)?;
    let found = workspace.graph.find(stage).map_err(|e| graph_error(&workspace.pipeline, e))?;
    workspace.check_machine(&workspace.graph.upstream(found.iter().copied().collect()))?;
    let assessment = workspace.assess(&Default::default());
    workspace.store.save();
    for i in found {
        let name = &workspace.graph.nodes[i].name;
        match &assessment.outlooks[i] {
            Outlook::Hit(entry) => {
                print_line(&format!("{name}: hit, made {} in {}", entry.finished, seconds(entry.wall_s)));
                print_line(&format!("  key {}", entry.key));
                let components = serde_json::to_value(&entry.components).unwrap_or_default();
                for (component, value) in components.as_object().into_iter().flatten() {
                    print_line(&format!("  {component}: {value}"));
                }
            }
            Outlook::Miss { key, reasons } => {
                print_line(&format!("{name}: runs\n  key {key}"));
                reasons.iter().for_each(|r| print_line(&format!("  {r}")));
            }
            Outlook::Waits { producers, reasons } => {
                print_line(&format!("{name}: waits for {}", producers.join(", ")));
                if reasons.is_empty() {
                    print_line("  nothing else changed: it is a hit if what it takes comes out unchanged");
                }
                reasons.iter().for_each(|r| print_line(&format!("  {r}")));
                for producer in producers {
                    print_line(&format!("  see: runner why {producer}"));
                }
            }
            Outlook::NotBuilt { program } => {
                print_line(&format!("{name}: the program `{program}` is not built"))
            }
        }
    }
    Ok(ExitCode::Ok)
}

/// The folder of the named experiment, or of the latest.
fn experiment_dir(pipeline: &Path, id: Option<&str>) -> Result<PathBuf> {
    let folder = pipeline.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let experiments = folder.join("experiments");
    let found = match id {
        Some(id) => Some(experiments.join(id)).filter(|d| d.join("experiment.json").exists()),
        None => experiment::latest(&experiments),
    };
    found.ok_or_else(|| {
        let what = id.map_or_else(|| "no experiment".to_owned(), |id| format!("no experiment `{id}`"));
        RunnerError::usage(
            format!("{}: {what} here", experiments.display()),
            "run the pipeline first: runner run",
        )
    })
}

fn read_record(dir: &Path) -> Result<ExperimentRecord> {
    let path = dir.join("experiment.json");
    let text = fs::read_to_string(&path).map_err(|e| RunnerError::io("read", &path, e))?;
    serde_json::from_str(&text).map_err(|e| {
        let message = format!("{}:{}: not an experiment's record: {e}", path.display(), e.line());
        RunnerError::new(ExitCode::StageFailed, message, "run the pipeline again: it writes a new one")
    })
}

pub(super) fn status(common: &Common, id: Option<&str>) -> Result<ExitCode> {
    let dir = experiment_dir(&common.pipeline, id)?;
    let record = read_record(&dir)?;
    let outcome = serde_json::to_value(record.outcome).ok().and_then(|v| v.as_str().map(str::to_owned));
    let mut outcome = outcome.unwrap_or_default().replace('_', " ");
    let mut wall_s = record.wall_s;
    if record.outcome == RunOutcome::Running {
        // A record that says "running" without a runner behind it is of a run that was killed.
        if FileLock::try_exclusive(&dir.join(".lock"))?.is_some() {
            outcome = "killed while running: run again, finished stages are kept".to_owned();
        } else if let Ok(started) = record.timestamp.parse::<jiff::Timestamp>() {
            wall_s = jiff::Timestamp::now().duration_since(started).as_secs_f64();
        }
    }
    print_line(&format!(
        "experiment {}: {outcome} ({}, started {})",
        record.id,
        seconds(wall_s),
        record.timestamp
    ));
    let rows: Vec<Vec<String>> = record.nodes.iter().map(|n| status_row(&dir, n)).collect();
    print_line(table(&rows).trim_end());
    let report = dir.join("report.html");
    if report.exists() {
        print_line(&format!("report: {}", report.display()));
    }
    Ok(ExitCode::Ok)
}

fn status_row(dir: &Path, node: &NodeRecord) -> Vec<String> {
    let wall = node.wall_s.map_or(String::new(), seconds);
    // Why it ran is no news once it is done.
    let mut about = node.message.clone().filter(|_| node.state != NodeState::Done).unwrap_or_default();
    if node.state == NodeState::Running {
        let events = dir.join("stages").join(&node.name).join("live").join("events.jsonl");
        about = last_progress(&events).unwrap_or(about);
    }
    vec![node.name.clone(), state_word(node.state).to_owned(), wall, about]
}

fn last_progress(events: &Path) -> Option<String> {
    let mut tail = EventTail::new(events);
    let mut last = None;
    loop {
        let before = tail.offset();
        let found = tail.poll().into_iter().rev().find_map(|event| match event.kind {
            EventKind::Progress { done, total: Some(total), unit } => Some(format!("{done}/{total} {unit}")),
            EventKind::Progress { done, total: None, unit } => Some(format!("{done} {unit}")),
            _ => None,
        });
        last = found.or(last);
        if tail.offset() == before {
            return last;
        }
    }
}

pub(super) fn graph(common: &Common, format: GraphFormat) -> Result<ExitCode> {
    let pipeline = crate::config::load(&common.pipeline, common.profile.as_deref(), &common.set)?;
    let graph = Graph::new(&pipeline).map_err(|e| graph_error(&pipeline, e))?;
    print_line(
        match format {
            GraphFormat::Text => text_graph(&graph),
            GraphFormat::Dot => dot_graph(&graph, &pipeline),
        }
        .trim_end(),
    );
    Ok(ExitCode::Ok)
}

fn text_graph(graph: &Graph) -> String {
    let mut text = String::new();
    for node in &graph.nodes {
        text.push_str(&format!("{}\n", node.name));
        for (name, source) in &node.inputs {
            let from = match source {
                Source::File(path) => format!("file:{path}"),
                Source::Output { node, output } => format!("{}.{output}", graph.nodes[*node].name),
                Source::Instances { nodes, output } => {
                    let names: Vec<&str> = nodes.iter().map(|(_, i)| graph.nodes[*i].name.as_str()).collect();
                    format!("{output} of {}", names.join(", "))
                }
            };
            text.push_str(&format!("  {name} <- {from}\n"));
        }
    }
    text
}

fn dot_graph(graph: &Graph, pipeline: &Pipeline) -> String {
    let mut text = String::from("digraph pipeline {\n  rankdir = LR;\n  node [shape = box];\n");
    for node in &graph.nodes {
        let program =
            pipeline.stages.get(&node.stage).and_then(|s| s.run.first()).map_or("", |p| p.value.as_str());
        text.push_str(&format!("  {:?} [tooltip = {program:?}];\n", node.name));
        for (input, source) in &node.inputs {
            match source {
                Source::File(path) => {
                    let file = format!("file:{path}");
                    text.push_str(&format!(
                        "  {file:?} [shape = note];\n  {file:?} -> {:?} [label = {input:?}];\n",
                        node.name
                    ));
                }
                Source::Output { node: from, output } => {
                    text.push_str(&format!(
                        "  {:?} -> {:?} [label = {output:?}];\n",
                        graph.nodes[*from].name, node.name
                    ));
                }
                Source::Instances { nodes, output } => {
                    for (_, from) in nodes {
                        text.push_str(&format!(
                            "  {:?} -> {:?} [label = {output:?}];\n",
                            graph.nodes[*from].name, node.name
                        ));
                    }
                }
            }
        }
    }
    text.push_str("}\n");
    text
}

pub(super) fn log(stage: &str, common: &Common, id: Option<&str>) -> Result<ExitCode> {
    let dir = experiment_dir(&common.pipeline, id)?;
    let Some(path) = experiment::node_log(&dir, stage) else {
        let entries = fs::read_dir(dir.join("stages")).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        let help = crate::config::suggestion(stage, names.iter().map(String::as_str));
        return Err(RunnerError::usage(format!("{}: there is no log of `{stage}`", dir.display()), help));
    };
    let mut file = fs::File::open(&path).map_err(|e| RunnerError::io("read", &path, e))?;
    let mut out = std::io::stdout().lock();
    keep_failure(std::io::copy(&mut file, &mut out).and_then(|_| out.flush()));
    Ok(ExitCode::Ok)
}

pub(super) fn doctor(format: Format) -> Result<ExitCode> {
    let here = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("."));
    let findings = crate::doctor::examine(&here, &std::env::vars_os().collect());
    if format == Format::Json {
        print_line(&json!({"findings": findings}).to_string());
        return Ok(ExitCode::Ok);
    }
    let row = |f: &crate::doctor::Finding| {
        let word = if f.ok { "ok" } else { "missing" };
        vec![word.to_owned(), f.name.clone(), f.detail.clone(), format!("for: {}", f.needed_for)]
    };
    print_line(table(&findings.iter().map(row).collect::<Vec<_>>()).trim_end());
    Ok(ExitCode::Ok)
}

pub(super) fn verify_lock(common: &Common, id: Option<&str>, format: Format) -> Result<ExitCode> {
    let (pipeline, surroundings) = load(common)?;
    let store = crate::cache::Store::open(&surroundings.cache_dir)?;
    let dir = experiment_dir(&common.pipeline, id)?;
    let environment: Vec<_> = surroundings.environment.into_iter().collect();
    let changes = experiment::verify_lock(&store, &pipeline.dir, &dir, &environment)?;
    store.save();
    if format == Format::Json {
        print_line(&json!({"experiment": dir.display().to_string(), "changes": changes}).to_string());
    } else if changes.is_empty() {
        print_line(&format!("{}: every field of the lock is as it was", dir.display()));
    } else {
        for change in &changes {
            let show = |value: &Option<String>| value.clone().unwrap_or_else(|| "(absent)".to_owned());
            print_line(&format!("  {}: {} -> {}", change.field, show(&change.locked), show(&change.found)));
        }
        print_line(&format!("{}: {} field(s) differ", dir.display(), changes.len()));
    }
    Ok(if changes.is_empty() { ExitCode::Ok } else { ExitCode::VerificationMismatch })
}
