//! Whether the inputs belong together: one corpus, one model for each set of samples, results made from one another.
//!
//! A report over parts of different runs would show numbers that nobody measured, so a contradiction stops the stage.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::path::Path;

use record::compile::CompileResult;
use record::corpus::CorpusRow;
use record::generation::Sample;
use record::mutation::{SampleResult, Verdict};
use record::report::Evidence;
use stage_kit::{Context, Result, StageError, digest, files};

use crate::inputs::{Corpus, Evaluation, Inputs, Training};

/// Inputs of which two must not be the same folder: what was done once is no second run, and no base model.
const PAIRS: [(&str, &str); 8] = [
    ("samples", "samples_repeat"),
    ("compile", "compile_repeat"),
    ("mutation", "mutation_repeat"),
    ("adapter", "adapter_repeat"),
    ("checkpoints", "checkpoints_repeat"),
    ("samples", "samples_base"),
    ("compile", "compile_base"),
    ("mutation", "mutation_base"),
];

type Key<'a> = (&'a str, u32, u32);

/// # Errors
/// Two inputs contradict each other; the message names the file and the sample.
pub(crate) fn check(inputs: &Inputs, context: &Context) -> Result<()> {
    no_folder_twice(context)?;
    rows(&inputs.corpus)?;
    let all = [Some(&inputs.tuned), inputs.base.as_ref(), inputs.repeat.as_ref()];
    for evaluation in all.into_iter().flatten() {
        belongs_together(evaluation)?;
        known_tasks(evaluation, &inputs.corpus, context)?;
        one_identity(evaluation)?;
        agrees(evaluation)?;
        mutants_of_one_function(evaluation)?;
        suites(evaluation)?;
    }
    if let Some(base) = &inputs.base {
        base_of(&inputs.tuned, base)?;
    }
    if let Some(repeat) = &inputs.repeat {
        same_prompts(&inputs.tuned, repeat)?;
        samples_of(repeat, &inputs.training_repeat)?;
    }
    samples_of(&inputs.tuned, &inputs.training)?;
    [&inputs.training, &inputs.training_repeat].into_iter().try_for_each(one_training)
}

fn contradiction(path: &Path, why: impl Into<String>) -> StageError {
    StageError::failed(why).at(path.display().to_string()).next(
        "give samples, compile and mutation results, corpus and weights that were made from one another",
    )
}

fn no_folder_twice(context: &Context) -> Result<()> {
    for (one, other) in PAIRS {
        let (Some(a), Some(b)) = (context.optional_input(one)?, context.optional_input(other)?) else {
            continue;
        };
        if let (Ok(a), Ok(b)) = (a.canonicalize(), b.canonicalize())
            && a == b
        {
            return Err(StageError::usage(format!("the inputs `{one}` and `{other}` are the same"))
                .at(b.display().to_string())
                .next("a comparison needs results of another run"));
        }
    }
    Ok(())
}

/// Ids are unique, and every function is the one that its row and the manifest say.
fn rows(corpus: &Corpus) -> Result<()> {
    let mut ids = BTreeSet::new();
    for (row, path) in corpus.rows() {
        if !ids.insert(&row.id) {
            return Err(contradiction(path, format!("the row `{}` stands here twice", row.id)));
        }
        if digest::sha256_hex(&row.function_code) != row.metadata.sha256 {
            return Err(contradiction(
                path,
                format!("the function of `{}` is not the one that its sha256 names", row.id),
            ));
        }
    }
    let Some(manifest) = &corpus.manifest else { return Ok(()) };
    let known: BTreeSet<&String> = manifest.holdout_sha256.iter().collect();
    let found: BTreeSet<&String> = corpus.rows().map(|(row, _)| &row.metadata.sha256).collect();
    if known != found {
        return Err(contradiction(
            &corpus.holdout_path,
            "holdout and stress rows are not those whose hashes manifest.json lists",
        ));
    }
    Ok(())
}

/// Every sample must have been compiled, and everything compiled must have been run (or found not to compile); each once.
fn belongs_together(evaluation: &Evaluation) -> Result<()> {
    let (compile, mutation) = (&evaluation.compile, &evaluation.mutation);
    let sampled = keys(&evaluation.samples, key_of_sample, &evaluation.samples_path)?;
    let compiled = keys(&compile.value.samples, key_of_compiled, &compile.path)?;
    let run = keys(&mutation.value.samples, key_of_run, &mutation.path)?;
    let covers = |needed: &BTreeSet<Key<'_>>, there: &BTreeSet<Key<'_>>, path: &Path| match needed
        .difference(there)
        .next()
    {
        None => Ok(()),
        Some(key) => Err(contradiction(
            path,
            format!("no result for {}: the inputs are of different runs", name(*key)),
        )),
    };
    covers(&sampled, &compiled, &compile.path)?;
    covers(&compiled, &run, &mutation.path)?;
    covers(&run, &compiled, &compile.path)?;
    if evaluation.samples_evidence.is_some() {
        covers(&compiled, &sampled, &evaluation.samples_path)?;
    }
    Ok(())
}

