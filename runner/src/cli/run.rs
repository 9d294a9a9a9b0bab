//! `runner run`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use record::exit::ExitCode;
use record::experiment::{NodeState, RunOutcome};
use record::report::{CheckVerdict, Gates};
use serde_json::Value;

use super::{Common, Format, RunArgs, SelectArgs};
use crate::config::{self, Pipeline};
use crate::error::{Result, RunnerError};
use crate::exec::{self, Happening, Machine, NodeResult, Pool, RunOptions, RunResult};
use crate::experiment::{self, Folder, RecordWriter};
use crate::interrupt::Cancellation;
use crate::plan::{Graph, Selection};
use crate::report::{GateSummary, Human, Json, Opening, Reporter, Summary, SummaryNode};
use crate::resolve::{Outlook, Surroundings, Workspace, graph_error};

pub(super) fn load(common: &Common) -> Result<(Pipeline, Surroundings)> {
    let pipeline = config::load(&common.pipeline, common.profile.as_deref(), &common.set)?;
    let exe = std::env::current_exe().ok();
    let surroundings = Surroundings::new(&pipeline, exe.as_deref(), std::env::vars_os().collect());
    Ok((pipeline, surroundings))
}

/// Node indices that a selection is about, those it leans on, and those to force.
pub(super) fn select(pipeline: &Pipeline, graph: &Graph, args: &SelectArgs) -> Result<RunOptions> {
    let fault = |e| graph_error(pipeline, e);
    let selection = Selection { only: args.only.clone(), from: args.from.clone(), until: args.until.clone() };
    let selected = graph.select(&selection).map_err(fault)?;
    if selected.is_empty() {
        return Err(RunnerError::usage("no stage is selected", "`runner graph` shows what needs what"));
    }
    let mut forced = BTreeSet::new();
    for name in &args.force {
        let found = graph.find(name).map_err(fault)?;
        if found.is_disjoint(&selected) {
            return Err(RunnerError::usage(
                format!("--force {name}: the stage is not among those that run"),
                "widen the selection, or leave --force out",
            ));
        }
        forced.extend(found);
    }
    let served = graph.upstream(selected.clone()).difference(&selected).copied().collect();
    Ok(RunOptions { selected, served, forced, keep_going: false })
}

pub(super) fn run(args: &RunArgs) -> Result<ExitCode> {
    let cancellation = Cancellation::default();
    let (pipeline, surroundings) = load(&args.common)?;
    // Faults of the graph before a long build.
    Graph::new(&pipeline).map_err(|e| graph_error(&pipeline, e))?;
    let built = build(&pipeline, &surroundings, args, &cancellation)?;
    // The build says its own time; the run's is the one that the experiment keeps.
    let started = Instant::now();
    let workspace = Workspace::open(pipeline, surroundings)?;
    let _attention = cancellation.attend();
    if cancellation.asked() {
        return Err(RunnerError::interrupted());
    }
    let mut options = select(&workspace.pipeline, &workspace.graph, &args.select)?;
    workspace.check_machine(options.selected.union(&options.served))?;
    refuse_stale(&workspace, &options, built, args.no_build)?;
    options.keep_going = args.keep_going;
    check_served(&workspace, &options, args.require_cached)?;
    workspace.store.sweep_temporary();

    let prefix = workspace.pipeline.profile.clone().unwrap_or_else(|| "run".to_owned());
    let experiments = workspace.pipeline.dir.join("experiments");
    let folder = Folder::create(&experiments, args.experiment.as_deref(), &prefix)?;
    let mut reporter: Box<dyn Reporter> = match args.format {
        Format::Human => Box::new(Human::default()),
        Format::Json => Box::new(Json),
    };
    let nodes = options.selected.union(&options.served).map(|i| workspace.graph.nodes[*i].name.clone());
    reporter.open(&Opening {
        experiment: folder.id.clone(),
        folder: shown(folder.root()),
        profile: workspace.pipeline.profile.clone(),
        nodes: nodes.collect(),
    });
    for text in workspace.stages.values().flat_map(|s| &s.warnings) {
        reporter.happened(&Happening::Warning { node: None, text: text.clone() });
    }
    execute(&workspace, &folder, &options, args, &cancellation, &mut *reporter, started)
}

