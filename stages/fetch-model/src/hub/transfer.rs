//! One request to a hub, whose answer is not believed: only a name that is plain becomes a file's, only as much is
//! written as was announced and allowed, and an address leads in a circle only so often.
//!
//! `hf-hub` builds paths from the answer's headers as they come and writes for as long as bytes do, so files are brought
//! here. The layout of its cache folder, parts of cut downloads and locks included, is kept.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hf_hub::api::RepoInfo;
use ureq::config::RedirectAuthHeaders;
use ureq::http::{HeaderMap, Response, StatusCode, Uri};
use ureq::typestate::WithoutBody;
use ureq::{Agent, Body, RequestBuilder};

/// Steps from one address to the next before an answer.
const REDIRECTS: u32 = 10;
/// A list of a repository's files.
const LISTING_MAX: u64 = 16 << 20;
const LONGEST_NAME: usize = 128;

/// Why a request came to nothing.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The hub's answer is a refusal; it may say when to come back.
    Status(u16, Option<Duration>),
    /// Not what a hub answers: asking again would not help. Reads after "the hub".
    Refused(String),
    /// May go better the next time.
    Broken(String),
    /// The address can't be asked for.
    Address(String),
    /// This machine's disk.
    Disk(PathBuf, io::Error),
}

/// Speaks to one hub.
#[derive(Debug, Clone)]
pub(super) struct Client {
    following: Agent,
    staying: Agent,
    token: Option<String>,
}

impl Client {
    pub(super) fn new(token: Option<String>) -> Self {
        let agent = |redirects: u32| -> Agent {
            Agent::config_builder()
                .http_status_as_error(false)
                .redirect_auth_headers(RedirectAuthHeaders::SameHost)
                .max_redirects(redirects)
                .build()
                .into()
        };
        Self { following: agent(REDIRECTS), staying: agent(0), token }
    }

    fn get(&self, agent: &Agent, url: &str) -> RequestBuilder<WithoutBody> {
        let request = agent.get(url).header("Accept-Encoding", "identity");
        match &self.token {
            Some(token) => request.header("Authorization", format!("Bearer {token}")),
            None => request,
        }
    }

    /// The commit and the files that a hub names for a revision.
    pub(super) fn listing(request: RequestBuilder<WithoutBody>) -> Result<RepoInfo, Trouble> {
        let request = request.header("Accept-Encoding", "identity").config();
        let request = request.http_status_as_error(false).max_redirects(REDIRECTS).build();
        let response = succeeded(request.call().map_err(|e| trouble(&e))?)?;
        response.into_body().into_with_config().limit(LISTING_MAX).read_json().map_err(|e| match e {
            ureq::Error::BodyExceedsLimit(n) => {
                Trouble::Refused(format!("sends a list of files longer than {n} bytes"))
            }
            ureq::Error::Json(e) if !e.is_io() => Trouble::Refused(format!("sends no list of files: {e}")),
            other => trouble(&other),
        })
    }

