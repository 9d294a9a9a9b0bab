//! r4: is the environment locked?
//!
//! A run's own lock is written when the run has ended, so the lock of an earlier experiment is judged: whether it is
//! complete, and whether this run has what it names. Everything compared here is part of the report's key. What is not,
//! the machine above all, is for `runner lock verify`: a report may come from a cache of another machine.

use std::collections::{BTreeMap, BTreeSet};

use record::Map;
use record::experiment::ReproducibilityLock;
use record::report::{Evidence, Measured};

use super::{Finding, Subject};

/// How many of the dependencies that differ are named.
const NAMED: usize = 3;

pub(super) fn environment(subject: &Subject<'_>) -> Finding {
    let inputs = subject.inputs;
    let Some(lock) = &inputs.lock else {
        return Finding::not_tested(
            "the input `lock` was not given: a run writes its lock when it has ended, so run again with \
             --set popper-report.inputs.lock=file:experiments/ID/reproducibility.lock",
        );
    };
    // Half a comparison is none.
    if !inputs.folders.contains_key("adapters") {
        return Finding::missing("adapter");
    }
    let Some(dependencies) = &inputs.dependencies else { return Finding::missing("dependencies") };
    let mut faults = incomplete(&lock.value);
    let toolchain = &inputs.tuned.compile.value.toolchain;
    if !agrees(&lock.value.rust, toolchain) {
        let used = toolchain.lines().next().unwrap_or("");
        faults.push(format!("it names `{}`, the tests were compiled with `{used}`", lock.value.rust));
    }
    if lock.value.config.seed != subject.seed {
        faults.push(format!("its seed is {}, this run's is {}", lock.value.config.seed, subject.seed));
    }
    faults.extend(other_dependencies(&lock.value.dependencies, &dependencies.value));
    faults.extend(other_folders(&lock.value, &inputs.folders, &inputs.training.weights));
    let measured = Measured {
        value: faults.len() as f64,
        unit: "faults".to_owned(),
        interval95: None,
        n: Some(lock.value.checksums.len() as u64),
    };
    let detail = if faults.is_empty() {
        format!(
            "complete, and this run has its toolchain, seed, {} dependencies, adapter and corpus; the machine is \
             compared by `runner lock verify`",
            dependencies.value.len()
        )
    } else {
        faults.join("; ")
    };
    Finding::new(faults.is_empty(), Some(measured), detail).with([&lock.evidence, &dependencies.evidence])
}

fn incomplete(lock: &ReproducibilityLock) -> Vec<String> {
    let mut faults = Vec::new();
    let mut need = |is_there: bool, what: &str| {
        if !is_there {
            faults.push(what.to_owned());
        }
    };
    need(!lock.rust.trim().is_empty(), "it names no Rust toolchain");
    need(!lock.dependencies.is_empty(), "it names no dependencies");
    need(!lock.checksums.is_empty(), "it holds no checksums");
    need(!lock.hardware.cpu.trim().is_empty(), "it names no CPU");
    need(lock.config.deterministic_algorithms, "deterministic algorithms were not asked for");
    let is_digest = |sum: &String| {
        let hex = sum.strip_prefix("sha256:").or_else(|| sum.strip_prefix("blake3:"));
        let is_hex = |h: &str| h.len() == 64 && h.bytes().all(|b| b.is_ascii_hexdigit());
        hex.is_some_and(is_hex) || sum.starts_with("link:")
    };
    if let Some((name, sum)) = lock.checksums.iter().find(|(_, sum)| !is_digest(sum)) {
        faults.push(format!("the checksum of {name} is no digest: `{sum}`"));
    }
    faults
}

/// Whether the two texts name one toolchain: by its version, and by its commit where both name one, as
/// `rustc 1.95.0 (5980761 2026-04-14)` does.
fn agrees(locked: &str, toolchain: &str) -> bool {
    let first = |text: &str| text.lines().next().unwrap_or("").to_owned();
    let version = |text: &str| {
        let is_version = |word: &&str| word.starts_with(|c: char| c.is_ascii_digit()) && word.contains('.');
        first(text).split_whitespace().find(is_version).map(str::to_owned)
    };
    let commit = |text: &str| {
        let line = first(text);
        let commit = line.split_once('(')?.1.split([' ', ')']).next()?;
        Some(commit.to_owned())
    };
    let same_commit = match (commit(locked), commit(toolchain)) {
        (Some(a), Some(b)) => a == b,
        _ => true,
    };
    version(locked).is_some() && version(locked) == version(toolchain) && same_commit
}

/// Packages that only one side has, or that are not the same bytes.
fn other_dependencies(locked: &BTreeMap<String, String>, found: &BTreeMap<String, String>) -> Option<String> {
    let names: BTreeSet<&String> = locked.keys().chain(found.keys()).collect();
    let differ: Vec<&str> =
        names.into_iter().filter(|n| locked.get(*n) != found.get(*n)).map(String::as_str).collect();
    let more = differ.len().saturating_sub(NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    (!differ.is_empty())
        .then(|| format!("dependencies differ: {}{more}", differ[..differ.len().min(NAMED)].join(", ")))
}

/// Adapter and corpus that the lock does not know, or knows by other checksums. For the adapter, the checksum of its
/// weights alone counts too.
fn other_folders(lock: &ReproducibilityLock, folders: &Map<String>, weights: &[Evidence]) -> Vec<String> {
    let fault = |(name, found): (&String, &String)| {
        let Some(locked) = lock.checksums.get(name) else {
            return Some(format!("it holds no checksum `{name}`"));
        };
        let locked = locked.strip_prefix("sha256:").unwrap_or(locked);
        let is_weights = name == "adapters" && weights.iter().any(|e| e.sha256 == locked);
        (locked != found && !is_weights).then(|| format!("the checksum of `{name}` is that of other files"))
    };
    folders.iter().filter_map(fault).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn toolchains_are_compared_by_version_and_commit() {
        assert!(agrees("1.95.0", "rustc 1.95.0 (59807616e 2026-04-14)\nbinary: rustc"));
        assert!(agrees("rustc 1.95.0 (59807616e)", "rustc 1.95.0"));
        assert!(agrees("rustc 1.95.0 (59807616e 2026-04-14)", "rustc 1.95.0 (59807616e 2026-04-14)"));
        assert!(!agrees("rustc 1.95.0 (59807616e 2026-04-14)", "rustc 1.95.0 (0123456 2026-04-13)"));
        assert!(!agrees("1.94.0", "rustc 1.95.0"));
        assert!(!agrees("", ""));
    }

    #[test]
    fn one_package_more_less_or_other_is_seen() {
        let of = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
        };
        let locked = of(&[("a 1", "x"), ("b 1", "local")]);
        assert_eq!(other_dependencies(&locked, &locked), None);
        for found in [
            of(&[("a 1", "x")]),
            of(&[("a 1", "y"), ("b 1", "local")]),
            of(&[("a 1", "x"), ("b 1", "local"), ("c 1", "z")]),
        ] {
            assert!(other_dependencies(&locked, &found).is_some(), "{found:?}");
        }
        let many = other_dependencies(&of(&[]), &of(&[("a", ""), ("b", ""), ("c", ""), ("d", "")]));
        assert_eq!(many.as_deref(), Some("dependencies differ: a, b, c and 1 more"));
    }
}