fn keys<'t, T>(items: &'t [T], key: fn(&T) -> Key<'_>, path: &Path) -> Result<BTreeSet<Key<'t>>> {
    let mut found = BTreeSet::new();
    for item in items {
        if !found.insert(key(item)) {
            return Err(contradiction(path, format!("{} stands here twice", name(key(item)))));
        }
    }
    Ok(found)
}

fn key_of_sample(s: &Sample) -> Key<'_> {
    (&s.task_id, s.sample_idx, s.round)
}

fn key_of_compiled(s: &CompileResult) -> Key<'_> {
    (&s.task_id, s.sample_idx, s.round)
}

fn key_of_run(s: &SampleResult) -> Key<'_> {
    (&s.task_id, s.sample_idx, s.round)
}

fn name((task, idx, round): Key<'_>) -> String {
    format!("sample {idx} of round {round} of `{task}`")
}

/// Samples are of this corpus. Those of its other splits are allowed and not looked at.
fn known_tasks(evaluation: &Evaluation, corpus: &Corpus, context: &Context) -> Result<()> {
    let known: BTreeSet<&str> = corpus.rows().map(|(row, _)| &*row.id).collect();
    let unknown = |others: &BTreeSet<String>| {
        let all = evaluation.compile.value.samples.iter();
        all.map(|s| s.task_id.clone()).find(|id| !known.contains(&**id) && !others.contains(id))
    };
    if unknown(&BTreeSet::new()).is_none() {
        return Ok(());
    }
    let mut others = BTreeSet::new();
    for split in ["train", "validation", "test"] {
        let path = context.input("corpus")?.join(format!("{split}.jsonl"));
        if path.exists() {
            others.extend(files::read_jsonl::<CorpusRow>(&path)?.into_iter().map(|row| row.id));
        }
    }
    match unknown(&others) {
        None => Ok(()),
        Some(id) => Err(contradiction(
            &evaluation.compile.path,
            format!("the task `{id}` is not in the corpus: the samples are of another one"),
        )),
    }
}

/// All samples come from one model, adapter, tokenizer and template.
fn one_identity(evaluation: &Evaluation) -> Result<()> {
    let Some(first) = evaluation.samples.first() else { return Ok(()) };
    let other = evaluation.samples.iter().find(|s| identity(s) != identity(first));
    match other {
        None => Ok(()),
        Some(s) => Err(contradiction(
            &evaluation.samples_path,
            format!(
                "{} comes from another model, adapter, tokenizer or template than the first one",
                name(key_of_sample(s))
            ),
        )),
    }
}

fn identity(s: &Sample) -> (&str, Option<&str>, &str, &str) {
    (&s.model_sha256, s.adapter_sha256.as_deref(), &s.tokenizer_sha256, &s.template_sha256)
}

/// Steps follow from one another: nothing passes that did not run, nothing runs that did not compile.
fn agrees(evaluation: &Evaluation) -> Result<()> {
    let (compile, mutation) = (&evaluation.compile, &evaluation.mutation);
    let completions: BTreeMap<Key<'_>, String> =
        evaluation.samples.iter().map(|s| (key_of_sample(s), digest::sha256_hex(&s.completion))).collect();
    let mut compiled = BTreeMap::new();
    for result in &compile.value.samples {
        let completion = completions.get(&key_of_compiled(result));
        if !result.completion_sha256.is_empty() && completion.is_some_and(|c| *c != result.completion_sha256)
        {
            return Err(contradiction(
                &compile.path,
                format!(
                    "{}: another completion was compiled than the sample holds",
                    name(key_of_compiled(result))
                ),
            ));
        }
        if let Some(why) = compile_fault(result) {
            return Err(contradiction(&compile.path, format!("{}: {why}", name(key_of_compiled(result)))));
        }
        let links = result.refused.is_none() && result.links == Some(true);
        compiled.insert(key_of_compiled(result), (links, digest::sha256_hex(&result.tests)));
    }
    for result in &mutation.value.samples {
        let (links, tests) = compiled.get(&key_of_run(result)).cloned().unwrap_or_default();
        let fault = if !result.tests_sha256.is_empty() && result.tests_sha256 != tests {
            Some("other tests were run than those that the compile results hold".to_owned())
        } else if result.compiled == links {
            run_fault(result)
        } else {
            Some(
                "it compiled according to one of compile and mutation results and not to the other"
                    .to_owned(),
            )
        };
        if let Some(why) = fault {
            return Err(contradiction(&mutation.path, format!("{}: {why}", name(key_of_run(result)))));
        }
    }
    Ok(())
}

