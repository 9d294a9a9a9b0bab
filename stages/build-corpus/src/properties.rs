//! Property tests made from a function's signature.
//!
//! A signature suggests laws (`f(f(x)) == f(x)`, `f(a, b) == f(b, a)`, ...). All that its types allow are written down;
//! whoever runs them keeps those that hold. Such a test says what the function does, not what somebody meant it to do.

use std::collections::{BTreeMap, BTreeSet};

use quote::ToTokens;
use subject::extract::lex::{self, flatten};

/// A law and its test: one function of a `proptest!` block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Law {
    /// Name of the test.
    pub name: String,
    pub code: String,
    /// The law without its range of inputs: of several with one key the first that holds is enough.
    pub key: String,
}

/// An argument: how its values are made and how they are passed.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Argument {
    /// Strategies, the widest first.
    strategies: Vec<String>,
    /// `{}` is the variable.
    pass: &'static str,
    kind: Kind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Unsigned(String),
    Signed(String),
    Float(String),
    Bool,
    Char,
    Text,
    List(String),
    /// An `Option` of a number.
    Maybe,
}

impl Kind {
    fn is_number(&self) -> bool {
        matches!(self, Self::Unsigned(_) | Self::Signed(_) | Self::Float(_))
    }
}

/// Most laws that a row keeps.
pub const MAX_LAWS: usize = 2;
/// Kept when no other law holds.
pub const NO_PANIC: &str = "never_panics";

/// Every law that the function's types allow, strongest first, each with its widest inputs first. Empty when the function
/// is a method, async, unsafe, or takes what no strategy makes.
pub fn laws(function_code: &str) -> Vec<Law> {
    let Ok(file) = syn::parse_file(function_code) else { return Vec::new() };
    let [syn::Item::Fn(function)] = &file.items[..] else { return Vec::new() };
    let signature = &function.sig;
    if signature.asyncness.is_some() || matches!(signature.safety, syn::Safety::Unsafe(_)) {
        return Vec::new();
    }
    let Some(parameters) = parameters(&signature.generics) else { return Vec::new() };
    let mut arguments = Vec::new();
    for input in &signature.inputs {
        let syn::FnArg::Typed(typed) = input else { return Vec::new() };
        let Some(argument) = argument(&substituted(&typed.ty, &parameters)) else { return Vec::new() };
        arguments.push(argument);
    }
    if arguments.is_empty() || arguments.len() > 4 {
        return Vec::new();
    }
    let returns = match &signature.output {
        syn::ReturnType::Type(_, ty) => substituted(ty, &parameters),
        syn::ReturnType::Default => return Vec::new(),
    };
    let writer = Writer { name: signature.ident.to_string(), arguments, returns };
    writer.all()
}

/// What stands for each type parameter: text for those bound by `AsRef<str>` or `Into<String>`, else `i32`, which has
/// most of what a parameter may ask for. `None` when there are const parameters.
fn parameters(generics: &syn::Generics) -> Option<BTreeMap<String, &'static str>> {
    let text_like = text_parameters(generics);
    let mut found = BTreeMap::new();
    for param in &generics.params {
        match param {
            syn::GenericParam::Type(param) => {
                let name = param.ident.to_string();
                let stands = if text_like.contains(&name) { "&str" } else { "i32" };
                found.insert(name, stands);
            }
            syn::GenericParam::Const(_) => return None,
            _ => {}
        }
    }
    Some(found)
}

fn substituted(ty: &syn::Type, parameters: &BTreeMap<String, &'static str>) -> String {
    let words = spaceless(ty);
    let mut out = String::new();
    let mut word = String::new();
    for c in words.chars().chain(std::iter::once(' ')) {
        if c.is_alphanumeric() || c == '_' {
            word.push(c);
            continue;
        }
        out.push_str(parameters.get(&word).copied().unwrap_or(&word));
        word.clear();
        out.push(c);
    }
    out.trim_end().replace("&&str", "&str")
}

/// Type parameters bound by `AsRef<str>` or `Into<String>`.
fn text_parameters(generics: &syn::Generics) -> BTreeSet<String> {
    let bound = |bounds: &dyn ToTokens| {
        let text = spaceless(bounds);
        text.contains("AsRef<str>") || text.contains("Into<String>")
    };
    let mut found = BTreeSet::new();
    for param in &generics.params {
        if let syn::GenericParam::Type(param) = param
            && bound(&param.bounds)
        {
            found.insert(param.ident.to_string());
        }
    }
    for predicate in generics.where_clause.iter().flat_map(|w| &w.predicates) {
        if let syn::WherePredicate::Type(predicate) = predicate
            && bound(&predicate.bounds)
        {
            found.insert(spaceless(&predicate.bounded_ty));
        }
    }
    found
}

