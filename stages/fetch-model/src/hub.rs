//! Downloads from a model hub, through its cache folder.
//!
//! `hf-hub` knows the addresses and the layout of the cache. On top of it stand here: retries with back-off, one commit
//! for all files, hashes, sizes, working without a network, and giving up on a connection that is silent.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use hf_hub::api::sync::{Api, ApiBuilder};
use hf_hub::{Cache, Repo, RepoType};
use model::config::Config;
use model::weights;
use stage_kit::{Context, Result, StageError};

use crate::folder::{OPTIONAL, REQUIRED, SMALL_MAX, weights_max};
use crate::model_error;

mod blob;
mod settings;
mod transfer;

pub use settings::Settings;
use transfer::{Client, Trouble};

/// Longest pause between two attempts of which the hub has said nothing.
const WAIT_MAX: Duration = Duration::from_secs(30);
/// For so long another program may hold a file's lock.
const LOCK_WAIT: Duration = Duration::from_secs(5);
/// How often a running download is looked at.
const POLL: Duration = Duration::from_millis(100);
/// A connection that brings less than this within the settings' silence is given up.
const TRICKLE: u64 = 64 << 10;

/// A hub and its cache folder.
#[derive(Debug)]
pub struct Hub {
    api: Api,
    client: Client,
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
    Again {
        message: String,
        /// The hub asks to be left alone for so long.
        after: Option<Duration>,
    },
    Final(StageError),
}

impl Failure {
    fn again(message: impl Into<String>) -> Self {
        Self::Again { message: message.into(), after: None }
    }
}

/// What a download left in the cache, under the lock of its blob.
struct Arrived {
    /// `None`: the blob was there already.
    part: Option<PathBuf>,
    blob: PathBuf,
    _lock: File,
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
        let client = Client::new(settings.token.clone());
        Ok(Self { api, client, cache, settings })
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
            self.file(&snapshot, &name, SMALL_MAX, context)?;
        }
        let limit = weights_max(&Config::from_dir(&snapshot.dir).map_err(model_error)?);
        if snapshot.has(weights::FILE) || !snapshot.has(weights::INDEX) {
            self.file(&snapshot, weights::FILE, limit, context)?;
        } else {
            let index = self.file(&snapshot, weights::INDEX, SMALL_MAX, context)?;
            for shard in weights::shard_files(&index).map_err(model_error)? {
                self.file(&snapshot, &shard, limit, context)?;
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
            let request = self.api.repo(self.repo(id, revision)).info_request();
            let result = self.watched(context, &AtomicU64::new(0), move || Client::listing(request));
            result.map_err(Failure::Final)?.map_err(|e| self.classify(e, &place))
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

    /// One file of the snapshot, of at most `limit` bytes: from the cache when it is whole there, else from the hub.
    fn file(&self, snapshot: &Snapshot, name: &str, limit: u64, context: &Context) -> Result<PathBuf> {
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
        let blob = self.retry(&place, context, || self.attempt(snapshot, name, limit, &place, context))?;
        link(&blob, &path)?;
        Ok(path)
    }

    /// One try at a download; gives its blob. A cut one leaves its part in the cache, and the next try goes on from there.
    fn attempt(
        &self,
        snapshot: &Snapshot,
        name: &str,
        limit: u64,
        place: &str,
        context: &Context,
    ) -> Result<PathBuf, Failure> {
        let repo = self.repo(&snapshot.id, &snapshot.commit);
        let blobs = self.settings.cache.join(repo.folder_name()).join("blobs");
        let (client, url) = (self.client.clone(), self.api.repo(repo).url(name));
        let (commit, done) = (snapshot.commit.clone(), Arc::new(AtomicU64::new(0)));
        let counter = Arc::clone(&done);
        let work = move || bring(&client, &url, &commit, &blobs, limit, &counter);
        let progress = context.progress("bytes", None);
        let result = self.watched_with(context, &done, |done| progress.set(done), work);
        let arrived = result.map_err(Failure::Final)?.map_err(|e| self.classify(e, place))?;
        self.judge(arrived).map_err(|e| self.classify(e, place))
    }

    /// Lets a download become a blob if its bytes hash to the name that the hub gave.
    fn judge(&self, arrived: Arrived) -> Result<PathBuf, Trouble> {
        let name = arrived.blob.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        let found = arrived.part.as_ref().unwrap_or(&arrived.blob);
        let disk = |e| Trouble::Disk(found.clone(), e);
        if !blob::matches(found, name).map_err(disk)? {
            fs::remove_file(found).map_err(disk)?;
            return Err(Trouble::Broken("arrived with another hash than the hub named".to_owned()));
        }
        if let Some(part) = &arrived.part {
            fs::rename(part, &arrived.blob).map_err(disk)?;
        }
        Ok(arrived.blob)
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
            let (message, after) = match attempt() {
                Ok(value) => return Ok(value),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Again { message, after }) => (message, after),
            };
            if tried >= self.settings.attempts {
                return Err(StageError::retryable(format!("{message} ({tried} attempts)")).at(place).next(
                    "try again later; what has arrived is kept. Without a network: source = \"embedded:tiny\", or file:DIR",
                ));
            }
            let own = self.settings.wait.saturating_mul(1 << tried.min(16)).min(WAIT_MAX);
            let wait = own.max(after.unwrap_or_default().min(self.settings.pause_max));
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

    /// Runs `work` on a thread of its own. Ends early when the stage is stopped, or when next to nothing comes for too long: a
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
        let mut shown = seen;
        loop {
            match receiver.recv_timeout(POLL) {
                Ok(value) => return Ok(value),
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(StageError::internal("the download ended without a result"));
                }
                Err(RecvTimeoutError::Timeout) => context.check_cancelled()?,
            }
            let now = done.load(Ordering::Relaxed);
            if now != shown {
                show(now);
                shown = now;
            }
            if now < seen || now - seen >= TRICKLE {
                (seen, at) = (now, Instant::now());
            }
            if at.elapsed() > self.settings.silence {
                let silence = self.settings.silence;
                return Err(StageError::retryable(match now - seen {
                    0 => format!("nothing came from the hub for {silence:.0?}"),
                    n => format!("only {n} bytes came from the hub in {silence:.0?}"),
                })
                .at(&self.settings.endpoint)
                .next("try again later; what has arrived is kept"));
            }
        }
    }

    /// What a trouble means for the next attempt.
    fn classify(&self, trouble: Trouble, place: &str) -> Failure {
        let failed =
            |message: &str, next: &str| Failure::Final(StageError::failed(message).at(place).next(next));
        match trouble {
            Trouble::Status(401 | 403, _) => failed(
                "the hub refuses access",
                "set HF_TOKEN to a token that may read this model, and accept its licence on the hub",
            ),
            Trouble::Status(404 | 410, _) => failed(
                "the hub has no such model, revision or file",
                "check the parameters source and revision",
            ),
            Trouble::Status(code @ (408 | 416 | 425 | 429 | 500..=599), after) => {
                let asks =
                    after.map_or(String::new(), |t| format!(" and asks for a pause of {} s", t.as_secs()));
                Failure::Again { message: format!("the hub answers with status {code}{asks}"), after }
            }
            Trouble::Status(code, _) => failed(
                &format!("the hub answers with status {code}"),
                "check HF_ENDPOINT and the parameter source",
            ),
            Trouble::Address(message) => failed(
                &format!("not an address: {message}"),
                "check HF_ENDPOINT and the parameters source and revision",
            ),
            Trouble::Refused(what) => {
                failed(&format!("the hub {what}"), "check HF_ENDPOINT: it does not lead to a hub to trust")
            }
            Trouble::Broken(message) => Failure::again(message),
            Trouble::Disk(path, error) => {
                Failure::Final(StageError::io("write into the cache", &path, error))
            }
        }
    }
}

