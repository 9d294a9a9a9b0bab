//! The hub's failures: rate limits, cut connections, wrong bytes, missing files, no network.

use std::fs;
use std::path::Path;
use std::time::Duration;

use stage_kit::ExitCode;

use crate::client::{Client, ID, files};
use crate::server::{self, Fault, Files, Server};

fn same(dir: &Path, files: &Files) {
    for (name, bytes) in files {
        assert_eq!(fs::read(dir.join(name)).unwrap(), *bytes, "{name}");
    }
}

#[test]
fn a_whole_model_arrives_once_and_then_comes_from_the_cache() {
    let files = files(false);
    let server = Server::start(ID, files.clone());
    let client = Client::new(&server);
    let fetched = client.fetch().unwrap();
    same(&fetched.dir, &files);
    assert_eq!((fetched.commit.as_str(), fetched.license.as_deref()), (server::COMMIT, Some("apache-2.0")));
    let before = server.requests().len();
    assert_eq!(client.fetch().unwrap(), fetched);
    assert_eq!(server.requests().len(), before + 1, "only the revision is looked up again");
    assert!(
        server.requests().iter().all(|r| !r.contains("/resolve/main/")),
        "every file is asked for by commit"
    );
}

#[test]
fn without_a_network_the_cache_serves_what_it_has() {
    let files = files(true);
    let server = Server::start(ID, files.clone());
    let mut client = Client::new(&server);
    let fetched = client.fetch().unwrap();
    drop(server);
    client.settings.offline = true;
    assert_eq!(client.fetch().unwrap(), fetched);
    assert_eq!(client.fetch_revision(server::COMMIT).unwrap(), fetched);
    same(&fetched.dir, &files);

    let error = client.fetch_revision("v2").unwrap_err();
    assert!(error.to_string().contains("HF_HUB_OFFLINE"), "{error}");
    fs::remove_file(fetched.dir.join("part-1.safetensors")).unwrap();
    let error = client.fetch().unwrap_err();
    assert!(
        error.to_string().contains("part-1.safetensors") && error.code() == ExitCode::StageFailed,
        "{error}"
    );
}

#[test]
fn rate_limits_and_server_errors_are_waited_out() {
    let files = files(false);
    let server = Server::start(ID, files.clone());
    server.fail("/api/models/", [Fault::Status(429), Fault::Status(503)]);
    server.fail("tokenizer.json", [Fault::Status(429), Fault::Status(500), Fault::Close]);
    server.fail("cdn/model.safetensors", [Fault::Status(503)]);
    let client = Client::new(&server);
    same(&client.fetch().unwrap().dir, &files);
}

#[test]
fn a_rate_limit_that_stays_ends_as_retryable() {
    let server = Server::start(ID, files(false));
    server.fail("config.json", [Fault::Status(429); 9]);
    let error = Client::new(&server).fetch().unwrap_err();
    assert_eq!(error.code(), ExitCode::Retryable);
    assert!(error.to_string().contains("429") && error.to_string().contains("4 attempts"), "{error}");
}

#[test]
fn a_cut_download_goes_on_where_it_broke() {
    let files = files(false);
    let server = Server::start(ID, files.clone());
    server.fail("cdn/model.safetensors", [Fault::CutAfter(1000), Fault::CutAfter(700)]);
    let client = Client::new(&server);
    same(&client.fetch().unwrap().dir, &files);
    let asked: Vec<String> =
        server.requests().into_iter().filter(|r| r.contains("cdn/model.safetensors")).collect();
    let starts: Vec<&str> =
        asked.iter().filter_map(|r| r.split("bytes=").nth(1)).filter(|r| r.ends_with('-')).collect();
    assert_eq!(starts, ["0-", "1000-", "1700-"]);
}

