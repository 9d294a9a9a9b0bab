//! The stage `popper-report`: tries to refute the claim that the model writes good tests, and says what it found.
//!
//! 26 checks of 100 points, four gates, tiers, and base against tuned, from the results of the earlier stages. The greedy
//! first sample of each holdout function decides. What could not be tested scores nothing and says so.

mod checks;
mod cohort;
mod consistency;
mod hypotheses;
mod inputs;
mod measures;
mod regression;
mod render;
mod verdict;

use std::fs;
use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use stage_kit::{Alias, Context, Outcome, PortSpec, Result, Stage, StageError, Target, files};

use crate::checks::{RestsOn, Subject, distrust};
use crate::cohort::Cohort;
use crate::inputs::Inputs;
use crate::render::Page;

/// Parameters of the stage.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// End with exit code 4 when a gate is not passed. A pipeline names gates.json instead.
    pub gate: bool,
    /// How many generated suites the report shows in full, chosen by the seed.
    pub n_examples: u32,
    /// Heading of the report.
    pub title: String,
}

impl Default for Params {
    fn default() -> Self {
        Self { gate: false, n_examples: 6, title: "Popper report".to_owned() }
    }
}

/// The stage.
#[derive(Debug)]
pub struct PopperReport;

impl Stage for PopperReport {
    type Params = Params;
    const NAME: &'static str = "popper-report";
    const INPUTS: &'static [PortSpec] = &[
        PortSpec::required("corpus", "holdout.jsonl, stress.jsonl, manifest.json"),
        PortSpec::required("samples", "samples.jsonl of the tuned model"),
        PortSpec::required("compile", "compile_results.json of those samples"),
        PortSpec::required("mutation", "test_results.json and selected.jsonl of those samples"),
        PortSpec::optional("samples_base", "the same of the base model"),
        PortSpec::optional("compile_base", "the same of the base model"),
        PortSpec::optional("mutation_base", "the same of the base model"),
        PortSpec::optional("samples_repeat", "the same, done again from the training on"),
        PortSpec::optional("compile_repeat", "the same, done again from the training on (r3)"),
        PortSpec::optional("mutation_repeat", "the same, done again from the training on (r3)"),
        PortSpec::optional("adapter", "the trained adapter or model (r2)"),
        PortSpec::optional("adapter_repeat", "the adapter of the second training (r2)"),
        PortSpec::optional("checkpoints", "steps.jsonl, validation.jsonl (r1, the loss curve)"),
        PortSpec::optional("checkpoints_repeat", "steps.jsonl of the second training (r1)"),
        PortSpec::optional("log", "metrics.json of the training (e1, e2)"),
        PortSpec::optional("timings", "timings.jsonl and summary.json of the generation (e3)"),
        PortSpec::optional("lock", "reproducibility.lock of an earlier experiment (r4)"),
        PortSpec::optional("dependencies", "Cargo.lock that the programs are built from (r4)"),
        PortSpec::optional("baseline", "report.json of an earlier report: any drop ends with exit code 3"),
    ];
    const OUTPUTS: &'static [PortSpec] = &[PortSpec::required(
        "report",
        "report.html, report.md, report.json, gates.json, metrics.json, metrics.jsonld, hansei.md",
    )];
    const ALIASES: &'static [Alias] = &[
        Alias { option: "gate", target: Target::Flag("gate") },
        Alias { option: "baseline", target: Target::Input("baseline") },
    ];

    fn run(params: Params, context: &Context) -> Result<Outcome> {
        let inputs = Inputs::load(context)?;
        let tuned = Cohort::new(&inputs.corpus, &inputs.tuned);
        let subject = Subject { inputs: &inputs, tuned, seed: context.seed() };
        for (whose, evaluation) in [("", Some(&inputs.tuned)), (" of the base model", inputs.base.as_ref())] {
            let kinds = [RestsOn::Compiling, RestsOn::Running];
            if let Some(why) = evaluation.and_then(|e| kinds.into_iter().find_map(|on| distrust(e, on))) {
                context.warn(&format!("results{whose} that are not counted: {why}"));
            }
        }
        let report = verdict::report(&subject);
        let gates = verdict::gates_file(&report);
        let drops = inputs.baseline.as_ref().map(|old| regression::drops(old, &report));
        let page = Page::new(&params, &subject, &report, drops.as_deref());

        let out = context.output_dir("report")?;
        files::write_json(&out.join("report.json"), &report)?;
        files::write_json(&out.join("gates.json"), &gates)?;
        files::write_json(&out.join("metrics.json"), &verdict::metrics(&subject, &report))?;
        files::write_json(&out.join("metrics.jsonld"), &render::jsonld(&subject, &report))?;
        write(&out.join("report.html"), &page.html())?;
        write(&out.join("report.md"), &page.markdown())?;
        write(&out.join("hansei.md"), &page.hansei())?;

        context.log(&format!("{} of 100 points, grade {}", report.score, report.grade));
        context.log(&page.sentence);
        if drops.is_some_and(|drops| !drops.is_empty()) {
            return Ok(Outcome::Regression);
        }
        Ok(if params.gate && !gates.passed { Outcome::GateNotMet } else { Outcome::Done })
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).map_err(|e| StageError::io("write", path, e))
}