/// Downloads the blob of a file, or finds it there.
fn bring(
    client: &Client,
    url: &str,
    commit: &str,
    blobs: &Path,
    limit: u64,
    done: &AtomicU64,
) -> Result<Arrived, Trouble> {
    let name = client.blob_name(url, commit)?;
    fs::create_dir_all(blobs).map_err(|e| Trouble::Disk(blobs.to_owned(), e))?;
    let _lock = lock(&blobs.join(format!("{name}.lock")))?;
    let blob = blobs.join(&name);
    if blob::is_hash(&name) && blob.exists() {
        return Ok(Arrived { part: None, blob, _lock });
    }
    let part = blobs.join(format!("{name}.part"));
    client.load(url, &part, limit, done)?;
    Ok(Arrived { part: Some(part), blob, _lock })
}

fn lock(path: &Path) -> Result<File, Trouble> {
    let file = File::create(path).map_err(|e| Trouble::Disk(path.to_owned(), e))?;
    let until = Instant::now() + LOCK_WAIT;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(fs::TryLockError::Error(e)) => return Err(Trouble::Disk(path.to_owned(), e)),
            Err(fs::TryLockError::WouldBlock) if Instant::now() < until => std::thread::sleep(POLL),
            Err(fs::TryLockError::WouldBlock) => {
                return Err(Trouble::Broken(format!("another process is downloading: {}", path.display())));
            }
        }
    }
}

/// `snapshots/COMMIT/FILE` -> `blobs/HASH`.
fn link(blob: &Path, path: &Path) -> Result<()> {
    let failed = |e| StageError::io("write into the cache", path, e);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(failed)?;
    }
    let target = Path::new("../../blobs").join(blob.file_name().unwrap_or_default());
    match std::os::unix::fs::symlink(target, path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(failed(e)),
        _ => Ok(()),
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
