//! Parameters and ports against what a stage says of itself (`--describe`).
//!
//! Covers the part of JSON Schema that parameter types use: `type`, `enum`, `const`, bounds, `pattern`-free strings,
//! `items`, `properties`, `additionalProperties`, `required`, `anyOf`, `oneOf`, `allOf` and local `$ref`. A keyword outside of it
//! is left to the stage, which checks its parameters itself.

use record::protocol::{Description, Port};
use serde_json::Value;

use super::error::{ConfigError, Source, suggestion};
use super::{Pipeline, StageConfig};

/// References and values inside each other.
const DEEPEST: usize = 24;

/// Checks the inputs and outputs that the pipeline names against the description.
pub fn check_ports(pipeline: &Pipeline, stage: &StageConfig, description: &Description) -> Vec<ConfigError> {
    let source = &pipeline.source;
    let mut errors = Vec::new();
    let program = &description.name;
    for (name, input) in &stage.inputs {
        if !description.inputs.iter().any(|p| p.name == *name) {
            let help = suggestion(name, description.inputs.iter().map(|p| p.name.as_str()));
            errors.push(
                ConfigError::at(source, &input.span, format!("`{program}` takes no input `{name}`"))
                    .help(help),
            );
        }
    }
    for (name, output) in &stage.outputs {
        if !description.outputs.iter().any(|p| p.name == *name) {
            let help = suggestion(name, description.outputs.iter().map(|p| p.name.as_str()));
            errors.push(
                ConfigError::at(source, &output.span, format!("`{program}` writes no output `{name}`"))
                    .help(help),
            );
        }
    }
    let missing = |ports: &[Port], given: &dyn Fn(&str) -> bool, kind: &str| -> Vec<ConfigError> {
        let absent = ports.iter().filter(|p| p.required && !given(&p.name));
        absent
            .map(|p| {
                let message =
                    format!("the stage `{}` lacks the {kind} `{}` of `{program}`", stage.name, p.name);
                ConfigError::at(source, &stage.span, message).help(format!("{}: {}", p.name, p.description))
            })
            .collect()
    };
    errors.extend(missing(&description.inputs, &|n| stage.inputs.contains_key(n), "input"));
    errors.extend(missing(&description.outputs, &|n| stage.outputs.contains_key(n), "output"));
    errors
}

/// Checks every parameter, matrix values included, against the description's schema. Parameters given as text on the
/// command line become strings where the schema wants strings.
pub fn check_params(source: &Source, stage: &mut StageConfig, description: &Description) -> Vec<ConfigError> {
    let root = &description.params;
    let empty = serde_json::Map::new();
    let properties = root.get("properties").and_then(Value::as_object).unwrap_or(&empty);
    let closed = root.get("additionalProperties") == Some(&Value::Bool(false));
    let mut errors = Vec::new();
    for (name, raw) in &stage.raw_params {
        if let (Some(schema), Some(param)) = (properties.get(name), stage.params.get_mut(name))
            && check(root, schema, &param.value).is_err()
        {
            let text = Value::String(raw.clone());
            if check(root, schema, &text).is_ok() {
                param.value = text;
            }
        }
    }
    let given = stage.params.iter().map(|(name, p)| (name, &p.value, p.span.clone()));
    let axes =
        stage.matrix.iter().flat_map(|a| a.values.iter().map(|(_, v)| (&a.param, v, stage.span.clone())));
    for (name, value, span) in given.chain(axes) {
        let Some(schema) = properties.get(name) else {
            if closed {
                let message = format!("`{}` has no parameter `{name}`", description.name);
                let help = suggestion(name, properties.keys().map(String::as_str));
                errors.push(
                    ConfigError::at(source, &span, format!("stage `{}`: {message}", stage.name)).help(help),
                );
            }
            continue;
        };
        if let Err(reason) = check(root, schema, value) {
            let message = format!("stage `{}`: parameter `{name}`: {reason}", stage.name);
            let about = schema.get("description").and_then(Value::as_str).unwrap_or_default();
            errors.push(ConfigError::at(source, &span, message).help(about));
        }
    }
    for name in root.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
    {
        if !stage.params.contains_key(name) && !stage.matrix.iter().any(|a| a.param == name) {
            let message = format!("the stage `{}` lacks the parameter `{name}`", stage.name);
            errors.push(
                ConfigError::at(source, &stage.span, message)
                    .help(format!("add params = {{ {name} = ... }}")),
            );
        }
    }
    errors
}

