//! `#[cfg(...)]` predicates, evaluated for a 64-bit Linux build with a crate's default features.

use std::collections::BTreeSet;

use super::lex::{Kind, Token, after_group};

/// What is switched on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config {
    pub features: BTreeSet<String>,
    pub test: bool,
}

impl Config {
    /// The same features, with `cfg(test)` on.
    #[must_use]
    pub fn testing(&self) -> Self {
        Self { features: self.features.clone(), test: true }
    }

    /// Evaluates the tokens between the parentheses of `cfg(...)`. What it does not know is off.
    pub fn holds(&self, predicate: &[Token]) -> bool {
        let mut at = 0;
        self.one(predicate, &mut at)
    }

    fn one(&self, tokens: &[Token], at: &mut usize) -> bool {
        let Some(name) = tokens.get(*at).filter(|t| t.kind == Kind::Ident) else { return false };
        *at += 1;
        if tokens.get(*at).is_some_and(|t| t.opens('(')) {
            let end = after_group(tokens, *at);
            let parts = self.list(&tokens[*at + 1..end.saturating_sub(1).max(*at + 1)]);
            *at = end;
            return match name.text.as_str() {
                "all" => parts.iter().all(|&p| p),
                "any" => parts.iter().any(|&p| p),
                "not" => !parts.first().copied().unwrap_or(false),
                _ => false,
            };
        }
        if tokens.get(*at).is_some_and(|t| t.is('=')) {
            let value = tokens.get(*at + 1).map_or("", |t| t.text.trim_matches('"'));
            *at += 2;
            return self.pair(&name.text, value);
        }
        match name.text.as_str() {
            "test" => self.test,
            "unix" | "debug_assertions" | "panic" | "true" => true,
            _ => false,
        }
    }

    fn list(&self, tokens: &[Token]) -> Vec<bool> {
        let mut parts = Vec::new();
        let mut at = 0;
        while at < tokens.len() {
            parts.push(self.one(tokens, &mut at));
            while at < tokens.len() && !tokens[at].is(',') {
                at += 1;
            }
            at += 1;
        }
        parts
    }

    fn pair(&self, key: &str, value: &str) -> bool {
        match key {
            "feature" => self.features.contains(value),
            "target_os" => value == "linux",
            "target_family" => value == "unix",
            "target_arch" => value == "x86_64",
            "target_pointer_width" => value == "64",
            "target_endian" => value == "little",
            "target_has_atomic" => matches!(value, "8" | "16" | "32" | "64" | "ptr"),
            "panic" => value == "unwind",
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extract::lex::flatten;

    #[test]
    fn predicates_nest() {
        let config = Config { features: ["std".to_owned()].into(), test: false };
        let cases = [
            ("test", false),
            ("not(test)", true),
            ("feature = \"std\"", true),
            ("feature = \"serde\"", false),
            ("all(feature = \"std\", not(windows))", true),
            ("any(windows, target_os = \"linux\")", true),
            ("all(feature = \"std\", any(test, windows))", false),
            ("all()", true),
            ("any()", false),
            ("something_else", false),
        ];
        for (text, expected) in cases {
            assert_eq!(config.holds(&flatten(text.parse().unwrap())), expected, "{text}");
        }
        assert!(config.testing().holds(&flatten("test".parse().unwrap())));
    }
}
