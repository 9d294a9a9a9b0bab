//! What the row's own tests tell about a function: which values it is called with, and which statements of them could
//! hold for other values too.

use std::collections::{BTreeMap, BTreeSet};

use quote::ToTokens;
use subject::extract::lex::{Kind, Token, after_group, flatten};

use super::Law;
use super::arguments::{Argument, Variable};

/// Literals that the tests hand to the function: one list of arguments a call, each the tokens of one argument.
#[derive(Debug, Default)]
pub(super) struct Examples {
    calls: Vec<Vec<Vec<Token>>>,
}

/// More different letters than this are no alphabet of their own.
const MAX_LETTERS: usize = 40;

impl Examples {
    pub(super) fn of(tests: &str, function: &str) -> Self {
        let Ok(stream) = tests.parse() else { return Self::default() };
        let tokens = flatten(stream);
        let is_call =
            |i: &usize| tokens[*i].is_ident(function) && tokens.get(i + 1).is_some_and(|t| t.opens('('));
        let calls = (0..tokens.len()).filter(is_call).map(|i| {
            let end = after_group(&tokens, i + 1);
            parts(&tokens[i + 2..end.saturating_sub(1).max(i + 2)])
        });
        Self { calls: calls.collect() }
    }

    /// Gives the arguments of a function inputs like those of its tests, where these say something about a range.
    pub(super) fn narrow(&self, arguments: &mut [Argument], takes_self: bool) {
        let calls: Vec<&Vec<Vec<Token>>> = self
            .calls
            .iter()
            .filter(|call| call.len() == arguments.len() || (takes_self && call.len() + 1 == arguments.len()))
            .collect();
        let mut found = Vec::new();
        for (at, argument) in arguments.iter().enumerate() {
            let values: Vec<&[Token]> = calls
                .iter()
                .filter_map(|call| {
                    call.get((at + call.len()).checked_sub(arguments.len())?).map(Vec::as_slice)
                })
                .collect();
            let alone = argument.variables.len() == 1;
            for (part, variable) in argument.variables.iter().enumerate() {
                let of_part: Vec<Vec<Token>> = values
                    .iter()
                    .filter_map(|value| if alone { Some(value.to_vec()) } else { tuple_part(value, part) })
                    .collect();
                if let Some(range) = range(variable, &of_part) {
                    found.push((at, part, range));
                }
            }
        }
        // One and the same call says nothing about a range.
        if !found.iter().any(|(.., range)| range.spread) {
            return;
        }
        for (at, part, range) in found {
            let variable = &mut arguments[at].variables[part];
            variable.strategies.truncate(2);
            if let [only] = &variable.strategies[..] {
                variable.strategies.push(only.clone());
            }
            variable.strategies.push(range.strategy);
            variable.is_like_examples = true;
        }
    }
}

/// Splits at the commas that stand in no bracket.
fn parts(tokens: &[Token]) -> Vec<Vec<Token>> {
    let mut parts = vec![Vec::new()];
    let mut depth = 0usize;
    for token in tokens {
        match token.kind {
            Kind::Open(_) => depth += 1,
            Kind::Close(_) => depth = depth.saturating_sub(1),
            Kind::Punct(',') if depth == 0 => {
                parts.push(Vec::new());
                continue;
            }
            _ => {}
        }
        if let Some(last) = parts.last_mut() {
            last.push(token.clone());
        }
    }
    parts.retain(|part| !part.is_empty());
    parts
}

fn tuple_part(value: &[Token], part: usize) -> Option<Vec<Token>> {
    match value {
        [open, inner @ .., _] if open.opens('(') => parts(inner).get(part).cloned(),
        _ => None,
    }
}

struct Range {
    strategy: String,
    /// It holds more than one value.
    spread: bool,
}

