//! Property tests made from a function's signature.
//!
//! A signature suggests laws (`f(f(x)) == f(x)`, `f(a, b) == f(b, a)`, ...). All that its types allow are written down;
//! whoever runs them keeps those that hold. Such a test says what the function does, not what somebody meant it to do.

mod arguments;
mod examples;
mod wider;
mod writer;

use std::collections::{BTreeMap, BTreeSet};

use quote::ToTokens;
use record::corpus::CorpusRow;
use syn::{FnArg, ImplItem, Item, ReceiverKind, Signature};

use self::arguments::{Types, spaceless};
use self::examples::{Examples, generalised};
use self::writer::Writer;

/// A law and its test: one function of a `proptest!` block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Law {
    /// Name of the test.
    pub name: String,
    pub code: String,
    /// The law without its range of inputs: of several with one key the first that holds is enough.
    pub key: String,
    /// Its inputs are among those of the laws before it with the same key.
    pub is_part: bool,
    /// The type of what it draws may be wrong.
    pub is_a_guess: bool,
}

/// Most laws that a row keeps.
pub const MAX_LAWS: usize = 2;
/// Kept when no other law holds.
pub const NO_PANIC: &str = "never_panics";
const MAX_ARGUMENTS: usize = 6;
/// Most values that a law draws for one call.
const MAX_VARIABLES: usize = 8;

/// Most laws of a signature that are tried.
const MAX_TRIED: usize = 30;
/// With so many laws of its signature a row's examples are left as they are.
pub const ENOUGH: usize = 12;
/// Most laws that hold of which it is asked whether they kill.
const MAX_JUDGED: usize = 8;

/// Every law that the types of the row's function allow, strongest first, each with its widest inputs first, and what the
/// row's own tests could say of other values than theirs. No law of the first kind when the function is async or unsafe,
/// changes its receiver, or takes what no strategy makes.
pub fn laws(row: &CorpusRow) -> Vec<Law> {
    let mut laws = of_types(row).unwrap_or_default();
    let no_panic = laws.split_off(laws.iter().position(|law| law.key == NO_PANIC).unwrap_or(laws.len()));
    // A law without its parts would not be asked for them.
    if let Some(cut) = laws.get(MAX_TRIED).map(|law| law.key.clone()) {
        laws.truncate(MAX_TRIED);
        laws.retain(|law| law.key != cut);
    }
    if laws.len() < ENOUGH {
        laws.extend(generalised(&row.unit_tests));
    }
    laws.extend(no_panic);
    let mut names = BTreeSet::new();
    for law in &mut laws {
        let base = law.name.clone();
        let mut n = 2;
        while !names.insert(law.name.clone()) {
            law.name = format!("{base}_{n}");
            n += 1;
        }
        law.code = law.code.replacen(&format!("fn {base}("), &format!("fn {}(", law.name), 1);
    }
    laws
}

fn of_types(row: &CorpusRow) -> Option<Vec<Law>> {
    let file = syn::parse_file(&row.function_code).ok()?;
    let types = Types::of(&row.context.items);
    match &file.items[..] {
        [Item::Fn(function)] => of_signature(&function.sig, None, &types, &row.unit_tests),
        [Item::Impl(block)] if block.generics.params.is_empty() => match &block.items[..] {
            [ImplItem::Fn(method)] => {
                of_signature(&method.sig, Some(&spaceless(&block.self_ty)), &types, &row.unit_tests)
            }
            _ => None,
        },
        _ => None,
    }
}

/// `own`: the type whose method it is.
fn of_signature(signature: &Signature, own: Option<&str>, types: &Types, tests: &str) -> Option<Vec<Law>> {
    if signature.asyncness.is_some() || matches!(signature.safety, syn::Safety::Unsafe(_)) {
        return None;
    }
    let parameters = parameters(&signature.generics, own)?;
    let mut arguments = Vec::new();
    for input in &signature.inputs {
        let text = match input {
            FnArg::Typed(typed) => substituted(&typed.ty, &parameters),
            FnArg::Receiver(receiver) => match &receiver.kind {
                ReceiverKind::Value => own?.to_owned(),
                ReceiverKind::Reference(_, _, None) => format!("&{}", own?),
                _ => return None,
            },
        };
        arguments.push(types.argument(&text)?);
    }
    let name = signature.ident.to_string();
    Examples::of(tests, &name).narrow(&mut arguments, signature.receiver().is_some());
    let drawn: usize = arguments.iter().map(|argument| argument.variables.len()).sum();
    if arguments.is_empty() || arguments.len() > MAX_ARGUMENTS || drawn > MAX_VARIABLES {
        return None;
    }
    let returns = match &signature.output {
        syn::ReturnType::Type(_, ty) => substituted(ty, &parameters),
        syn::ReturnType::Default => return None,
    };
    let callee = own.map_or_else(|| name.clone(), |own| format!("{own}::{name}"));
    Some(Writer { name, callee, arguments, returns, types }.all())
}

