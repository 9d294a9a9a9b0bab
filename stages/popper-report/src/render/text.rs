//! Numbers and texts for a reader.

use record::report::{CheckVerdict, Measured};

/// Escapes for HTML, text and quoted attributes alike.
pub(super) fn esc(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(shown(c)),
        }
    }
    out
}

/// A character as it may stand on a page. Generated text may hold any: control characters are not allowed in HTML, and
/// marks of direction would let a text show itself in another order than it has.
fn shown(c: char) -> char {
    let turns =
        matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let breaks = matches!(c, '\u{2028}' | '\u{2029}');
    if turns || breaks || (c.is_control() && !matches!(c, '\n' | '\t')) { '\u{fffd}' } else { c }
}

/// At most `most` characters, with what is left out said.
pub(super) fn clipped(text: &str, most: usize) -> std::borrow::Cow<'_, str> {
    match text.char_indices().nth(most) {
        None => text.into(),
        Some((end, _)) => {
            format!("{}… ({} more characters)", &text[..end], text[end..].chars().count()).into()
        }
    }
}

/// Escapes, and sets what stands between backquotes as code.
pub(super) fn prose(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 16);
    let parts: Vec<&str> = text.split('`').collect();
    if parts.len().is_multiple_of(2) {
        return esc(text);
    }
    for (i, part) in parts.iter().enumerate() {
        if i % 2 == 1 {
            out.push_str("<code>");
            out.push_str(&esc(part));
            out.push_str("</code>");
        } else {
            out.push_str(&esc(part));
        }
    }
    out
}

/// Escapes for a line or a table's cell of Markdown: no line break, no HTML, no link or picture, no end of the cell.
/// What stands between a pair of backquotes stays code.
pub(super) fn cell(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 16);
    let is_paired = text.matches('`').count().is_multiple_of(2) && !text.contains("``");
    let mut is_code = false;
    for c in text.chars() {
        match c {
            '\n' | '\r' | '\t' => out.push(' '),
            '|' => out.push_str("\\|"),
            '`' if is_paired => {
                is_code = !is_code;
                out.push(c);
            }
            c if is_code => out.push(shown(c)),
            '<' => out.push_str("&lt;"),
            '&' => out.push_str("&amp;"),
            '\\' | '`' | '*' | '[' | ']' | '#' => out.extend(['\\', c]),
            c => out.push(shown(c)),
        }
    }
    out
}

/// About three significant digits.
pub(super) fn number(v: f64) -> String {
    let size = v.abs();
    if v == 0.0 {
        "0".to_owned()
    } else if !(1e-3..1e6).contains(&size) {
        format!("{v:.2e}")
    } else if size >= 100.0 {
        format!("{v:.0}")
    } else if size >= 10.0 {
        format!("{v:.1}")
    } else if size >= 1.0 {
        format!("{v:.2}")
    } else {
        format!("{v:.3}")
    }
}

/// With so many digits behind the point. What is rounded to zero has no sign.
fn fixed(v: f64, digits: usize) -> String {
    let text = format!("{v:.digits$}");
    match text.strip_prefix('-') {
        Some(size) if size.bytes().all(|b| matches!(b, b'0' | b'.')) => size.to_owned(),
        _ => text,
    }
}

/// As [`fixed`], with a plus where something rose.
fn change(v: f64, digits: usize) -> String {
    let text = fixed(v, digits);
    if v > 0.0 && text != fixed(0.0, digits) { format!("+{text}") } else { text }
}

/// A value with its unit: `82.0 %`.
pub(super) fn value(m: &Measured) -> String {
    let text = match m.unit.as_str() {
        "%" => fixed(m.value, 1),
        "pp" => change(m.value, 1),
        unit if unit.ends_with("differ") || matches!(unit, "faults" | "samples") => fixed(m.value, 0),
        _ => number(m.value),
    };
    format!("{text} {}", m.unit)
}