fn check(root: &Value, schema: &Value, value: &Value) -> Result<(), String> {
    check_at(0, root, schema, value)
}

fn check_at(level: usize, root: &Value, schema: &Value, value: &Value) -> Result<(), String> {
    if level > DEEPEST {
        return Err("the schema of this parameter never ends: it refers to itself".to_owned());
    }
    let Some(keywords) = schema.as_object() else {
        return if schema == &Value::Bool(false) { Err("not allowed here".to_owned()) } else { Ok(()) };
    };
    if let Some(target) = keywords.get("$ref").and_then(Value::as_str)
        && let Some(found) = target.strip_prefix('#').and_then(|pointer| root.pointer(pointer))
    {
        check_at(level + 1, root, found, value)?;
    }
    if let Some(kind) = keywords.get("type") {
        check_type(kind, value)?;
    }
    if let Some(allowed) = keywords.get("enum").and_then(Value::as_array)
        && !allowed.contains(value)
    {
        return Err(not_one_of(value, allowed));
    }
    if let Some(wanted) = keywords.get("const")
        && wanted != value
    {
        return Err(format!("{value} is not {wanted}"));
    }
    check_bounds(keywords, value)?;
    for part in keywords.get("allOf").and_then(Value::as_array).into_iter().flatten() {
        check_at(level + 1, root, part, value)?;
    }
    for keyword in ["anyOf", "oneOf"] {
        if let Some(choices) = keywords.get(keyword).and_then(Value::as_array) {
            check_choices(level, root, choices, value)?;
        }
    }
    check_inside(level, root, keywords, value)
}

fn check_choices(level: usize, root: &Value, choices: &[Value], value: &Value) -> Result<(), String> {
    let reasons: Vec<String> =
        choices.iter().filter_map(|c| check_at(level + 1, root, c, value).err()).collect();
    if reasons.len() < choices.len() {
        return Ok(());
    }
    let constants: Vec<Value> = choices.iter().filter_map(|c| c.get("const").cloned()).collect();
    if constants.len() == choices.len() {
        return Err(not_one_of(value, &constants));
    }
    Err(reasons.into_iter().next().unwrap_or_else(|| format!("{value} fits none of the choices")))
}

fn not_one_of(value: &Value, allowed: &[Value]) -> String {
    let list: Vec<String> = allowed.iter().map(Value::to_string).collect();
    let near = match value {
        Value::String(text) => super::nearest(text, allowed.iter().filter_map(Value::as_str)),
        _ => None,
    };
    let hint = near.map_or_else(String::new, |n| format!("; did you mean {n:?}?"));
    format!("{value} is not one of {}{hint}", list.join(", "))
}

fn check_type(kind: &Value, value: &Value) -> Result<(), String> {
    let fits = |kind: &str| match kind {
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        "null" => value.is_null(),
        _ => true,
    };
    let kinds: Vec<&str> = match kind {
        Value::String(one) => vec![one],
        Value::Array(many) => many.iter().filter_map(Value::as_str).collect(),
        _ => return Ok(()),
    };
    if kinds.iter().any(|k| fits(k)) {
        Ok(())
    } else {
        Err(format!("{value} is not of type {}", kinds.join(" or ")))
    }
}

/// Bounds that a schema gives by naming an integer type.
fn integer_range(format: &str) -> (Option<f64>, Option<f64>) {
    let bits = |digits: &str| digits.parse::<i32>().ok().filter(|n| (8..=32).contains(n));
    match (format.strip_prefix("uint"), format.strip_prefix("int")) {
        (Some(digits), _) => (Some(0.0), bits(digits).map(|n| 2f64.powi(n) - 1.0)),
        (_, Some(digits)) => {
            (bits(digits).map(|n| -(2f64.powi(n - 1))), bits(digits).map(|n| 2f64.powi(n - 1) - 1.0))
        }
        _ => (None, None),
    }
}

