//! Typed access to the value tree. A fault is noted and reading goes on, so that one run shows every fault.

use serde_json::Value;

use super::error::{ConfigError, Source, suggestion};
use super::node::{Entry, Kind, Node, Span, Table};
use super::{Located, refs};

/// Shown at once.
const MOST_FAULTS: usize = 100;

pub(crate) struct Reader<'a> {
    pub(crate) source: &'a Source,
    pub(crate) errors: Vec<ConfigError>,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(source: &'a Source) -> Self {
        Self { source, errors: Vec::new() }
    }

    pub(crate) fn fault(&mut self, span: &Span, message: impl Into<String>, help: impl Into<String>) {
        if self.errors.len() < MOST_FAULTS {
            self.errors.push(ConfigError::at(self.source, span, message).help(help));
        }
    }

    fn wrong_type(&mut self, name: &str, wanted: &str, node: &Node) {
        let snippet = node.span.as_ref().map(|s| self.source.snippet(s)).unwrap_or_default();
        let shown = if snippet.is_empty() || snippet.contains('\n') { "this" } else { snippet };
        let message = format!("`{name}` must be {wanted}; {shown} is {}", node.type_name());
        self.fault(&node.span, message, "");
    }

    pub(crate) fn unknown_keys(&mut self, table: &Table, known: &[&str], of: &str) {
        for (key, entry) in table {
            if !known.contains(&key.as_str()) {
                let help = suggestion(key, known.iter().copied());
                self.fault(&entry.key_span, format!("unknown key `{key}` in {of}"), help);
            }
        }
    }

    pub(crate) fn table<'t>(&mut self, table: &'t Table, name: &str) -> Option<&'t Table> {
        let node = &table.get(name)?.node;
        match &node.kind {
            Kind::Table(found) => Some(found),
            _ => {
                self.wrong_type(name, "a table", node);
                None
            }
        }
    }

    pub(crate) fn text(&mut self, table: &Table, name: &str) -> Option<Located<String>> {
        let node = &table.get(name)?.node;
        self.text_of(name, node)
    }

    pub(crate) fn text_of(&mut self, name: &str, node: &Node) -> Option<Located<String>> {
        match &node.kind {
            Kind::Text(text) => Some(Located { value: text.clone(), span: node.span.clone() }),
            _ => {
                self.wrong_type(name, "a string", node);
                None
            }
        }
    }

    pub(crate) fn boolean(&mut self, table: &Table, name: &str) -> Option<bool> {
        let node = &table.get(name)?.node;
        match node.kind {
            Kind::Boolean(b) => Some(b),
            _ => {
                self.wrong_type(name, "true or false", node);
                None
            }
        }
    }

    /// A whole number in `0..=max`.
    pub(crate) fn number(&mut self, table: &Table, name: &str, max: u64) -> Option<u64> {
        let node = &table.get(name)?.node;
        let found = match &node.kind {
            Kind::Integer(n) => u64::try_from(*n).ok(),
            Kind::HugeInteger(text) => text.parse().ok(),
            _ => {
                self.wrong_type(name, "a whole number", node);
                return None;
            }
        };
        let fits = found.filter(|n| *n <= max);
        if fits.is_none() {
            self.fault(&node.span, format!("`{name}` must lie in 0..={max}"), "");
        }
        fits
    }

    pub(crate) fn texts(&mut self, table: &Table, name: &str) -> Vec<Located<String>> {
        let Some(entry) = table.get(name) else { return Vec::new() };
        match &entry.node.kind {
            Kind::Array(items) => {
                let items: Vec<&Node> = items.iter().collect();
                items.into_iter().filter_map(|item| self.text_of(name, item)).collect()
            }
            _ => {
                self.wrong_type(name, "an array of strings", &entry.node);
                Vec::new()
            }
        }
    }

    pub(crate) fn json(&mut self, entry: &Entry) -> Option<Value> {
        match entry.node.to_json() {
            Ok(value) => Some(value),
            Err((span, message)) => {
                self.fault(&span, message, "");
                None
            }
        }
    }

    pub(crate) fn duration(&mut self, table: &Table, name: &str) -> Option<std::time::Duration> {
        let text = self.text(table, name)?;
        if text.value.is_empty() {
            return None;
        }
        match refs::parse_duration(&text.value) {
            Ok(duration) => Some(duration),
            Err(message) => {
                self.fault(&text.span, message, "");
                None
            }
        }
    }

    /// Refuses a name that can't be a file name and part of a reference.
    pub(crate) fn name(&mut self, kind: &str, name: &str, span: &Span) -> bool {
        let fine = refs::is_name(name);
        if !fine {
            self.fault(
                span,
                format!("`{name}` can't be the name of {kind}"),
                "use at most 100 letters, digits, `-` and `_`, and begin with a letter, a digit or `_`",
            );
        }
        fine
    }
}