/// The tokens without spaces and lifetimes: `&str` for `&'a str`, `Cow<str>` for `Cow<'_, str>`.
fn spaceless(tokens: &(impl ToTokens + ?Sized)) -> String {
    let mut text = String::new();
    let mut in_lifetime = false;
    for token in flatten(tokens.to_token_stream()) {
        match token.kind {
            lex::Kind::Punct('\'') => in_lifetime = true,
            lex::Kind::Ident if in_lifetime => in_lifetime = false,
            lex::Kind::Ident | lex::Kind::Literal => {
                // `mut x`, `dyn T`: words stay apart.
                if text.ends_with(char::is_alphanumeric) {
                    text.push(' ');
                }
                text.push_str(&token.text);
            }
            lex::Kind::Punct(c) | lex::Kind::Open(c) | lex::Kind::Close(c) => text.push(c),
        }
    }
    text.replace("<,", "<")
}

fn argument(text: &str) -> Option<Argument> {
    let make = |strategies: Vec<String>, pass, kind| Some(Argument { strategies, pass, kind });
    let words = || {
        vec!["\"\\\\PC{0,16}\"".to_owned(), "\"[ -~]{0,16}\"".to_owned(), "\"[a-zA-Z0-9]{1,8}\"".to_owned()]
    };
    if let Some(numbers) = number(text) {
        return make(numbers.0, "{}", numbers.1);
    }
    match text {
        "bool" => return make(vec!["any::<bool>()".to_owned()], "{}", Kind::Bool),
        "char" => {
            return make(
                vec!["any::<char>()".to_owned(), "proptest::char::range(' ', '~')".to_owned()],
                "{}",
                Kind::Char,
            );
        }
        "&str" | "impl AsRef<str>" | "impl Into<String>" => return make(words(), "&{}", Kind::Text),
        "String" => return make(words(), "{}.clone()", Kind::Text),
        "&String" => return make(words(), "&{}", Kind::Text),
        _ => {}
    }
    if let Some(numbers) = text.strip_prefix('&').and_then(number) {
        return make(numbers.0, "&{}", numbers.1);
    }
    if let Some((strategies, _)) =
        text.strip_prefix("Option<").and_then(|t| t.strip_suffix('>')).and_then(number)
    {
        let strategies = strategies.iter().map(|s| format!("prop::option::of({s})")).collect();
        return make(strategies, "{}", Kind::Maybe);
    }
    let element = text.strip_prefix("&[").or_else(|| text.strip_prefix("Vec<"))?;
    let owned = text.starts_with("Vec<");
    let element = element.strip_suffix([']', '>'])?;
    let (strategies, _) = number(element)?;
    let lists = strategies.iter().map(|s| format!("prop::collection::vec({s}, 0..12)")).collect();
    make(lists, if owned { "{}.clone()" } else { "&{}" }, Kind::List(element.to_owned()))
}

fn number(ty: &str) -> Option<(Vec<String>, Kind)> {
    let by_value = ty.trim_start_matches('&');
    if by_value != ty {
        return None;
    }
    let any = format!("any::<{ty}>()");
    match ty {
        "u8" | "u16" | "u32" | "u64" | "u128" => {
            Some((vec![any, format!("0{ty}..200"), format!("1{ty}..20")], Kind::Unsigned(ty.to_owned())))
        }
        "usize" => {
            Some((vec!["0usize..64".to_owned(), "1usize..16".to_owned()], Kind::Unsigned(ty.to_owned())))
        }
        "i8" | "i16" | "i32" | "i64" | "i128" | "isize" => {
            Some((vec![any, format!("-100{ty}..100"), format!("1{ty}..20")], Kind::Signed(ty.to_owned())))
        }
        "f32" | "f64" => {
            Some((vec![format!("-1.0e6{ty}..1.0e6"), format!("0.0{ty}..1.0")], Kind::Float(ty.to_owned())))
        }
        _ => None,
    }
}

struct Writer {
    name: String,
    arguments: Vec<Argument>,
    returns: String,
}

