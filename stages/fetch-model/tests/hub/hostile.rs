//! A hub that means harm, against the real program: nothing is written outside the cache and the output, no answer is
//! waited for or written for ever, and the error says what was wrong with which file.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use stage_kit::ExitCode;
use tempfile::TempDir;

use crate::client::{Client, ID, files};
use crate::server::{COMMIT, Fault, Files, Server, etag};

const NO: i32 = ExitCode::StageFailed as i32;
const LATER: i32 = ExitCode::Retryable as i32;

/// A folder with the program's cache in the middle of it, so that a path that climbs is seen.
struct Place {
    root: TempDir,
}

impl Place {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("a/b/c")).unwrap();
        Self { root }
    }

    fn home(&self) -> PathBuf {
        self.root.path().join("a/b/c/home")
    }

    fn fetch(&self, server: &Server, attempts: u32) -> Output {
        self.fetch_from(ID, &server.address(), attempts)
    }

    fn fetch_from(&self, source: &str, endpoint: &str, attempts: u32) -> Output {
        Command::new(std::env::var_os("CARGO_BIN_EXE_fetch-model").unwrap())
            .env("HF_HOME", self.home())
            .env("HF_ENDPOINT", endpoint)
            .env_remove("HF_HUB_CACHE")
            .args(["--source", source, "--set", &format!("attempts={attempts}")])
            .args(["--output", &format!("model={}", self.root.path().join("a/b/out").display())])
            .current_dir(self.root.path().join("a/b"))
            .output()
            .unwrap()
    }

    /// Every file outside the cache of this one model, and every file in it but what belongs there.
    fn strays(&self) -> Vec<PathBuf> {
        let cache = self.home().join("hub/models--owner--tiny");
        let mut found = Vec::new();
        let mut folders = vec![self.root.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let inside = ["blobs", "refs"].iter().any(|f| path.parent() == Some(&cache.join(f)));
                let linked = path.parent() == Some(&cache.join("snapshots").join(COMMIT));
                if fs::symlink_metadata(&path).unwrap().is_dir() {
                    folders.push(path);
                } else if !inside && !linked {
                    found.push(path);
                }
            }
        }
        found
    }

    /// The program ends with `code`, says `words`, leaves no output and writes nothing where it has no business.
    fn refused(&self, server: &Server, code: i32, words: &[&str]) {
        let started = Instant::now();
        let output = self.fetch(server, 1);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{said}");
        // The error may be broken over lines.
        let flat: String = said.split_whitespace().filter(|w| *w != "│").collect::<Vec<_>>().join(" ");
        assert!(words.iter().all(|w| flat.contains(w)), "{words:?}: {flat}");
        assert!(!said.contains("panicked"), "{said}");
        assert!(started.elapsed() < Duration::from_secs(30), "took {:?}", started.elapsed());
        assert_eq!(self.strays(), Vec::<PathBuf>::new());
    }
}

fn head(status: &str, headers: &[&str]) -> String {
    format!("HTTP/1.1 {status}\r\nConnection: close\r\n{}\r\n\r\n", headers.join("\r\n"))
}

/// An answer with these headers and the first file's first byte, or all of it.
fn partial(etag: &str, commit: &str) -> String {
    let headers = [
        "Content-Length: 1",
        "Content-Range: bytes 0-0/1",
        &format!("ETag: {etag}"),
        &format!("X-Repo-Commit: {commit}"),
    ];
    head("206 X", &headers) + "{"
}

#[test]
fn a_hash_that_is_a_path_names_no_file() {
    let outside = tempfile::tempdir().unwrap();
    let absolute = outside.path().join("planted").display().to_string();
    let long = "a".repeat(5000);
    let tags = [
        "../../x",
        "../../../../../x",
        "..",
        ".",
        "a/../../../../x",
        "\"\"",
        "W/\"../x\"",
        "x.lock",
        &absolute,
        &long,
    ];
    for tag in tags {
        let server = Server::start(ID, files(false));
        server.answer("resolve/*/config.json", partial(tag, COMMIT));
        Place::new().refused(&server, NO, &["config.json", "hash (ETag)", "HF_ENDPOINT"]);
    }
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    let server = Server::start(ID, files(false));
    server.answer("resolve/*/config.json", partial("a\0b", COMMIT));
    Place::new().refused(&server, LATER, &["config.json"]);
}

