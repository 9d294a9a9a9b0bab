//! Which file a stage's program is, and the digest of everything that counts as its code.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::path::{Component, Path, PathBuf};

use super::{ResolvedStage, Stale, fresh};
use crate::cache::Store;
use crate::config::{ConfigError, Piece, Pipeline, StageConfig, pieces};

const INTERPRETERS: [&str; 12] =
    ["sh", "bash", "dash", "zsh", "python", "perl", "ruby", "node", "Rscript", "julia", "lua", "php"];
/// Folders that globs never look into.
const UNSEARCHED: [&str; 5] = [".git", ".testforge", "target", "experiments", "__pycache__"];

/// What the runner knows of the machine around it; read once, handed down.
#[derive(Debug, Clone)]
pub struct Surroundings {
    pub environment: BTreeMap<OsString, OsString>,
    pub cache_dir: PathBuf,
    /// Folders for bare program names, before `PATH`.
    pub program_dirs: Vec<PathBuf>,
    /// The runner's own program, looked up before a build may replace it.
    pub exe: Option<PathBuf>,
}

impl Surroundings {
    /// `exe` is the runner's own program.
    pub fn new(pipeline: &Pipeline, exe: Option<&Path>, environment: BTreeMap<OsString, OsString>) -> Self {
        let variable = |name: &str| environment.get(std::ffi::OsStr::new(name)).filter(|v| !v.is_empty());
        let cache_dir = variable("TESTFORGE_CACHE")
            .map_or_else(|| pipeline.dir.join(".testforge"), |dir| pipeline.dir.join(dir));
        let target = variable("CARGO_TARGET_DIR")
            .map_or_else(|| pipeline.dir.join("target"), |dir| pipeline.dir.join(dir));
        let mut program_dirs: Vec<PathBuf> =
            exe.and_then(Path::parent).map(Path::to_owned).into_iter().collect();
        program_dirs.extend(profiles(pipeline.build.as_deref()).map(|profile| target.join(profile)));
        Self { environment, cache_dir, program_dirs, exe: exe.map(Path::to_owned) }
    }

    pub fn variable(&self, name: &str) -> Option<&OsString> {
        self.environment.get(std::ffi::OsStr::new(name))
    }

    /// A bare name beside the runner, in the target folders, on `PATH`; a path relative to `dir`.
    pub fn find_program(&self, dir: &Path, name: &str) -> Option<PathBuf> {
        if name.contains('/') {
            return Some(dir.join(name)).filter(|p| is_program(p));
        }
        let path = self.variable("PATH").cloned().unwrap_or_default();
        let on_path: Vec<PathBuf> = std::env::split_paths(&path).filter(|p| p.is_absolute()).collect();
        self.program_dirs.iter().chain(&on_path).map(|d| d.join(name)).find(|p| is_program(p))
    }

    /// The environment that a stage gets, without what the runner adds for one execution.
    pub fn stage_environment(&self, stage: &StageConfig, with_secrets: bool) -> Vec<(OsString, OsString)> {
        let mut names: BTreeSet<&str> = BTreeSet::from(["PATH", "HOME"]);
        names.extend(stage.env.iter().chain(&stage.pass_env).map(String::as_str));
        if with_secrets {
            names.extend(stage.secrets.iter().map(String::as_str));
        }
        let given =
            names.into_iter().filter_map(|n| self.variable(n).map(|v| (OsString::from(n), v.clone())));
        let mut all: BTreeMap<OsString, OsString> = given.collect();
        for (name, value) in [("LANG", "C.UTF-8"), ("TZ", "UTC")] {
            all.entry(name.into()).or_insert_with(|| value.into());
        }
        all.into_iter().collect()
    }
}