impl Writer {
    fn all(&self) -> Vec<Law> {
        let mut laws = Vec::new();
        if let [only] = &self.arguments[..] {
            self.unary(only, &mut laws);
        }
        if let [first, second] = &self.arguments[..]
            && first.kind == second.kind
            && first.pass == second.pass
        {
            self.binary(&mut laws);
        }
        self.any_arity(&mut laws);
        laws
    }

    /// The result is of the argument's own kind.
    fn same_kind(&self, argument: &Argument) -> bool {
        let returns = &self.returns;
        match &argument.kind {
            Kind::Unsigned(t) | Kind::Signed(t) | Kind::Float(t) => t == returns,
            Kind::Bool => returns == "bool",
            Kind::Char => returns == "char",
            Kind::Maybe => false,
            Kind::Text => matches!(returns.as_str(), "String" | "&str" | "Cow<str>"),
            Kind::List(t) => *returns == format!("Vec<{t}>"),
        }
    }

    fn unary(&self, argument: &Argument, laws: &mut Vec<Law>) {
        let returns = &self.returns;
        let call = |value: &str| self.call(&[value]);
        if self.same_kind(argument) && argument.kind != Kind::Bool {
            let owned = if argument.kind == Kind::Text { ".to_string()" } else { "" };
            let once = format!("let once = {}{owned};", call("value"));
            let twice = format!("{}{owned}", call("once"));
            self.law(
                laws,
                "is_its_own_inverse",
                &format!("{once}\n        prop_assert_eq!({twice}, value);"),
            );
            self.law(laws, "is_idempotent", &format!("{once}\n        prop_assert_eq!({twice}, once);"));
        }
        if matches!(argument.kind, Kind::Float(_) | Kind::Signed(_)) && self.same_kind(argument) {
            let negated = call("(-value)").replace("((-value))", "(-value)");
            self.law(laws, "is_odd", &format!("prop_assert_eq!({negated}, -{});", call("value")));
            self.law(laws, "is_even", &format!("prop_assert_eq!({negated}, {});", call("value")));
        }
        if argument.kind.is_number() && is_ordered(returns) {
            let body = format!(
                "let next = value + 1 as {};\n        prop_assert!({} <= {});",
                number_type(argument),
                call("value"),
                call("next")
            );
            self.law(laws, "never_decreases", &body);
        }
        if argument.kind == Kind::Text && matches!(returns.as_str(), "String" | "&str" | "Cow<str>") {
            self.law(
                laws,
                "keeps_the_number_of_characters",
                &format!("prop_assert_eq!({}.chars().count(), value.chars().count());", call("value")),
            );
            self.law(laws, "never_grows", &format!("prop_assert!({}.len() <= value.len());", call("value")));
        }
        if matches!(argument.kind, Kind::List(_)) && self.same_kind(argument) {
            self.law(
                laws,
                "keeps_the_length",
                &format!("prop_assert_eq!({}.len(), value.len());", call("value")),
            );
        }
        self.unary_of_texts_and_lists(argument, laws);
    }

    /// Laws that hold for many a function: what does not count in the argument, and how large the result can be.
    fn unary_of_texts_and_lists(&self, argument: &Argument, laws: &mut Vec<Law>) {
        let returns = &self.returns;
        let call = |value: &str| self.call(&[value]);
        let same = |one: &str, other: &str| format!("prop_assert_eq!({}, {});", call(one), call(other));
        let is_collection = matches!(argument.kind, Kind::Text | Kind::List(_));
        if is_comparable(returns) && argument.kind == Kind::Text {
            let body = same("value.to_ascii_lowercase()", "value.to_ascii_uppercase()");
            self.law(laws, "ignores_the_case_of_letters", &body);
            let body =
                format!("let padded = format!(\"  {{value}} \");\n        {}", same("padded", "value"));
            self.law(laws, "ignores_space_around", &body);
        }
        if is_comparable(returns) && argument.kind == Kind::Char {
            let body = same("value.to_ascii_lowercase()", "value.to_ascii_uppercase()");
            self.law(laws, "ignores_the_case_of_letters", &body);
        }
        if is_comparable(returns) && matches!(argument.kind, Kind::List(_)) {
            let body = format!(
                "let mut reversed = value.clone();\n        reversed.reverse();\n        {}",
                same("reversed", "value")
            );
            self.law(laws, "ignores_the_order", &body);
        }
        if is_collection && returns == "usize" {
            self.law(
                laws,
                "is_at_most_the_length",
                &format!("prop_assert!({} <= value.len());", call("value")),
            );
        }
        if argument.kind == Kind::Text && returns == "String" {
            let body = format!("prop_assert_eq!({}.is_empty(), value.is_empty());", call("value"));
            self.law(laws, "is_empty_for_empty_text_alone", &body);
            let body = format!("prop_assert_eq!({}.is_ascii(), value.is_ascii());", call("value"));
            self.law(laws, "is_plain_for_plain_text_alone", &body);
        }
        if argument.kind.is_number() && self.same_kind(argument) {
            self.law(laws, "never_exceeds_the_value", &format!("prop_assert!({} <= value);", call("value")));
            self.law(laws, "is_at_least_the_value", &format!("prop_assert!({} >= value);", call("value")));
        }
    }