fn range(variable: &Variable, values: &[Vec<Token>]) -> Option<Range> {
    let ty = variable.ty.as_str();
    if ty == "text" {
        return alphabet(values);
    }
    if !ty.starts_with(['u', 'i']) {
        return None;
    }
    let numbers: BTreeSet<i128> = values.iter().filter_map(|value| integer(value)).collect();
    let (low, high) = (numbers.first()?, numbers.last()?);
    Some(Range { strategy: format!("{low}{ty}..={high}"), spread: low < high })
}

fn integer(value: &[Token]) -> Option<i128> {
    let (sign, literal) = match value {
        [amp, literal] if amp.is('&') => (1, literal),
        [minus, literal] if minus.is('-') => (-1, literal),
        [literal] => (1, literal),
        _ => return None,
    };
    let literal: syn::LitInt = syn::parse_str(&literal.text).ok()?;
    literal.base10_parse::<i128>().ok().map(|number| sign * number)
}

fn alphabet(values: &[Vec<Token>]) -> Option<Range> {
    let texts: Vec<String> = values.iter().filter_map(|value| text_of(value)).collect();
    let letters: BTreeSet<char> = texts.iter().flat_map(|text| text.chars()).collect();
    let longest = texts.iter().map(|text| text.chars().count()).max()?.min(16);
    let shortest = texts.iter().map(|text| text.chars().count()).min()?.min(longest);
    if letters.is_empty() || letters.len() > MAX_LETTERS || letters.iter().any(|c| c.is_control()) {
        return None;
    }
    let class: String = letters
        .iter()
        .flat_map(|&c| {
            let escaped = c.is_ascii_punctuation() && !matches!(c, '<' | '>');
            escaped.then_some('\\').into_iter().chain([c])
        })
        .collect();
    let regex = format!("[{class}]{{{shortest},{longest}}}");
    Some(Range { strategy: format!("{regex:?}"), spread: longest > 0 })
}

/// The one string literal of an argument: `"a"`, `&"a"`, `"a".to_string()`.
fn text_of(value: &[Token]) -> Option<String> {
    let mut literals = value.iter().filter(|t| t.kind == Kind::Literal);
    let (first, rest) = (literals.next()?, literals.next());
    let literal: syn::LitStr = syn::parse_str(&first.text).ok()?;
    rest.is_none().then(|| literal.value())
}

/// Most laws that are tried of a row's examples, those that differ in the type of their variable alone counted once.
const MAX_GENERALISED: usize = 5;
const MAX_OF_ONE_TEST: usize = 3;

/// The row's own unit tests with one of their values drawn instead of written: "for every number, what the test asserts of
/// 10 holds". What the test asserts comes from a human; that it holds for other values is for a run to show.
pub(super) fn generalised(tests: &str) -> Vec<Law> {
    let Ok(file) = syn::parse_file(tests) else { return Vec::new() };
    let uses: Vec<&syn::ItemUse> = file
        .items
        .iter()
        .filter_map(|item| if let syn::Item::Use(of) = item { Some(of) } else { None })
        .collect();
    let mut laws = Vec::new();
    let mut n_keys = 0;
    for item in &file.items {
        let syn::Item::Fn(test) = item else { continue };
        if !is_plain_test(test) {
            continue;
        }
        let body = Body::of(tests, test, &uses);
        for literal in body.candidates().into_iter().take(MAX_OF_ONE_TEST) {
            if n_keys == MAX_GENERALISED {
                return laws;
            }
            n_keys += 1;
            laws.extend(body.laws(&literal));
        }
    }
    laws
}

fn is_plain_test(test: &syn::ItemFn) -> bool {
    let [only] = &test.attrs[..] else { return false };
    only.path().is_ident("test")
        && test.sig.asyncness.is_none()
        && matches!(test.sig.output, syn::ReturnType::Default)
}

/// A test's body as text.
struct Body<'t> {
    name: String,
    text: &'t str,
    /// Literals with their places in `text`.
    literals: Vec<Token>,
    uses: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Sort {
    Number,
    Text,
    Letter,
}

