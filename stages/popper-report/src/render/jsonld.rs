//! `metrics.jsonld`: every result linked to the function it is about and to the weights that made it.
//!
//! The context is the project's own. Functions are `crate:NAME@VERSION/PATH#ITEM`, everything else is named by its digest.

use record::report::{CheckVerdict, Report};
use serde_json::{Value, json};
use stage_kit::digest::sha256_hex;

use crate::checks::Subject;
use crate::cohort::{Function, Split};
use crate::verdict::verdict_word;

const VOCABULARY: &str = "urn:testforge:vocabulary:";

pub(crate) fn document(subject: &Subject<'_>, report: &Report) -> Value {
    let mut graph = vec![json!({
        "@id": "urn:testforge:report",
        "@type": "Report",
        "score": report.score,
        "pointsNotTested": report.points_not_tested,
        "grade": report.grade,
        "check": report.checks.iter().map(check).collect::<Vec<_>>(),
    })];
    for split in [Split::Holdout, Split::Stress] {
        for function in subject.tuned.of(split) {
            graph.push(json!({
                "@id": function_id(&function),
                "@type": "Function",
                "sha256": function.metadata().sha256,
                "license": function.metadata().license,
            }));
            graph.extend(result(&function));
        }
    }
    json!({ "@context": context(), "@graph": graph })
}

fn context() -> Value {
    json!({
        "@vocab": VOCABULARY,
        "about": { "@type": "@id" },
        "model": { "@type": "@id" },
        "adapter": { "@type": "@id" },
        "evidence": { "@type": "@id" },
        "crate": "urn:testforge:crate:",
    })
}

fn check(check: &record::report::Check) -> Value {
    let mut node = json!({
        "@id": format!("urn:testforge:check:{}", check.id),
        "@type": "Check",
        "claim": check.claim,
        "threshold": check.threshold,
        "points": if check.verdict == CheckVerdict::Corroborated { check.points } else { 0 },
        "verdict": verdict_word(check.verdict),
        "evidence": check.evidence.iter().map(|e| sha256_id(&e.sha256)).collect::<Vec<_>>(),
    });
    if let (Some(m), Some(node)) = (&check.measured, node.as_object_mut()) {
        node.insert("value".to_owned(), json!(m.value));
        node.insert("unit".to_owned(), json!(m.unit));
        if let Some([low, high]) = m.interval95 {
            node.insert("intervalLow".to_owned(), json!(low));
            node.insert("intervalHigh".to_owned(), json!(high));
        }
    }
    node
}

/// The first answer for a function: `None` when there is none.
fn result(function: &Function<'_>) -> Option<Value> {
    let compile = function.compile?;
    let tests = sha256_hex(&compile.tests);
    let mut node = json!({
        "@id": format!("urn:testforge:result:{}:{tests}", function.metadata().sha256),
        "@type": "GeneratedTests",
        "about": function_id(function),
        "sha256": tests,
        "parses": function.parses(),
        "typeChecks": function.type_checks(),
    });
    let node_map = node.as_object_mut()?;
    if function.run.is_some() {
        node_map.insert("passes".to_owned(), json!(function.passes()));
    }
    let mutants = function.mutants();
    if mutants.denominator > 0.0 {
        node_map.insert("mutantsKilled".to_owned(), json!(mutants.numerator));
        node_map.insert("mutantsViable".to_owned(), json!(mutants.denominator));
    }
    if let Some(sample) = function.sample {
        node_map.insert("model".to_owned(), json!(sha256_id(&sample.model_sha256)));
        node_map.insert("completionSha256".to_owned(), json!(sha256_hex(&sample.completion)));
        if let Some(adapter) = &sample.adapter_sha256 {
            node_map.insert("adapter".to_owned(), json!(sha256_id(adapter)));
        }
    }
    Some(node)
}

fn sha256_id(digest: &str) -> String {
    format!("urn:sha256:{digest}")
}

/// `crate:NAME@VERSION/PATH#ITEM`, with everything that an IRI does not allow written as `%XX`.
fn function_id(function: &Function<'_>) -> String {
    let m = function.metadata();
    format!(
        "crate:{}@{}/{}#{}",
        encoded(&m.crate_name),
        encoded(&m.version),
        encoded(&m.path),
        encoded(&m.item)
    )
}

fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~:/+".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_are_iris() {
        assert_eq!(encoded("Stack<T>::push it"), "Stack%3CT%3E::push%20it");
    }
}
