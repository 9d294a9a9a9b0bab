//! The small languages inside strings: references to outputs, durations, placeholders.

use std::fmt;
use std::time::Duration;

/// Where an input comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InputRef {
    /// `file:PATH`, relative to the pipeline's folder.
    File(String),
    /// `STAGE.OUTPUT`.
    Output(OutputRef),
}

/// An output of a stage, of one of its instances, or of all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputRef {
    pub stage: String,
    pub instance: Instance,
    pub output: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Instance {
    /// `STAGE.OUTPUT`: of a stage without a matrix.
    Only,
    /// `STAGE[*].OUTPUT`.
    All,
    /// `STAGE[rank=8,lr=2e-4].OUTPUT`.
    Named(String),
}

impl fmt::Display for OutputRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.instance {
            Instance::Only => write!(f, "{}.{}", self.stage, self.output),
            Instance::All => write!(f, "{}[*].{}", self.stage, self.output),
            Instance::Named(label) => write!(f, "{}[{label}].{}", self.stage, self.output),
        }
    }
}

impl InputRef {
    /// # Errors
    /// A sentence that says how a reference is written.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text.strip_prefix("file:") {
            Some("") => Err("`file:` names no path".to_owned()),
            Some(path) => Ok(Self::File(path.to_owned())),
            None => OutputRef::parse(text).map(Self::Output),
        }
    }
}

impl OutputRef {
    /// # Errors
    /// A sentence that says how a reference is written.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is neither `STAGE.OUTPUT` nor `file:PATH`");
        let (left, output) = text.rsplit_once('.').ok_or_else(wrong)?;
        let (stage, instance) = match left.split_once('[') {
            None => (left, Instance::Only),
            Some((stage, rest)) => match rest.strip_suffix(']') {
                Some("*") => (stage, Instance::All),
                Some(label) if !label.is_empty() => (stage, Instance::Named(label.to_owned())),
                _ => return Err(wrong()),
            },
        };
        if !is_name(stage) || !is_name(output) {
            return Err(wrong());
        }
        Ok(Self { stage: stage.to_owned(), instance, output: output.to_owned() })
    }
}

/// A node's name is a folder's, and file systems end at 255 bytes.
pub(crate) const LONGEST_NAME: usize = 100;
pub(crate) const LONGEST_NODE_NAME: usize = 240;

/// Names of stages, inputs, outputs and parameters: they become file names and parts of references.
pub fn is_name(text: &str) -> bool {
    let fine = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    !text.is_empty() && text.len() <= LONGEST_NAME && text.chars().all(fine) && !text.starts_with('-')
}

/// Splits `STAGE.OUTPUT/FILE`, as `gate` and `view` write it.
///
/// # Errors
/// A sentence that says how it is written.
pub(crate) fn parse_output_file(text: &str) -> Result<(OutputRef, String), String> {
    let wrong = || format!("`{text}` is not `STAGE.OUTPUT/FILE`");
    let bracket = text.rfind(']').unwrap_or(0);
    let slash = text[bracket..].find('/').map(|i| i + bracket).ok_or_else(wrong)?;
    let (output, file) = (&text[..slash], &text[slash + 1..]);
    let climbs = file.split('/').any(|part| part.is_empty() || part == "." || part == "..");
    if climbs {
        return Err(wrong());
    }
    Ok((OutputRef::parse(output).map_err(|_| wrong())?, file.to_owned()))
}

/// Added to any clock, this stays a time.
const LONGEST_DURATION: Duration = Duration::from_secs(100 * 366 * 86_400);

/// `2h`, `90s`, `1h30m`, `500ms`, `1d`.
///
/// # Errors
/// A sentence that says how a duration is written.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is not a duration like \"2h\", \"1h30m\", \"90s\" or \"500ms\"");
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(wrong());
    }
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let amount: f64 = rest[..digits].parse().map_err(|_| wrong())?;
        rest = &rest[digits..];
        let unit_end = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let seconds = match &rest[..unit_end] {
            "ms" => 1e-3,
            "s" => 1.0,
            "m" | "min" => 60.0,
            "h" => 3600.0,
            "d" => 86_400.0,
            _ => return Err(wrong()),
        };
        let part = Duration::try_from_secs_f64(amount * seconds).map_err(|_| wrong())?;
        total = total.checked_add(part).ok_or_else(wrong)?;
        rest = &rest[unit_end..];
    }
    if total > LONGEST_DURATION {
        return Err(format!("`{text}` is longer than 100 years"));
    }
    Ok(total)
}

/// `{in.NAME}`, `{out.NAME}` or `{param.NAME}` in an argument.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece<'a> {
    Text(&'a str),
    Input(&'a str),
    Output(&'a str),
    Param(&'a str),
}

/// Splits an argument at its placeholders. Any other brace is text.
pub fn pieces(argument: &str) -> Vec<Piece<'_>> {
    let mut found = Vec::new();
    let (mut start, mut at) = (0, 0);
    while let Some(open) = argument[at..].find('{').map(|i| i + at) {
        at = open + 1;
        let Some(close) = argument[open..].find('}').map(|i| i + open) else { break };
        let Some((kind, name)) = argument[open + 1..close].split_once('.') else { continue };
        let piece = match kind {
            "in" if is_name(name) => Piece::Input(name),
            "out" if is_name(name) => Piece::Output(name),
            "param" if is_name(name) => Piece::Param(name),
            _ => continue,
        };
        if start < open {
            found.push(Piece::Text(&argument[start..open]));
        }
        found.push(piece);
        (start, at) = (close + 1, close + 1);
    }
    if start < argument.len() {
        found.push(Piece::Text(&argument[start..]));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references() {
        assert_eq!(InputRef::parse("file:a/b").unwrap(), InputRef::File("a/b".into()));
        assert_eq!(OutputRef::parse("sweep[*].adapter").unwrap().instance, Instance::All);
        let named = OutputRef::parse("sweep[rank=8,lr=0.5].adapter").unwrap();
        assert_eq!(named.instance, Instance::Named("rank=8,lr=0.5".into()));
        for wrong in ["", "a", ".b", "a.", "a b.c", "a[].b", "a[x.b", "file:"] {
            assert!(InputRef::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn output_files() {
        let (output, file) = parse_output_file("report.out/gates.json").unwrap();
        assert_eq!((output.to_string().as_str(), file.as_str()), ("report.out", "gates.json"));
        assert!(parse_output_file("report.out").is_err());
        assert!(parse_output_file("report.out/../../x").is_err());
    }

    #[test]
    fn durations() {
        assert_eq!(parse_duration("1h30m").unwrap(), Duration::from_secs(5400));
        assert_eq!(parse_duration("500ms").unwrap(), Duration::from_millis(500));
        assert_eq!(parse_duration("1.5s").unwrap(), Duration::from_millis(1500));
        for wrong in ["", "2", "h", "2 weeks", "-1s", "1e3s", "9999999999999d"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn placeholders() {
        assert_eq!(pieces("a{in.x}b"), [Piece::Text("a"), Piece::Input("x"), Piece::Text("b")]);
        assert_eq!(pieces("{out.y}"), [Piece::Output("y")]);
        assert_eq!(pieces("${HOME} {} {x.y} {"), [Piece::Text("${HOME} {} {x.y} {")]);
        assert_eq!(pieces("{a {param.n}"), [Piece::Text("{a "), Piece::Param("n")]);
    }
}
