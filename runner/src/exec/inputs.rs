//! What an execution leans on, looked at before it starts and after it ended: a result belongs to its key only if the
//! code and the inputs were all the while what the key says.

use std::fs;

use super::node::{Executor, Job, Stop, fail};
use crate::plan::Source;

impl Executor<'_> {
    /// A program that was built anew since its key was made would put its result under the wrong key. Asked right before
    /// the start; a build during the run is harmless, since the process keeps the file that it was started from.
    pub(super) fn check_code(&self, job: &Job) -> Result<(), Stop> {
        let (_, resolved) = self.workspace.stage(&self.workspace.graph.nodes[job.node]);
        for (name, path) in &resolved.code_paths {
            let known = resolved.code.get(name);
            let now = fs::metadata(path).ok().map(|meta| self.workspace.store.hash_file(path, &meta));
            if now.transpose()?.as_ref() != known {
                return Err(fail(
                    format!("{} changed since this run began", path.display()),
                    "run again: the stage's key is made anew",
                ));
            }
        }
        Ok(())
    }

    /// A result of inputs that changed while it was made belongs to no key.
    pub(super) fn check_inputs(&self, job: &Job, when: &str) -> Result<(), Stop> {
        for (name, source) in &self.workspace.graph.nodes[job.node].inputs {
            let changed = match source {
                Source::File(path) => self.changed_file(path)?,
                Source::Output { node, output } => self.changed_output(*node, output),
                Source::Instances { nodes, output } => {
                    nodes.iter().find_map(|(_, node)| self.changed_output(*node, output))
                }
            };
            if let Some(what) = changed {
                return Err(fail(
                    format!("the input `{name}` ({what}) changed {when}"),
                    "run again, and leave the inputs alone meanwhile; a stage that writes into them must work on a copy",
                ));
            }
        }
        Ok(())
    }

    fn changed_file(&self, path: &str) -> Result<Option<String>, Stop> {
        let workspace = self.workspace;
        let now = workspace.store.digest_input(&workspace.pipeline.dir.join(path))?;
        let Some(before) = workspace.files.get(path).filter(|before| **before != now) else {
            return Ok(None);
        };
        let files = workspace.store.compare(&before.to_string(), &now.to_string());
        let first = files.first().map_or(String::new(), |f| format!(": {f}"));
        Ok(Some(format!("{path}{first}")))
    }

    /// Both what the store holds and what lies in the experiment's folder, where a stage may have put another file in an
    /// input's place.
    fn changed_output(&self, node: usize, output: &str) -> Option<String> {
        let (store, name) = (&self.workspace.store, &self.workspace.graph.nodes[node].name);
        let entry = self.entries.get(&node)?.outputs.get(output)?;
        let harmed = || Some(format!("{name}.{output}"));
        if store.check(entry).is_err() {
            return harmed();
        }
        match store.digest_output(&self.folder.node_dir(name).join(output)) {
            Ok(found) if found == *entry => None,
            Ok(found) => {
                let files = store.compare(&entry.to_string(), &found.to_string());
                files.first().map_or_else(harmed, |f| Some(format!("{name}.{output}: {f}")))
            }
            Err(_) => harmed(),
        }
    }
}
