//! Writing the stage's outputs: the samples with their manifest, and the timings apart from them.

use record::Map;
use record::generation::{
    FinishReason, GenerationSummary, GenerationTiming, SAMPLES_SCHEMA_VERSION, Sample, SamplesManifest,
};
use serde_json::Value;
use stage_kit::{Context, Result, StageError, digest, files};

use crate::decode::{Identity, Spent};
use crate::journal::Line;
use crate::params::Params;

/// Writes `samples`.
///
/// # Errors
/// The disk's.
pub(crate) fn write_samples(
    context: &Context,
    params: &Params,
    backend: &str,
    identity: &Identity,
    n_tasks: u64,
    lines: &[&Line],
) -> Result<()> {
    let dir = context.output_dir("samples")?;
    let path = dir.join("samples.jsonl");
    files::write_jsonl(&path, lines.iter().map(|line| &line.sample))?;
    let samples = || lines.iter().map(|line| &line.sample);
    let too_long = |s: &&Sample| s.finish_reason == FinishReason::PromptTooLong;
    let manifest = SamplesManifest {
        schema_version: SAMPLES_SCHEMA_VERSION,
        backend: backend.to_owned(),
        n_tasks,
        n_samples: lines.len() as u64,
        n_prompts_too_long: samples().filter(too_long).count() as u64,
        round: samples().map(|s| s.round).max().unwrap_or(0),
        seed: context.seed(),
        model_sha256: identity.model_sha256.clone(),
        adapter_sha256: identity.adapter_sha256.clone(),
        tokenizer_sha256: identity.tokenizer_sha256.clone(),
        template_sha256: identity.template_sha256.clone(),
        samples_sha256: digest::sha256_file(&path).map_err(|e| StageError::io("read", &path, e))?,
        params: resolved(params)?,
    };
    files::write_json(&dir.join("manifest.json"), &manifest)
}

/// Writes `timings`: a latency for each sample, and the whole. A latency runs from when the sample's prompt is taken up to
/// its last token; with a batch above 1 others are computed in that time.
///
/// # Errors
/// The disk's.
pub(crate) fn write_timings(
    context: &Context,
    device: &str,
    backend: &str,
    spent: Spent,
    wall_s: f64,
    lines: &[&Line],
) -> Result<()> {
    let dir = context.output_dir("timings")?;
    let generated: Vec<&&Line> =
        lines.iter().filter(|l| l.sample.finish_reason != FinishReason::PromptTooLong).collect();
    let timing = |line: &&&Line| GenerationTiming {
        task_id: line.sample.task_id.clone(),
        sample_idx: line.sample.sample_idx,
        latency_ms: line.latency_ms,
        completion_tokens: line.sample.completion_tokens,
    };
    files::write_jsonl(&dir.join("timings.jsonl"), generated.iter().map(timing))?;
    let mut latencies: Vec<f64> = generated.iter().map(|l| l.latency_ms).collect();
    latencies.sort_by(f64::total_cmp);
    let mut extra = Map::new();
    for (name, quantile) in [("latency_ms_p50", 0.5), ("latency_ms_p95", 0.95), ("latency_ms_max", 1.0)] {
        extra.extend(nearest_rank(&latencies, quantile).map(|ms| (name.to_owned(), ms)));
    }
    extra.insert("n_samples".to_owned(), generated.len() as f64);
    extra.insert("tokens_of_this_process".to_owned(), spent.tokens as f64);
    extra.insert("computed_tokens_of_this_process".to_owned(), spent.computed as f64);
    extra.insert("generating_s_of_this_process".to_owned(), spent.seconds);
    let summary = GenerationSummary {
        schema_version: SAMPLES_SCHEMA_VERSION,
        device: device.to_owned(),
        backend: backend.to_owned(),
        wall_s,
        tokens_per_s: if spent.seconds > 0.0 { spent.tokens as f64 / spent.seconds } else { 0.0 },
        extra,
    };
    files::write_json(&dir.join("summary.json"), &summary)
}

/// The smallest value that at least `quantile` of the values do not exceed; `None` when there are none.
fn nearest_rank(sorted: &[f64], quantile: f64) -> Option<f64> {
    let rank = (quantile * sorted.len() as f64).ceil().max(1.0) as usize;
    sorted.get(rank - 1).copied()
}

/// Parameters as they were used, sorted by name.
pub(crate) fn resolved(params: &Params) -> Result<Map<Value>> {
    match serde_json::to_value(params) {
        Ok(Value::Object(object)) => Ok(object.into_iter().collect()),
        _ => Err(StageError::internal("the parameters are no JSON object")),
    }
}

#[cfg(test)]
mod tests {
    use super::nearest_rank;

    #[test]
    fn quantiles_are_values_that_were_measured() {
        let sorted = [1.0, 2.0, 3.0, 4.0];
        assert_eq!(nearest_rank(&sorted, 0.5), Some(2.0));
        assert_eq!(nearest_rank(&sorted, 0.95), Some(4.0));
        assert_eq!(nearest_rank(&sorted, 1.0), Some(4.0));
        assert_eq!(nearest_rank(&[], 0.5), None);
    }
}