#[test]
fn a_hash_of_the_redirect_is_no_path_either() {
    let server = Server::start(ID, files(false));
    let location = format!("Location: {}/cdn/model.safetensors", server.address());
    let headers = [
        &*location,
        "X-Linked-Etag: \"../../../evil\"",
        &format!("X-Repo-Commit: {COMMIT}"),
        "Content-Length: 0",
    ];
    server.answer("resolve/*/model.safetensors", head("302 X", &headers));
    Place::new().refused(&server, NO, &["model.safetensors", "../../../evil"]);
}

#[test]
fn a_commit_that_is_a_path_or_another_one_is_refused() {
    for commit in ["../../../../x", "/x", &"b".repeat(40)] {
        let server = Server::start(ID, files(false));
        server.answer("resolve/*/config.json", partial(&etag("config.json", b"{"), commit));
        Place::new().refused(&server, NO, &["config.json", "commit"]);
    }
    for commit in ["../../x", "", "main"] {
        let server = Server::start(ID, files(false));
        let body = serde_json::json!({"sha": commit, "siblings": []}).to_string();
        server.answer("/api/models/", head("200 X", &[&format!("Content-Length: {}", body.len())]) + &body);
        Place::new().refused(&server, NO, &["commit"]);
    }
}

#[test]
fn a_listing_of_paths_is_no_list_of_files_to_write() {
    let mut listed = files(false);
    for name in ["../../../../etc/passwd", "/etc/passwd", "a/../../x", ""] {
        listed.insert(name.to_owned(), b"x".to_vec());
    }
    let (place, server) = (Place::new(), Server::start(ID, listed));
    let output = place.fetch(&server, 1);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(server.requests().iter().all(|r| !r.contains("passwd")));
    assert!(place.strays().iter().all(|p| p.parent() == Some(&place.root.path().join("a/b/out"))));
}

#[test]
fn a_listing_without_an_end_or_a_sense_is_refused() {
    let server = Server::start(ID, files(false));
    server.answer_for_ever("/api/models/", head("200 X", &[]));
    Place::new().refused(&server, NO, &["list of files"]);
    let server = Server::start(ID, files(false));
    server.answer("/api/models/", head("200 X", &["Content-Length: 15"]) + "<html>no</html>");
    Place::new().refused(&server, NO, &["list of files"]);
}

#[test]
fn a_file_without_an_end_is_given_up() {
    let server = Server::start(ID, files(false));
    let headers = [&*format!("ETag: \"{}\"", "a".repeat(40)), &format!("X-Repo-Commit: {COMMIT}")];
    server.answer_for_ever("resolve/*/config.json", head("200 X", &headers));
    let place = Place::new();
    place.refused(&server, NO, &["config.json", "67108864 bytes"]);
    let blobs = fs::read_dir(place.home().join("hub/models--owner--tiny/blobs")).unwrap();
    let kept: u64 = blobs.map(|b| b.unwrap().metadata().unwrap().len()).sum();
    assert_eq!(kept, 0, "what is no file is not kept");
}

#[test]
fn an_absurd_size_is_refused_before_a_byte_is_written() {
    for (name, path) in
        [("tokenizer.json", "resolve/*/tokenizer.json"), ("model.safetensors", "cdn/model.safetensors")]
    {
        let server = Server::start(ID, files(false));
        let headers = [
            "Content-Length: 1000000000000000",
            "Content-Range: bytes 0-999999999999999/1000000000000000",
            &format!("ETag: \"{}\"", "a".repeat(40)),
            &format!("X-Repo-Commit: {COMMIT}"),
        ];
        server.answer_for_ever(path, head("206 X", &headers));
        Place::new().refused(&server, NO, &[name, "1000000000000000 bytes"]);
    }
}