    /// The name of a file's blob in the cache: what the hub names as its hash. `commit` is the one asked for.
    pub(super) fn blob_name(&self, url: &str, commit: &str) -> Result<String, Trouble> {
        let mut address = url.to_owned();
        for _ in 0..=REDIRECTS {
            let ask = |range: Option<&str>| {
                let request = self.get(&self.staying, &address);
                let request = if let Some(range) = range { request.header("Range", range) } else { request };
                request.call().map_err(|e| trouble(&e))
            };
            let mut response = ask(Some("bytes=0-0"))?;
            if response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
                // An empty file has no first byte.
                response = ask(None)?;
            }
            if response.status().is_redirection()
                && let Some(next) = neighbour(&address, response.headers())?
            {
                address = next;
                continue;
            }
            if !response.status().is_redirection() {
                response = succeeded(response)?;
            }
            if let Some(other) = text(response.headers(), "x-repo-commit").filter(|c| *c != commit) {
                return Err(Trouble::Refused(format!(
                    "answers for the commit {other:?}, not the one asked for"
                )));
            }
            let headers = response.headers();
            return match text(headers, "x-linked-etag").or_else(|| text(headers, "etag")) {
                Some(tag) => plain_name(&tag),
                None => Err(Trouble::Refused("names no hash (ETag) of the file".to_owned())),
            };
        }
        Err(Trouble::Refused(format!("redirects more than {REDIRECTS} times")))
    }

    /// Brings what `part` still lacks of a file of at most `limit` bytes.
    pub(super) fn load(&self, url: &str, part: &Path, limit: u64, done: &AtomicU64) -> Result<(), Trouble> {
        let disk = |e| Trouble::Disk(part.to_owned(), e);
        let mut file = OpenOptions::new().append(true).create(true).open(part).map_err(disk)?;
        let mut have = file.metadata().map_err(disk)?.len();
        let request = self.get(&self.following, url).header("Range", format!("bytes={have}-"));
        let response = request.call().map_err(|e| trouble(&e))?;
        if response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
            if have == 0 {
                return Ok(());
            }
            fs::remove_file(part).map_err(disk)?;
            return Err(Trouble::Broken(
                "the part of an earlier download is longer than the file".to_owned(),
            ));
        }
        let response = succeeded(response)?;
        if let Some(coding) = text(response.headers(), "content-encoding").filter(|c| c != "identity") {
            return Err(Trouble::Refused(format!(
                "sends the file packed as {coding:?}, which was not asked for"
            )));
        }
        let total = total(&response, &mut have)?;
        if file.metadata().map_err(disk)?.len() != have {
            file.set_len(0).map_err(disk)?;
        }
        let most = match total {
            Some(total) if total > limit => {
                return Err(Trouble::Refused(format!(
                    "announces a file of {total} bytes, and it may have {limit} at most"
                )));
            }
            Some(total) => total,
            None => limit,
        };
        done.store(have, Ordering::Relaxed);
        have = copy(response.into_body().into_reader(), &mut file, part, have, most, done)?;
        match total {
            Some(total) if have < total => {
                Err(Trouble::Broken(format!("the connection broke after {have} of {total} bytes")))
            }
            Some(total) if have > total => {
                let _ = fs::remove_file(part);
                Err(Trouble::Broken(format!("the hub sent more than the {total} bytes that it announced")))
            }
            None if have > limit => {
                let _ = fs::remove_file(part);
                Err(Trouble::Refused(format!("sends more than the {limit} bytes that it may have")))
            }
            _ => Ok(()),
        }
    }
}

/// Copies until the end, or one byte beyond `most`; gives the length of the file then.
fn copy(
    mut from: impl Read,
    file: &mut File,
    part: &Path,
    mut have: u64,
    most: u64,
    done: &AtomicU64,
) -> Result<u64, Trouble> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let n = match from.read(&mut buffer) {
            Ok(0) => return Ok(have),
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(Trouble::Broken(format!("the connection broke: {e}"))),
        };
        let fitting = n.min(usize::try_from(most.saturating_sub(have)).unwrap_or(n));
        file.write_all(&buffer[..fitting]).map_err(|e| Trouble::Disk(part.to_owned(), e))?;
        if fitting < n {
            return Ok(most.saturating_add(1));
        }
        have += n as u64;
        done.store(have, Ordering::Relaxed);
    }
}

/// The length of the whole file, where the answer tells it. A hub that sends it from its start sets `have` to zero.
fn total(response: &Response<Body>, have: &mut u64) -> Result<Option<u64>, Trouble> {
    let headers = response.headers();
    if response.status() == StatusCode::PARTIAL_CONTENT {
        let range = text(headers, "content-range").unwrap_or_default();
        let parsed = range.strip_prefix("bytes ").and_then(|r| {
            let (span, total) = r.split_once('/')?;
            Some((span.split_once('-')?.0.parse::<u64>().ok()?, total.parse::<u64>().ok()))
        });
        return match parsed {
            Some((start, total)) if start == *have => Ok(total),
            _ => Err(Trouble::Refused(format!("was asked for the bytes from {have} on, and sent {range:?}"))),
        };
    }
    *have = 0;
    Ok(text(headers, "content-length").and_then(|n| n.parse().ok()))
}

fn succeeded(response: Response<Body>) -> Result<Response<Body>, Trouble> {
    if response.status().is_success() {
        return Ok(response);
    }
    let after = text(response.headers(), "retry-after").and_then(|t| pause(&t));
    Err(Trouble::Status(response.status().as_u16(), after))
}