impl<'t> Body<'t> {
    fn of(tests: &'t str, test: &syn::ItemFn, uses: &[&syn::ItemUse]) -> Self {
        let braces = test.block.brace_token.span;
        let (start, end) = (braces.open().byte_range().end, braces.close().byte_range().start);
        let text = tests.get(start..end).unwrap_or_default();
        let tokens = flatten(test.block.to_token_stream());
        let words: BTreeSet<&str> = tokens.iter().map(|t| t.text.as_str()).collect();
        let used = uses.iter().filter(|of| {
            flatten(of.tree.to_token_stream())
                .iter()
                .any(|t| t.kind == Kind::Ident && words.contains(&*t.text))
        });
        let uses = used.map(|of| tests.get(of.span_range()).unwrap_or_default().to_owned()).collect();
        let shifted = tokens.iter().filter(|t| t.kind == Kind::Literal && t.range.start >= start);
        let literals = shifted
            .map(|t| Token { range: t.range.start - start..t.range.end - start, ..t.clone() })
            .collect();
        Self { name: test.sig.ident.to_string(), text, literals, uses }
    }

    /// Different literals, those first that stand there most often.
    fn candidates(&self) -> Vec<Token> {
        if self.text.lines().count() > 30 || self.literals.iter().any(|t| t.text.contains('\n')) {
            return Vec::new();
        }
        let mut seen: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
        for (at, literal) in self.literals.iter().enumerate() {
            if sort(&literal.text).is_some() {
                seen.entry(&literal.text).or_insert((at, 0)).1 += 1;
            }
        }
        let mut order: Vec<(usize, usize)> = seen.into_values().collect();
        order.sort_by_key(|&(at, n)| (std::cmp::Reverse(n), at));
        order.into_iter().map(|(at, _)| self.literals[at].clone()).collect()
    }

    /// One law for each type that the literal may have: the compiler knows which.
    fn laws(&self, literal: &Token) -> Vec<Law> {
        let Some(sort) = sort(&literal.text) else { return Vec::new() };
        let key = format!("example {} {}", self.name, literal.text);
        let law = |variable: &str, read: &str, strategy: &str, kind: &str| {
            let others = self.others(literal, sort);
            let mut lines = self.uses.clone();
            if !others.is_empty() {
                lines.push(format!("prop_assume!(![{}].contains(&{read}));", others.join(", ")));
            }
            let name = format!("{}_for_other_{kind}", self.name);
            let body = self.with(literal, variable, read);
            let body: Vec<&str> =
                lines.iter().map(String::as_str).chain(body.trim_matches('\n').lines()).collect();
            let code = format!(
                "    #[test]\n    fn {name}({variable} in {strategy}) {{\n{}\n    }}",
                indented(&body)
            );
            Law { name, code, key: key.clone(), is_part: false, is_a_guess: true }
        };
        match sort {
            Sort::Letter => vec![law("letter", "letter", "proptest::char::range('a', 'z')", "letters")],
            Sort::Text => vec![law("text", "text.as_str()", "\"[a-z]{1,8}\"", "texts")],
            Sort::Number => {
                let suffix = syn::parse_str::<syn::LitInt>(&literal.text).map(|l| l.suffix().to_owned());
                let types = match suffix {
                    Ok(suffix) if !suffix.is_empty() => vec![suffix],
                    _ => ["i32", "usize", "u8", "u64"].map(str::to_owned).to_vec(),
                };
                let of = |ty: &String| law("number", "number", &format!("0{ty}..64"), &kind_of(ty));
                types.iter().map(of).collect()
            }
        }
    }

    /// Other literals of the same sort: the drawn value must be none of them.
    fn others(&self, literal: &Token, sort: Sort) -> Vec<String> {
        let same = |t: &&Token| t.text != literal.text && self::sort(&t.text) == Some(sort);
        let others: BTreeSet<&str> = self.literals.iter().filter(same).map(|t| t.text.as_str()).collect();
        others.into_iter().take(8).map(str::to_owned).collect()
    }

