//! Downloads from a model hub, through its cache folder.
//!
//! `hf-hub` speaks the protocol and keeps the cache. On top of it stand here: retries with back-off, one commit for all
//! files, hashes, working without a network, and giving up on a connection that is silent.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use hf_hub::api::sync::{Api, ApiBuilder, ApiError};
use hf_hub::{Cache, Repo, RepoType};
use model::weights;
use stage_kit::{Context, Result, StageError};

use crate::folder::{OPTIONAL, REQUIRED};
use crate::model_error;

mod blob;
mod settings;

pub use settings::Settings;

/// Longest wait between two attempts.
const WAIT_MAX: Duration = Duration::from_secs(30);
/// How often a running download is looked at.
const POLL: Duration = Duration::from_millis(100);

/// A hub and its cache folder.
#[derive(Debug)]
pub struct Hub {
    api: Api,
    cache: Cache,
    settings: Settings,
}

/// A model in the cache folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// The snapshot of the commit.
    pub dir: PathBuf,
    pub commit: String,
    pub license: Option<String>,
}

/// Why one attempt failed.
enum Failure {
    Again(String),
    Final(StageError),
}

impl Hub {
    /// Opens the cache; talks to nobody yet.
    ///
    /// # Errors
    /// The client can't be set up.
    pub fn new(settings: Settings) -> Result<Self> {
        let cache = Cache::new(settings.cache.clone());
        let builder = ApiBuilder::from_cache(cache.clone())
            .with_endpoint(settings.endpoint.clone())
            .with_token(settings.token.clone())
            .with_progress(false);
        let api = builder
            .build()
            .map_err(|e| StageError::internal(format!("can't set up the hub's client: {e}")))?;
        Ok(Self { api, cache, settings })
    }

    /// Brings every file of a model into the cache, all of one commit, and checks their hashes.
    ///
    /// # Errors
    /// The hub has no such model, revision or file, refuses access, or stays unreachable (exit code 75); a file arrives
    /// damaged again and again; without a network, a file is not in the cache.
    pub fn fetch(&self, id: &str, revision: &str, context: &Context) -> Result<Fetched> {
        check_revision(revision)?;
        let snapshot = if self.settings.offline {
            self.cached(id, revision)?
        } else {
            self.online(id, revision, context)?
        };
        let mut names: Vec<String> = REQUIRED.iter().map(|&n| n.to_owned()).collect();
        names.extend(OPTIONAL.iter().filter(|&&n| snapshot.has(n)).map(|&n| n.to_owned()));
        for name in names {
            self.file(&snapshot, &name, context)?;
        }
        if snapshot.has(weights::FILE) || !snapshot.has(weights::INDEX) {
            self.file(&snapshot, weights::FILE, context)?;
        } else {
            let index = self.file(&snapshot, weights::INDEX, context)?;
            for shard in weights::shard_files(&index).map_err(model_error)? {
                self.file(&snapshot, &shard, context)?;
            }
        }
        let license = crate::folder::license(&snapshot.dir);
        Ok(Fetched { dir: snapshot.dir, commit: snapshot.commit, license })
    }

    fn repo(&self, id: &str, revision: &str) -> Repo {
        Repo::with_revision(id.to_owned(), RepoType::Model, revision.to_owned())
    }

    /// The commit behind a revision, and the files it has.
    fn online(&self, id: &str, revision: &str, context: &Context) -> Result<Snapshot> {
        let place = format!("{}/{id}@{revision}", self.settings.endpoint);
        let info = self.retry(&place, context, || {
            let (api, repo) = (self.api.clone(), self.repo(id, revision));
            let result = self.watched(context, &AtomicU64::new(0), move || api.repo(repo).info());
            result.map_err(Failure::Final)?.map_err(|e| self.classify(&e, &place))
        })?;
        if !is_commit(&info.sha) {
            return Err(StageError::failed(format!(
                "the hub names the commit `{}`, which is none",
                info.sha
            ))
            .at(place));
        }
        let repo = self.cache.repo(self.repo(id, revision));
        let remember = repo.create_ref(&info.sha);
        remember.map_err(|e| StageError::io("write into the cache", &self.settings.cache, e))?;
        let files = info.siblings.into_iter().map(|s| s.rfilename).collect();
        Ok(Snapshot {
            id: id.to_owned(),
            dir: repo.pointer_path(&info.sha),
            commit: info.sha,
            files: Some(files),
        })
    }

