//! A row whose focal function carries all its mutants, loop fuel and probes.

use std::collections::BTreeSet;
use std::ops::Range;

use record::corpus::CorpusRow;
use sha2::{Digest, Sha256};
use subject::{FocalFn, Placed, assemble};
use syn::spanned::Spanned;
use syn::{Block, Generics, ImplItem, Item, Signature};

use crate::edits::{Counted, Dropped, Edit, MODULE, Part, Rendered, is_dropped, render};
use crate::lines::LineIndex;
use crate::scan::Scan;
use crate::ticks::add_ticks;
use crate::{BranchSite, MutantError, MutantSite, runtime};

/// All mutants of one function in one source text.
#[derive(Debug, Clone)]
pub struct Instrumented {
    row: CorpusRow,
    focal: FocalFn,
    /// The keyword of a `const fn`: such a function can't ask which mutant is on, so it goes where mutants are.
    constness: Option<Range<usize>>,
    edits: Vec<Edit>,
    /// In the order of the source; the id of `mutants[i]` is `i + 1`.
    pub mutants: Vec<MutantSite>,
    /// Ways on from decisions, by the number that a report names.
    pub branches: Vec<BranchSite>,
    /// Lines of `function_code` with code that runs, by the number that a report names.
    pub lines: Vec<u32>,
    pub n_sites: u32,
    /// Macro calls: their bodies are not mutated.
    pub opaque_macros: u32,
}

/// One crate: instrumented function, runtime, tests.
#[derive(Debug, Clone)]
pub struct Program {
    pub source: String,
    /// The expression to evaluate after each test; [`crate::Reach::parse`] reads its value. Empty: there is none.
    pub hook: String,
    /// Bytes of `source` and what an error there is to be blamed on.
    pub parts: Vec<(Range<usize>, Part)>,
    /// Bytes of `source` that hold the function.
    pub function: Range<usize>,
    /// Lines of `source` from 1: of the function, and of the tests.
    pub function_lines: Range<u32>,
    pub tests_lines: Range<u32>,
}

/// Lints that would reject a mutant for what it does.
pub(crate) const ALLOW: &str = "#![allow(warnings, arithmetic_overflow, unconditional_panic, overflowing_literals, \
                     let_underscore_lock, invalid_value, ambiguous_glob_reexports, useless_deprecated)] ";

impl Instrumented {
    /// Finds the mutants and probes of the row's focal function.
    ///
    /// # Errors
    /// `function_code` does not parse, or holds no function.
    pub fn of(row: &CorpusRow) -> Result<Self, MutantError> {
        let focal = FocalFn::of(row)?;
        let file = syn::parse_str::<syn::File>(&row.function_code).map_err(|e| {
            let start = e.span().start();
            subject::SubjectError::Syntax {
                what: "function_code".to_owned(),
                message: e.to_string(),
                line: u32::try_from(start.line).unwrap_or(u32::MAX),
                column: u32::try_from(start.column + 1).unwrap_or(u32::MAX),
            }
        })?;
        let mut scan = Scan::new(&row.function_code);
        let mut constness = None;
        if let Some((sig, body, outer)) = find(&file, &focal) {
            scan.function(sig, body, outer);
            constness = sig.constness.map(|keyword| keyword.span().byte_range());
        }
        let mut lines = vec![0; scan.lines.len()];
        for (line, number) in &scan.lines {
            if let Some(slot) = lines.get_mut(*number as usize) {
                *slot = *line;
            }
        }
        let Scan { edits, mutants, branches, n_sites, opaque_macros, .. } = scan;
        let row = row.clone();
        Ok(Self { row, focal, constness, edits, mutants, branches, lines, n_sites, opaque_macros })
    }

    pub fn row(&self) -> &CorpusRow {
        &self.row
    }

    pub fn focal(&self) -> &FocalFn {
        &self.focal
    }

    /// The crate with all mutants but the dropped ones. `tests` as in [`subject::assemble`].
    pub fn program(&self, tests: Option<&str>, dropped: &Dropped) -> Program {
        let mut code = self.row.function_code.clone();
        if let Some(keyword) = &self.constness {
            code.replace_range(keyword.clone(), &" ".repeat(keyword.len()));
        }
        let rendered = render(&code, &self.edits, dropped);
        let (name, shift) = self.secrets(tests);
        let Rendered { text, parts } = with_module(rendered, &name);
        let mut row = self.row.clone();
        row.function_code = text;
        row.context.items =
            row.context.items.iter().map(|item| add_ticks(item).replace(MODULE, &name)).collect();
        let (sites, branches, lines) = (self.n_sites as usize, self.branches.len(), self.lines.len());
        row.context.items.push(runtime::module(&name, shift, [sites, branches, lines]));
        let placed = assemble(&row, tests);
        let (source, start) = with_lints(&placed);
        let function = start..start + row.function_code.len();
        let parts =
            parts.into_iter().map(|(range, part)| (range.start + start..range.end + start, part)).collect();
        let hook = format!("crate::{name}::report()");
        let (function_lines, tests_lines) = (placed.function_lines, placed.tests_lines);
        Program { source, hook, parts, function, function_lines, tests_lines }
    }

    /// A number that the switch takes and no mutant has: the function stays what it is.
    pub fn decoy(&self) -> u32 {
        u32::try_from(self.mutants.len() + 1).unwrap_or(u32::MAX)
    }

