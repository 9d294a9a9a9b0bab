//! From a crate to rows: functions, the tests that are linked to them, and what both need to stand alone.

use std::collections::{BTreeMap, BTreeSet};

use record::corpus::{CorpusRow, LinkTier, Oracle, RowContext, RowMetadata, SourceClass};
use stage_kit::digest::sha256_hex;
use subject::closure::{Breadth, Closer, StandAlone};
use subject::complexity;
use subject::extract::{Case, CaseKind, CrateFiles, ExtractError, Focal, Krate};

/// Most lines a focal function may have.
const MAX_FUNCTION_LINES: usize = 80;
const MAX_UNIT_TESTS: usize = 6;
const MAX_PROPERTIES: usize = 4;

/// A row that was not tried yet.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    pub row: CorpusRow,
    /// The same with more context, for when the row does not compile.
    pub fuller: Option<CorpusRow>,
}

/// Rows that were not tried yet, and what became of the functions that gave none.
#[derive(Debug, Default)]
pub struct Candidates {
    pub rows: Vec<Candidate>,
    pub functions_seen: u64,
    pub pairs_linked: u64,
    pub dropped: BTreeMap<String, u64>,
    /// Module files that could not be read.
    pub unreadable: Vec<String>,
}

impl Candidates {
    fn drop(&mut self, reason: &str) {
        *self.dropped.entry(reason.to_owned()).or_default() += 1;
    }
}

/// Where rows come from, for their metadata.
#[derive(Debug, Clone, Copy)]
pub struct Origin<'a> {
    pub crate_name: &'a str,
    pub version: &'a str,
    pub license: &'a str,
}

/// Limits of a row.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Characters of context, function and tests together.
    pub max_row_chars: usize,
    /// Crates that a row may link.
    pub externs: BTreeSet<String>,
}

/// Takes every function with a linked test out of a crate.
///
/// # Errors
/// The crate's root does not parse or is not there.
pub fn of_crate(files: &CrateFiles, origin: Origin<'_>, limits: &Limits) -> Result<Candidates, ExtractError> {
    let krate = Krate::read(files)?;
    let closer = Closer::new(&krate, limits.externs.clone());
    let functions = krate.functions();
    let mut found = Candidates { unreadable: krate.unreadable.clone(), ..Candidates::default() };
    found.functions_seen = functions.len() as u64;
    let links = link(&krate, &closer, &functions);
    let mut ids = BTreeSet::new();
    for focal in functions {
        let Some(cases) = links.get(&focal) else {
            found.drop("no_linked_test");
            continue;
        };
        found.pairs_linked += cases.len() as u64;
        match row(&krate, &closer, focal, cases, origin, limits) {
            Ok(mut candidate) => {
                let base = candidate.row.id.clone();
                let mut n = 2;
                while !ids.insert(candidate.row.id.clone()) {
                    candidate.row.id = format!("{base}#{n}");
                    n += 1;
                }
                if let Some(fuller) = &mut candidate.fuller {
                    fuller.id.clone_from(&candidate.row.id);
                }
                found.rows.push(candidate);
            }
            Err(reason) => found.drop(&reason),
        }
    }
    Ok(found)
}

type Links = BTreeMap<Focal, Vec<(LinkTier, usize)>>;

/// Every case with the functions that it may be a test of, the surest first.
fn link(krate: &Krate, closer: &Closer<'_>, functions: &[Focal]) -> Links {
    let mut links = Links::new();
    for (id, case) in krate.cases.iter().enumerate() {
        let asserts = case.code.tokens.iter().any(|t| t.text.contains("assert"));
        let panics = case.code.attributes.iter().any(|a| a.contains("should_panic"));
        if case.kind == CaseKind::DocExample && !asserts && !panics {
            continue;
        }
        let callees = closer.callees(id, functions);
        for &focal in &callees {
            if let Some(tier) = tier(krate, id, focal, &callees) {
                links.entry(focal).or_default().push((tier, id));
            }
        }
    }
    for cases in links.values_mut() {
        cases.sort();
    }
    links
}

fn tier(krate: &Krate, case: usize, focal: Focal, callees: &[Focal]) -> Option<LinkTier> {
    let case = &krate.cases[case];
    let name = krate.name_of(focal);
    if case.owner == Some(focal) {
        return Some(LinkTier::DocOfItem);
    }
    if names(&case.name, name) {
        return Some(LinkTier::Name);
    }
    if callees.len() == 1 {
        return Some(LinkTier::OnlyCallee);
    }
    // An example that belongs to another item is about that item.
    if case.owner.is_some() {
        return None;
    }
    if asserted(case, name) {
        return Some(LinkTier::AssertedCallee);
    }
    let last = case.code.tokens.iter().rev().find(|t| callees.iter().any(|&c| t.is_ident(krate.name_of(c))));
    last.is_some_and(|t| t.text == name).then_some(LinkTier::LastCallee)
}

/// `test_pad_left_empty` names `pad_left`.
fn names(test: &str, function: &str) -> bool {
    let test: Vec<&str> = test.split('_').filter(|w| !w.is_empty()).collect();
    let function: Vec<&str> = function.split('_').filter(|w| !w.is_empty()).collect();
    !function.is_empty() && test.windows(function.len()).any(|w| w == function)
}