/// What stands for each type parameter: text for those bound by `AsRef<str>` or `Into<String>`, bytes for `AsRef<[u8]>`, a
/// list for `IntoIterator`, else `i32`, which has most of what a parameter may ask for. `Self` is the method's own type.
/// `None` when there are const parameters.
fn parameters(generics: &syn::Generics, own: Option<&str>) -> Option<BTreeMap<String, String>> {
    let bounded = bounded_parameters(generics);
    let mut found: BTreeMap<String, String> =
        own.map(|own| ("Self".to_owned(), own.to_owned())).into_iter().collect();
    for param in &generics.params {
        match param {
            syn::GenericParam::Type(param) => {
                let name = param.ident.to_string();
                let stands = bounded.get(&name).copied().unwrap_or("i32");
                found.insert(name, stands.to_owned());
            }
            syn::GenericParam::Const(_) => return None,
            _ => {}
        }
    }
    Some(found)
}

fn substituted(ty: &syn::Type, parameters: &BTreeMap<String, String>) -> String {
    let words = spaceless(ty);
    let mut out = String::new();
    let mut word = String::new();
    for c in words.chars().chain(std::iter::once(' ')) {
        if c.is_alphanumeric() || c == '_' {
            word.push(c);
            continue;
        }
        out.push_str(parameters.get(&word).unwrap_or(&word));
        word.clear();
        out.push(c);
    }
    out.trim_end().replace("&&str", "&str").replace("&&[u8]", "&[u8]")
}

/// Type parameters whose bound says what may stand for them.
fn bounded_parameters(generics: &syn::Generics) -> BTreeMap<String, &'static str> {
    let bound = |bounds: &dyn ToTokens| {
        let text = spaceless(bounds);
        let stands = [
            ("AsRef<str>", "&str"),
            ("Into<String>", "&str"),
            ("ToString", "&str"),
            ("AsRef<[u8]>", "&[u8]"),
            ("AsRef<Path>", "impl AsRef<Path>"),
            ("AsRef<[", "&[i32]"),
            ("IntoIterator", "Vec<i32>"),
            ("Float", "f64"),
        ];
        stands.into_iter().find(|(part, _)| text.contains(part)).map(|(_, stands)| stands)
    };
    let mut found = BTreeMap::new();
    for param in &generics.params {
        if let syn::GenericParam::Type(param) = param
            && let Some(stands) = bound(&param.bounds)
        {
            found.insert(param.ident.to_string(), stands);
        }
    }
    for predicate in generics.where_clause.iter().flat_map(|w| &w.predicates) {
        if let syn::WherePredicate::Type(predicate) = predicate
            && let Some(stands) = bound(&predicate.bounds)
        {
            found.insert(spaceless(&predicate.bounded_ty).trim_start_matches('&').to_owned(), stands);
        }
    }
    texts_of_iterators(generics, &mut found);
    found
}

/// `I: IntoIterator<Item = S>` with text for `S` is a list of texts.
fn texts_of_iterators(generics: &syn::Generics, found: &mut BTreeMap<String, &'static str>) {
    let text = spaceless(generics) + &generics.where_clause.as_ref().map(spaceless).unwrap_or_default();
    let of_texts = found.iter().filter(|(_, stands)| **stands == "&str").map(|(name, _)| name.clone());
    for name in of_texts.collect::<Vec<_>>() {
        for (outer, stands) in found.iter_mut() {
            if text.contains(&format!("{outer}:IntoIterator<Item={name}>")) {
                *stands = "Vec<String>";
            }
        }
    }
}

/// A block of laws.
pub fn block(laws: &[&Law]) -> String {
    let codes: Vec<&str> = laws.iter().map(|l| l.code.as_str()).collect();
    format!("proptest! {{\n{}\n}}", codes.join("\n\n"))
}

/// A block for each law: an error that the compiler lays at a block's door is then that of one law.
pub fn blocks(laws: &[Law]) -> String {
    laws.iter().map(|law| block(&[law])).collect::<Vec<_>>().join("\n")
}