    /// The row with one mutant written into its source, on the same lines; with 0, the row as it is.
    pub(crate) fn with_planted(&self, mutant: u32) -> Option<CorpusRow> {
        let mut row = self.row.clone();
        if mutant > 0 {
            let site = self.mutants.get(mutant as usize - 1)?;
            let lines = |text: &str| text.matches('\n').count();
            // A test may ask on which line it stands.
            let missing = lines(&site.original).saturating_sub(lines(&site.planted));
            let planted = format!("{}{}", site.planted, "\n".repeat(missing));
            row.function_code.replace_range(site.range.clone(), &planted);
        }
        Some(row)
    }

    /// The crate with one mutant written into the source: no switch, no probes.
    pub fn planted(&self, mutant: u32, tests: Option<&str>) -> Option<String> {
        self.mutants.get((mutant as usize).checked_sub(1)?)?;
        Some(with_lints(&assemble(&self.with_planted(mutant)?, tests)).0)
    }

    /// The same with fuel in its loops; with 0, the function as it is. `None`: there is no such mutant, or what it makes
    /// of the function does not parse.
    pub fn planted_with_fuel(&self, mutant: u32, tests: Option<&str>) -> Option<Program> {
        let planted = Self::of(&self.with_planted(mutant)?).ok()?;
        let mut bare = Dropped::default();
        planted.all_parts().into_iter().for_each(|part| planted.drop_part(part, &mut bare));
        Some(planted.program(tests, &bare))
    }

    /// The crate as it is: no mutants, no probes, no fuel.
    pub fn plain(&self, tests: Option<&str>) -> Program {
        let placed = assemble(&self.row, tests);
        let (source, start) = with_lints(&placed);
        Program {
            source,
            hook: String::new(),
            parts: Vec::new(),
            function: start..start + self.row.function_code.len(),
            function_lines: placed.function_lines,
            tests_lines: placed.tests_lines,
        }
    }

    /// What takes part in errors of a piece of code: everything that was put in.
    pub(crate) fn all_parts(&self) -> Vec<Part> {
        let mutants = self.mutants.iter().map(|mutant| Part::Mutant(mutant.id));
        let probes =
            self.edits.iter().enumerate().filter(|(_, edit)| edit.is_probe()).map(|(i, _)| Part::Edit(i));
        mutants.chain(probes).collect()
    }

    /// Leaves out what `part` stands for.
    pub(crate) fn drop_part(&self, part: Part, dropped: &mut Dropped) {
        match part {
            Part::Mutant(id) => {
                dropped.mutants.insert(id);
            }
            Part::Edit(i) => {
                let Some(edit) = self.edits.get(i) else { return };
                dropped.mutants.extend(edit.mutants());
                if edit.is_probe() {
                    dropped.probes.insert(i);
                }
            }
        }
    }

    /// Branches and lines that the kept probes count.
    pub(crate) fn counted(&self, dropped: &Dropped) -> BTreeSet<Counted> {
        let kept = self.edits.iter().enumerate().filter(|(i, edit)| !is_dropped(*i, edit, dropped));
        kept.flat_map(|(_, edit)| edit.counts.iter().copied()).collect()
    }

    /// What no text can know beforehand, because it is a hash of that very text: the name of the module, and what is added
    /// to a mutant's number where it is kept.
    fn secrets(&self, tests: Option<&str>) -> (String, u32) {
        let own = [Some(self.row.unit_tests.as_str()), self.row.property_tests.as_deref()];
        let tests = tests.map_or_else(|| own.to_vec(), |tests| vec![Some(tests)]);
        let texts = std::iter::once(self.row.function_code.as_str()).chain(tests.into_iter().flatten());
        let digest = texts.fold(Sha256::new(), |hash, text| hash.chain_update(text)).finalize();
        let name: String = digest.iter().take(7).map(|byte| format!("{byte:02x}")).collect();
        let shift = digest.iter().skip(7).take(4).fold(0, |shift, byte| shift << 8 | u32::from(*byte));
        (format!("__tfm{name}"), shift)
    }
}

/// Puts the real name in. It is as long as the placeholder, so the parts stay where they are.
fn with_module(rendered: Rendered, name: &str) -> Rendered {
    debug_assert_eq!(name.len(), MODULE.len());
    Rendered { text: rendered.text.replace(MODULE, name), parts: rendered.parts }
}

/// The source with its lints off, on the same lines, and the byte where the function starts.
fn with_lints(placed: &Placed) -> (String, usize) {
    let source = format!("{ALLOW}{}", placed.source);
    let index = LineIndex::new(&placed.source);
    let start = index.start_of(&placed.source, placed.function_lines.start as usize);
    (source, ALLOW.len() + start)
}

type Found<'f> = (&'f Signature, &'f Block, Option<&'f Generics>);

fn find<'f>(file: &'f syn::File, focal: &FocalFn) -> Option<Found<'f>> {
    file.items.iter().find_map(|item| match item {
        Item::Fn(item) if focal.self_type.is_none() && item.sig.ident == focal.name => {
            Some((&item.sig, &*item.block, None))
        }
        Item::Impl(block) => block.items.iter().find_map(|member| match member {
            ImplItem::Fn(method) if method.sig.ident == focal.name => {
                Some((&method.sig, &method.block, Some(&block.generics)))
            }
            _ => None,
        }),
        _ => None,
    })
}

#[cfg(test)]
#[path = "instrument_test.rs"]
pub(crate) mod test;