    fn binary(&self, laws: &mut Vec<Law>) {
        if !is_comparable(&self.returns) {
            return;
        }
        let body = format!(
            "prop_assert_eq!({}, {});",
            self.call(&["first", "second"]),
            self.call(&["second", "first"])
        );
        self.law(laws, "is_symmetric", &body);
        let body = format!(
            "prop_assert_eq!({}, {});",
            self.call(&["first", "first"]),
            self.call(&["second", "second"])
        );
        self.law(laws, "treats_equal_pairs_alike", &body);
        let [first, _] = &self.arguments[..] else { return };
        if first.kind.is_number() && self.same_kind(first) {
            let call = self.call(&["first", "second"]);
            for (key, bound) in [
                ("is_at_most_the_larger", "<= first.max(second)"),
                ("is_at_least_the_smaller", ">= first.min(second)"),
            ] {
                self.law(laws, key, &format!("prop_assert!({call} {bound});"));
            }
        }
        if first.kind == Kind::Text && self.returns == "usize" {
            let call = self.call(&["first", "second"]);
            let body = format!("prop_assert!({call} <= first.len().max(second.len()));");
            self.law(laws, "is_at_most_the_longer_length", &body);
        }
    }

    fn any_arity(&self, laws: &mut Vec<Law>) {
        let names = self.variables();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let call = self.call(&names);
        let returns = &self.returns;
        if matches!(returns.as_str(), "f32" | "f64") {
            self.law(
                laws,
                "stays_between_zero_and_one",
                &format!("prop_assert!((0.0..=1.0).contains(&{call}));"),
            );
        }
        if matches!(returns.as_str(), "f32" | "f64" | "i8" | "i16" | "i32" | "i64" | "i128" | "isize") {
            let zero = if returns.starts_with('f') { "0.0" } else { "0" };
            self.law(laws, "is_never_negative", &format!("prop_assert!({call} >= {zero});"));
        }
        // The weakest one: whatever the inputs, there is a result.
        self.law(laws, NO_PANIC, &format!("let _ = {call};"));
    }

    fn variables(&self) -> Vec<String> {
        match self.arguments.len() {
            1 => vec!["value".to_owned()],
            2 => vec!["first".to_owned(), "second".to_owned()],
            n => (1..=n).map(|i| format!("value_{i}")).collect(),
        }
    }

    fn call(&self, values: &[&str]) -> String {
        let passed: Vec<String> =
            self.arguments.iter().zip(values).map(|(a, v)| a.pass.replace("{}", v)).collect();
        format!("{}({})", self.name, passed.join(", "))
    }

    /// One test for each range of inputs.
    fn law(&self, laws: &mut Vec<Law>, key: &str, body: &str) {
        let n = self.arguments.iter().map(|a| a.strategies.len()).max().unwrap_or(1);
        for width in 0..n {
            let inputs: Vec<String> = self
                .variables()
                .iter()
                .zip(&self.arguments)
                .map(|(name, a)| format!("{name} in {}", a.strategies[width.min(a.strategies.len() - 1)]))
                .collect();
            let base = self.name.trim_start_matches("r#");
            let name = if width == 0 {
                format!("{base}_{key}")
            } else {
                format!("{base}_{key}_{}", ["", "on_small_inputs", "on_simple_inputs"][width.min(2)])
            };
            let code =
                format!("    #[test]\n    fn {name}({}) {{\n        {body}\n    }}", inputs.join(", "));
            laws.push(Law { name, code, key: key.to_owned() });
        }
    }
}

fn number_type(argument: &Argument) -> &str {
    match &argument.kind {
        Kind::Unsigned(t) | Kind::Signed(t) | Kind::Float(t) => t,
        _ => "u8",
    }
}

fn is_ordered(ty: &str) -> bool {
    number(ty).is_some() || ty == "bool"
}

