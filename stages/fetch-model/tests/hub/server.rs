//! A model hub on a local port, as far as a client needs one, that fails on demand. As on the real one, weights lie
//! elsewhere (`/cdn/`): the hub names their hash and redirects.

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sha1::Sha1;
use sha2::{Digest, Sha256};

pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// File name -> bytes.
pub(crate) type Files = BTreeMap<String, Vec<u8>>;

/// What goes wrong with one request.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Fault {
    Status(u16),
    /// The connection closes before an answer.
    Close,
    /// The connection closes after so many bytes of the body.
    CutAfter(usize),
    /// The right number of wrong bytes.
    WrongBytes,
    /// The answer begins and nothing follows.
    Silence,
    /// A byte from time to time.
    Trickle,
}

impl Fault {
    /// Whether it concerns the body alone, so that a look at the headers is served well.
    fn is_of_the_body(self) -> bool {
        matches!(self, Self::CutAfter(_) | Self::WrongBytes | Self::Silence | Self::Trickle)
    }
}

#[derive(Default)]
struct State {
    files: Files,
    /// Pattern of a path (`*` stands for the commit) -> faults still to come.
    faults: Vec<(String, VecDeque<Fault>)>,
    answers: Vec<Answer>,
    /// `PATH` or `PATH bytes=A-B`.
    requests: Vec<String>,
    /// Path, header line in lower case.
    headers: Vec<(String, String)>,
}

/// What goes over the wire when a path is asked for.
#[derive(Clone)]
struct Answer {
    pattern: String,
    bytes: Vec<u8>,
    /// Zeros follow until the client hangs up.
    endless: bool,
    times: usize,
}

pub(crate) struct Server {
    port: u16,
    state: Arc<Mutex<State>>,
    stopped: Arc<AtomicBool>,
}

/// The hash that the hub names a file by: SHA-256 for weights, Git's blob hash for the rest.
pub(crate) fn etag(name: &str, bytes: &[u8]) -> String {
    if name.ends_with(".safetensors") {
        return hex::encode(Sha256::digest(bytes));
    }
    let mut hasher = Sha1::new();
    hasher.update(format!("blob {}\0", bytes.len()));
    hasher.update(bytes);
    hex::encode(hasher.finalize())
}