/// `Retry-After`: seconds, or a date. What is neither, or lies in the past, asks for nothing.
fn pause(text: &str) -> Option<Duration> {
    if let Ok(seconds) = text.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let then = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text.trim()).ok()?;
    Duration::try_from(then.duration_since(jiff::Timestamp::now())).ok()
}

/// Where a redirect leads, if it stays with the hub: its host is told the hash, another one's answer is not asked.
fn neighbour(address: &str, headers: &HeaderMap) -> Result<Option<String>, Trouble> {
    let location =
        text(headers, "location").ok_or_else(|| Trouble::Refused("redirects to nowhere".to_owned()))?;
    let wrong = || Trouble::Refused(format!("redirects to {location:?}, which is no address"));
    let next: Uri = location.parse().map_err(|_| wrong())?;
    if next.host().is_some() {
        return Ok(None);
    }
    let mut parts = address.parse::<Uri>().map_err(|_| wrong())?.into_parts();
    parts.path_and_query = next.into_parts().path_and_query;
    let next = Uri::from_parts(parts).map_err(|_| wrong())?;
    Ok(Some(next.to_string()))
}

/// An entity tag as the name of a file. Hubs name hashes; mirrors name what they like.
fn plain_name(tag: &str) -> Result<String, Trouble> {
    let name = tag.trim().trim_start_matches("W/").replace('"', "");
    let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    if plain && !name.is_empty() && name.len() <= LONGEST_NAME {
        return Ok(name);
    }
    let shown: String = tag.chars().take(80).collect();
    Err(Trouble::Refused(format!("names {shown:?} as the hash (ETag) of the file, which is none")))
}

/// A header's text; bytes outside of UTF-8 are shown as such.
fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
}

fn trouble(error: &ureq::Error) -> Trouble {
    match error {
        ureq::Error::BadUri(_) | ureq::Error::Http(_) => Trouble::Address(error.to_string()),
        ureq::Error::TooManyRedirects => Trouble::Refused(format!("redirects more than {REDIRECTS} times")),
        ureq::Error::LargeResponseHeader(..) => Trouble::Refused(format!("sends endless headers: {error}")),
        other => Trouble::Broken(format!("can't talk to the hub: {other}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_plain_tag_names_a_file() {
        let hash = "a".repeat(64);
        for tag in [format!("\"{hash}\""), format!("W/\"{hash}\""), hash.clone()] {
            assert_eq!(plain_name(&tag).unwrap(), hash);
        }
        assert_eq!(plain_name("\"5f3c-1a2b\"").unwrap(), "5f3c-1a2b");
        for tag in ["", "\"\"", "../../x", "/etc/x", "a/b", "a\0b", "..", ".", "a b", "ä", &"a".repeat(129)]
        {
            assert!(matches!(plain_name(tag), Err(Trouble::Refused(_))), "{tag}");
        }
    }

    #[test]
    fn a_pause_is_seconds_or_a_date() {
        assert_eq!(pause(" 7 "), Some(Duration::from_secs(7)));
        let soon = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(100);
        let date = jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&soon).unwrap();
        assert!(pause(&date).is_some_and(|p| (95..=100).contains(&p.as_secs())), "{date}");
        for text in ["Wed, 21 Oct 2015 07:28:00 GMT", "-3", "", "soon", "99999999999999999999999"] {
            assert_eq!(pause(text), None, "{text}");
        }
    }

    #[test]
    fn a_redirect_without_a_host_stays_with_the_hub() {
        let to = |location: &str| {
            let headers = HeaderMap::from_iter([(
                "location".parse().unwrap(),
                ureq::http::HeaderValue::from_str(location).unwrap(),
            )]);
            neighbour("http://hub:1/a/b?c", &headers)
        };
        assert_eq!(to("/x?y").unwrap().as_deref(), Some("http://hub:1/x?y"));
        assert_eq!(to("http://other/x").unwrap(), None);
        assert!(to("x y").is_err());
        assert!(neighbour("http://hub:1/", &HeaderMap::new()).is_err());
    }
}