#[test]
fn more_bytes_than_announced_are_not_the_files() {
    let files = files(false);
    let config = &files["config.json"];
    let tag = etag("config.json", config);
    let answer = |length: usize, total: usize| {
        let headers = [
            &*format!("Content-Length: {length}"),
            &format!("Content-Range: bytes 0-{}/{total}", total - 1),
            &format!("ETag: \"{tag}\""),
            &format!("X-Repo-Commit: {COMMIT}"),
        ];
        let mut bytes = head("206 X", &headers).into_bytes();
        bytes.extend(config);
        bytes.extend([b'x'; 1000]);
        bytes
    };
    // Beyond the length of the answer: not read. Beyond the length of the file: an error.
    let (place, server) = (Place::new(), Server::start(ID, files.clone()));
    server.answer("resolve/*/config.json", answer(config.len(), config.len()));
    assert!(place.fetch(&server, 1).status.success());
    assert_eq!(fs::read(place.root.path().join("a/b/out/config.json")).unwrap(), *config);
    let server = Server::start(ID, files.clone());
    server.answer("resolve/*/config.json", answer(config.len() + 1000, config.len()));
    Place::new().refused(&server, LATER, &["config.json", "announced"]);
}

#[test]
fn addresses_that_lead_in_a_circle_or_nowhere_end() {
    let answers: [(&str, &[&str], &[&str]); 5] = [
        ("302 X", &["Location: /owner/tiny/resolve/*/config.json"], &["redirects more than 10 times"]),
        ("307 X", &["Location: http://HERE/owner/tiny/resolve/*/config.json"], &["config.json"]),
        ("302 X", &[], &["redirects to nowhere"]),
        ("302 X", &["Location: ?"], &["config.json"]),
        ("301 X", &["Location: file:///etc/passwd"], &["config.json"]),
    ];
    for (status, headers, words) in answers {
        let server = Server::start(ID, files(false));
        let here = server.address().replace("http://", "");
        let mut headers: Vec<String> =
            headers.iter().map(|h| h.replace('*', COMMIT).replace("HERE", &here)).collect();
        headers.extend([format!("ETag: \"{}\"", "a".repeat(40)), "Content-Length: 0".to_owned()]);
        let headers: Vec<&str> = headers.iter().map(String::as_str).collect();
        server.answer("resolve/*/config.json", head(status, &headers));
        let place = Place::new();
        let output = place.fetch(&server, 1);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(matches!(output.status.code(), Some(NO | LATER)), "{said}");
        assert!(!said.contains("panicked") && words.iter().all(|w| said.contains(w)), "{headers:?}: {said}");
        assert!(server.requests().len() < 40, "{}", server.requests().len());
        assert_eq!(place.strays(), Vec::<PathBuf>::new());
    }
    let server = Server::start(ID, files(false));
    server.answer("/api/models/", head("302 X", &["Location: /api/models/x", "Content-Length: 0"]));
    Place::new().refused(&server, NO, &["redirects more than 10 times"]);
}

#[test]
fn a_packed_answer_is_unpacked_or_refused() {
    let plain = files(false);
    let serve = |coding: &str, body: Vec<u8>| {
        let server = Server::start(ID, plain.clone());
        let headers = [
            &*format!("Content-Length: {}", body.len()),
            &format!("Content-Encoding: {coding}"),
            &format!("ETag: \"{}\"", etag("config.json", &plain["config.json"])),
            &format!("X-Repo-Commit: {COMMIT}"),
        ];
        server.answer("resolve/*/config.json", [head("200 X", &headers).into_bytes(), body].concat());
        server
    };
    let (place, server) = (Place::new(), serve("gzip", gzip(&plain["config.json"])));
    let output = place.fetch(&server, 1);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(fs::read(place.root.path().join("a/b/out/config.json")).unwrap(), plain["config.json"]);
    Place::new().refused(&serve("br", vec![1; 10]), NO, &["config.json", "packed", "br"]);
    Place::new().refused(&serve("gzip", vec![1; 10]), LATER, &["config.json"]);
    let bomb = gzip(&vec![0; (64 << 20) + 1]);
    assert!(bomb.len() < 1 << 20);
    Place::new().refused(&serve("gzip", bomb), NO, &["config.json", "67108864 bytes"]);
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut packed, bytes).unwrap();
    packed.finish().unwrap()
}

