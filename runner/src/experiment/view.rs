//! The files that people expect at an experiment's root, taken from the outputs of its nodes.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::Folder;
use crate::cache::{Store, remove_any};
use crate::config::{Instance, OutputFile, Pipeline};
use crate::error::{Result, RunnerError};
use crate::exec::NodeResult;
use crate::plan::Graph;

/// Path of the view, file looked for in outputs, file that must stand beside it.
const FILES: [(&str, &str, Option<&str>); 6] = [
    ("report.html", "report.html", None),
    ("training.log", "training.log", None),
    ("metrics.json", "metrics.json", Some("training.log")),
    ("evaluation/compile_results.json", "compile_results.json", None),
    ("evaluation/test_results.json", "test_results.json", None),
    ("evaluation/mutation_report.html", "mutation_report.html", None),
];
const CHECKPOINTS: &str = "checkpoints";

/// Removes what an earlier run of the same experiment left at its root: until this one ends, it would speak of another.
pub fn clear_view(folder: &Folder, pipeline: &Pipeline) {
    let known = FILES.iter().map(|(path, ..)| *path).chain([CHECKPOINTS, super::lock::FILE]);
    known
        .chain(pipeline.view.keys().map(String::as_str))
        .for_each(|path| remove_any(&folder.root().join(path)));
}

/// Links the view. The pipeline's `[view]` decides where it speaks; else a node that is named like its program comes
/// before one that is not, and an earlier node before a later one.
///
/// # Errors
/// The disk refuses.
pub fn write_view(
    store: &Store,
    folder: &Folder,
    pipeline: &Pipeline,
    graph: &Graph,
    nodes: &BTreeMap<usize, NodeResult>,
) -> Result<()> {
    let mut sources: BTreeMap<String, PathBuf> = BTreeMap::new();
    let mut order: Vec<usize> = nodes.iter().filter(|(_, r)| r.entry.is_some()).map(|(i, _)| *i).collect();
    order.sort_by_key(|i| (!named_like_program(pipeline, graph, *i), *i));
    for i in order {
        let Some(entry) = &nodes[&i].entry else { continue };
        let dir = folder.node_dir(&graph.nodes[i].name);
        for output in entry.outputs.keys() {
            for (path, file, beside) in FILES {
                let found = dir.join(output).join(file);
                if found.is_file() && beside.is_none_or(|b| dir.join(output).join(b).is_file()) {
                    sources.entry(path.to_owned()).or_insert(found);
                }
            }
        }
        if entry.outputs.contains_key(CHECKPOINTS) {
            sources.entry(CHECKPOINTS.to_owned()).or_insert_with(|| dir.join(CHECKPOINTS));
        }
    }
    for (path, file) in &pipeline.view {
        sources.insert(path.clone(), output_path(folder, &file.value));
    }
    for (path, source) in sources {
        let target = folder.root().join(&path);
        remove_any(&target);
        if !source.exists() {
            continue;
        }
        let parent = target.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(parent).map_err(|e| RunnerError::io("create the folder", parent, e))?;
        store.link_tree(&source, &target)?;
    }
    Ok(())
}

fn named_like_program(pipeline: &Pipeline, graph: &Graph, i: usize) -> bool {
    let stage = &pipeline.stages[&graph.nodes[i].stage];
    stage
        .run
        .first()
        .is_some_and(|program| Path::new(&program.value).file_name().is_some_and(|n| *n == *stage.name))
}

pub(crate) fn output_path(folder: &Folder, file: &OutputFile) -> PathBuf {
    let node = match &file.output.instance {
        Instance::Named(label) => format!("{}[{label}]", file.output.stage),
        Instance::Only | Instance::All => file.output.stage.clone(),
    };
    folder.node_dir(&node).join(&file.output.output).join(&file.file)
}