#[test]
fn a_part_left_by_a_killed_program_is_continued() {
    let files = files(false);
    let server = Server::start(ID, files.clone());
    let client = Client::new(&server);
    let weights = &files["model.safetensors"];
    fs::create_dir_all(client.blobs()).unwrap();
    let part = client.blobs().join(format!("{}.part", server::etag("model.safetensors", weights)));
    fs::write(&part, &weights[..500]).unwrap();
    same(&client.fetch().unwrap().dir, &files);
    assert!(
        server.requests().iter().any(|r| r.contains("cdn/model.safetensors") && r.ends_with("bytes=500-"))
    );
}

#[test]
fn a_part_of_other_bytes_or_too_long_is_thrown_away() {
    for length in [500, 1_000_000] {
        let files = files(false);
        let server = Server::start(ID, files.clone());
        let client = Client::new(&server);
        fs::create_dir_all(client.blobs()).unwrap();
        let part = client
            .blobs()
            .join(format!("{}.part", server::etag("model.safetensors", &files["model.safetensors"])));
        fs::write(&part, vec![7; length]).unwrap();
        same(&client.fetch().unwrap().dir, &files);
    }
}

#[test]
fn wrong_bytes_are_asked_for_again_and_never_kept() {
    let files = files(false);
    let server = Server::start(ID, files.clone());
    server.fail("cdn/model.safetensors", [Fault::WrongBytes]);
    server.fail("resolve/*/tokenizer_config.json", [Fault::WrongBytes]);
    let client = Client::new(&server);
    same(&client.fetch().unwrap().dir, &files);

    let server = Server::start(ID, files);
    server.fail("cdn/model.safetensors", [Fault::WrongBytes; 9]);
    let client = Client::new(&server);
    let error = client.fetch().unwrap_err();
    assert!(error.to_string().contains("hash") && error.to_string().contains("model.safetensors"), "{error}");
    assert!(
        !client
            .root
            .path()
            .join("cache/models--owner--tiny/snapshots")
            .join(server::COMMIT)
            .join("model.safetensors")
            .exists()
    );
}

#[test]
fn a_damaged_cache_is_mended_or_refused_without_a_network() {
    let files = files(false);
    let server = Server::start(ID, files.clone());
    let mut client = Client::new(&server);
    let fetched = client.fetch().unwrap();
    let damage = || {
        let blob = fs::canonicalize(fetched.dir.join("model.safetensors")).unwrap();
        let mut bytes = fs::read(&blob).unwrap();
        bytes[200] ^= 1;
        fs::write(&blob, bytes).unwrap();
    };
    damage();
    same(&client.fetch().unwrap().dir, &files);
    fs::remove_file(fs::canonicalize(fetched.dir.join("config.json")).unwrap()).unwrap();
    same(&client.fetch().unwrap().dir, &files);
    damage();
    client.settings.offline = true;
    let error = client.fetch().unwrap_err();
    assert!(error.to_string().contains("model.safetensors"), "{error}");
}

#[test]
fn what_the_hub_does_not_have_or_does_not_give_is_said_plainly() {
    let mut files = files(false);
    files.remove("tokenizer.json");
    let server = Server::start(ID, files);
    let client = Client::new(&server);
    let error = client.fetch().unwrap_err();
    assert!(error.to_string().contains("tokenizer.json") && error.code() == ExitCode::StageFailed, "{error}");
    let error = client.fetch_revision("nothing").unwrap_err();
    assert!(error.to_string().contains("no such model, revision or file"), "{error}");
    server.fail("/api/models/", [Fault::Status(401)]);
    let error = client.fetch().unwrap_err();
    assert!(error.to_string().contains("refuses access"), "{error}");
}

#[test]
fn a_revision_that_leads_out_of_the_cache_is_refused() {
    let server = Server::start(ID, files(false));
    let client = Client::new(&server);
    for revision in ["", "../../x", "/x", "a//b", "a b", "..", "x?y"] {
        assert_eq!(client.fetch_revision(revision).unwrap_err().code(), ExitCode::Usage, "{revision}");
    }
    assert!(server.requests().is_empty());
}

#[test]
fn a_hub_that_is_not_there_ends_as_retryable() {
    let server = Server::start(ID, files(false));
    let mut client = Client::new(&server);
    client.settings.attempts = 2;
    drop(server);
    let error = client.fetch().unwrap_err();
    assert_eq!(error.code(), ExitCode::Retryable, "{error}");
}