    /// The commit that the cache knows for a revision.
    fn cached(&self, id: &str, revision: &str) -> Result<Snapshot> {
        let repo = self.repo(id, revision);
        let folder = self.settings.cache.join(repo.folder_name());
        let commit = if is_commit(revision) {
            Some(revision.to_owned())
        } else {
            std::fs::read_to_string(folder.join("refs").join(revision)).ok().map(|c| c.trim().to_owned())
        };
        let commit = commit.filter(|c| is_commit(c)).ok_or_else(|| {
            StageError::failed(format!("{id}@{revision} is not in the cache, and HF_HUB_OFFLINE is set"))
                .at(folder.display().to_string())
                .next(
                    "unset HF_HUB_OFFLINE once to download it, or copy the cache folder from another machine",
                )
        })?;
        Ok(Snapshot {
            id: id.to_owned(),
            dir: self.cache.repo(repo).pointer_path(&commit),
            commit,
            files: None,
        })
    }

    /// One file of the snapshot: from the cache when it is whole there, else from the hub.
    fn file(&self, snapshot: &Snapshot, name: &str, context: &Context) -> Result<PathBuf> {
        let path = snapshot.dir.join(name);
        if path.exists() {
            if blob::is_whole(&path)? {
                return Ok(path);
            }
            if self.settings.offline {
                return Err(StageError::failed(
                    "its bytes are not those that the hub named, and HF_HUB_OFFLINE is set",
                )
                .at(path.display().to_string())
                .next("unset HF_HUB_OFFLINE once to download it again"));
            }
            context.warn(&format!("{} is damaged in the cache: downloading it again", path.display()));
            blob::remove(&path)?;
        }
        if self.settings.offline {
            return Err(StageError::failed("is not in the cache, and HF_HUB_OFFLINE is set")
                .at(path.display().to_string())
                .next("unset HF_HUB_OFFLINE once to download it"));
        }
        let place = format!("{}/{}@{}/{name}", self.settings.endpoint, snapshot.id, snapshot.commit);
        if !snapshot.has(name) {
            return Err(StageError::failed("the hub's model has no such file")
                .at(place)
                .next("choose a model with safetensors weights and a tokenizer.json, or another revision"));
        }
        // A link whose blob is gone would stand in the way of the new one.
        blob::remove(&path)?;
        context.log(&format!("downloading {name}"));
        self.retry(&place, context, || self.attempt(snapshot, name, &place, context))
    }

    /// One try at a download. A cut one leaves its part in the cache, and the next try goes on from there.
    fn attempt(
        &self,
        snapshot: &Snapshot,
        name: &str,
        place: &str,
        context: &Context,
    ) -> Result<PathBuf, Failure> {
        let (api, repo, file) =
            (self.api.clone(), self.repo(&snapshot.id, &snapshot.commit), name.to_owned());
        let counter = Arc::new(Counter::default());
        let shown = Arc::clone(&counter);
        let work = move || api.repo(repo).download_with_progress(&file, Bytes(shown));
        let progress = context.progress("bytes", None);
        let result = self.watched_with(context, &counter.done, |done| progress.set(done), work);
        match result.map_err(Failure::Final)? {
            Ok(path) if blob::is_whole(&path).map_err(Failure::Final)? => Ok(path),
            Ok(path) => {
                blob::remove(&path).map_err(Failure::Final)?;
                Err(Failure::Again("arrived with another hash than the hub named".to_owned()))
            }
            Err(error) => {
                let failure = self.classify(&error, place);
                if unusable_part(&error) {
                    let blobs =
                        self.settings.cache.join(self.repo(&snapshot.id, "").folder_name()).join("blobs");
                    blob::remove_parts(&blobs).map_err(Failure::Final)?;
                }
                Err(failure)
            }
        }
    }

