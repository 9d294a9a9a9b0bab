//! Where the hub and its cache are, and how patient to be, from the environment that its own tools use.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use stage_kit::{Result, StageError};

const ENDPOINT: &str = "https://huggingface.co";

/// How to reach a hub.
#[derive(Clone)]
pub struct Settings {
    pub endpoint: String,
    /// The folder of `models--owner--name` folders.
    pub cache: PathBuf,
    pub token: Option<String>,
    /// Use the cache alone.
    pub offline: bool,
    /// How often a request is tried, at least once.
    pub attempts: u32,
    /// Before the second attempt, half of it; doubles with each.
    pub wait: Duration,
    /// The longest pause that a hub may ask for with `Retry-After`.
    pub pause_max: Duration,
    /// A connection that brings next to nothing for so long is given up.
    pub silence: Duration,
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings")
            .field("endpoint", &self.endpoint)
            .field("cache", &self.cache)
            .field("token", &self.token.as_ref().map(|_| "..."))
            .field("offline", &self.offline)
            .field("attempts", &self.attempts)
            .finish_non_exhaustive()
    }
}

impl Settings {
    /// From `HF_ENDPOINT`, `HF_HUB_CACHE`, `HF_HOME`, `HF_TOKEN`, `HF_TOKEN_PATH` and `HF_HUB_OFFLINE`.
    ///
    /// # Errors
    /// There is neither a cache folder named nor a home folder to keep one in.
    pub fn from_env(attempts: u32) -> Result<Self> {
        // Without HOME this asks the system's user database: a runner may start its stages with an empty environment.
        Self::from_variables(attempts, env::home_dir(), |name| {
            env::var_os(name).filter(|value| !value.is_empty())
        })
    }

    fn from_variables(
        attempts: u32,
        home: Option<PathBuf>,
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self> {
        let home = variable("HF_HOME")
            .map(PathBuf::from)
            .or_else(|| variable("XDG_CACHE_HOME").map(|dir| PathBuf::from(dir).join("huggingface")))
            .or_else(|| home.map(|dir| dir.join(".cache/huggingface")));
        let cache =
            variable("HF_HUB_CACHE").map(PathBuf::from).or_else(|| home.as_ref().map(|h| h.join("hub")));
        let cache = cache.ok_or_else(|| {
            StageError::usage("no folder for the hub's cache: neither HF_HOME nor HOME is set")
                .next("set HF_HOME to a folder")
        })?;
        let text = |name: &str| variable(name).and_then(|value| value.into_string().ok());
        let token_file =
            variable("HF_TOKEN_PATH").map(PathBuf::from).or_else(|| home.map(|h| h.join("token")));
        let saved = token_file.and_then(|path| fs::read_to_string(path).ok());
        let token = text("HF_TOKEN").or(saved).map(|t| t.trim().to_owned()).filter(|t| !t.is_empty());
        let yes = |value: String| matches!(value.to_ascii_lowercase().as_str(), "1" | "true" | "yes" | "on");
        Ok(Self {
            endpoint: text("HF_ENDPOINT")
                .map_or_else(|| ENDPOINT.to_owned(), |e| e.trim_end_matches('/').to_owned()),
            cache,
            token,
            offline: text("HF_HUB_OFFLINE").is_some_and(yes),
            attempts: attempts.max(1),
            wait: Duration::from_millis(500),
            pause_max: Duration::from_secs(60),
            silence: Duration::from_secs(60),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(variables: &[(&str, &str)]) -> Result<Settings> {
        let home = variables.iter().find(|(n, _)| *n == "HOME").map(|(_, v)| PathBuf::from(v));
        Settings::from_variables(0, home, |name| {
            variables.iter().find(|(n, _)| *n == name).map(|(_, v)| OsString::from(v))
        })
    }

    #[test]
    fn the_environment_of_the_hubs_own_tools_is_honoured() {
        let s = settings(&[("HOME", "/h")]).unwrap();
        assert_eq!((s.cache.to_str(), s.endpoint.as_str()), (Some("/h/.cache/huggingface/hub"), ENDPOINT));
        assert_eq!((s.token, s.offline, s.attempts), (None, false, 1));
        let variables = [
            ("HOME", "/h"),
            ("HF_HOME", "/x"),
            ("HF_ENDPOINT", "http://e/"),
            ("HF_TOKEN", "t\n"),
            ("HF_HUB_OFFLINE", "True"),
        ];
        let s = settings(&variables).unwrap();
        assert_eq!((s.cache.to_str(), s.endpoint.as_str()), (Some("/x/hub"), "http://e"));
        assert_eq!((s.token.as_deref(), s.offline), (Some("t"), true));
        assert_eq!(settings(&[("HF_HUB_CACHE", "/c")]).unwrap().cache.to_str(), Some("/c"));
        assert!(settings(&[]).is_err());
        assert!(!settings(&[("HOME", "/h"), ("HF_HUB_OFFLINE", "0")]).unwrap().offline);
    }

    #[test]
    fn a_token_is_not_printed() {
        let s = settings(&[("HOME", "/h"), ("HF_TOKEN", "hf_secret")]).unwrap();
        assert!(!format!("{s:?}").contains("hf_secret"));
    }
}