#[test]
fn a_silent_connection_is_given_up() {
    let server = Server::start(ID, files(false));
    server.fail("cdn/model.safetensors", [Fault::Silence]);
    let mut client = Client::new(&server);
    client.settings.silence = Duration::from_millis(400);
    let error = client.fetch().unwrap_err();
    assert_eq!(error.code(), ExitCode::Retryable);
    assert!(error.to_string().contains("10 bytes came from the hub"), "{error}");
}

#[test]
fn a_hub_that_sends_a_byte_now_and_then_is_given_up_and_what_came_is_kept() {
    let server = Server::start(ID, files(false));
    server.fail("cdn/model.safetensors", [Fault::Trickle]);
    let mut client = Client::new(&server);
    client.settings.silence = Duration::from_millis(600);
    let started = std::time::Instant::now();
    let error = client.fetch().unwrap_err();
    assert_eq!(error.code(), ExitCode::Retryable);
    assert!(error.to_string().contains("bytes came"), "{error}");
    assert!(started.elapsed() < Duration::from_secs(4), "the server drips for five seconds");
    client.settings.silence = Duration::from_secs(20);
    client.fetch().unwrap();
}

#[test]
fn a_stopped_stage_does_not_wait_for_the_hub() {
    let server = Server::start(ID, files(false));
    server.fail("cdn/model.safetensors", [Fault::Silence]);
    let client = Client::new(&server);
    let flag = client.context.cancel_flag();
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        flag.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    let started = std::time::Instant::now();
    assert_eq!(client.fetch().unwrap_err().code(), ExitCode::Interrupted);
    assert!(started.elapsed() < Duration::from_secs(4), "the server is silent for five seconds");
}

/// The real program, with the environment that the hub's own tools use.
#[test]
fn the_program_reads_the_hubs_environment_and_gives_the_same_bytes_offline() {
    let root = tempfile::tempdir().unwrap();
    let server = Server::start(ID, files(true));
    let run = |out: &str, offline: &str| {
        std::process::Command::new(std::env::var_os("CARGO_BIN_EXE_fetch-model").unwrap())
            .env("HF_HOME", root.path().join("home"))
            .env("HF_ENDPOINT", server.address())
            .env("HF_TOKEN", "hf_secret")
            .env("HF_HUB_OFFLINE", offline)
            .args(["--source", ID, "--set", "attempts=2", "--out", out])
            .current_dir(root.path())
            .output()
            .unwrap()
    };
    let online = run("a", "0");
    assert!(online.status.success(), "{}", String::from_utf8_lossy(&online.stderr));
    assert!(server.saw_header("authorization: bearer hf_secret"));
    assert!(root.path().join("home/hub/models--owner--tiny/blobs").is_dir());
    let asked = server.requests().len();
    assert!(run("b", "1").status.success());
    assert_eq!(server.requests().len(), asked, "offline asks nobody");
    for entry in fs::read_dir(root.path().join("a")).unwrap() {
        let name = entry.unwrap().file_name();
        let [a, b] = ["a", "b"].map(|dir| fs::read(root.path().join(dir).join(&name)).unwrap());
        assert_eq!(a, b, "{name:?}");
    }
    server.fail("/api/models/", [Fault::Status(429), Fault::Status(429)]);
    let limited = run("c", "0");
    assert_eq!(limited.status.code(), Some(75), "{}", String::from_utf8_lossy(&limited.stderr));
    assert!(!root.path().join("c").exists());
}

#[test]
fn a_token_is_sent_and_shown_to_nobody() {
    let server = Server::start(ID, files(false));
    let mut client = Client::new(&server);
    client.settings.token = Some("hf_secret".to_owned());
    client.fetch().unwrap();
    assert!(server.saw_header("authorization: bearer hf_secret"));
    let events = fs::read_to_string(client.root.path().join("live/events.jsonl")).unwrap();
    assert!(!events.contains("hf_secret"));
}