fn execute(
    workspace: &Workspace,
    folder: &Folder,
    options: &RunOptions,
    args: &RunArgs,
    cancellation: &Cancellation,
    reporter: &mut dyn Reporter,
    started: Instant,
) -> Result<ExitCode> {
    experiment::clear_view(folder, &workspace.pipeline);
    let config = experiment::config_yaml(&workspace.pipeline);
    let config_path = folder.root().join("config.yaml");
    fs::write(&config_path, &config).map_err(|e| RunnerError::io("write", &config_path, e))?;
    let git = experiment::git_state(&workspace.pipeline.dir, &workspace.surroundings.environment);
    let profile = workspace.pipeline.profile.clone();
    let mut record = RecordWriter::new(folder, experiment::sha256_hex(&config), profile, git);
    let visible =
        workspace.surroundings.variable("CUDA_VISIBLE_DEVICES").map(|v| v.to_string_lossy().into_owned());
    let pool = Pool::new(Machine::probe(visible.as_deref()), args.jobs);
    let graph = &workspace.graph;
    let result = exec::run(
        workspace,
        folder,
        options,
        pool,
        cancellation,
        workspace.surroundings.exe.as_deref(),
        &mut |happening| reporter.happened(happening),
        &mut |nodes, at_once| record.update(graph, nodes, at_once),
    );
    workspace.store.save();
    let gate = gate(workspace, folder, &result);
    let (outcome, code) = match &gate {
        Ok(gate) => verdict(workspace, &result, gate.as_ref()),
        Err(e) => (RunOutcome::Failed, e.code()),
    };
    experiment::write_view(&workspace.store, folder, &workspace.pipeline, graph, &result.nodes)?;
    let environment: Vec<_> = workspace.surroundings.environment.clone().into_iter().collect();
    let lock = experiment::make_lock(
        &workspace.store,
        &workspace.pipeline,
        folder,
        graph,
        &result.nodes,
        &environment,
    );
    experiment::write_lock(folder, &lock)?;
    record.finish(folder, graph, &result.nodes, outcome)?;
    workspace.store.save();
    let (gate, fault) = gate.map_or_else(|fault| (None, Some(fault)), |gate| (gate, None));
    reporter.close(&summary(workspace, folder, &result.nodes, outcome, code, gate, started));
    fault.map_or(Ok(code), Err)
}

/// Runs `[build]` where it is needed. Returns whether the programs are known to be built.
fn build(
    pipeline: &Pipeline,
    surroundings: &Surroundings,
    args: &RunArgs,
    cancellation: &Cancellation,
) -> Result<bool> {
    let Some(command) = pipeline.build.as_deref().filter(|_| !args.no_build) else { return Ok(false) };
    let Some(need) = exec::build_need(pipeline, surroundings) else { return Ok(true) };
    if args.format == Format::Human {
        super::print_line(&format!("build: {} ({need})", command.join(" ")));
    }
    let started = Instant::now();
    let attention = cancellation.attend();
    exec::run_build(pipeline, command, surroundings, cancellation)?;
    drop(attention);
    if args.format == Format::Human {
        super::print_line(&format!(
            "build: done in {}",
            crate::report::seconds(started.elapsed().as_secs_f64())
        ));
    }
    Ok(true)
}

/// Programs that are not there, or that the build did not just make and that are older than their sources.
fn refuse_stale(workspace: &Workspace, options: &RunOptions, built: bool, no_build: bool) -> Result<()> {
    let command = workspace.pipeline.build.as_ref().map_or_else(|| "cargo build".to_owned(), |c| c.join(" "));
    let needed = options.selected.union(&options.served);
    let needed: BTreeSet<&String> = needed.map(|i| &workspace.graph.nodes[*i].stage).collect();
    for name in needed {
        let stage = &workspace.stages[name];
        if let (Some(stale), false) = (&stage.stale, built) {
            let message =
                format!("{} is older than its source {}", stale.program.display(), stale.source.display());
            return Err(RunnerError::usage(message, format!("rebuild it: {command}")));
        }
        if stage.program.is_none() {
            let program = &workspace.pipeline.stages[name].run[0].value;
            let (why, next) = if no_build {
                ("--no-build leaves the build out", format!("build it: {command}"))
            } else {
                (
                    "the build does not make it",
                    format!("check its name in the pipeline, or build it: {command}"),
                )
            };
            let message = format!("stage `{name}`: there is no usable program `{program}`, and {why}");
            return Err(RunnerError::usage(message, next));
        }
    }
    Ok(())
}

/// Nodes outside the selection must be cached; with `--require-cached` all of them.
fn check_served(workspace: &Workspace, options: &RunOptions, require_cached: bool) -> Result<()> {
    if options.served.is_empty() && !require_cached {
        return Ok(());
    }
    let assessment = workspace.assess(&options.forced);
    let why = |i: &usize| match &assessment.outlooks[*i] {
        Outlook::Hit(_) => None,
        Outlook::Miss { reasons, .. } => Some(reasons.join("; ")),
        Outlook::Waits { producers, .. } => Some(format!("waits for {}", producers.join(", "))),
        Outlook::NotBuilt { program } => Some(format!("the program `{program}` is not built")),
    };
    let name = |i: &usize| workspace.graph.nodes[*i].name.clone();
    if let Some((i, reason)) = options.served.iter().find_map(|i| Some((i, why(i)?))) {
        workspace.store.save();
        return Err(RunnerError::usage(
            format!("`{}` is not selected, and its result is not cached ({reason})", name(i)),
            format!("run it first: --until {}", name(i)),
        ));
    }
    let missing: Vec<String> =
        options.selected.iter().filter_map(|i| Some(format!("{}: {}", name(i), why(i)?))).collect();
    if require_cached && !missing.is_empty() {
        workspace.store.save();
        return Err(RunnerError::new(
            ExitCode::VerificationMismatch,
            format!(
                "--require-cached: {} of {} stages are not cached\n  {}",
                missing.len(),
                options.selected.len(),
                missing.join("\n  ")
            ),
            "run without --require-cached to make them",
        ));
    }
    Ok(())
}