/// Of the laws that hold, the one with the widest inputs of each key, strongest first. What holds for all inputs holds for
/// some: a law of which a part does not hold was only lucky in what it drew.
pub fn holding(laws: &[Law], holds: impl Fn(&Law) -> bool) -> Vec<&Law> {
    let mut keys = BTreeSet::new();
    let parts_hold =
        |at: usize, law: &Law| laws[at + 1..].iter().all(|l| l.key != law.key || !l.is_part || holds(l));
    let of = laws.iter().enumerate();
    let held = of.filter(|(at, law)| holds(law) && parts_hold(*at, law) && keys.insert(&law.key));
    let (weakest, mut held): (Vec<&Law>, Vec<&Law>) =
        held.map(|(_, law)| law).partition(|law| law.key == NO_PANIC);
    held.truncate(MAX_JUDGED);
    held.extend(weakest);
    held
}

/// The strongest of some laws that notice a broken function, at most [`MAX_LAWS`]; that there is a result at all is kept
/// where nothing else is.
pub fn keep<'l>(laws: &[&'l Law], kills: impl Fn(&Law) -> bool) -> Vec<&'l Law> {
    let mut kept = Vec::new();
    for &law in laws {
        let is_superfluous = law.key == NO_PANIC && !kept.is_empty();
        if kept.len() < MAX_LAWS && !is_superfluous && kills(law) {
            kept.push(law);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn laws(code: &str) -> Vec<Law> {
        super::laws(&crate::testing::row("r", code, ""))
    }

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
    fn the_widest_inputs_of_the_strongest_laws_that_kill_are_kept() {
        let laws = laws("fn f(a: &str) -> String { a.to_owned() }");
        let held = holding(&laws, |law| law.key != "is_its_own_inverse" && !law.name.ends_with("idempotent"));
        let names: Vec<&str> = held.iter().map(|l| l.name.as_str()).collect();
        assert_eq!(names[..2], ["f_is_idempotent_on_small_inputs", "f_keeps_the_number_of_characters"]);
        let kept = |kills: &dyn Fn(&Law) -> bool| {
            let kept = keep(&held, |law| kills(law));
            kept.iter().map(|l| l.key.as_str()).collect::<Vec<_>>()
        };
        assert_eq!(kept(&|_| true), ["is_idempotent", "keeps_the_number_of_characters"]);
        assert_eq!(kept(&|law| law.key == "never_grows" || law.key == NO_PANIC), ["never_grows"]);
        assert_eq!(kept(&|law| law.key == NO_PANIC), [NO_PANIC]);
        assert_eq!(kept(&|_| false), [""; 0], "a law that notices nothing is none");
    }

    #[test]
    fn a_law_that_fails_on_a_part_of_its_inputs_was_only_lucky() {
        let laws = laws("fn f(a: u64, b: bool) -> u64 { a }");
        let lucky = |law: &Law| law.name == "f_is_never_zero" || law.key == NO_PANIC;
        let held = holding(&laws, lucky);
        assert_eq!(held.iter().map(|law| law.name.as_str()).collect::<Vec<_>>(), ["f_never_panics"]);
        let small = |law: &Law| law.key == "is_never_zero" && law.name != "f_is_never_zero";
        assert_eq!(holding(&laws, small)[0].name, "f_is_never_zero_on_small_inputs");
    }

    #[test]
    fn lists_of_texts_paths_and_arrays_are_made() {
        let join = laws(
            "fn join<I, S>(words: I) -> String where I: IntoIterator<Item = S>, S: AsRef<str> { String::new() }",
        );
        assert!(code_of(&join, NO_PANIC).contains("prop::collection::vec(\"[ -~]{0,6}\", 0..5)"));
        assert!(code_of(&join, NO_PANIC).contains("join(value.clone())"));
        let words = laws("fn longest(words: &[&str]) -> usize { 0 }");
        assert!(
            code_of(&words, NO_PANIC)
                .contains("longest(&value.iter().map(String::as_str).collect::<Vec<_>>())")
        );
        let sum = laws("fn sum(of: &[u8; 3]) -> u8 { 0 }");
        assert!(code_of(&sum, NO_PANIC).contains("prop::array::uniform3(any::<u8>())"));
        let path = laws("fn clean<P>(path: P) -> PathBuf where P: AsRef<Path> { PathBuf::new() }");
        assert!(path.iter().any(|law| law.key == "keeps_different_values_apart"));
    }

    fn with_items(code: &str, items: &[&str]) -> Vec<Law> {
        let mut row = crate::testing::row("r", code, "");
        row.context.items = items.iter().map(|&item| item.to_owned()).collect();
        super::laws(&row)
    }

    fn code_of<'l>(laws: &'l [Law], key: &str) -> &'l str {
        &laws.iter().find(|law| law.key == key).unwrap_or_else(|| panic!("no {key}")).code
    }

    #[test]
    fn values_of_the_rows_own_types_are_put_together_from_their_parts() {
        let color =
            "#[derive(Debug, Clone, Copy, PartialEq)]\npub struct Color { pub red: u8, pub green: u8 }";
        let laws = with_items("impl Color { pub fn add(self, other: Self) -> Color { self } }", &[color]);
        let symmetric = code_of(&laws, "is_symmetric");
        assert!(symmetric.contains("first_red in any::<u8>(), first_green in any::<u8>(), second_red in"));
        assert!(symmetric.contains(
            "Color::add(Color { red: first_red, green: first_green }, Color { red: second_red, green: second_green })"
        ));
        let bytes = with_items("impl Size { fn kib(&self) -> f64 { 0.0 } }", &["struct Size(pub u64);"]);
        assert!(
            code_of(&bytes, "never_decreases")
                .contains("let (low, high) = (Size::kib(&Size(value_1)), Size::kib(&Size(other_1)));")
        );
        assert!(bytes.iter().all(|law| law.key != "is_symmetric"));
        let sign = "#[derive(PartialEq, Debug)]\nenum Sign { Plus, Minus }";
        let flip = with_items("impl Sign { fn flip(self) -> Self { self } }", &[sign]);
        assert!(
            code_of(&flip, "is_its_own_inverse")
                .contains("(match value { 0 => Sign::Plus, _ => Sign::Minus })")
        );
        let date = with_items("fn week_day((y, m): (i32, u8)) -> u8 { 0 }", &[]);
        assert!(
            code_of(&date, "keeps_different_values_apart")
                .contains("prop_assert_ne!(week_day((value_1, value_2)),")
        );
    }

    /// `prop_assert!` takes the text of its condition for a format, where braces mean something else.
    #[test]
    fn conditions_hold_no_braces() {
        let size = "struct Size { bytes: u64 }";
        let sign = "#[derive(PartialEq, Debug)]\nenum Sign { Plus, Minus }";
        for code in [
            "impl Size { fn kib(&self) -> f64 { 0.0 } }",
            "impl Size { fn less(self, other: Self) -> i32 { 0 } }",
            "impl Sign { fn factor(self) -> i32 { 0 } }",
            "fn of(size: &Size, n: u8) -> f32 { 0.0 }",
        ] {
            let laws = with_items(code, &[size, sign]);
            assert!(laws.iter().any(|law| law.key == "is_never_negative"), "{code}");
            for line in laws.iter().flat_map(|law| law.code.lines()).filter(|l| l.contains("prop_assert!(")) {
                assert!(!line.contains('{'), "{line}");
            }
        }
    }

    #[test]
    fn types_that_do_not_compare_or_hold_what_nothing_makes_have_fewer_laws_or_none() {
        let silent = "struct Color { red: u8 }";
        let keys: Vec<String> =
            with_items("impl Color { fn add(self, other: Color) -> Color { self } }", &[silent])
                .into_iter()
                .map(|law| law.key)
                .collect();
        assert_eq!(keys, [NO_PANIC; 3]);
        for item in [
            "struct Color { name: String }",
            "struct Color { list: Vec<u8> }",
            "struct Color<T> { red: T }",
            "enum Color { Of(u8) }",
        ] {
            assert_eq!(with_items("impl Color { fn f(&self) -> u8 { 1 } }", &[item]), [], "{item}");
        }
        assert_eq!(with_items("impl Color { fn f(&mut self) -> u8 { 1 } }", &[silent]), []);
        assert_eq!(with_items("impl<T> Color<T> { fn f(&self) -> u8 { 1 } }", &[silent]), []);
    }

    #[test]
    fn bytes_and_lists_stand_for_what_is_bound_by_them() {
        let bytes = laws("pub fn encode<T: AsRef<[u8]>>(input: T) -> String { String::new() }");
        let apart = code_of(&bytes, "keeps_different_values_apart");
        assert!(
            apart.contains("prop::collection::vec(any::<u8>(), 0..12)") && apart.contains("encode(&value)")
        );
        let lists = laws(
            "fn differ<'a, I, J>(a: &'a I, b: &'a J) -> usize where &'a I: IntoIterator, &'a J: IntoIterator { 0 }",
        );
        assert!(code_of(&lists, "is_symmetric").contains("differ(&first, &second)"));
    }
}
