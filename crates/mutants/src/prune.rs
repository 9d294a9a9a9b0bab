//! Takes out what does not compile.
//!
//! There is no type information when mutants are made, so some do not type-check (`Duration * Duration`, `T - T` for
//! `T: Add`, `String - &str`). All are compiled at once; each error is blamed on the arm that it stands in. What errors
//! can't be blamed on is found by halving.

use std::collections::BTreeSet;
use std::ops::Range;

use crate::edits::{Dropped, Part};
use crate::{Instrumented, MutantError, Program};

/// What a compiler said of a program.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    pub success: bool,
    /// Bytes of the program's source: the primary span of each error.
    pub errors: Vec<Range<usize>>,
    /// The first error's text.
    pub message: Option<String>,
}

/// What is left out, and what it took to find out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pruned {
    pub dropped: Dropped,
    pub n_compiles: u32,
}

/// Errors blamed on arms settle in two or three rounds; after these halving takes over.
const MAX_ROUNDS: u32 = 8;

/// What the test program's runtime offers to instrumented code.
const STUB: &str = "\nmod __testforge {
    pub fn out_of_fuel() -> ! { loop {} }
    pub fn taken(_: &str) -> ::std::string::String { ::std::string::String::new() }
}\n";

/// Finds the largest set of mutants and probes that compiles together, as far as single errors tell. The sources that
/// `compile` is given stand alone: a type check is enough, and the test program's runtime is replaced by a stub.
///
/// # Errors
/// Those of `compile`; [`MutantError::NotInstrumentable`] when not even the bare function with its fuel compiles.
pub fn prune<E: From<MutantError>>(
    instrumented: &Instrumented,
    tests: Option<&str>,
    mut compile: impl FnMut(&Program) -> Result<Verdict, E>,
) -> Result<Pruned, E> {
    let mut pruned = Pruned::default();
    for _ in 0..MAX_ROUNDS {
        let program = alone(instrumented.program(tests, &pruned.dropped));
        let verdict = compile(&program)?;
        pruned.n_compiles += 1;
        if verdict.success {
            return Ok(pruned);
        }
        let before = pruned.dropped.clone();
        for error in &verdict.errors {
            for part in blame(&program, error) {
                instrumented.drop_part(part, &mut pruned.dropped);
            }
        }
        if pruned.dropped == before {
            break;
        }
    }
    halve(instrumented, tests, pruned, &mut compile)
}

fn alone(mut program: Program) -> Program {
    program.source.push_str(STUB);
    program
}

/// The innermost part around an error; else the parts inside the place that the error names.
fn blame(program: &Program, error: &Range<usize>) -> Vec<Part> {
    let around =
        program.parts.iter().filter(|(range, _)| range.start <= error.start && error.end <= range.end);
    if let Some((_, part)) = around.min_by_key(|(range, _)| range.len()) {
        return vec![*part];
    }
    let is_whole = error.len() * 10 >= program.function.len() * 9;
    if is_whole {
        return Vec::new();
    }
    let inside =
        program.parts.iter().filter(|(range, _)| error.start <= range.start && range.end <= error.end);
    inside.map(|(_, part)| *part).collect()
}

/// Starts from nothing and adds what compiles, halving what does not.
fn halve<E: From<MutantError>>(
    instrumented: &Instrumented,
    tests: Option<&str>,
    mut pruned: Pruned,
    compile: &mut impl FnMut(&Program) -> Result<Verdict, E>,
) -> Result<Pruned, E> {
    let all = instrumented.all_parts();
    let blamed = pruned.dropped.clone();
    let open: Vec<Part> = all.iter().copied().filter(|part| !contains(&blamed, *part)).collect();
    let mut excluded: BTreeSet<Part> = all.iter().copied().collect();
    let mut attempt = |excluded: &BTreeSet<Part>, n: &mut u32| -> Result<Verdict, E> {
        *n += 1;
        compile(&alone(instrumented.program(tests, &dropped_of(instrumented, excluded))))
    };
    let bare = attempt(&excluded, &mut pruned.n_compiles)?;
    if !bare.success {
        let message = bare.message.unwrap_or_else(|| "the compiler gave no error".to_owned());
        return Err(MutantError::NotInstrumentable(message).into());
    }
    let mut queue = vec![open];
    while let Some(chunk) = queue.pop() {
        if chunk.is_empty() {
            continue;
        }
        let mut fewer = excluded.clone();
        for part in &chunk {
            fewer.remove(part);
        }
        if attempt(&fewer, &mut pruned.n_compiles)?.success {
            excluded = fewer;
        } else if chunk.len() > 1 {
            let (left, right) = chunk.split_at(chunk.len() / 2);
            queue.push(right.to_vec());
            queue.push(left.to_vec());
        }
    }
    pruned.dropped = dropped_of(instrumented, &excluded);
    Ok(pruned)
}

fn contains(dropped: &Dropped, part: Part) -> bool {
    match part {
        Part::Mutant(id) => dropped.mutants.contains(&id),
        Part::Edit(i) => dropped.probes.contains(&i),
    }
}

fn dropped_of(instrumented: &Instrumented, excluded: &BTreeSet<Part>) -> Dropped {
    let mut dropped = Dropped::default();
    for part in excluded {
        instrumented.drop_part(*part, &mut dropped);
    }
    dropped
}