/// The function's name stands inside an assertion.
fn asserted(case: &Case, name: &str) -> bool {
    let tokens = &case.code.tokens;
    (0..tokens.len()).any(|i| {
        tokens[i].text.contains("assert") && tokens.get(i + 1).is_some_and(|t| t.is('!')) && {
            let end = subject::extract::lex::after_group(tokens, i + 2);
            tokens[i + 2..end].iter().any(|t| t.is_ident(name))
        }
    })
}

fn row(
    krate: &Krate,
    closer: &Closer<'_>,
    focal: Focal,
    cases: &[(LinkTier, usize)],
    origin: Origin<'_>,
    limits: &Limits,
) -> Result<Candidate, String> {
    let base = closer.close(focal, &[], Breadth::Lean).map_err(|e| e.reason().to_owned())?;
    let lines = base.function_code.lines().filter(|l| !l.trim_start().starts_with("///")).count();
    if lines > MAX_FUNCTION_LINES || size(&base) > limits.max_row_chars * 3 / 4 {
        return Err("too_long".to_owned());
    }
    let mut taken: Vec<usize> = Vec::new();
    let mut tiers = BTreeSet::new();
    let mut alone = base;
    let mut reason = None;
    for &(tier, case) in cases {
        let kind = krate.cases[case].kind;
        let property = kind == CaseKind::Property;
        let count =
            taken.iter().filter(|&&c| (krate.cases[c].kind == CaseKind::Property) == property).count();
        // A surer link makes the guesses superfluous.
        let guess = tier > LinkTier::OnlyCallee && tiers.iter().any(|t| *t < tier);
        if guess || count >= if property { MAX_PROPERTIES } else { MAX_UNIT_TESTS } {
            continue;
        }
        taken.push(case);
        match closer.close(focal, &taken, Breadth::Lean) {
            Ok(more) if size(&more) <= limits.max_row_chars => {
                tiers.insert(tier);
                alone = more;
            }
            Ok(_) => {
                taken.pop();
                reason.get_or_insert("too_long");
            }
            Err(error) => {
                taken.pop();
                reason.get_or_insert(error.reason());
            }
        }
    }
    if !taken.iter().any(|&c| krate.cases[c].kind != CaseKind::Property) {
        return Err(reason.unwrap_or("no_unit_test").to_owned());
    }
    let tier = *tiers.last().unwrap_or(&LinkTier::LastCallee);
    let fuller = closer.close(focal, &taken, Breadth::Generous).ok();
    let fuller = fuller.filter(|fuller| *fuller != alone && size(fuller) <= limits.max_row_chars);
    let fuller = fuller.and_then(|fuller| finish(krate, focal, fuller, &taken, tier, origin).ok());
    Ok(Candidate { row: finish(krate, focal, alone, &taken, tier, origin)?, fuller })
}

fn size(alone: &StandAlone) -> usize {
    let context = alone.imports.iter().chain(&alone.items).map(|t| t.len() + 1).sum::<usize>();
    let properties = alone.property_tests.as_ref().map_or(0, String::len);
    context + alone.function_code.len() + alone.unit_tests.len() + properties
}

fn finish(
    krate: &Krate,
    focal: Focal,
    alone: StandAlone,
    cases: &[usize],
    link_tier: LinkTier,
    origin: Origin<'_>,
) -> Result<CorpusRow, String> {
    let shape = complexity::measure(&alone.function_code).map_err(|_| "does_not_parse".to_owned())?;
    let kinds: BTreeSet<CaseKind> = cases.iter().map(|&c| krate.cases[c].kind).collect();
    let source_class = if kinds.contains(&CaseKind::Property) {
        SourceClass::Property
    } else if kinds.contains(&CaseKind::Unit) {
        SourceClass::Unit
    } else {
        SourceClass::Doctest
    };
    let item = krate.path_of(focal);
    Ok(CorpusRow {
        id: format!("{}-{}/{item}", origin.crate_name, origin.version),
        metadata: RowMetadata {
            crate_name: origin.crate_name.to_owned(),
            version: origin.version.to_owned(),
            path: krate.file_of(focal).to_owned(),
            item,
            lines: krate.lines_of(focal),
            license: origin.license.to_owned(),
            complexity: shape.complexity,
            has_generics: shape.has_generics,
            has_lifetimes: shape.has_lifetimes,
            is_async: shape.is_async,
            is_unsafe: shape.is_unsafe,
            uses_macros: shape.uses_macros,
            returns_result: shape.returns_result,
            source_class,
            property_class: alone.property_tests.is_some().then_some(SourceClass::Property),
            oracle: Oracle::Human,
            link_tier,
            mutants_killed: 0,
            stratum: None,
            sha256: sha256_hex(&alone.function_code),
        },
        function_code: alone.function_code,
        unit_tests: alone.unit_tests,
        property_tests: alone.property_tests,
        context: RowContext { imports: alone.imports, items: alone.items },
    })
}