fn compile_fault(result: &CompileResult) -> Option<String> {
    let later = [("type-checks", result.type_checks), ("links", result.links)];
    let mut before = ("parses", result.parses);
    for (what, holds) in later {
        if holds == Some(true) && !before.1 {
            return Some(format!("it {what} although it was not found that it {}", before.0));
        }
        before = (what, holds == Some(true));
    }
    if result.lint_clean.is_some() && result.type_checks != Some(true) {
        return Some("it was linted although it does not type-check".to_owned());
    }
    let scores = result.similarity.map(|s| [s.bleu4, s.codebleu, s.codebleu_compat]);
    // A sum of four rounded quarters may lie a little above 1.
    let outside = scores.into_iter().flatten().find(|s| !(0.0..=1.0 + 1e-9).contains(s));
    outside.map(|s| format!("a similarity of {s} lies outside 0 to 1"))
}

fn run_fault(result: &SampleResult) -> Option<String> {
    let all_passed = result.tests.iter().all(|t| t.verdict == Verdict::Passed);
    if result.passed && !result.compiled {
        return Some("it passed although it did not compile".to_owned());
    }
    if result.passed && (result.tests.is_empty() || !all_passed || result.runs == 0) {
        return Some("it passed although it has no test, a test did not pass, or none was run".to_owned());
    }
    if !result.passed && result.mutants.is_some() {
        return Some("it has mutants although it did not pass".to_owned());
    }
    let coverage = result.coverage.as_ref()?;
    let parts = [
        (coverage.branches_covered, coverage.branches),
        (coverage.branches_covered_baseline, coverage.branches),
        (coverage.lines_covered, coverage.lines),
        (coverage.lines_covered_baseline, coverage.lines),
    ];
    let over = parts.into_iter().find(|(covered, all)| covered > all);
    over.map(|(covered, all)| format!("{covered} of {all} branches or lines are covered"))
}

/// A function has the same mutants whatever suite they are run against.
fn mutants_of_one_function(evaluation: &Evaluation) -> Result<()> {
    let mut known: BTreeMap<&str, (u64, Key<'_>)> = BTreeMap::new();
    for result in &evaluation.mutation.value.samples {
        let Some(m) = &result.mutants else { continue };
        let was_run = [m.killed, m.timeout, m.survived, m.no_coverage].map(u64::from).iter().sum::<u64>();
        let all = was_run + u64::from(m.unviable) + u64::from(m.ignored);
        let (first, key) = *known.entry(&result.task_id).or_insert((all, key_of_run(result)));
        let why = if u64::from(m.in_source) > was_run {
            format!("{} of {was_run} mutants were run written into the source", m.in_source)
        } else if all != first {
            format!("its function has {all} mutants, and {first} for {}", name(key))
        } else {
            continue;
        };
        return Err(contradiction(&evaluation.mutation.path, format!("{}: {why}", name(key_of_run(result)))));
    }
    Ok(())
}

/// The assured suites are made of samples that were run.
fn suites(evaluation: &Evaluation) -> Result<()> {
    let Some(selected) = &evaluation.selected else { return Ok(()) };
    let all = &evaluation.mutation.value.samples;
    let passed: BTreeSet<Key<'_>> = all.iter().filter(|s| s.passed).map(key_of_run).collect();
    let mut tasks = BTreeSet::new();
    for suite in &selected.value {
        let bad = suite.samples.iter().map(|s| (&*suite.task_id, s.sample_idx, s.round));
        if let Some(key) = bad.into_iter().find(|key| !passed.contains(key)) {
            return Err(contradiction(&selected.path, format!("{} was chosen and did not pass", name(key))));
        }
        if !tasks.insert(&suite.task_id) || suite.mutants_killed > suite.mutants_viable {
            return Err(contradiction(
                &selected.path,
                format!("`{}` has two suites, or kills more mutants than there are", suite.task_id),
            ));
        }
    }
    Ok(())
}

/// Prompts of the same task are the same prompts.
fn same_prompts(one: &Evaluation, other: &Evaluation) -> Result<()> {
    let first = |e: &'_ Evaluation| -> BTreeMap<String, String> {
        let first_round = e.samples.iter().filter(|s| s.round == 0);
        first_round.map(|s| (s.task_id.clone(), s.prompt_sha256.clone())).collect()
    };
    let (prompts, others) = (first(one), first(other));
    let differs = prompts.iter().find(|(task, prompt)| others.get(*task).is_some_and(|o| o != *prompt));
    match differs {
        None => Ok(()),
        Some((task, _)) => Err(contradiction(
            &other.samples_path,
            format!("the prompt for `{task}` is another one than the tuned model's: not the same work"),
        )),
    }
}

