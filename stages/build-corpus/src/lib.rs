//! The stage `build-corpus`: functions with tests that compile, pass and kill mutants, out of published crates.
//!
//! Sources are read (`sources`), turned into candidate rows (`candidates`), assigned to splits crate by crate (`split`),
//! cleared of duplicates and of what the holdout holds (`similarity`, `leakage`), tried one by one (`trial`) until each
//! split is full, and written (`publish`). Everything but `sources`, `trial` and `publish` is a function of its arguments.

pub mod candidates;
pub mod fill;
pub mod handwritten;
pub mod leakage;
pub mod licence;
pub mod properties;
pub mod publish;
pub mod similarity;
pub mod sources;
pub mod split;
pub mod trial;

use std::collections::{BTreeMap, BTreeSet};

use harness::{Harness, Libraries, Toolchain};
use record::corpus::{CorpusRow, Funnel};
use sandbox::Sandbox;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use stage_kit::{Context, Outcome, PortSpec, Result, Stage, StageError};

use crate::candidates::{Candidate, Limits, Origin};
use crate::fill::Filler;
use crate::leakage::Guard;
use crate::publish::{Account, Splits};
use crate::similarity::{Index, Print};
use crate::sources::Sources;
use crate::trial::Court;

/// Parameters of the stage.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// Which list of sources: a folder of the input `sources` with a Cargo.toml and its Cargo.lock.
    pub set: String,
    /// Rows wanted in train.jsonl, the curated ones among them.
    pub train: u64,
    /// Rows wanted in validation.jsonl.
    pub validation: u64,
    /// Rows wanted in test.jsonl.
    pub test: u64,
    /// Fewer rows than this in train, validation and test together are an error.
    pub min_rows: u64,
    /// Most candidates that one crate may give.
    pub max_rows_per_crate: usize,
    /// Most characters of a row: context, function and tests together.
    pub max_row_chars: usize,
    /// Share of rows with property tests that each split should have, 0 to 1.
    pub property_share: f64,
    /// How often the tests of a row must pass.
    pub runs: u32,
    /// Most mutants of a row that are run to count those that its tests kill, spread evenly; 0: all.
    pub max_mutants: usize,
    /// Rows tried at the same time; 0: one for each CPU of the stage.
    pub jobs: usize,
    /// SPDX names of the licences that a source may have.
    pub licences: Vec<String>,
    /// Isolation that the sandbox must reach, 0 to 3, or the stage stops.
    pub min_isolation: u8,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            set: "full".to_owned(),
            train: 8000,
            validation: 1000,
            test: 1000,
            min_rows: 1,
            max_rows_per_crate: 400,
            max_row_chars: 3600,
            property_share: 0.6,
            runs: 3,
            max_mutants: 12,
            jobs: 0,
            licences: licence::ALLOWED.iter().map(|l| (*l).to_owned()).collect(),
            min_isolation: 0,
        }
    }
}

/// The stage.
#[derive(Debug)]
pub struct BuildCorpus;