/// Names of target folders: the one that the build command writes, or both.
fn profiles(build: Option<&[String]>) -> impl Iterator<Item = String> {
    let Some(command) = build else { return vec!["release".to_owned(), "debug".to_owned()].into_iter() };
    let mut profile = "debug".to_owned();
    for (i, argument) in command.iter().enumerate() {
        let named = argument.strip_prefix("--profile=").map(str::to_owned);
        let named =
            named.or_else(|| (argument == "--profile").then(|| command.get(i + 1).cloned()).flatten());
        match named.as_deref() {
            Some("dev" | "test") => profile = "debug".to_owned(),
            Some("bench") => profile = "release".to_owned(),
            Some(name) => profile = name.to_owned(),
            None if argument == "--release" || argument == "-r" => profile = "release".to_owned(),
            None => {}
        }
    }
    vec![profile].into_iter()
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

impl ResolvedStage {
    /// One more file of the code. Two files may have the same name in a key: absolute paths are cut, and a script may be
    /// called `program`.
    fn add_code(&mut self, name: &str, path: &Path, digest: String) {
        let numbered = (2..).map(|n| format!("{name}#{n}"));
        for name in std::iter::once(name.to_owned()).chain(numbered) {
            match self.code_paths.get(&name) {
                Some(other) if other != path => {}
                _ => {
                    self.code.insert(name.clone(), digest);
                    self.code_paths.insert(name, path.to_owned());
                    return;
                }
            }
        }
    }
}

/// What was found under a program's name: many stages run the same one.
#[derive(Debug, Clone)]
pub(super) struct Found {
    path: PathBuf,
    digest: String,
    stale: Option<Stale>,
}

/// Programs looked up by one command.
#[derive(Debug, Default)]
pub(super) struct Programs(BTreeMap<String, Option<Found>>);

impl Programs {
    fn find(
        &mut self,
        dir: &Path,
        store: &Store,
        surroundings: &Surroundings,
        name: &str,
    ) -> crate::cache::Result<Option<Found>> {
        if let Some(known) = self.0.get(name) {
            return Ok(known.clone());
        }
        let found = match surroundings.find_program(dir, name) {
            Some(path) => Some(Found { digest: digest(store, &path)?, stale: fresh::stale(&path), path }),
            None => None,
        };
        self.0.insert(name.to_owned(), found.clone());
        Ok(found)
    }
}

pub(super) fn resolve(
    pipeline: &Pipeline,
    store: &Store,
    surroundings: &Surroundings,
    programs: &mut Programs,
    stage: &StageConfig,
) -> Result<ResolvedStage, Vec<ConfigError>> {
    let Some(first) = stage.run.first() else { return Err(Vec::new()) };
    let found = programs
        .find(&pipeline.dir, store, surroundings, &first.value)
        .map_err(|e| vec![fault(pipeline, stage, &e)])?;
    let mut resolved = ResolvedStage {
        program: found.as_ref().map(|f| f.path.clone()),
        argv: stage.run.iter().map(|a| logical(&a.value)).collect(),
        code: BTreeMap::new(),
        code_paths: BTreeMap::new(),
        env: stage.env.iter().map(|n| (n.clone(), text_variable(surroundings, n))).collect(),
        tools: BTreeMap::new(),
        volatile: stage.volatile.clone(),
        warnings: Vec::new(),
        stale: None,
        lacks: BTreeMap::new(),
    };
    match found {
        Some(found) => {
            resolved.add_code("program", &found.path, found.digest);
            resolved.stale = found.stale;
        }
        None if first.value.contains('/') => {
            let path = pipeline.dir.join(&first.value);
            let reason = if path.exists() { "can't be executed" } else { "does not exist" };
            let message = format!("stage `{}`: the program `{}` {reason}", stage.name, first.value);
            let help = if path.exists() {
                "make it executable: chmod +x"
            } else {
                "check the path; it is relative to the pipeline's folder"
            };
            return Err(vec![ConfigError::at(&pipeline.source, &first.span, message).help(help)]);
        }
        None if pipeline.build.is_none() => {
            let message = format!("stage `{}`: there is no program `{}`", stage.name, first.value);
            let help =
                "it was looked for beside the runner, in target/ and on PATH; install it or give a path";
            return Err(vec![ConfigError::at(&pipeline.source, &first.span, message).help(help)]);
        }
        None => {}
    }
    let mut scripts = 0;
    for argument in &stage.run[1..] {
        if let Some(path) = script(&pipeline.dir, &argument.value) {
            scripts += 1;
            let digest = digest(store, &path).map_err(|e| vec![fault(pipeline, stage, &e)])?;
            resolved.add_code(&logical(&argument.value), &path, digest);
        }
    }
    globs(pipeline, store, stage, &mut resolved)?;
    let name = Path::new(&first.value).file_name().unwrap_or_default().to_string_lossy();
    let interpreter = INTERPRETERS.contains(&name.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.'));
    if interpreter && scripts > 0 && stage.code.is_empty() {
        resolved.warnings.push(format!(
            "stage `{}` runs a script of `{name}` without `code`: files that the script reads or imports are not \
             part of its key; name them: code = [\"GLOB\"]",
            stage.name
        ));
    }
    Ok(resolved)
}

fn fault(pipeline: &Pipeline, stage: &StageConfig, error: &crate::cache::CacheError) -> ConfigError {
    ConfigError::at(&pipeline.source, &stage.span, format!("stage `{}`: {error}", stage.name))
        .help(error.next_step())
}

fn text_variable(surroundings: &Surroundings, name: &str) -> Option<String> {
    use std::os::unix::ffi::OsStrExt;
    let value = surroundings.variable(name)?;
    // Two values must not look the same in a key.
    Some(value.to_str().map_or_else(|| format!("bytes {}", hex::encode(value.as_bytes())), str::to_owned))
}

fn digest(store: &Store, path: &Path) -> crate::cache::Result<String> {
    let meta = fs::metadata(path).map_err(|e| crate::cache::CacheError::io("read", path, e))?;
    store.hash_file(path, &meta)
}

/// An argument as the key holds it: an absolute path is cut to its last part.
fn logical(argument: &str) -> String {
    let path = Path::new(argument);
    match path.file_name() {
        Some(name) if path.is_absolute() => name.to_string_lossy().into_owned(),
        _ => argument.to_owned(),
    }
}

/// The file that a plain argument names, if it names one.
pub(crate) fn script(dir: &Path, argument: &str) -> Option<PathBuf> {
    let plain = !argument.starts_with('-') && matches!(pieces(argument)[..], [Piece::Text(_)]);
    plain.then(|| dir.join(argument)).filter(|p| p.is_file())
}

/// Adds the files of `code` to the fingerprint.
fn globs(
    pipeline: &Pipeline,
    store: &Store,
    stage: &StageConfig,
    resolved: &mut ResolvedStage,
) -> Result<(), Vec<ConfigError>> {
    for glob in &stage.code {
        let at = |message: String| vec![ConfigError::at(&pipeline.source, &glob.span, message)];
        let matcher = globset::GlobBuilder::new(&glob.value)
            .literal_separator(true)
            .build()
            .map_err(|e| at(format!("`code`: {e}")))?
            .compile_matcher();
        let start = pipeline.dir.join(literal_prefix(&glob.value));
        let mut found = 0;
        let unsearched = |entry: &walkdir::DirEntry| {
            entry.depth() > 0 && UNSEARCHED.iter().any(|name| entry.file_name() == *name)
        };
        let walk = walkdir::WalkDir::new(&start).sort_by_file_name().into_iter();
        for entry in walk.filter_entry(|e| !unsearched(e)).flatten() {
            let Ok(relative) = entry.path().strip_prefix(&pipeline.dir) else { continue };
            if entry.file_type().is_dir() || !matcher.is_match(relative) {
                continue;
            }
            let digest = digest(store, entry.path()).map_err(|e| at(e.to_string()))?;
            resolved.add_code(&relative.to_string_lossy(), entry.path(), digest);
            found += 1;
        }
        if found == 0 {
            let message = format!("stage `{}`: no file matches `{}` of `code`", stage.name, glob.value);
            let help = "a glob is relative to the pipeline's folder; `**` crosses folders";
            return Err(at(message).into_iter().map(|e| e.help(help)).collect());
        }
    }
    Ok(())
}

/// The part of a glob before its first wildcard.
fn literal_prefix(glob: &str) -> PathBuf {
    let plain = |part: &Component<'_>| !part.as_os_str().to_string_lossy().contains(['*', '?', '[', '{']);
    Path::new(glob).components().take_while(plain).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn build_commands_name_their_target_folder() {
        let of = |text: &str| {
            let command: Vec<String> = text.split(' ').map(str::to_owned).collect();
            profiles(Some(&command)).collect::<Vec<_>>()
        };
        assert_eq!(of("cargo build --release --workspace"), ["release"]);
        assert_eq!(of("cargo build"), ["debug"]);
        assert_eq!(of("cargo build --profile fast"), ["fast"]);
        assert_eq!(of("cargo build --profile=dev"), ["debug"]);
        assert_eq!(profiles(None).collect::<Vec<_>>(), ["release", "debug"]);
    }

    #[test]
    fn absolute_paths_stay_out_of_keys() {
        assert_eq!(logical("/somewhere/else/train.py"), "train.py");
        assert_eq!(logical("stages/train.py"), "stages/train.py");
        assert_eq!(logical("{in.corpus}/x"), "{in.corpus}/x");
    }

    #[test]
    fn globs_are_walked_from_their_plain_part() {
        assert_eq!(literal_prefix("stages/lib/*.py"), Path::new("stages/lib"));
        assert_eq!(literal_prefix("**/*.py"), Path::new(""));
        assert_eq!(literal_prefix("a/b.py"), Path::new("a/b.py"));
    }
}
