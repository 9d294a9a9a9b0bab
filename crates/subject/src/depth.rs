//! How deep untrusted text nests, before a recursive parser sees it.
//!
//! The parser and every visitor recurse; text made of ten thousand minus signs would end the program by a stack overflow,
//! which nothing can catch. The measure is crude and generous: no code that a person wrote comes near the limits.

use crate::SubjectError;
use crate::facts::comments::token;

/// Brackets, operators and dots on the way from the outside to any place: each may be one level of the tree.
const MAX_LEVELS: usize = 400;
/// `else if` after `else if`: each is one level.
const MAX_ELSES: usize = 300;

/// Of one number.
const MAX_DIGITS: usize = 1000;
const TOO_DEEP: &str = "nests too deep";

/// Parses items, after a look at their depth.
///
/// # Errors
/// [`SubjectError::Syntax`], also for text that nests too deep.
pub fn parse_items(what: &str, code: &str) -> Result<syn::File, SubjectError> {
    if let Some((line, why)) = too_deep(code) {
        return Err(SubjectError::Syntax { what: what.to_owned(), message: why.to_owned(), line, column: 1 });
    }
    syn::parse_file(code).map_err(|e| SubjectError::syntax(what, &e))
}

/// The line (from 1) where text nests deeper, or holds a longer number, than any code does, and which of it.
pub fn too_deep(code: &str) -> Option<(u32, &'static str)> {
    let mut line = 1_u32;
    // The level at which each open bracket stands.
    let mut open: Vec<usize> = Vec::new();
    let mut level = 0_usize;
    let mut rest = code;
    let mut after_word = false;
    let mut digits = 0_usize;
    while let Some(c) = rest.chars().next() {
        let (length, is_comment) = token(rest, c);
        let (text, after) = rest.split_at_checked(length).unwrap_or((rest, ""));
        rest = after;
        // The parser turns digits into a number one by one: the time goes with their square.
        let goes_on = digits > 0 && (c.is_alphanumeric() || c == '_');
        digits = if goes_on || c.is_ascii_digit() { digits + length } else { 0 };
        if digits > MAX_DIGITS {
            return Some((line, "a number with too many digits"));
        }
        let is_word = c.is_alphabetic() && text.chars().all(|c| c.is_alphanumeric() || c == '_');
        if is_word {
            // Two words in a row: the first is a keyword, and what follows it may be a level of its own (`return return 1`).
            level += usize::from(after_word);
        }
        if !is_comment && !c.is_whitespace() {
            after_word = is_word;
        }
        if is_comment || length > c.len_utf8() {
            let n_lines = text.matches('\n').count();
            line = line.saturating_add(u32::try_from(n_lines).unwrap_or(u32::MAX));
            if level > MAX_LEVELS {
                return Some((line, TOO_DEEP));
            }
            continue;
        }
        match c {
            '\n' => line = line.saturating_add(1),
            '(' | '[' | '{' => {
                open.push(level);
                level += 1;
            }
            // What follows a call or an index may go on from it; what follows a block starts anew.
            ')' | ']' => level = open.pop().unwrap_or(0) + 1,
            '}' => {
                open.pop();
                level = start_of_part(&open);
            }
            ';' | ',' => level = start_of_part(&open),
            '!' | '-' | '*' | '&' | '+' | '/' | '%' | '^' | '|' | '<' | '>' | '=' | '.' | '?' | ':' => {
                level += 1
            }
            _ => {}
        }
        if level > MAX_LEVELS {
            return Some((line, TOO_DEEP));
        }
    }
    if code.matches("else").count() > MAX_ELSES { Some((line, "too many branches")) } else { None }
}

/// The level of a statement or a list's element inside the innermost open bracket.
fn start_of_part(open: &[usize]) -> usize {
    open.last().map_or(0, |level| level + 1)
}

#[cfg(test)]
mod test {
    use super::{parse_items, too_deep};

    #[test]
    fn ordinary_code_is_read() {
        assert!(parse_items("the code", "fn f() { let x = ((1 + 2) * 3).abs(); }").is_ok());
        let rows = "    assert_eq!(f(1), [1, 2, 3]);\n".repeat(500);
        assert_eq!(too_deep(&format!("fn f() {{\n{rows}}}")), None);
        let rulers = "    // ======== ------- ((((((\n".repeat(500);
        let text = "&&&&====".repeat(200);
        assert_eq!(too_deep(&format!("fn f() {{\n{rulers} let s = \"{text}\"; }}")), None);
    }

    /// Each of these would keep the parser busy for hours.
    #[test]
    fn endless_numbers_are_refused() {
        let nines = "9".repeat(3_000_000);
        for text in [
            nines.clone(),
            format!("0x{nines}"),
            format!("1_{nines}"),
            format!("0.{nines}"),
            format!("1e{nines}"),
        ] {
            let code = format!("fn f() {{}}\nfn g() {{ h({text}); }}");
            assert_eq!(too_deep(&code), Some((2, "a number with too many digits")));
        }
        assert_eq!(too_deep(&format!("fn f() {{ x{nines}(\"{nines}\"); }} // {nines}")), None);
    }

    /// The deepest text that is let through is read, walked and dropped on the stack of an ordinary thread.
    #[test]
    fn what_is_let_through_does_not_overflow() {
        let texts = [
            format!("fn f() {{ {}1; }}", "!".repeat(390)),
            format!("fn f() {{ {}1{}; }}", "(".repeat(190), ")".repeat(190)),
            format!("fn f() {{ 1{}; }}", " + 1".repeat(390)),
            format!("fn f() {{ x{}; }}", ".g()".repeat(190)),
            format!("fn f() {{ if a {{}} {} }}", "else if a {} ".repeat(290)),
        ];
        let focal = crate::FocalFn::parse("fn g() {}").unwrap();
        let thread = std::thread::Builder::new().stack_size(2 << 20);
        let read =
            thread.spawn(move || texts.iter().try_for_each(|text| crate::facts(text, &focal).map(|_| ())));
        let read: Result<(), crate::SubjectError> = read.unwrap().join().unwrap();
        assert_eq!(read, Ok(()));
    }

    #[test]
    fn what_would_overflow_a_stack_is_an_error_on_a_small_stack() {
        let texts = [
            format!("fn f() {{ {}1; }}", "!".repeat(20_000)),
            format!("fn f() {{ {}1; }}", "- ".repeat(20_000)),
            format!("fn f() {{ {}1{}; }}", "(".repeat(20_000), ")".repeat(20_000)),
            format!("fn f() {{ 1{}; }}", " + 1".repeat(20_000)),
            format!("fn f() {{ x{}; }}", ".g()".repeat(20_000)),
            format!("fn f() {{ {}1{}; }}", "g(a, !!!!!!!!!".repeat(2_000), ")".repeat(2_000)),
            format!("fn f() {{ g{}; }}", "()".repeat(20_000)),
            format!("fn f() {{ if a {{}} {} }}", "else if a {} ".repeat(20_000)),
            format!("type T = {}u8{};", "Vec<".repeat(20_000), ">".repeat(20_000)),
            format!("fn f() {{ {}1; }}", "return ".repeat(20_000)),
            format!("fn f() {{ 1{}; }}", " as u8".repeat(20_000)),
            format!("fn f() {{ {}a{}; }}", "if ".repeat(20_000), " {}".repeat(20_000)),
        ];
        let small = std::thread::Builder::new().stack_size(1 << 20);
        let all = small.spawn(move || texts.iter().all(|text| parse_items("the code", text).is_err()));
        assert!(all.unwrap().join().unwrap());
    }
}