/// An index that names one shard, and that shard beside it in the listing.
fn with_shard(name: &str) -> Files {
    let mut files = files(true);
    let index: serde_json::Value = serde_json::from_slice(&files["model.safetensors.index.json"]).unwrap();
    let names = index["weight_map"].as_object().unwrap().keys();
    let map: serde_json::Map<String, serde_json::Value> = names.map(|n| (n.clone(), name.into())).collect();
    let index = serde_json::json!({"metadata": {}, "weight_map": map}).to_string();
    files.insert("model.safetensors.index.json".to_owned(), index.into_bytes());
    files.entry(name.to_owned()).or_insert_with(|| b"x".to_vec());
    files
}

#[test]
fn an_index_names_no_file_outside_its_folder() {
    let long = format!("{}.safetensors", "a".repeat(300));
    let names = [
        "../../../etc/passwd",
        "../../../../x.safetensors",
        "/etc/passwd",
        "/tmp/x.safetensors",
        "a/b.safetensors",
        ".safetensors",
        "manifest.json",
        "config.json",
        "a\0.safetensors",
        "a\\..\\x.safetensors",
        "a?b.safetensors",
        "..",
        "",
        &long,
    ];
    for name in names {
        let files = with_shard(name);
        let server = Server::start(ID, files.clone());
        Place::new().refused(&server, NO, &["model.safetensors.index.json", "names the shard"]);

        let place = Place::new();
        let folder = place.root.path().join("folder");
        fs::create_dir(&folder).unwrap();
        for (file, bytes) in files.iter().filter(|(file, _)| *file != name || Path::new(file).is_relative()) {
            if !file.contains(['/', '\0']) && !file.is_empty() && file != ".." && file.len() < 256 {
                fs::write(folder.join(file), bytes).unwrap();
            }
        }
        let output = place.fetch_from(&format!("file:{}", folder.display()), "http://127.0.0.1:9", 1);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(NO), "{name}: {said}");
        assert!(said.contains("names the shard") && !said.contains("panicked"), "{name}: {said}");
        assert!(!place.root.path().join("a/b/out").exists());
    }
}

#[test]
fn a_folder_of_pipes_devices_and_monsters_is_refused_at_once() {
    type Damage<'a> = (&'a str, &'a dyn Fn(&Path));
    let huge = |path: &Path| {
        let file = fs::File::create(path).unwrap();
        file.set_len(1 << 40).unwrap();
    };
    let pipe = |path: &Path| {
        fs::remove_file(path).unwrap();
        assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
    };
    let device = |path: &Path| {
        fs::remove_file(path).unwrap();
        std::os::unix::fs::symlink("/dev/zero", path).unwrap();
    };
    let folder = |path: &Path| {
        fs::remove_file(path).unwrap();
        fs::create_dir(path).unwrap();
    };
    let damages: [Damage<'_>; 4] =
        [("bytes", &huge), ("regular", &pipe), ("regular", &device), ("regular", &folder)];
    for name in ["config.json", "tokenizer.json", "model.safetensors", "README.md"] {
        for (word, damage) in damages {
            let place = Place::new();
            let dir = place.root.path().join("folder");
            fs::create_dir(&dir).unwrap();
            for (file, bytes) in files(false) {
                fs::write(dir.join(file), bytes).unwrap();
            }
            damage(&dir.join(name));
            let started = Instant::now();
            let output = place.fetch_from(&format!("file:{}", dir.display()), "http://127.0.0.1:9", 1);
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(NO), "{name}: {said}");
            assert!(said.contains(name) && said.contains(word), "{name}: {said}");
            assert!(started.elapsed() < Duration::from_secs(20));
        }
    }
}

