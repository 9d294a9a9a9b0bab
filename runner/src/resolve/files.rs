//! Digests of `file:` inputs.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::cache::{Entry, Store};
use crate::config::{ConfigError, InputRef, Pipeline, suggestion};

/// Every file input of the pipeline by content; faults go to `errors`.
pub(super) fn digest_inputs(
    pipeline: &Pipeline,
    store: &Store,
    errors: &mut Vec<ConfigError>,
) -> BTreeMap<String, Entry> {
    let mut found: BTreeMap<String, Entry> = BTreeMap::new();
    for (name, input) in pipeline.stages.values().flat_map(|s| &s.inputs) {
        let InputRef::File(written) = &input.value else { continue };
        if found.contains_key(written) {
            continue;
        }
        let path = pipeline.dir.join(written);
        let fault = |message: String| {
            ConfigError::at(&pipeline.source, &input.span, format!("input `{name}`: {message}"))
        };
        if !path.exists() {
            errors.push(fault(format!("`{written}` does not exist")).help(siblings(&path)));
            continue;
        }
        let real = path.canonicalize().unwrap_or_else(|_| path.clone());
        if store.root().canonicalize().is_ok_and(|cache| cache.starts_with(&real)) {
            let help = "name a folder that does not hold the cache: this one changes with every run";
            errors.push(fault(format!("`{written}` holds the runner's cache")).help(help));
            continue;
        }
        match store.digest_input(&path) {
            Ok(entry) => drop(found.insert(written.clone(), entry)),
            Err(e) => errors.push(fault(e.to_string()).help(e.next_step())),
        }
    }
    found
}

/// "did you mean" among the names beside the missing path.
fn siblings(path: &Path) -> String {
    let wrong = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let Some(parent) = path.parent().filter(|p| p.is_dir()) else {
        return "a path is relative to the pipeline's folder".to_owned();
    };
    let entries = fs::read_dir(parent).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.retain(|n| !n.starts_with('.'));
    names.sort();
    names.truncate(50);
    suggestion(&wrong, names.iter().map(String::as_str))
}