    /// Tries until it works, fails for good, or the attempts are used up.
    fn retry<T>(
        &self,
        place: &str,
        context: &Context,
        mut attempt: impl FnMut() -> Result<T, Failure>,
    ) -> Result<T> {
        let mut tried = 1;
        loop {
            let message = match attempt() {
                Ok(value) => return Ok(value),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Again(message)) => message,
            };
            if tried >= self.settings.attempts {
                return Err(StageError::retryable(format!("{message} ({tried} attempts)")).at(place).next(
                    "try again later; what has arrived is kept. Without a network: source = \"embedded:tiny\", or file:DIR",
                ));
            }
            let wait = self.settings.wait.saturating_mul(1 << tried.min(16)).min(WAIT_MAX);
            context.warn(&format!(
                "{place}: {message}; attempt {} of {} in {wait:.1?}",
                tried + 1,
                self.settings.attempts
            ));
            let until = Instant::now() + wait;
            while Instant::now() < until {
                context.check_cancelled()?;
                std::thread::sleep(POLL.min(until.saturating_duration_since(Instant::now())));
            }
            tried += 1;
        }
    }

    fn watched<T: Send + 'static>(
        &self,
        context: &Context,
        done: &AtomicU64,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T> {
        self.watched_with(context, done, |_| (), work)
    }

    /// Runs `work` on a thread of its own. Ends early when the stage is stopped, or when nothing comes for too long: a
    /// thread that waits on a silent connection can only be left behind.
    fn watched_with<T: Send + 'static>(
        &self,
        context: &Context,
        done: &AtomicU64,
        show: impl Fn(u64),
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T> {
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || {
            let _ = sender.send(work());
        });
        let (mut seen, mut at) = (done.load(Ordering::Relaxed), Instant::now());
        loop {
            match receiver.recv_timeout(POLL) {
                Ok(value) => return Ok(value),
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(StageError::internal("the download ended without a result"));
                }
                Err(RecvTimeoutError::Timeout) => context.check_cancelled()?,
            }
            let now = done.load(Ordering::Relaxed);
            if now != seen {
                (seen, at) = (now, Instant::now());
                show(now);
            }
            if at.elapsed() > self.settings.silence {
                return Err(StageError::retryable(format!(
                    "nothing came from the hub for {:.0?}",
                    self.settings.silence
                ))
                .at(&self.settings.endpoint)
                .next("try again later; what has arrived is kept"));
            }
        }
    }

    /// What an error of the client means.
    fn classify(&self, error: &ApiError, place: &str) -> Failure {
        let failed =
            |message: &str, next: &str| Failure::Final(StageError::failed(message).at(place).next(next));
        match error {
            ApiError::RequestError(request) => match request.as_ref() {
                ureq::Error::StatusCode(401 | 403) => failed(
                    "the hub refuses access",
                    "set HF_TOKEN to a token that may read this model, and accept its licence on the hub",
                ),
                ureq::Error::StatusCode(404 | 410) => failed(
                    "the hub has no such model, revision or file",
                    "check the parameters source and revision",
                ),
                ureq::Error::StatusCode(code @ (408 | 416 | 425 | 429 | 500..=599)) => {
                    Failure::Again(format!("the hub answers with status {code}"))
                }
                ureq::Error::StatusCode(code) => failed(
                    &format!("the hub answers with status {code}"),
                    "check HF_ENDPOINT and the parameter source",
                ),
                ureq::Error::BadUri(_) | ureq::Error::Http(_) => failed(
                    &format!("not an address: {request}"),
                    "check HF_ENDPOINT and the parameters source and revision",
                ),
                other => Failure::Again(format!("can't talk to the hub: {other}")),
            },
            ApiError::IoError(io) if is_local(io.kind()) => {
                let error = std::io::Error::new(io.kind(), io.to_string());
                Failure::Final(StageError::io("write into the cache", &self.settings.cache, error))
            }
            ApiError::IoError(io) => Failure::Again(format!("the connection broke: {io}")),
            ApiError::InvalidResume => {
                Failure::Again("the part of an earlier download is longer than the file".to_owned())
            }
            ApiError::LockAcquisition(lock) => {
                Failure::Again(format!("another process is downloading: {}", lock.display()))
            }
            other => failed(&format!("not what a hub answers: {other}"), "check HF_ENDPOINT"),
        }
    }
}

/// Errors of this machine's disk, which no further attempt mends.
fn is_local(kind: std::io::ErrorKind) -> bool {
    use std::io::ErrorKind as Kind;
    matches!(
        kind,
        Kind::StorageFull
            | Kind::QuotaExceeded
            | Kind::PermissionDenied
            | Kind::ReadOnlyFilesystem
            | Kind::NotFound
    )
}

/// The part of an earlier download can't be continued.
fn unusable_part(error: &ApiError) -> bool {
    match error {
        ApiError::InvalidResume => true,
        ApiError::RequestError(request) => matches!(request.as_ref(), ureq::Error::StatusCode(416)),
        _ => false,
    }
}

/// A branch, tag or commit, and nothing that leads out of the cache folder.
fn check_revision(revision: &str) -> Result<()> {
    let plain = |part: &str| {
        let known = part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.+".contains(c));
        known && !part.is_empty() && part != "." && part != ".."
    };
    if revision.split('/').all(plain) {
        return Ok(());
    }
    Err(StageError::usage(format!("`{revision}` is no branch, tag or commit"))
        .at("fetch-model parameter revision")
        .next("write a name such as main, or a commit of 40 hexadecimal digits"))
}

fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// A model at one commit.
struct Snapshot {
    id: String,
    commit: String,
    dir: PathBuf,
    /// `None` without a network: then the cache folder tells.
    files: Option<Vec<String>>,
}

impl Snapshot {
    fn has(&self, name: &str) -> bool {
        match &self.files {
            Some(files) => files.iter().any(|f| f == name),
            None => Path::exists(&self.dir.join(name)),
        }
    }
}

#[derive(Debug, Default)]
struct Counter {
    done: AtomicU64,
}

/// Counts the bytes of a download.
struct Bytes(Arc<Counter>);

impl hf_hub::api::Progress for Bytes {
    fn init(&mut self, _size: usize, _filename: &str) {
        self.0.done.store(0, Ordering::Relaxed);
    }

    fn update(&mut self, size: usize) {
        self.0.done.fetch_add(size as u64, Ordering::Relaxed);
    }

    fn finish(&mut self) {}
}