impl Server {
    pub(crate) fn start(id: &str, files: Files) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(Mutex::new(State { files, ..State::default() }));
        let stopped = Arc::new(AtomicBool::new(false));
        let (shared, stop, id) = (Arc::clone(&state), Arc::clone(&stopped), id.to_owned());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let (state, id) = (Arc::clone(&shared), id.clone());
                std::thread::spawn(move || stream.map(|stream| serve(stream, &id, &state)));
            }
        });
        Self { port, state, stopped }
    }

    pub(crate) fn address(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The next requests whose path contains `pattern` fail, one fault each.
    pub(crate) fn fail(&self, pattern: &str, faults: impl IntoIterator<Item = Fault>) {
        let pattern = pattern.replace('*', COMMIT);
        self.state.lock().unwrap().faults.push((pattern, faults.into_iter().collect()));
    }

    /// Every request whose path contains `pattern` gets these bytes.
    pub(crate) fn answer(&self, pattern: &str, bytes: impl Into<Vec<u8>>) {
        self.script(pattern, bytes.into(), false, usize::MAX);
    }

    pub(crate) fn answer_once(&self, pattern: &str, bytes: impl Into<Vec<u8>>) {
        self.script(pattern, bytes.into(), false, 1);
    }

    /// These bytes, and then zeros until the client hangs up.
    pub(crate) fn answer_for_ever(&self, pattern: &str, bytes: impl Into<Vec<u8>>) {
        self.script(pattern, bytes.into(), true, usize::MAX);
    }

    fn script(&self, pattern: &str, bytes: Vec<u8>, endless: bool, times: usize) {
        let pattern = pattern.replace('*', COMMIT);
        self.state.lock().unwrap().answers.push(Answer { pattern, bytes, endless, times });
    }

    pub(crate) fn requests(&self) -> Vec<String> {
        self.state.lock().unwrap().requests.clone()
    }

    /// The hash that this hub names a file by; of a name that it does not have, that of nothing.
    pub(crate) fn etag_of(&self, name: &str) -> String {
        etag(name, self.state.lock().unwrap().files.get(name).map_or(&[], Vec::as_slice))
    }

    /// Whether a request had this header line; written in lower case.
    pub(crate) fn saw_header(&self, line: &str) -> bool {
        self.state.lock().unwrap().headers.iter().any(|(_, h)| h == line)
    }

    /// What the requests for paths with `pattern` said of who asks.
    pub(crate) fn authorizations(&self, pattern: &str) -> Vec<String> {
        let state = self.state.lock().unwrap();
        let asked = state.headers.iter().filter(|(path, _)| path.contains(pattern));
        asked.filter(|(_, h)| h.starts_with("authorization:")).map(|(_, h)| h.clone()).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn serve(mut stream: TcpStream, id: &str, state: &Mutex<State>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let Some(path) = first.split_whitespace().nth(1).map(str::to_owned) else { return Ok(()) };
    let mut range = None;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let line = line.trim().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.strip_prefix("range: ") {
            range = Some(value.to_owned());
        }
        state.lock().unwrap().headers.push((path.clone(), line));
    }
    let fault = note(&path, range.as_deref(), &mut state.lock().unwrap());
    let answer = scripted(&path, &mut state.lock().unwrap());
    if let Some(answer) = answer {
        stream.write_all(&answer.bytes)?;
        if answer.endless {
            loop {
                stream.write_all(&[0; 1 << 16])?;
            }
        }
        return stream.flush();
    }
    match fault {
        Some(Fault::Status(code)) => return respond(&mut stream, code, &[], b""),
        Some(Fault::Close) => return Ok(()),
        _ => {}
    }
    let files = state.lock().unwrap().files.clone();
    if path == format!("/api/models/{id}/revision/main")
        || path == format!("/api/models/{id}/revision/{COMMIT}")
    {
        let siblings: Vec<_> = files.keys().map(|name| serde_json::json!({"rfilename": name})).collect();
        let body = serde_json::json!({"sha": COMMIT, "siblings": siblings}).to_string();
        return respond(&mut stream, 200, &["Content-Type: application/json".to_owned()], body.as_bytes());
    }
    let asked = path.strip_prefix(&format!("/{id}/resolve/{COMMIT}/"));
    let Some(name) = asked.or_else(|| path.strip_prefix("/cdn/")).filter(|name| files.contains_key(*name))
    else {
        return respond(&mut stream, 404, &[], b"");
    };
    let bytes = &files[name];
    if asked.is_some() && name.ends_with(".safetensors") {
        let local = stream.local_addr()?;
        let headers = [
            format!("Location: http://{local}/cdn/{name}"),
            format!("X-Linked-Etag: \"{}\"", etag(name, bytes)),
            format!("X-Repo-Commit: {COMMIT}"),
            "ETag: \"of-the-redirect\"".to_owned(),
        ];
        return respond(&mut stream, 302, &headers, b"");
    }
    send(&mut stream, name, bytes, range.as_deref(), fault)
}

fn scripted(path: &str, state: &mut State) -> Option<Answer> {
    let answer = state.answers.iter_mut().find(|a| a.times > 0 && path.contains(&a.pattern))?;
    answer.times -= 1;
    Some(answer.clone())
}

/// Writes the request down and takes its fault, if one is due.
fn note(path: &str, range: Option<&str>, state: &mut State) -> Option<Fault> {
    state.requests.push(range.map_or_else(|| path.to_owned(), |range| format!("{path} {range}")));
    let probe = range == Some("bytes=0-0");
    let due = state
        .faults
        .iter_mut()
        .find(|(pattern, faults)| path.contains(pattern.as_str()) && !faults.is_empty());
    let (_, faults) = due?;
    if probe && faults.front()?.is_of_the_body() { None } else { faults.pop_front() }
}

fn send(
    stream: &mut TcpStream,
    name: &str,
    bytes: &[u8],
    range: Option<&str>,
    fault: Option<Fault>,
) -> std::io::Result<()> {
    let total = bytes.len();
    let (start, end) = range
        .and_then(|r| r.strip_prefix("bytes="))
        .and_then(|r| r.split_once('-'))
        .map_or((0, total), |(a, b)| (a.parse().unwrap(), b.parse::<usize>().map_or(total, |b| b + 1)));
    if start >= total && range.is_some() {
        return respond(stream, 416, &[], b"");
    }
    let headers = [
        format!("Content-Range: bytes {start}-{}/{total}", end.saturating_sub(1)),
        format!("ETag: \"{}\"", etag(name, bytes)),
        format!("X-Repo-Commit: {COMMIT}"),
    ];
    let mut body = bytes[start..end].to_vec();
    match fault {
        Some(Fault::WrongBytes) => body.iter_mut().for_each(|b| *b ^= 0x55),
        Some(Fault::CutAfter(n)) => {
            head(stream, 206, &headers, body.len())?;
            stream.write_all(&body[..n])?;
            return stream.flush();
        }
        Some(Fault::Silence) => {
            head(stream, 206, &headers, body.len())?;
            stream.write_all(&body[..10])?;
            stream.flush()?;
            std::thread::sleep(Duration::from_secs(5));
            return Ok(());
        }
        Some(Fault::Trickle) => {
            head(stream, 206, &headers, body.len())?;
            for byte in body.iter().take(250) {
                stream.write_all(&[*byte])?;
                stream.flush()?;
                std::thread::sleep(Duration::from_millis(20));
            }
            return Ok(());
        }
        _ => {}
    }
    respond(stream, 206, &headers, &body)
}

fn respond(stream: &mut TcpStream, status: u16, headers: &[String], body: &[u8]) -> std::io::Result<()> {
    head(stream, status, headers, body.len())?;
    stream.write_all(body)?;
    stream.flush()
}

fn head(stream: &mut TcpStream, status: u16, headers: &[String], length: usize) -> std::io::Result<()> {
    let mut text = format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\nConnection: close\r\n");
    for header in headers {
        text.push_str(header);
        text.push_str("\r\n");
    }
    text.push_str("\r\n");
    stream.write_all(text.as_bytes())
}
