//! Which licences a source may have.

use spdx::{Expression, LicenseReq, Licensee, ParseMode};
use thiserror::Error;

/// Allowed unless the parameter says otherwise; all of them let rows be passed on with a notice.
pub const ALLOWED: [&str; 9] =
    ["MIT", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "Zlib", "0BSD", "Unlicense", "CC0-1.0"];

/// Why a crate's licence is refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum LicenceError {
    #[error("no licence is declared")]
    Missing,
    #[error("`{0}` is not an SPDX expression")]
    Malformed(String),
    #[error("`{0}` has no side that is allowed")]
    NotAllowed(String),
    #[error("`{0}` is not the name of an SPDX licence")]
    Unknown(String),
}

/// A licence that was accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// In standard form: `MIT OR Apache-2.0` for `MIT/Apache-2.0`.
    pub expression: String,
    /// The licences that are relied on, sorted.
    pub used: Vec<String>,
}

/// Parses an SPDX expression and picks allowed licences that satisfy it, of `A OR B` the earlier one in `allowed`.
///
/// # Errors
/// See [`LicenceError`].
pub fn accept(expression: Option<&str>, allowed: &[String]) -> Result<Accepted, LicenceError> {
    let text = expression.map(str::trim).filter(|t| !t.is_empty()).ok_or(LicenceError::Missing)?;
    let canonical = Expression::canonicalize(text).ok().flatten().unwrap_or_else(|| text.to_owned());
    let parsed = Expression::parse_mode(&canonical, ParseMode::LAX)
        .map_err(|_| LicenceError::Malformed(text.to_owned()))?;
    let mut accepted = Vec::new();
    for name in allowed {
        accepted.push(Licensee::parse(name).map_err(|_| LicenceError::Unknown(name.clone()))?);
    }
    let used =
        parsed.minimized_requirements(&accepted).map_err(|_| LicenceError::NotAllowed(canonical.clone()))?;
    let mut used: Vec<String> = used.iter().map(LicenseReq::to_string).collect();
    used.sort();
    Ok(Accepted { expression: canonical, used })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(expression: &str) -> Result<Accepted, LicenceError> {
        let allowed: Vec<String> = ALLOWED.iter().map(|a| (*a).to_owned()).collect();
        accept(Some(expression), &allowed)
    }

    #[test]
    fn an_allowed_side_is_picked() {
        assert_eq!(check("MIT").unwrap().used, ["MIT"]);
        assert_eq!(check("GPL-3.0-only OR Apache-2.0").unwrap().used, ["Apache-2.0"]);
        assert_eq!(check("MIT AND Zlib").unwrap().used, ["MIT", "Zlib"]);
        assert_eq!(check("WTFPL OR MIT OR Apache-2.0").unwrap().used.len(), 1);
    }

    #[test]
    fn the_old_slash_means_or() {
        let accepted = check("MIT/Apache-2.0").unwrap();
        assert_eq!(accepted.expression, "MIT OR Apache-2.0");
        assert_eq!(check("Apache-2.0 / MIT").unwrap().expression, "Apache-2.0 OR MIT");
    }

    #[test]
    fn everything_else_is_refused_with_the_reason() {
        for expression in ["GPL-3.0-only", "MPL-2.0", "MIT AND GPL-2.0-only", "LGPL-2.1-or-later"] {
            assert!(matches!(check(expression), Err(LicenceError::NotAllowed(_))), "{expression}");
        }
        assert!(matches!(check("do what you like"), Err(LicenceError::Malformed(_))));
        assert_eq!(accept(None, &[]), Err(LicenceError::Missing));
        assert_eq!(accept(Some("  "), &[]), Err(LicenceError::Missing));
        assert!(matches!(accept(Some("MIT"), &["Nonsense".to_owned()]), Err(LicenceError::Unknown(_))));
    }
}
