//! The action key: a hash of everything that may change a stage's outputs, and of nothing else.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Raised whenever the same components would mean something else.
pub const KEY_SCHEMA: u32 = 2;

/// What goes into a key. Logical names and content only: no path, host, user, time, stage name, attempt or resources.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KeyComponents {
    pub schema: u32,
    pub protocol: u32,
    /// Placeholders unreplaced, absolute paths cut to their file name.
    pub argv: Vec<String>,
    /// `program`, and every file that belongs to it -> digest.
    pub code: BTreeMap<String, String>,
    pub inputs: BTreeMap<String, String>,
    pub params: BTreeMap<String, Value>,
    /// `None`: unset, which is not the same as empty.
    pub env: BTreeMap<String, Option<String>>,
    pub tools: BTreeMap<String, String>,
    pub platform: BTreeMap<String, String>,
    /// Empty: none, neither its own nor inherited.
    pub repeat: String,
    pub outputs: BTreeSet<OutputDecl>,
    pub seed: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct OutputDecl {
    pub name: String,
    pub volatile: bool,
}

impl KeyComponents {
    /// BLAKE3 of the canonical JSON, hexadecimal.
    pub fn key(&self) -> String {
        let mut text = String::from("testforge action\n");
        // A struct of maps with string keys always has a JSON form.
        if let Ok(value) = serde_json::to_value(self) {
            write_canonical(&value, &mut text);
        }
        blake3::hash(text.as_bytes()).to_hex().to_string()
    }
}

/// JSON with sorted keys and no space, whatever map type the JSON library was built with.
pub(crate) fn write_canonical(value: &Value, out: &mut String) {
    match value {
        Value::Object(map) => {
            let sorted: BTreeMap<&String, &Value> = map.iter().collect();
            out.push('{');
            for (i, (key, value)) in sorted.into_iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                // Text always has a JSON form.
                out.push_str(&serde_json::to_string(key).unwrap_or_default());
                out.push(':');
                write_canonical(value, out);
            }
            out.push('}');
        }
        Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                write_canonical(item, out);
            }
            out.push(']');
        }
        plain => out.push_str(&plain.to_string()),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn components() -> KeyComponents {
        KeyComponents {
            schema: KEY_SCHEMA,
            protocol: 1,
            argv: vec!["program".into(), "{in.a}".into()],
            code: [("program".to_owned(), "11".to_owned())].into(),
            inputs: [("a".to_owned(), "dir:22".to_owned())].into(),
            params: [("lr".to_owned(), Value::from(2e-4))].into(),
            env: [("FLAG".to_owned(), None)].into(),
            tools: BTreeMap::new(),
            platform: BTreeMap::new(),
            repeat: String::new(),
            outputs: [OutputDecl { name: "out".into(), volatile: false }].into(),
            seed: 42,
        }
    }

    #[test]
    fn every_component_changes_the_key() {
        let base = components();
        let mut keys = BTreeSet::from([base.key()]);
        let changes: [fn(&mut KeyComponents); 12] = [
            |c| c.schema += 1,
            |c| c.protocol += 1,
            |c| c.argv.push("x".into()),
            |c| drop(c.code.insert("program".into(), "12".into())),
            |c| drop(c.inputs.insert("a".into(), "dir:23".into())),
            |c| drop(c.params.insert("lr".into(), Value::from(1e-4))),
            |c| drop(c.env.insert("FLAG".into(), Some(String::new()))),
            |c| drop(c.tools.insert("rustc".into(), "1".into())),
            |c| drop(c.platform.insert("gpu_arch".into(), "sm_90".into())),
            |c| c.repeat = "1".into(),
            |c| c.outputs = [OutputDecl { name: "out".into(), volatile: true }].into(),
            |c| c.seed += 1,
        ];
        for (i, change) in changes.iter().enumerate() {
            let mut changed = base.clone();
            change(&mut changed);
            assert!(keys.insert(changed.key()), "change {i} leaves the key as it is");
        }
    }

    #[test]
    fn canonical_json_sorts_nested_keys() {
        let mut text = String::new();
        let value: Value = serde_json::from_str(r#"{"b":[{"z":1,"a":null}],"a":"x\n"}"#).unwrap();
        write_canonical(&value, &mut text);
        assert_eq!(text, r#"{"a":"x\n","b":[{"a":null,"z":1}]}"#);
    }
}
