//! TOML as a tree of values that keep their place in the file, so that merging profiles loses no position.

use std::collections::BTreeMap;
use std::ops::Range;

use serde_json::Value;
use toml::de::{DeTable, DeValue};

/// Byte range in the pipeline file; `None` for a value from the command line.
pub type Span = Option<Range<usize>>;

#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) span: Span,
    pub(crate) kind: Kind,
}

#[derive(Debug, Clone)]
pub(crate) enum Kind {
    Text(String),
    Integer(i64),
    /// Outside the range of `i64`, as written.
    HugeInteger(String),
    Float(f64),
    Boolean(bool),
    Datetime(String),
    Array(Vec<Node>),
    Table(Table),
}

/// A key's place and its value.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) key_span: Span,
    pub(crate) node: Node,
}

pub(crate) type Table = BTreeMap<String, Entry>;

impl Node {
    pub(crate) fn text(text: impl Into<String>) -> Self {
        Self { span: None, kind: Kind::Text(text.into()) }
    }

    pub(crate) fn type_name(&self) -> &'static str {
        match self.kind {
            Kind::Text(_) => "a string",
            Kind::Integer(_) | Kind::HugeInteger(_) => "an integer",
            Kind::Float(_) => "a float",
            Kind::Boolean(_) => "a boolean",
            Kind::Datetime(_) => "a date",
            Kind::Array(_) => "an array",
            Kind::Table(_) => "a table",
        }
    }

    /// The same value as JSON.
    ///
    /// # Errors
    /// The place and the reason, where JSON has no such value.
    pub(crate) fn to_json(&self) -> Result<Value, (Span, String)> {
        Ok(match &self.kind {
            Kind::Text(text) | Kind::Datetime(text) => Value::String(text.clone()),
            Kind::Integer(n) => Value::from(*n),
            Kind::HugeInteger(text) => {
                let n: u64 = text
                    .parse()
                    .map_err(|_| (self.span.clone(), format!("`{text}` does not fit into 64 bits")))?;
                Value::from(n)
            }
            Kind::Float(x) => serde_json::Number::from_f64(*x).map(Value::Number).ok_or_else(|| {
                (self.span.clone(), format!("`{x}` can't be a parameter: it is not finite"))
            })?,
            Kind::Boolean(b) => Value::Bool(*b),
            Kind::Array(items) => Value::Array(items.iter().map(Node::to_json).collect::<Result<_, _>>()?),
            Kind::Table(table) => {
                let pairs = table.iter().map(|(k, e)| Ok((k.clone(), e.node.to_json()?)));
                Value::Object(pairs.collect::<Result<_, _>>()?)
            }
        })
    }
}

pub(crate) fn from_table(table: &DeTable<'_>) -> Table {
    let mut converted = Table::new();
    for (key, value) in table {
        let node = from_value(value.get_ref(), value.span());
        converted.insert(key.get_ref().to_string(), Entry { key_span: Some(key.span()), node });
    }
    converted
}

fn from_value(value: &DeValue<'_>, span: Range<usize>) -> Node {
    let kind = match value {
        DeValue::String(text) => Kind::Text(text.to_string()),
        DeValue::Integer(n) => i64::from_str_radix(n.as_str(), n.radix())
            .map_or_else(|_| Kind::HugeInteger(n.as_str().to_owned()), Kind::Integer),
        DeValue::Float(x) => Kind::Float(x.as_str().parse().unwrap_or(f64::NAN)),
        DeValue::Boolean(b) => Kind::Boolean(*b),
        DeValue::Datetime(date) => Kind::Datetime(date.to_string()),
        DeValue::Array(items) => {
            Kind::Array(items.iter().map(|item| from_value(item.get_ref(), item.span())).collect())
        }
        DeValue::Table(table) => Kind::Table(from_table(table)),
    };
    Node { span: Some(span), kind }
}

/// Keys whose tables are merged entry by entry; every other key of a stage is replaced whole.
const MERGED: [&str; 4] = ["inputs", "params", "resources", "platform"];

/// Lays the keys of a profile's stage over the stage of the same name.
pub(crate) fn overlay_stage(base: &mut Table, over: &Table) {
    for (key, entry) in over {
        if let (true, Some(existing)) = (MERGED.contains(&key.as_str()), base.get_mut(key))
            && let (Kind::Table(old), Kind::Table(new)) = (&mut existing.node.kind, &entry.node.kind)
        {
            old.extend(new.iter().map(|(k, e)| (k.clone(), e.clone())));
            continue;
        }
        base.insert(key.clone(), entry.clone());
    }
}

/// Reads the VALUE of `--set stage.param=VALUE`: TOML where it is TOML, else text.
pub(crate) fn from_command_line(text: &str) -> Node {
    let document = format!("value = {text}");
    let parsed = DeTable::parse(&document).ok().map(|table| from_table(table.get_ref()));
    let single = parsed.filter(|table| table.len() == 1).and_then(|mut table| table.remove("value"));
    let mut node = single.map_or_else(|| Node::text(text), |entry| entry.node);
    forget_spans(&mut node);
    node
}

fn forget_spans(node: &mut Node) {
    node.span = None;
    match &mut node.kind {
        Kind::Array(items) => items.iter_mut().for_each(forget_spans),
        Kind::Table(table) => table.values_mut().for_each(|entry| {
            entry.key_span = None;
            forget_spans(&mut entry.node);
        }),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line_values_are_toml_or_text() {
        assert!(matches!(from_command_line("3").kind, Kind::Integer(3)));
        assert!(matches!(from_command_line("true").kind, Kind::Boolean(true)));
        assert!(matches!(from_command_line("2e-4").kind, Kind::Float(x) if x == 2e-4));
        assert!(matches!(from_command_line("[1, 2]").kind, Kind::Array(ref a) if a.len() == 2));
        assert!(matches!(from_command_line("embedded:tiny").kind, Kind::Text(ref t) if t == "embedded:tiny"));
        assert!(matches!(from_command_line("1\nx = 2").kind, Kind::Text(_)));
    }

    #[test]
    fn numbers_of_any_radix_and_size() {
        let table = from_table(DeTable::parse("a = 0xff\nb = 18446744073709551615").unwrap().get_ref());
        assert_eq!(table["a"].node.to_json().unwrap(), Value::from(255));
        assert_eq!(table["b"].node.to_json().unwrap(), Value::from(u64::MAX));
    }
}