impl Stage for BuildCorpus {
    type Params = Params;
    const NAME: &'static str = "build-corpus";
    const INPUTS: &'static [PortSpec] = &[
        PortSpec::required(
            "sources",
            "folders with a Cargo.toml and Cargo.lock that name the crates to take rows from",
        ),
        PortSpec::optional(
            "curated",
            "hand-written functions with tests, one .rs file each; they go into train",
        ),
        PortSpec::optional("holdout", "hand-written functions, STRATUM/NAME.rs; never trained on"),
        PortSpec::optional(
            "libs",
            "prebuilt libraries that rows may link; without it, the standard library alone",
        ),
    ];
    const OUTPUTS: &'static [PortSpec] = &[PortSpec::required(
        "corpus",
        "train, validation, test, holdout, stress .jsonl; manifest.json, NOTICE, DATASET_CARD.md",
    )];

    fn run(params: Params, context: &Context) -> Result<Outcome> {
        check(&params)?;
        let court = court(&params, context)?;
        let externs: BTreeSet<String> = court.harness.libraries().externs.keys().cloned().collect();
        let out = context.output_dir("corpus")?;
        let sources = sources::load(&context.input("sources")?.join(&params.set), &params.licences, context)?;
        for (name, reason) in &sources.refused {
            context.warn(&format!("{name} is left out: {reason}"));
        }
        let written = |input: &str, strata| match context.optional_input(input)? {
            Some(dir) => handwritten::load(dir, input, &externs, strata),
            None => Ok(Vec::new()),
        };
        let (curated, holdout) = (written("curated", false)?, written("holdout", true)?);
        let filler = Filler { court: &court, params: &params, context };
        let holdout = filler.all("holdout", holdout)?;
        let curated = filler.all("curated", curated)?;
        let guard = Guard::new(&holdout);
        let mut funnel = Funnel::default();
        if !sources.refused.is_empty() {
            funnel.dropped.insert("crate_licence_refused".to_owned(), sources.refused.len() as u64);
        }
        let rows = extract(&sources, &params, externs, context, &mut funnel)?;
        context.log(&format!(
            "{} functions, {} linked tests, {} candidates; not taken: {:?}",
            funnel.functions_seen,
            funnel.pairs_linked,
            rows.values().map(Vec::len).sum::<usize>(),
            funnel.dropped
        ));
        let (splits, mut shortfalls) = assemble(rows, curated, &guard, &filler, &mut funnel, context)?;
        shortfalls
            .extend(sources.refused.iter().map(|(name, reason)| format!("{name} is left out: {reason}")));
        let account = Account {
            leakage: guard.report(&splits["train"]),
            funnel,
            toolchain: court.harness.toolchain().version.clone(),
            shortfalls,
        };
        let splits = with_holdout(splits, holdout);
        publish::write(&out, &splits, &sources.crates, account)?;
        enough(&splits, &params)?;
        Ok(Outcome::Done)
    }
}

fn check(params: &Params) -> Result<()> {
    let wrong = |name: &str, why: String| {
        Err(StageError::usage(why)
            .at(format!("build-corpus parameter {name}"))
            .next("see `build-corpus --help`"))
    };
    if !(0.0..=1.0).contains(&params.property_share) {
        return wrong("property_share", format!("`{}` is no share between 0 and 1", params.property_share));
    }
    if params.runs == 0 {
        return wrong("runs", "tests must run at least once".to_owned());
    }
    if params.train + params.validation + params.test == 0 {
        return wrong("train", "no row is asked for".to_owned());
    }
    let set = std::path::Path::new(&params.set);
    if params.set.is_empty() || set.components().any(|c| !matches!(c, std::path::Component::Normal(_))) {
        return wrong("set", format!("`{}` is no folder of the sources", params.set));
    }
    Ok(())
}

fn court(params: &Params, context: &Context) -> Result<Court> {
    let unusable = |what: &str, e: String| {
        StageError::failed(e).at(what.to_owned()).next("see `runner doctor` for what this machine lacks")
    };
    let toolchain = Toolchain::find().map_err(|e| unusable("the Rust compiler", e.to_string()))?;
    let libraries = match context.optional_input("libs")? {
        Some(dir) => Libraries::load(dir, &toolchain).map_err(|e| unusable("input libs", e.to_string()))?,
        None => Libraries::none(),
    };
    let sandbox = Sandbox::probe();
    sandbox.require(params.min_isolation).map_err(|e| unusable("the sandbox", e.to_string()))?;
    let scratch = context.scratch().join("rows");
    let harness = Harness::new(toolchain, libraries, sandbox, scratch, harness::Limits::default());
    Ok(Court { harness, runs: params.runs, max_mutants: params.max_mutants })
}

