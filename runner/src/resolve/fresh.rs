//! Whether a program built by cargo is older than its sources, from the dependency file that cargo writes beside it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// A program and a source that is newer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stale {
    pub program: PathBuf,
    pub source: PathBuf,
}

/// `None`: up to date, or not built by cargo.
pub fn stale(program: &Path) -> Option<Stale> {
    let text = fs::read_to_string(program.with_extension("d")).ok()?;
    let built = modified(program)?;
    let name = program.file_name()?;
    let sources = text.lines().filter_map(parse).find(|(target, _)| target.file_name() == Some(name))?.1;
    let newer = |source: &PathBuf| modified(source).is_none_or(|changed| changed > built);
    let source = sources.into_iter().find(newer)?;
    Some(Stale { program: program.to_owned(), source })
}

fn modified(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|m| m.modified()).ok()
}

/// `TARGET: SOURCE SOURCE ...`, blanks in names written `\ `.
fn parse(line: &str) -> Option<(PathBuf, Vec<PathBuf>)> {
    let (target, rest) = line.split_once(": ")?;
    let unescape = |text: &str| PathBuf::from(text.replace("\\ ", " "));
    let mut sources = Vec::new();
    let mut word = String::new();
    let mut characters = rest.chars().peekable();
    while let Some(c) = characters.next() {
        match c {
            '\\' if characters.peek() == Some(&' ') => {
                word.push(' ');
                characters.next();
            }
            ' ' if !word.is_empty() => sources.push(PathBuf::from(std::mem::take(&mut word))),
            ' ' => {}
            c => word.push(c),
        }
    }
    if !word.is_empty() {
        sources.push(PathBuf::from(word));
    }
    Some((unescape(target), sources))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_or_missing_source_makes_a_program_stale() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("a source.rs"), "").unwrap();
        fs::write(at("b.rs"), "").unwrap();
        std::thread::sleep(std::time::Duration::from_millis(30));
        fs::write(at("program"), "").unwrap();
        let escaped = at("a source.rs").display().to_string().replace(' ', "\\ ");
        let line = format!("{}: {escaped} {}\n", at("program").display(), at("b.rs").display());
        fs::write(at("program.d"), line).unwrap();
        assert_eq!(stale(&at("program")), None);
        std::thread::sleep(std::time::Duration::from_millis(30));
        fs::write(at("a source.rs"), "changed").unwrap();
        assert_eq!(stale(&at("program")).unwrap().source, at("a source.rs"));
        fs::remove_file(at("b.rs")).unwrap();
        fs::write(at("program"), "").unwrap();
        assert_eq!(stale(&at("program")).unwrap().source, at("b.rs"));
    }

    #[test]
    fn a_program_without_a_dependency_file_is_never_stale() {
        assert_eq!(stale(Path::new("/bin/sh")), None);
    }
}
