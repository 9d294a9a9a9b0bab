//! What differs between two sets of key components, component by component.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::KeyComponents;

/// One component that changed. `before` or `after` is `None` where it is absent there.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Difference {
    /// `params.lr`, `inputs.corpus`, `code.program`, `env.RUSTFLAGS`, ...
    pub component: String,
    pub before: Option<String>,
    pub after: Option<String>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digest = self.component.starts_with("inputs.") || self.component.starts_with("code.");
        match (&self.before, &self.after) {
            (Some(_), Some(_)) if digest => write!(f, "{} changed", self.component),
            (Some(before), Some(after)) => {
                write!(f, "{} changed: {} -> {}", self.component, short(before), short(after))
            }
            (None, Some(after)) if !digest => write!(f, "{} is new: {}", self.component, short(after)),
            (None, _) => write!(f, "{} is new", self.component),
            (Some(before), None) if !digest => {
                write!(f, "{} is gone (was {})", self.component, short(before))
            }
            (Some(_), None) => write!(f, "{} is gone", self.component),
        }
    }
}

fn short(text: &str) -> String {
    let line = text.lines().next().unwrap_or("");
    if line.chars().count() > 60 || line.len() < text.len() {
        let cut: String = line.chars().take(57).collect();
        return format!("{cut}...");
    }
    line.to_owned()
}

/// Sorted by component, in the order in which a person would look: inputs and code last named are digests.
pub fn differences(before: &KeyComponents, after: &KeyComponents) -> Vec<Difference> {
    let old = flatten(before);
    let new = flatten(after);
    let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let changed = names.into_iter().filter(|name| old.get(*name) != new.get(*name));
    changed
        .map(|name| Difference {
            component: name.clone(),
            before: old.get(name).cloned(),
            after: new.get(name).cloned(),
        })
        .collect()
}

/// The earlier components that differ least; the later one among equals. `earlier` is oldest first.
pub fn nearest<'a>(
    earlier: impl IntoIterator<Item = &'a KeyComponents>,
    now: &KeyComponents,
) -> Option<&'a KeyComponents> {
    let mut best: Option<(usize, &KeyComponents)> = None;
    for candidate in earlier {
        let distance = differences(candidate, now).len();
        if best.is_none_or(|(d, _)| distance <= d) {
            best = Some((distance, candidate));
        }
    }
    best.map(|(_, components)| components)
}

fn flatten(c: &KeyComponents) -> BTreeMap<String, String> {
    let mut flat = BTreeMap::new();
    flat.insert("runner.key_schema".to_owned(), c.schema.to_string());
    flat.insert("protocol".to_owned(), c.protocol.to_string());
    flat.insert("run".to_owned(), c.argv.join(" "));
    flat.insert("seed".to_owned(), c.seed.to_string());
    flat.insert("repeat".to_owned(), if c.repeat.is_empty() { "none".to_owned() } else { c.repeat.clone() });
    let outputs: Vec<String> = c
        .outputs
        .iter()
        .map(|o| if o.volatile { format!("{} (volatile)", o.name) } else { o.name.clone() })
        .collect();
    flat.insert("outputs".to_owned(), outputs.join(", "));
    let texts = [("code", &c.code), ("inputs", &c.inputs), ("tools", &c.tools), ("platform", &c.platform)];
    for (group, map) in texts {
        flat.extend(map.iter().map(|(name, value)| (format!("{group}.{name}"), value.clone())));
    }
    flat.extend(c.params.iter().map(|(name, value)| (format!("params.{name}"), value.to_string())));
    for (name, value) in &c.env {
        let value = value.as_ref().map_or_else(|| "(unset)".to_owned(), |v| format!("{v:?}"));
        flat.insert(format!("env.{name}"), value);
    }
    flat
}

#[cfg(test)]
mod tests {
    use super::super::key::tests::components;
    use super::*;

    #[test]
    fn names_the_changed_component_with_both_values() {
        let before = components();
        let mut after = before.clone();
        after.params.insert("lr".into(), 1e-4.into());
        after.env.insert("FLAG".into(), Some(String::new()));
        let shown: Vec<String> = differences(&before, &after).iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["env.FLAG changed: (unset) -> \"\"", "params.lr changed: 0.0002 -> 0.0001"]);
    }

    #[test]
    fn the_nearest_earlier_action_is_compared() {
        let now = components();
        let mut far = now.clone();
        far.seed = 1;
        far.argv.push("x".into());
        let mut near = now.clone();
        near.seed = 2;
        assert_eq!(nearest([&near, &far], &now).map(|c| c.seed), Some(2));
        assert_eq!(nearest([&far, &near], &now).map(|c| c.seed), Some(2));
        assert!(nearest([], &now).is_none());
    }
}