/// Candidate rows of every crate, by crate, duplicates gone.
fn extract(
    sources: &Sources,
    params: &Params,
    externs: BTreeSet<String>,
    context: &Context,
    funnel: &mut Funnel,
) -> Result<BTreeMap<String, Vec<(Candidate, Print)>>> {
    let limits = Limits { max_row_chars: params.max_row_chars, externs };
    let mut shapes = BTreeSet::new();
    let mut rows = BTreeMap::new();
    for source in &sources.crates {
        context.check_cancelled()?;
        let origin = Origin {
            crate_name: &source.name,
            version: &source.version,
            license: &source.licence.expression,
        };
        let found = match candidates::of_crate(&source.files, origin, &limits) {
            Ok(found) => found,
            Err(error) => {
                context.warn(&format!("{} {} is left out: {error}", source.name, source.version));
                *funnel.dropped.entry("crate_unreadable".to_owned()).or_default() += 1;
                continue;
            }
        };
        for path in &found.unreadable {
            context.log(&format!("{} {}: {path} can't be read", source.name, source.version));
            *funnel.dropped.entry("file_unreadable".to_owned()).or_default() += 1;
        }
        for (path, reason) in &source.skipped {
            context.log(&format!("{} {}: {path} is left out: {reason}", source.name, source.version));
            *funnel.dropped.entry((*reason).to_owned()).or_default() += 1;
        }
        funnel.functions_seen += found.functions_seen;
        funnel.pairs_linked += found.pairs_linked;
        for (reason, n) in found.dropped {
            *funnel.dropped.entry(reason).or_default() += n;
        }
        let mut fresh = Vec::new();
        for row in found.rows {
            let print = Print::of(&row.row);
            if shapes.insert(print.shape) {
                fresh.push((row, print));
            } else {
                funnel.duplicates_exact += 1;
            }
        }
        context.log(&format!(
            "{} {}: {} functions, {} candidates",
            source.name,
            source.version,
            found.functions_seen,
            fresh.len()
        ));
        // Two versions of one crate share a split.
        rows.entry(source.name.clone()).or_insert_with(Vec::new).extend(fresh);
    }
    Ok(rows)
}

type Assembled = (Splits, Vec<String>);

/// Fills the splits: test and validation first, so that what is near to them is kept out of training.
fn assemble(
    rows: BTreeMap<String, Vec<(Candidate, Print)>>,
    curated: Vec<CorpusRow>,
    guard: &Guard,
    filler: &Filler<'_>,
    funnel: &mut Funnel,
    context: &Context,
) -> Result<Assembled> {
    let params = filler.params;
    let wanted = [params.train, params.validation, params.test];
    let market = Market::new(&rows, filler, wanted, context.seed());
    let mut assigned = split::assign(&market.promising, wanted, context.seed());
    let mut splits = Splits::new();
    let mut shortfalls = Vec::new();
    let mut index = Index::default();
    let leak = |row: &CorpusRow| guard.leak(row, &Print::of(row));
    if let Some((row, leak)) = curated.iter().find_map(|row| Some((row, leak(row)?))) {
        return Err(StageError::failed(format!(
            "a curated row repeats a row of the holdout ({})",
            leak.reason()
        ))
        .at(row.id.clone())
        .next("change one of the two: the holdout must stay unseen in training"));
    }
    // Curated rows are in train whatever comes: nothing near to them may be in another split.
    curated.iter().for_each(|row| index.add(Print::of(row)));
    for split in [2, 1, 0] {
        let name = split::SPLITS[split];
        let before = if name == "train" { curated.clone() } else { Vec::new() };
        let mut filling = filler.begin(name, before, wanted[split]);
        let mut crates: BTreeSet<String> = rows.keys().filter(|n| assigned[*n] == split).cloned().collect();
        // The crates of test and validation may give less than was hoped for: training gives up some of its own.
        loop {
            let candidates = crates.iter().flat_map(|name| &rows[name]);
            let ready = unseen(candidates, guard, &index, funnel);
            let ready = split::interleave(ready, context.seed(), params.max_rows_per_crate);
            filling.seek(ready, funnel)?;
            let mut more = market.one_more(&assigned, split, filling.missing_with(), true);
            if more.is_none() {
                filling.seek_others(funnel)?;
                more = market.one_more(&assigned, split, filling.missing_without(), false);
            }
            let Some(more) = more else { break };
            assigned.insert(more.clone(), split);
            crates = [more].into();
        }
        let (filled, lacks) = filling.finish(funnel);
        funnel.kept += filled.len() as u64;
        for row in &filled {
            index.add(Print::of(row));
        }
        shortfalls.extend(lacks);
        splits.insert(name, filled);
    }
    for shortfall in &shortfalls {
        context.warn(shortfall);
    }
    Ok((splits, shortfalls))
}

/// What crates have to give, by name.
struct Market {
    /// Candidates, at most as many as a crate may give.
    candidates: BTreeMap<String, usize>,
    /// Those that may come to have property tests; all where there can be none.
    promising: BTreeMap<String, usize>,
    /// Training gives no crate away when less than this would be left to it.
    least: usize,
    seed: u64,
}