fn check_bounds(keywords: &serde_json::Map<String, Value>, value: &Value) -> Result<(), String> {
    let bound = |name: &str| keywords.get(name).and_then(Value::as_f64);
    if let Some(x) = value.as_f64() {
        let (least, most) =
            keywords.get("format").and_then(Value::as_str).map_or((None, None), integer_range);
        let broken = [
            (least.filter(|b| x < *b), "at least"),
            (most.filter(|b| x > *b), "at most"),
            (bound("minimum").filter(|b| x < *b), "at least"),
            (bound("maximum").filter(|b| x > *b), "at most"),
            (bound("exclusiveMinimum").filter(|b| x <= *b), "more than"),
            (bound("exclusiveMaximum").filter(|b| x >= *b), "less than"),
        ];
        for (bound, words) in broken {
            if let Some(b) = bound {
                return Err(format!("{value} must be {words} {b}"));
            }
        }
    }
    let length = match value {
        Value::String(text) => Some((text.chars().count(), "minLength", "maxLength")),
        Value::Array(items) => Some((items.len(), "minItems", "maxItems")),
        _ => None,
    };
    if let Some((length, min, max)) = length {
        let length = length as f64;
        if bound(min).is_some_and(|b| length < b) || bound(max).is_some_and(|b| length > b) {
            return Err(format!("{value} has the wrong length"));
        }
    }
    Ok(())
}

fn check_inside(
    level: usize,
    root: &Value,
    keywords: &serde_json::Map<String, Value>,
    value: &Value,
) -> Result<(), String> {
    match value {
        Value::Array(items) => {
            if let Some(schema) = keywords.get("items") {
                for (i, item) in items.iter().enumerate() {
                    check_at(level + 1, root, schema, item).map_err(|e| format!("item {}: {e}", i + 1))?;
                }
            }
        }
        Value::Object(object) => {
            let properties = keywords.get("properties").and_then(Value::as_object);
            for (name, inner) in object {
                match (properties.and_then(|p| p.get(name)), keywords.get("additionalProperties")) {
                    (Some(schema), _) | (None, Some(schema @ Value::Object(_))) => {
                        check_at(level + 1, root, schema, inner).map_err(|e| format!("`{name}`: {e}"))?;
                    }
                    (None, Some(Value::Bool(false))) => return Err(format!("there is no field `{name}`")),
                    _ => {}
                }
            }
            for name in keywords
                .get("required")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
            {
                if !object.contains_key(name) {
                    return Err(format!("the field `{name}` is missing"));
                }
            }
        }
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_used_part_of_json_schema() {
        let root = json!({"$defs": {"Mode": {"type": "string", "enum": ["lora", "full"]}, "Other": {"oneOf": [{"const": "a"}, {"const": "b"}]}}});
        let mode = json!({"$ref": "#/$defs/Mode"});
        assert!(check(&root, &mode, &json!("lora")).is_ok());
        assert!(check(&root, &mode, &json!("lorra")).unwrap_err().contains("did you mean \"lora\""));
        assert!(check(&root, &json!({"$ref": "#/$defs/Other"}), &json!("c")).is_err());
        let optional = json!({"anyOf": [{"type": "integer", "minimum": 1}, {"type": "null"}]});
        assert!(check(&root, &optional, &json!(null)).is_ok());
        assert!(check(&root, &optional, &json!(0)).is_err());
        assert!(check(&root, &json!({"type": "number", "exclusiveMinimum": 0}), &json!(0)).is_err());
        assert!(check(&root, &json!({"type": ["integer", "null"]}), &json!("8")).is_err());
        let circle = json!({"$defs": {"A": {"$ref": "#/$defs/A"}}});
        assert!(check(&circle, &json!({"$ref": "#/$defs/A"}), &json!(1)).unwrap_err().contains("never ends"));
        assert!(check(&root, &json!({"format": "uint32"}), &json!(4_294_967_295_u64)).is_ok());
        assert!(check(&root, &json!({"format": "uint32"}), &json!(4_294_967_296_u64)).is_err());
        assert!(check(&root, &json!({"format": "int8"}), &json!(-129)).is_err());
        assert!(check(&root, &json!({"format": "double"}), &json!(-1e300)).is_ok());
        assert!(
            check(&root, &json!({"type": "array", "items": {"type": "string"}}), &json!(["a", 1])).is_err()
        );
    }
}
