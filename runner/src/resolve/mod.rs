//! The world's part of a key: programs, code, tools, environment and file inputs, read once per command.

mod assess;
mod capture;
mod describe;
mod files;
mod fresh;
mod program;
mod tools;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

pub use assess::{Assessment, Outlook};
pub(crate) use capture::capture;
pub use fresh::{Stale, stale};
pub use program::Surroundings;
pub(crate) use program::script;
pub(crate) use tools::version as tool_version;

use crate::cache::{Entry, Store};
use crate::config::{self, ConfigError, Pipeline, StageConfig};
use crate::error::{Result, RunnerError};
use crate::plan::{Graph, GraphError, KeyComponents, Node, OutputDecl};

/// A stage with everything about it that doesn't depend on other stages.
#[derive(Debug, Clone)]
pub struct ResolvedStage {
    /// `None`: no such program is there (yet).
    pub program: Option<PathBuf>,
    /// The arguments as the key holds them.
    pub argv: Vec<String>,
    /// Name in the key -> digest.
    pub code: BTreeMap<String, String>,
    /// Name in the key -> where the file is.
    pub code_paths: BTreeMap<String, PathBuf>,
    pub env: BTreeMap<String, Option<String>>,
    pub tools: BTreeMap<String, String>,
    pub volatile: BTreeSet<String>,
    pub warnings: Vec<String>,
    /// The program is older than its sources.
    pub stale: Option<Stale>,
    /// Tools that this machine lacks, and why. It matters to a run that needs the stage.
    pub lacks: BTreeMap<String, String>,
}

/// A pipeline in its surroundings.
#[derive(Debug)]
pub struct Workspace {
    pub pipeline: Pipeline,
    pub graph: Graph,
    pub store: Store,
    pub surroundings: Surroundings,
    pub stages: BTreeMap<String, ResolvedStage>,
    /// Path as the pipeline writes it -> content.
    pub files: BTreeMap<String, Entry>,
}

impl Workspace {
    /// Resolves every stage. Stages of protocol 2 are asked what they are and checked against it.
    ///
    /// # Errors
    /// Everything that can be known to be wrong before anything runs.
    pub fn open(mut pipeline: Pipeline, surroundings: Surroundings) -> Result<Self> {
        let mut graph = Graph::new(&pipeline).map_err(|e| graph_error(&pipeline, e))?;
        let store = Store::open(&surroundings.cache_dir)?;
        let mut errors = Vec::new();
        let mut stages = BTreeMap::new();
        let mut programs = program::Programs::default();
        let mut own = std::mem::take(&mut pipeline.stages);
        for (name, stage) in &mut own {
            match resolve_stage(&pipeline, &store, &surroundings, &mut programs, stage) {
                Ok(resolved) => {
                    stages.insert(name.clone(), resolved);
                }
                Err(faults) => errors.extend(faults),
            }
        }
        pipeline.stages = own;
        let files = files::digest_inputs(&pipeline, &store, &mut errors);
        if !errors.is_empty() {
            store.save();
            return Err(RunnerError::Config(config::in_order(errors)));
        }
        // A program's schema may have made another value of a parameter from the command line.
        graph.take_params(&pipeline);
        Ok(Self { pipeline, graph, store, surroundings, stages, files })
    }

    pub fn stage(&self, node: &Node) -> (&StageConfig, &ResolvedStage) {
        (&self.pipeline.stages[&node.stage], &self.stages[&node.stage])
    }

    /// Whether this machine has what these nodes need.
    ///
    /// # Errors
    /// What it lacks: without it their keys can't be known.
    pub fn check_machine<'a>(&self, nodes: impl IntoIterator<Item = &'a usize>) -> Result<()> {
        let needed: BTreeSet<&str> = nodes.into_iter().map(|i| self.graph.nodes[*i].stage.as_str()).collect();
        let mut errors = Vec::new();
        for stage in needed.into_iter().map(|name| &self.pipeline.stages[name]) {
            for (tool, reason) in &self.stages[&stage.name].lacks {
                let message = format!("stage `{}`: the tool `{tool}`: {reason}", stage.name);
                let help = "install it, or remove it from `tools`";
                errors.push(ConfigError::at(&self.pipeline.source, &stage.span, message).help(help));
            }
        }
        if errors.is_empty() { Ok(()) } else { Err(RunnerError::Config(config::in_order(errors))) }
    }

    /// The key components of a node whose inputs are known by these digests.
    pub fn components(&self, node: &Node, inputs: BTreeMap<String, String>) -> KeyComponents {
        let (stage, resolved) = self.stage(node);
        let decl =
            |name: &String| OutputDecl { name: name.clone(), volatile: resolved.volatile.contains(name) };
        KeyComponents {
            schema: crate::plan::KEY_SCHEMA,
            protocol: record::protocol::PROTOCOL,
            argv: resolved.argv.clone(),
            code: resolved.code.clone(),
            inputs,
            params: node.params.clone(),
            env: resolved.env.clone(),
            tools: resolved.tools.clone(),
            platform: stage.platform.clone(),
            repeat: node.repeat.clone(),
            outputs: stage.outputs.keys().map(decl).collect(),
            seed: stage.seed.unwrap_or(self.pipeline.seed),
        }
    }
}

pub(crate) fn graph_error(pipeline: &Pipeline, error: GraphError) -> RunnerError {
    let message = error.to_string();
    let (span, help) = match error {
        GraphError::Cycle { span, .. } => (span, "take one of these inputs from somewhere else".to_owned()),
        GraphError::NoInstance { wanted, known, span, .. } => {
            (span, config::suggestion(&wanted, known.iter().map(String::as_str)))
        }
        GraphError::NoStage { wanted, known } => {
            (None, config::suggestion(&wanted, known.iter().map(String::as_str)))
        }
    };
    ConfigError::at(&pipeline.source, &span, message).help(help).into()
}

fn resolve_stage(
    pipeline: &Pipeline,
    store: &Store,
    surroundings: &Surroundings,
    programs: &mut program::Programs,
    stage: &mut StageConfig,
) -> std::result::Result<ResolvedStage, Vec<ConfigError>> {
    let mut resolved = program::resolve(pipeline, store, surroundings, programs, stage)?;
    let environment = surroundings.stage_environment(stage, false);
    for tool in &stage.tools {
        match tools::version(store, &pipeline.dir, tool, &environment) {
            Ok(version) => drop(resolved.tools.insert(tool.clone(), version)),
            Err(reason) => drop(resolved.lacks.insert(tool.clone(), reason.to_string())),
        }
    }
    if stage.protocol == 2 && resolved.program.is_some() {
        let description = match describe::describe(pipeline, store, stage, &resolved, &environment) {
            Ok(description) => description,
            // An outdated program that a build will replace may know nothing of the protocol yet.
            Err(_) if resolved.stale.is_some() && pipeline.build.is_some() => {
                resolved.program = None;
                return Ok(resolved);
            }
            Err(faults) => return Err(faults),
        };
        let mut errors = config::check_ports(pipeline, stage, &description);
        errors.extend(config::check_params(&pipeline.source, stage, &description));
        if !errors.is_empty() {
            return Err(errors);
        }
        let volatile =
            description.outputs.iter().filter(|p| p.volatile && stage.outputs.contains_key(&p.name));
        resolved.volatile.extend(volatile.map(|p| p.name.clone()));
    }
    Ok(resolved)
}