impl Market {
    fn new(
        rows: &BTreeMap<String, Vec<(Candidate, Print)>>,
        filler: &Filler<'_>,
        wanted: [u64; 3],
        seed: u64,
    ) -> Self {
        let most = filler.params.max_rows_per_crate;
        let candidates: BTreeMap<String, usize> =
            rows.iter().map(|(name, rows)| (name.clone(), rows.len().min(most))).collect();
        let mut promising: BTreeMap<String, usize> =
            rows.iter().map(|(name, rows)| (name.clone(), filler.promising(rows).min(most))).collect();
        if !filler.has_proptest() || filler.params.property_share == 0.0 {
            promising.clone_from(&candidates);
        }
        let all: usize = promising.values().sum();
        let share = wanted[0] as f64 / wanted.iter().sum::<u64>().max(1) as f64;
        Self { candidates, promising, least: (all as f64 * share / 2.0) as usize, seed }
    }

    /// The crate of training that a split gets which lacks so many rows.
    fn one_more(
        &self,
        assigned: &BTreeMap<String, usize>,
        split: usize,
        missing: usize,
        promising: bool,
    ) -> Option<String> {
        let sizes = if promising { &self.promising } else { &self.candidates };
        let name =
            split::one_more(sizes, assigned, missing, self.seed).filter(|_| split > 0 && missing > 0)?;
        let left: usize = self
            .promising
            .iter()
            .filter(|(n, _)| assigned[*n] == 0 && **n != name)
            .map(|(_, size)| size)
            .sum();
        (left >= self.least).then_some(name)
    }
}

/// Rows that repeat nothing of the holdout, and are near to no row of another split.
fn unseen<'r>(
    rows: impl Iterator<Item = &'r (Candidate, Print)>,
    guard: &Guard,
    index: &Index,
    funnel: &mut Funnel,
) -> Vec<Candidate> {
    let mut ready = Vec::new();
    for (candidate, print) in rows {
        if let Some(leak) = guard.leak(&candidate.row, print) {
            *funnel.dropped.entry(leak.reason().to_owned()).or_default() += 1;
        } else if index.has_near(print) {
            funnel.duplicates_near += 1;
        } else {
            ready.push(candidate.clone());
        }
    }
    ready
}

fn with_holdout(mut splits: Splits, holdout: Vec<CorpusRow>) -> Splits {
    let is_stress = |row: &CorpusRow| matches!(row.metadata.stratum.as_deref(), Some("unsafe" | "macros"));
    let (stress, holdout) = holdout.into_iter().partition(is_stress);
    splits.insert("holdout", holdout);
    splits.insert("stress", stress);
    splits
}

fn enough(splits: &Splits, params: &Params) -> Result<()> {
    let rows: usize = split::SPLITS.iter().filter_map(|s| splits.get(s)).map(Vec::len).sum();
    if (rows as u64) < params.min_rows {
        return Err(StageError::failed(format!(
            "{rows} rows were found, at least {} are asked for",
            params.min_rows
        ))
        .at(format!("sources/{}", params.set))
        .next("name more crates in that folder's Cargo.toml, or lower the parameter `min_rows`"));
    }
    Ok(())
}

#[cfg(test)]
mod testing {
    //! Rows for tests.

    use record::corpus::{CorpusRow, LinkTier, Oracle, RowContext, RowMetadata, SourceClass};
    use stage_kit::digest::sha256_hex;

    pub(crate) fn row(id: &str, function_code: &str, unit_tests: &str) -> CorpusRow {
        CorpusRow {
            id: id.to_owned(),
            function_code: function_code.to_owned(),
            unit_tests: unit_tests.to_owned(),
            property_tests: None,
            context: RowContext::default(),
            metadata: RowMetadata {
                crate_name: "sample".to_owned(),
                version: "1.0.0".to_owned(),
                path: "src/lib.rs".to_owned(),
                item: id.to_owned(),
                lines: [1, 1],
                license: "MIT".to_owned(),
                complexity: 1,
                has_generics: false,
                has_lifetimes: false,
                is_async: false,
                is_unsafe: false,
                uses_macros: false,
                returns_result: false,
                source_class: SourceClass::Unit,
                property_class: None,
                oracle: Oracle::Human,
                link_tier: LinkTier::Name,
                mutants_killed: 1,
                stratum: None,
                sha256: sha256_hex(function_code),
            },
        }
    }
}