/// The base model is what the tuned one was made from, under the same prompts.
fn base_of(tuned: &Evaluation, base: &Evaluation) -> Result<()> {
    same_prompts(tuned, base)?;
    let (Some(t), Some(b)) = (tuned.samples.first(), base.samples.first()) else { return Ok(()) };
    let wrong = |why: &str| Err(contradiction(&base.samples_path, why));
    match (&t.adapter_sha256, &b.adapter_sha256) {
        (_, Some(_)) => wrong("the samples of the base model were generated with an adapter"),
        (Some(_), None) if t.model_sha256 != b.model_sha256 => {
            wrong("the base model's samples come from another model than the one that the adapter was put on")
        }
        (None, None) if t.model_sha256 == b.model_sha256 => {
            wrong("base and tuned samples come from the same model, without an adapter")
        }
        _ if (&t.tokenizer_sha256, &t.template_sha256) != (&b.tokenizer_sha256, &b.template_sha256) => {
            wrong("base and tuned samples were made with different tokenizers or templates")
        }
        _ => Ok(()),
    }
}

/// The samples come from the weights whose training the report shows.
fn samples_of(evaluation: &Evaluation, training: &Training) -> Result<()> {
    let Some(sample) = evaluation.samples.first() else { return Ok(()) };
    let mut parts: Vec<(&str, Option<&str>, Option<&str>)> = Vec::new();
    let Some(place) = &training.place else { return Ok(()) };
    let adapter = training.weights.iter().find(|e| file_name(e) == "adapter_model.safetensors");
    let model = model_sha256(&training.weights);
    match adapter {
        Some(weights) => {
            parts.push(("weights", sample.adapter_sha256.as_deref(), Some(&weights.sha256)));
        }
        None => parts.push(("model", Some(&sample.model_sha256), Some(&model))),
    }
    if let Some(manifest) = &training.manifest {
        if adapter.is_some() && !manifest.model_sha256.is_empty() {
            parts.push(("base model", Some(&sample.model_sha256), Some(&manifest.model_sha256)));
        }
        parts.push(("tokenizer", Some(&sample.tokenizer_sha256), Some(&manifest.tokenizer_sha256)));
        parts.push(("template", Some(&sample.template_sha256), Some(&manifest.template_sha256)));
    }
    match parts.into_iter().find(|(_, sampled, trained)| sampled != trained) {
        None => Ok(()),
        Some((what, ..)) => Err(contradiction(
            place,
            format!(
                "{} in {} was not generated with this adapter or model: another {what}",
                name(key_of_sample(sample)),
                evaluation.samples_path.display()
            ),
        )),
    }
}

fn file_name(evidence: &Evidence) -> &str {
    evidence.path.rsplit('/').next().unwrap_or(&evidence.path)
}

/// Identity of a model: SHA-256 over the sorted `name\0sha256\n` lines of its weight files.
fn model_sha256(weights: &[Evidence]) -> String {
    let lines = weights.iter().map(|e| format!("{}\0{}\n", file_name(e), e.sha256));
    digest::sha256_hex(lines.collect::<String>())
}

/// Weights, manifest and steps are of one training.
fn one_training(training: &Training) -> Result<()> {
    let (Some(manifest), Some(place)) = (&training.manifest, &training.place) else { return Ok(()) };
    if !training.weights.iter().any(|e| e.sha256 == manifest.weights_sha256) {
        return Err(contradiction(place, "the weights are not those that the training's manifest names"));
    }
    let Some(steps) = &training.steps else { return Ok(()) };
    let last = steps.value.last().map_or(0, |s| s.step);
    if last != manifest.steps {
        return Err(contradiction(
            &steps.path,
            differs("the last step", last, "the manifest of the weights", manifest.steps),
        ));
    }
    let bad = steps.value.windows(2).find(|w| w[1].step != w[0].step + 1);
    bad.map_or(Ok(()), |w| {
        Err(contradiction(&steps.path, format!("step {} follows step {}", w[1].step, w[0].step)))
    })
}

fn differs(one: &str, a: impl Display, other: &str, b: impl Display) -> String {
    format!("{one} is {a}, {other} says {b}")
}