    /// The text with the literal drawn, in texts that hold what it says too.
    fn with(&self, literal: &Token, variable: &str, read: &str) -> String {
        let inner = match sort(&literal.text) {
            Some(Sort::Number) => syn::parse_str::<syn::LitInt>(&literal.text)
                .map(|number| number.base10_digits().to_owned())
                .ok()
                .filter(|digits| digits.len() > 1)
                .unwrap_or_default(),
            _ => literal.text.trim_matches(['"', '\'']).to_owned(),
        };
        let mut out = String::new();
        let mut at = 0;
        for token in &self.literals {
            let replacement = if token.text == literal.text {
                read.to_owned()
            } else if token.text.starts_with('"') && !inner.is_empty() && token.text.contains(&inner) {
                let escaped = token.text.replace('{', "{{").replace('}', "}}");
                format!("format!({}).as_str()", escaped.replace(&inner, &format!("{{{variable}}}")))
            } else {
                continue;
            };
            out.push_str(self.text.get(at..token.range.start).unwrap_or_default());
            out.push_str(&replacement);
            at = token.range.end;
        }
        out.push_str(self.text.get(at..).unwrap_or_default());
        out
    }
}

/// `numbers`, and with the type where that is not the one that a number has by itself.
fn kind_of(ty: &str) -> String {
    if ty == "i32" { "numbers".to_owned() } else { format!("{ty}_numbers") }
}

fn sort(literal: &str) -> Option<Sort> {
    match syn::parse_str::<syn::Lit>(literal).ok()? {
        syn::Lit::Int(number) if !number.suffix().starts_with('f') => Some(Sort::Number),
        syn::Lit::Str(text) if !text.value().is_empty() && literal.starts_with('"') => Some(Sort::Text),
        syn::Lit::Char(_) => Some(Sort::Letter),
        _ => None,
    }
}

/// Lines of a body at the depth that they have in a `proptest!` block, blank ones at both ends gone.
fn indented(lines: &[&str]) -> String {
    let depth = |line: &&str| line.len() - line.trim_start().len();
    let own =
        lines.iter().filter(|l| !l.trim().is_empty() && l.starts_with(' ')).map(depth).min().unwrap_or(0);
    let line = |line: &&str| match line.get(own.min(depth(line))..) {
        Some(rest) if !rest.trim().is_empty() => format!("        {}", rest.trim_end()),
        _ => String::new(),
    };
    lines.iter().map(line).collect::<Vec<_>>().join("\n").trim_end().to_owned()
}

trait SpanRange {
    fn span_range(&self) -> std::ops::Range<usize>;
}

impl SpanRange for syn::ItemUse {
    fn span_range(&self) -> std::ops::Range<usize> {
        self.use_token.span.byte_range().start..self.semi_token.span.byte_range().end
    }
}

#[cfg(test)]
mod tests {
    use super::super::laws;
    use super::*;

    fn of(code: &str, tests: &str) -> Vec<Law> {
        laws(&crate::testing::row("r", code, tests))
    }

