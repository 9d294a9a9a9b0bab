//! Which mutants compile when each is written into the source.
//!
//! The switch decides nothing here: a choice at run time gives some code other types (`65 as char`), and keeps the original
//! beside the mutant, which may be what a type is inferred from. Many mutants are asked about in one compilation, each
//! in a module that holds all of the row; errors are laid to the module in which they stand.

use std::collections::BTreeSet;
use std::ops::Range;

use crate::prune::Verdict;
use crate::{Instrumented, MutantError};

/// Bytes of source for one compilation; a module that is longer has one for itself.
const MAX_BYTES: usize = 256 << 10;
/// Each round takes out the modules in which the one before found errors; the compiler may show some errors only when
/// others are gone.
const MAX_ROUNDS: u32 = 6;
/// Compilations of a single mutant, for rows that mean something else inside a module.
const MAX_ALONE: usize = 64;

/// One crate with several modules, each with the whole row.
#[derive(Debug, Clone, Default)]
struct SideBySide {
    source: String,
    /// Bytes of the module, and the mutant in it; 0: the function as it is.
    modules: Vec<(Range<usize>, u32)>,
}

/// Ids out of `mutants` that compile in the source. Those that no compilation was spent on, because a row needs one for
/// each and has very many, count as they do under the switch: they compile.
///
/// # Errors
/// Those of `compile`.
pub(crate) fn compile_in_source<E: From<MutantError>>(
    instrumented: &Instrumented,
    mutants: Vec<u32>,
    mut compile: impl FnMut(&str) -> Result<Verdict, E>,
) -> Result<BTreeSet<u32>, E> {
    let mut found = BTreeSet::new();
    let mut alone = Vec::new();
    for batch in batches(instrumented, mutants) {
        match together(instrumented, batch, &mut compile)? {
            Ok(able) => found.extend(able),
            Err(undecided) => alone.extend(undecided),
        }
    }
    for (i, id) in alone.into_iter().enumerate() {
        let Some(source) = instrumented.planted(id, Some("")) else { continue };
        if i >= MAX_ALONE || compile(&source)?.success {
            found.insert(id);
        }
    }
    Ok(found)
}

/// The mutants of a batch that compile; an error holds those that this can't tell of.
fn together<E>(
    instrumented: &Instrumented,
    mut batch: Vec<u32>,
    compile: &mut impl FnMut(&str) -> Result<Verdict, E>,
) -> Result<Result<Vec<u32>, Vec<u32>>, E> {
    for _ in 0..MAX_ROUNDS {
        if batch.is_empty() {
            return Ok(Ok(batch));
        }
        let crates = side_by_side(instrumented, &batch);
        let verdict = compile(&crates.source)?;
        if verdict.success {
            return Ok(Ok(batch));
        }
        let wrong: BTreeSet<u32> = verdict.errors.iter().filter_map(|error| crates.holding(error)).collect();
        // Where the function as it is does not compile, or nothing is to blame, modules are not like crates.
        if wrong.contains(&0) || wrong.is_empty() {
            break;
        }
        batch.retain(|id| !wrong.contains(id));
    }
    Ok(Err(batch))
}

fn batches(instrumented: &Instrumented, mutants: Vec<u32>) -> Vec<Vec<u32>> {
    let bytes = instrumented.plain(Some("")).source.len().max(1);
    let most = (MAX_BYTES / bytes).max(1);
    mutants.chunks(most).map(<[u32]>::to_vec).collect()
}

fn side_by_side(instrumented: &Instrumented, mutants: &[u32]) -> SideBySide {
    let mut out = SideBySide { source: crate::instrument::ALLOW.to_owned(), modules: Vec::new() };
    out.source.push('\n');
    for id in std::iter::once(&0).chain(mutants) {
        let Some(row) = instrumented.with_planted(*id) else { continue };
        let start = out.source.len();
        out.source.push_str(&format!("mod __tf_alone_{id} {{\n"));
        out.source.push_str(&subject::assemble(&row, Some("")).source);
        out.source.push_str("}\n");
        out.modules.push((start..out.source.len(), *id));
    }
    out
}

impl SideBySide {
    fn holding(&self, error: &Range<usize>) -> Option<u32> {
        let around = self.modules.iter().find(|(range, _)| range.contains(&error.start));
        around.map(|(_, id)| *id)
    }
}

#[cfg(test)]
mod test {
    use super::compile_in_source;
    use crate::prune::Verdict;
    use crate::{Instrumented, MutantError};

    fn two_of_one() -> Instrumented {
        let row = crate::instrument::test::row("fn f(a: u8) -> bool { a > 3 }", &[], "");
        Instrumented::of(&row).unwrap()
    }

    #[test]
    fn errors_are_laid_to_the_module_in_which_they_stand() {
        let instrumented = two_of_one();
        let all: Vec<u32> = instrumented.mutants.iter().map(|m| m.id).collect();
        let mut rounds = 0;
        let found = compile_in_source(&instrumented, all.clone(), |source| {
            rounds += 1;
            let wrong = source.find("mod __tf_alone_2 ");
            let errors = wrong.map(|at| at + 20..at + 21).into_iter().collect::<Vec<_>>();
            Ok::<_, MutantError>(Verdict { success: errors.is_empty(), errors, message: None })
        })
        .unwrap();
        assert_eq!(found, all.into_iter().filter(|id| *id != 2).collect());
        assert_eq!(rounds, 2);
    }

    #[test]
    fn a_row_that_means_something_else_in_a_module_is_asked_about_one_by_one() {
        let instrumented = two_of_one();
        let found = compile_in_source(&instrumented, vec![1, 3], |source| {
            let errors = source.find("mod __tf_alone_0").map(|at| at..at + 1).into_iter().collect::<Vec<_>>();
            let success = errors.is_empty() && source.contains("(a) >= (3)");
            Ok::<_, MutantError>(Verdict { success, errors, message: None })
        })
        .unwrap();
        assert_eq!(found, [3].into());
    }
}