fn gate(workspace: &Workspace, folder: &Folder, result: &RunResult) -> Result<Option<GateSummary>> {
    let Some(gate) = &workspace.pipeline.gate else { return Ok(None) };
    let reference = &gate.value.output;
    let label = match &reference.instance {
        config::Instance::Named(label) => Some(label.clone()),
        _ => None,
    };
    let is_gate = |i: &usize| {
        let node = &workspace.graph.nodes[*i];
        node.stage == reference.stage && node.label == label
    };
    let Some(index) = result.nodes.keys().find(|i| is_gate(i)) else { return Ok(None) };
    if result.nodes[index].entry.is_none() {
        return Ok(None);
    }
    let path = experiment::output_path(folder, &gate.value);
    let text = fs::read_to_string(&path).map_err(|e| RunnerError::io("read", &path, e))?;
    let not_gates = |reason: String| {
        RunnerError::new(
            ExitCode::StageFailed,
            format!("{}: not a gates file: {reason}", path.display()),
            "let `gate` in the pipeline name a JSON file with `passed`: true or false",
        )
    };
    let value: Value = serde_json::from_str(&text).map_err(|e| not_gates(e.to_string()))?;
    let passed = value.get("passed").and_then(Value::as_bool);
    let passed = passed.ok_or_else(|| not_gates("`passed` is neither true nor false".to_owned()))?;
    // Whoever writes another file than popper-report may leave the single gates out.
    let gates = serde_json::from_value::<Gates>(value).map(|g| g.gates).unwrap_or_default();
    let unmet = gates.iter().filter(|g| g.verdict != CheckVerdict::Corroborated).map(|g| {
        let measured = g.measured.map_or_else(|| "not tested".to_owned(), |m| format!("measured {m}"));
        format!("{} ({}): {measured}", g.id, g.rule)
    });
    Ok(Some(GateSummary {
        name: format!("{reference}/{}", gate.value.file),
        passed,
        enforced: workspace.pipeline.enforce_gate,
        unmet: unmet.collect(),
    }))
}

fn verdict(workspace: &Workspace, result: &RunResult, gate: Option<&GateSummary>) -> (RunOutcome, ExitCode) {
    let unfinished = result.nodes.values().any(|n| n.entry.is_none());
    if result.interrupted && unfinished {
        return (RunOutcome::Interrupted, ExitCode::Interrupted);
    }
    if result.failed() || unfinished {
        return (RunOutcome::Failed, ExitCode::StageFailed);
    }
    match gate {
        Some(gate) if !gate.passed => {
            let code = if workspace.pipeline.enforce_gate { ExitCode::GateNotMet } else { ExitCode::Ok };
            (RunOutcome::GateNotMet, code)
        }
        _ => (RunOutcome::Succeeded, ExitCode::Ok),
    }
}

fn summary(
    workspace: &Workspace,
    folder: &Folder,
    nodes: &BTreeMap<usize, NodeResult>,
    outcome: RunOutcome,
    code: ExitCode,
    gate: Option<GateSummary>,
    started: Instant,
) -> Summary {
    let report = folder.root().join("report.html");
    let fine = |state| matches!(state, NodeState::Hit | NodeState::Done);
    let node = |(i, result): (&usize, &NodeResult)| SummaryNode {
        name: workspace.graph.nodes[*i].name.clone(),
        state: result.state,
        key: result.key.clone(),
        wall_s: result.wall_s,
        message: result.message.clone().filter(|_| !fine(result.state)),
        failure: result.failure.clone(),
    };
    Summary {
        experiment: folder.id.clone(),
        folder: shown(folder.root()),
        outcome,
        exit_code: code as u8,
        wall_s: started.elapsed().as_secs_f64(),
        nodes: nodes.iter().map(node).collect(),
        report: report.exists().then(|| shown(&report)),
        gate,
    }
}

/// Relative to the current folder where it lies below it.
fn shown(path: &Path) -> String {
    let here: Option<PathBuf> = std::env::current_dir().ok();
    let relative = here.as_deref().and_then(|h| path.strip_prefix(h).ok());
    relative.unwrap_or(path).display().to_string()
}
