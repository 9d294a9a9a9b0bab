//! Hit or miss, and the exact reason, without running anything.

use std::collections::{BTreeMap, BTreeSet};

use super::Workspace;
use crate::cache::ActionEntry;
use crate::plan::{Difference, KeyComponents, Source, differences, nearest};

/// How many files of a changed input are named.
const FILES_NAMED: usize = 5;

/// What would happen to a node.
#[derive(Debug, Clone)]
pub enum Outlook {
    Hit(Box<ActionEntry>),
    /// Runs; the reasons, in words.
    Miss {
        key: String,
        reasons: Vec<String>,
    },
    /// A producer runs first. Runs too, unless what it takes comes out unchanged; `reasons` are changes of its own,
    /// which make it run in any case.
    Waits {
        producers: Vec<String>,
        reasons: Vec<String>,
    },
    /// The program is not there yet.
    NotBuilt {
        program: String,
    },
}

/// The plan of one command.
#[derive(Debug)]
pub struct Assessment {
    /// By node index.
    pub outlooks: Vec<Outlook>,
}

impl Workspace {
    /// Looks at every node in order.
    pub fn assess(&self, forced: &BTreeSet<usize>) -> Assessment {
        let mut outlooks: Vec<Outlook> = Vec::new();
        for (i, node) in self.graph.nodes.iter().enumerate() {
            let (stage, resolved) = self.stage(node);
            let known = |p: usize| match &outlooks[p] {
                Outlook::Hit(entry) => Some(&**entry),
                _ => None,
            };
            let outlook = match self.input_digests(i, &known) {
                _ if resolved.program.is_none() => Outlook::NotBuilt { program: stage.run[0].value.clone() },
                Ok(inputs) => {
                    let components = self.components(node, inputs);
                    if forced.contains(&i) {
                        Outlook::Miss { key: components.key(), reasons: vec!["forced".to_owned()] }
                    } else {
                        self.look_up(&node.name, &components)
                    }
                }
                Err(missing) => {
                    let producers = missing.iter().map(|p| self.graph.nodes[*p].name.clone()).collect();
                    Outlook::Waits { producers, reasons: self.own_reasons(i, &known, forced.contains(&i)) }
                }
            };
            outlooks.push(outlook);
        }
        Assessment { outlooks }
    }

    /// The digests of a node's inputs, given its producers' entries.
    ///
    /// # Errors
    /// The producers whose outputs are not known.
    pub fn input_digests<'e>(
        &self,
        node: usize,
        known: &dyn Fn(usize) -> Option<&'e ActionEntry>,
    ) -> Result<BTreeMap<String, String>, Vec<usize>> {
        let mut digests = BTreeMap::new();
        let mut missing = BTreeSet::new();
        for (name, source) in &self.graph.nodes[node].inputs {
            match source {
                Source::File(path) => {
                    // A file input without a digest was refused when the workspace was opened.
                    let digest = self.files.get(path).map(ToString::to_string).unwrap_or_default();
                    digests.insert(name.clone(), digest);
                }
                Source::Output { node: producer, output } => {
                    match known(*producer).and_then(|entry| entry.output_identity(output)) {
                        Some(digest) => drop(digests.insert(name.clone(), digest)),
                        None => drop(missing.insert(*producer)),
                    }
                }
                Source::Instances { nodes, output } => {
                    let mut text = String::new();
                    for (label, producer) in nodes {
                        match known(*producer).and_then(|entry| entry.output_identity(output)) {
                            Some(digest) => text.push_str(&format!("{label}\t{digest}\n")),
                            None => drop(missing.insert(*producer)),
                        }
                    }
                    digests.insert(
                        name.clone(),
                        format!("instances:{}", blake3::hash(text.as_bytes()).to_hex()),
                    );
                }
            }
        }
        if missing.is_empty() { Ok(digests) } else { Err(missing.into_iter().collect()) }
    }

    /// A hit, or a miss with its reasons.
    pub fn look_up(&self, node: &str, components: &KeyComponents) -> Outlook {
        let key = components.key();
        let mut damage = None;
        if let Some(entry) = self.store.action(&key) {
            let checks: Vec<Result<(), String>> =
                entry.outputs.values().map(|e| self.store.check(e)).collect();
            match checks.into_iter().collect::<Result<Vec<()>, String>>() {
                Ok(_) => return Outlook::Hit(Box::new(entry)),
                Err(what) => damage = Some(what),
            }
        }
        let reasons = match damage {
            Some(what) => vec![what],
            None => self.reasons(node, components),
        };
        Outlook::Miss { key, reasons }
    }

    /// Why no action has this key: what differs from the nearest earlier one of the node.
    fn reasons(&self, node: &str, now: &KeyComponents) -> Vec<String> {
        let earlier = self.earlier(node);
        let Some(before) = nearest(&earlier, now) else { return vec!["never ran".to_owned()] };
        let changed = differences(before, now);
        if changed.is_empty() {
            return vec!["its cached result is gone".to_owned()];
        }
        changed.iter().map(|d| self.explain(d)).collect()
    }

    /// What a node ran with, oldest first.
    fn earlier(&self, node: &str) -> Vec<KeyComponents> {
        let keys = self.store.history(node);
        keys.iter().filter_map(|key| self.store.action(key)).map(|e| e.components).collect()
    }

    /// A difference, with the files that changed where it is an input.
    fn explain(&self, difference: &Difference) -> String {
        let mut text = difference.to_string();
        if let (true, Some(before), Some(after)) =
            (difference.component.starts_with("inputs."), &difference.before, &difference.after)
        {
            let files = self.store.compare(before, after);
            if !files.is_empty() {
                let named: Vec<String> = files.iter().take(FILES_NAMED).map(ToString::to_string).collect();
                let more = files.len().saturating_sub(FILES_NAMED);
                let more = if more > 0 { format!(" and {more} more") } else { String::new() };
                text.push_str(&format!(": {}{more}", named.join(", ")));
            }
        }
        text
    }

    /// Changes of a waiting node that do not come from its waiting inputs.
    fn own_reasons<'e>(
        &self,
        node: usize,
        known: &dyn Fn(usize) -> Option<&'e ActionEntry>,
        forced: bool,
    ) -> Vec<String> {
        if forced {
            return vec!["forced".to_owned()];
        }
        let node_ref = &self.graph.nodes[node];
        let earlier = self.earlier(&node_ref.name);
        if earlier.is_empty() {
            return vec!["never ran".to_owned()];
        }
        let mut digests = BTreeMap::new();
        for (name, source) in &node_ref.inputs {
            let digest = match source {
                Source::File(path) => self.files.get(path).map(ToString::to_string),
                Source::Output { node, output } => known(*node).and_then(|e| e.output_identity(output)),
                Source::Instances { .. } => None,
            };
            digests.insert(name.clone(), digest.unwrap_or_else(|| "?".to_owned()));
        }
        let now = self.components(node_ref, digests);
        let Some(before) = nearest(&earlier, &now) else { return Vec::new() };
        let waiting = |d: &Difference| d.after.as_deref() == Some("?") && d.before.is_some();
        differences(before, &now).iter().filter(|d| !waiting(d)).map(|d| self.explain(d)).collect()
    }
}