#[test]
fn the_pause_that_a_hub_asks_for_is_kept_within_bounds() {
    for status in ["429 X", "503 X"] {
        let (place, server) = (Place::new(), Server::start(ID, files(false)));
        server.answer_once("/api/models/", head(status, &["Retry-After: 3", "Content-Length: 0"]));
        let started = Instant::now();
        let output = place.fetch(&server, 2);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        assert!(started.elapsed() >= Duration::from_secs(3), "{:?}", started.elapsed());
        assert!(said.contains("a pause of 3 s"), "{said}");
    }
    // The client of this test bears 300 ms.
    for asked in ["86400", "18446744073709551615", "Fri, 31 Dec 2100 23:59:59 GMT", "nonsense", "-1"] {
        let server = Server::start(ID, files(false));
        let refusal = head("429 X", &[&format!("Retry-After: {asked}"), "Content-Length: 0"]);
        server.answer_once("resolve/*/config.json", refusal);
        let started = Instant::now();
        Client::new(&server).fetch().unwrap();
        let bounded = asked.starts_with(|c: char| c.is_ascii_alphanumeric()) && asked != "nonsense";
        assert!(!bounded || started.elapsed() >= Duration::from_millis(300), "{asked}");
        assert!(started.elapsed() < Duration::from_secs(20), "{asked}");
    }
    let server = Server::start(ID, files(false));
    server.fail("/api/models/", [Fault::Status(429); 3]);
    assert!(Client::new(&server).fetch().is_ok(), "without a word of the hub, our own pauses hold");
}

#[test]
fn a_token_goes_to_the_hub_and_to_nobody_it_names() {
    for redirect in ["resolve/*/model.safetensors", "resolve/*/config.json", "/api/models/"] {
        let files = files(false);
        let (elsewhere, server) = (Server::start(ID, files.clone()), Server::start(ID, files));
        // The same machine under another name is another host.
        let other = elsewhere.address().replace("127.0.0.1", "localhost");
        let path = match redirect {
            "/api/models/" => format!("/api/models/{ID}/revision/main"),
            path => format!("/cdn/{}", path.rsplit('/').next().unwrap()),
        };
        let name = path.rsplit('/').next().unwrap();
        let tag = elsewhere.etag_of(name);
        let headers = [
            &*format!("Location: {other}{path}"),
            &format!("X-Linked-Etag: \"{tag}\""),
            &format!("X-Repo-Commit: {COMMIT}"),
            "Content-Length: 0",
        ];
        server.answer(redirect, head("302 X", &headers));
        let mut client = Client::new(&server);
        client.settings.token = Some("hf_secret".to_owned());
        client.fetch().unwrap();
        assert!(!server.authorizations("").is_empty(), "{redirect}");
        assert!(!elsewhere.requests().is_empty(), "{redirect} leads elsewhere");
        assert_eq!(elsewhere.authorizations(""), Vec::<String>::new(), "{redirect}");
    }
}

#[test]
fn a_file_that_the_cache_only_links_to_is_never_deleted() {
    let files = files(false);
    let server = Server::start(ID, files.clone());
    let client = Client::new(&server);
    let fetched = client.fetch().unwrap();
    // Somebody keeps the weights elsewhere, under the name of their hash, and changed them.
    let kept = client.root.path().join(etag("model.safetensors", &files["model.safetensors"]));
    fs::write(&kept, "something else").unwrap();
    let link = fetched.dir.join("model.safetensors");
    fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink(&kept, &link).unwrap();
    client.fetch().unwrap();
    assert_eq!(fs::read(&link).unwrap(), files["model.safetensors"]);
    assert_eq!(fs::read(&kept).unwrap(), b"something else");
}

#[test]
fn an_empty_file_is_a_file() {
    let mut files = files(false);
    files.insert("LICENSE".to_owned(), Vec::new());
    let (place, server) = (Place::new(), Server::start(ID, files));
    let output = place.fetch(&server, 1);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(fs::read(place.root.path().join("a/b/out/LICENSE")).unwrap(), b"");
}