    fn code_of<'l>(laws: &'l [Law], name: &str) -> &'l str {
        let names: Vec<&str> = laws.iter().map(|law| law.name.as_str()).collect();
        &laws.iter().find(|law| law.name == name).unwrap_or_else(|| panic!("no {name} in {names:?}")).code
    }

    #[test]
    fn inputs_like_the_examples_come_from_the_calls_in_the_tests() {
        let date = of(
            "fn days((y, m): (i32, u8)) -> u8 { 1 }",
            "#[test]\nfn t() {\n    assert_eq!(days((-4, 2)), 29);\n    assert_eq!(days((2023, 12)), 31);\n}",
        );
        let code = code_of(&date, "days_is_never_zero_on_inputs_like_the_examples");
        assert!(code.contains("(value_1 in -4i32..=2023, value_2 in 2u8..=12)"), "{code}");
        let roman = of(
            "fn from(text: &str) -> Option<i32> { None }",
            "#[test]\nfn t() {\n    assert_eq!(from(\"XIV\"), Some(14));\n    assert_eq!(from(\"V-]\"), None);\n}",
        );
        let code = code_of(&roman, "from_finds_something_on_inputs_like_the_examples");
        assert!(code.contains(r#"(value in "[\\-IVX\\]]{3,3}")"#), "{code}");
        let method = "impl Size { fn of(&self, n: u8) -> u8 { n } }";
        let mut row = crate::testing::row("r", method, "#[test]\nfn t() {\n    s.of(2);\n    s.of(9);\n}");
        row.context.items = vec!["struct Size(u8);".to_owned()];
        let laws = laws(&row);
        let code = code_of(&laws, "of_is_never_zero_on_inputs_like_the_examples");
        assert!(code.contains("second in 2u8..=9"), "{code}");
    }

    #[test]
    fn one_call_alone_says_nothing_about_a_range() {
        let laws = of("fn f(a: u8, b: u8) -> u8 { a }", "#[test]\nfn t() {\n    assert_eq!(f(3, 4), 3);\n}");
        assert!(laws.iter().all(|law| !law.name.contains("examples")), "{laws:?}");
    }

    #[test]
    fn an_example_is_generalised_one_value_at_a_time() {
        let test = "use std::fmt;\n\n#[test]\nfn keeps() {\n    let mut map = Map::new();\n    map.insert(1, \"b{\");\n    map.insert(2, \"c\");\n    assert_eq!(map.get(1), \"b{\", \"not {}\", \"b{!\");\n    // Done.\n}\n";
        let laws = of("impl Map { fn get(&mut self, at: usize) -> &str { \"\" } }", test);
        assert_eq!(
            code_of(&laws, "keeps_for_other_usize_numbers"),
            "    #[test]\n    fn keeps_for_other_usize_numbers(number in 0usize..64) {\n        prop_assume!(![2].contains(&number));\n        let mut map = Map::new();\n        map.insert(number, \"b{\");\n        map.insert(2, \"c\");\n        assert_eq!(map.get(number), \"b{\", \"not {}\", \"b{!\");\n        // Done.\n    }"
        );
        let texts = code_of(&laws, "keeps_for_other_texts");
        assert!(
            texts.contains("prop_assume!(![\"b{!\", \"c\", \"not {}\"].contains(&text.as_str()));"),
            "{texts}"
        );
        assert!(texts.contains("map.insert(1, text.as_str());"), "{texts}");
        let block = super::super::block(&laws.iter().collect::<Vec<_>>());
        let parsed: syn::ItemMacro = syn::parse_str(&block).unwrap();
        assert_eq!(subject::ProptestBlock::parse(parsed.mac.tokens).unwrap().tests.len(), laws.len());
    }

    #[test]
    fn texts_that_hold_a_drawn_value_follow_it() {
        let test = "#[test]\nfn shows() {\n    assert_eq!(\"<42>{}\", show(42u8));\n}";
        let laws = of("fn show(n: u8) -> String { String::new() }", test);
        let code = code_of(&laws, "shows_for_other_u8_numbers");
        assert!(code.contains("(number in 0u8..64)") && code.contains("\"<{number}>{{}}\""), "{code}");
        let text = "#[test]\nfn shows() {\n    assert_eq!(\"<42>{}\", show(42));\n}";
        let laws = of("fn show(n: i32) -> String { String::new() }", text);
        let code = code_of(&laws, "shows_for_other_numbers");
        assert!(code.contains("assert_eq!(format!(\"<{number}>{{}}\").as_str(), show(number));"), "{code}");
    }

    #[test]
    fn tests_that_panic_wait_or_return_are_not_generalised() {
        for test in [
            "#[test]\n#[should_panic]\nfn t() { f(1); }",
            "#[tokio::test]\nasync fn t() { f(1); }",
            "#[test]\nfn t() -> Result<(), ()> { f(1); Ok(()) }",
            "fn helper() { f(1); }",
        ] {
            assert_eq!(generalised(test), [], "{test}");
        }
    }
}