/// The interval and the number of cases: `95 %: 73.1 to 88.6, n = 100`; empty where there is neither.
pub(super) fn spread(m: &Measured) -> String {
    let show = |v: f64| if matches!(m.unit.as_str(), "%" | "pp") { fixed(v, 1) } else { number(v) };
    let interval = m.interval95.map(|[low, high]| format!("95 %: {} to {}", show(low), show(high)));
    let n = m.n.map(|n| format!("n = {n}"));
    [interval, n].into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// A compared rate: in percent, but for similarities, which are read as numbers between 0 and 1.
pub(super) fn compared(metric: &str, m: &Measured, is_difference: bool) -> String {
    let show = if is_difference { change } else { fixed };
    if is_similarity(metric) {
        return show(m.value, 3);
    }
    let unit = if is_difference { "pp" } else { "%" };
    format!("{} {unit}", show(m.value * 100.0, 1))
}

pub(super) fn compared_interval(metric: &str, m: &Measured) -> String {
    match m.interval95 {
        None => String::new(),
        Some([low, high]) if is_similarity(metric) => format!("{} to {}", fixed(low, 3), fixed(high, 3)),
        Some([low, high]) => format!("{} to {}", fixed(low * 100.0, 1), fixed(high * 100.0, 1)),
    }
}

fn is_similarity(metric: &str) -> bool {
    metric.contains("bleu")
}

/// The first twelve digits of a digest.
pub(super) fn short(digest: &str) -> &str {
    digest.get(..12).unwrap_or(digest)
}

pub(super) fn class(verdict: CheckVerdict) -> &'static str {
    match verdict {
        CheckVerdict::Corroborated => "ok",
        CheckVerdict::Falsified => "bad",
        CheckVerdict::NotTested => "none",
    }
}

pub(super) fn mark(verdict: CheckVerdict) -> &'static str {
    match verdict {
        CheckVerdict::Corroborated => "✓",
        CheckVerdict::Falsified => "✕",
        CheckVerdict::NotTested => "○",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_from_a_model_can_not_leave_its_place() {
        assert_eq!(esc("</pre><script>\"'&\u{1b}"), "&lt;/pre&gt;&lt;script&gt;&quot;&#39;&amp;\u{fffd}");
        assert_eq!(esc("a\u{202e}b\u{2066}"), "a\u{fffd}b\u{fffd}");
        assert_eq!(cell("a|b\n<c> ![x](y)"), "a\\|b &lt;c> !\\[x\\](y)");
        assert_eq!(cell("of `a<b>`, not a`b"), "of \\`a&lt;b>\\`, not a\\`b");
        assert_eq!(cell("the `a<b>` was"), "the `a<b>` was");
        assert_eq!(clipped("abcdef", 4), "abcd… (2 more characters)");
        assert_eq!(clipped("äöü", 3), "äöü");
    }

    #[test]
    fn prose_sets_pairs_of_backquotes() {
        assert_eq!(prose("the `a<b>` was"), "the <code>a&lt;b&gt;</code> was");
        assert_eq!(prose("one ` alone"), "one ` alone");
    }

    #[test]
    fn numbers_are_short_and_do_not_lie() {
        let shown = [0.0, 0.0004, 0.5, 1.25, 12.34, 123.4, -3.0, 1.5e7].map(number);
        assert_eq!(shown, ["0", "4.00e-4", "0.500", "1.25", "12.3", "123", "-3.00", "1.50e7"]);
    }

    #[test]
    fn what_is_rounded_to_zero_has_no_sign() {
        let measured = |value, unit: &str| Measured {
            value,
            unit: unit.to_owned(),
            interval95: Some([-0.0004, 0.0014]),
            n: None,
        };
        assert_eq!(compared_interval("bleu", &measured(0.0, "")), "0.000 to 0.001");
        assert_eq!(compared_interval("compiles", &measured(0.0, "")), "0.0 to 0.1");
        assert_eq!(spread(&measured(0.0, "pp")), "95 %: 0.0 to 0.0");
        let changes = [-0.04, -0.06, 0.04, 0.06, -0.0];
        assert_eq!(
            changes.map(|v| value(&measured(v, "pp"))),
            ["0.0 pp", "-0.1 pp", "0.0 pp", "+0.1 pp", "0.0 pp"]
        );
        let similar = [-0.0004, -0.0006, 0.0004, 0.0006].map(|v| compared("bleu", &measured(v, ""), true));
        assert_eq!(similar, ["0.000", "-0.001", "0.000", "+0.001"]);
        assert_eq!(compared("compiles", &measured(0.5, ""), false), "50.0 %");
        assert_eq!(compared("compiles", &measured(-0.0001, ""), true), "0.0 pp");
    }
}