/// Values of these types compare and print.
fn is_comparable(ty: &str) -> bool {
    if number(ty).is_some() || matches!(ty, "bool" | "char" | "String" | "&str" | "Cow<str>" | "&[u8]" | "()")
    {
        return true;
    }
    for outer in ["Option<", "Vec<", "Box<"] {
        if let Some(inner) = ty.strip_prefix(outer).and_then(|t| t.strip_suffix('>')) {
            return is_comparable(inner);
        }
    }
    match ty.strip_prefix('(').and_then(|t| t.strip_suffix(')')) {
        Some(inner) if !inner.contains(['(', '<']) => {
            inner.split(',').filter(|t| !t.is_empty()).all(is_comparable)
        }
        _ => false,
    }
}

/// A block of laws.
pub fn block(laws: &[&Law]) -> String {
    let codes: Vec<&str> = laws.iter().map(|l| l.code.as_str()).collect();
    format!("proptest! {{\n{}\n}}", codes.join("\n\n"))
}

/// The strongest laws that hold, one of each key, at most [`MAX_LAWS`].
pub fn keep(laws: &[Law], holds: impl Fn(&Law) -> bool) -> Vec<&Law> {
    let mut keys = BTreeSet::new();
    let mut kept = Vec::new();
    for law in laws.iter().filter(|law| holds(law)) {
        let is_superfluous = law.key == NO_PANIC && !kept.is_empty();
        if kept.len() < MAX_LAWS && !is_superfluous && keys.insert(&law.key) {
            kept.push(law);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(code: &str) -> Vec<String> {
        let mut keys: Vec<String> = laws(code).into_iter().map(|l| l.key).collect();
        keys.dedup();
        keys
    }

    #[test]
    fn types_suggest_laws() {
        assert!(
            keys("fn f(a: &str) -> String { a.to_owned() }")
                .starts_with(&["is_its_own_inverse".into(), "is_idempotent".into()])
        );
        assert!(keys("fn f(a: u32, b: u32) -> u32 { a }").contains(&"is_symmetric".to_owned()));
        assert!(keys("fn f(a: f64) -> f64 { a }").contains(&"is_odd".to_owned()));
    }

    #[test]
    fn a_value_compared_with_itself_is_no_law() {
        for code in
            ["fn f<'a>(a: &'a str, n: usize) -> &'a str { a }", "fn f<S: AsRef<str>>(a: S) -> bool { true }"]
        {
            assert!(!keys(code).contains(&"is_deterministic".to_owned()), "such a test kills no mutant");
        }
    }

    #[test]
    fn what_no_strategy_makes_has_no_laws() {
        for code in [
            "fn f(a: Thing) -> u8 { 1 }",
            "fn f<const N: usize>(a: [u8; N]) -> usize { 1 }",
            "async fn f(a: u8) -> u8 { a }",
            "unsafe fn f(a: u8) -> u8 { a }",
            "fn f() -> u8 { 1 }",
            "fn f(a: u8) {}",
            "impl S { fn f(&self) -> u8 { 1 } }",
        ] {
            assert_eq!(laws(code), [], "{code}");
        }
    }

    #[test]
    fn what_is_written_is_a_proptest_block() {
        for code in [
            "fn f(a: &str) -> String { a.to_owned() }",
            "fn f(a: i64, b: i64) -> i64 { a }",
            "fn f(a: Vec<u8>) -> Vec<u8> { a }",
            "fn f(a: &[f64]) -> f64 { 0.0 }",
            "fn f(a: char, b: bool, c: u8) -> Option<char> { None }",
        ] {
            let laws = laws(code);
            let block = block(&laws.iter().collect::<Vec<_>>());
            let parsed: syn::ItemMacro = syn::parse_str(&block).unwrap();
            let tests = subject::ProptestBlock::parse(parsed.mac.tokens).unwrap().tests;
            assert_eq!(tests.len(), laws.len(), "{block}");
        }
    }

    #[test]
    fn the_widest_inputs_of_the_strongest_laws_are_kept() {
        let laws = laws("fn f(a: &str) -> String { a.to_owned() }");
        let kept = keep(&laws, |law| law.key != "is_its_own_inverse" && !law.name.ends_with("idempotent"));
        let names: Vec<&str> = kept.iter().map(|l| l.name.as_str()).collect();
        assert_eq!(names, ["f_is_idempotent_on_small_inputs", "f_keeps_the_number_of_characters"]);
    }
}
