//! A crate of code and tests, rewritten so that it runs and reports its tests itself.
//!
//! The text is edited in place rather than printed anew: lines keep their numbers, and what the parser does not
//! understand (macros) stays as it was written. Test attributes are blanked out; each module gets a function, appended to
//! its last line, that lists its tests; `main` and a module that names the runtime come after the last line.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::ops::Range;

use proc_macro2::{TokenStream, TokenTree};
use subject::ProptestBlock;
use subject::tests::{TestKind, is_proptest, kind_of};
use syn::{Attribute, Item, ItemFn, ItemMacro, ItemMod, Meta};

use crate::HarnessError;
use crate::attributes::{Declared, conditions, is_ours};

/// A library of its own, so that its code is made once and not with every program.
pub(crate) const RUNTIME: &str = include_str!("../runtime/testforge.rs");
pub(crate) const RUNTIME_NAME: &str = "__testforge_runtime";
const TOKIO_RUNTIME: &str = include_str!("../runtime/tokio.rs");

/// Where one of these names occurs, a paused clock could be seen: then a `#[tokio::test]` runs as its attribute says.
/// Everywhere else time stands still until all tasks wait, so that sleeping costs nothing.
const CLOCK_NAMES: [&str; 8] =
    ["pause", "resume", "advance", "start_paused", "Instant", "SystemTime", "elapsed", "thread"];

/// Source of a program whose `main` runs its tests one by one. Made from a whole crate text: every `#[test]`,
/// `#[tokio::test]` and `proptest!` test in any module is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TestProgram {
    pub(crate) source: String,
    pub(crate) tests: Vec<String>,
    /// Calls of macros that make tests, which can't be run.
    pub(crate) hidden: Vec<String>,
}

impl TestProgram {
    /// Rewrites `source`, a crate as `subject::placement` makes it, possibly instrumented. Lines keep their numbers.
    ///
    /// `hook` is an expression of type `String`, evaluated once before the first test, its text dropped, and after each
    /// test; that text comes back in [`crate::TestRun::extra`]. The program has a module `crate::__testforge` with `pub fn out_of_fuel() -> !`.
    ///
    /// # Errors
    /// [`HarnessError::Syntax`] when `source` does not parse.
    pub fn new(source: &str, hook: Option<&str>) -> Result<Self, HarnessError> {
        let source = source.strip_prefix('\u{feff}').unwrap_or(source);
        let file = syn::parse_file(source).map_err(|e| syntax(&e))?;
        let mut rewrite = Rewrite { obeys_clock: mentions_clock(source), ..Rewrite::default() };
        let calls = rewrite.module(&file.items, &mut Vec::new());
        let has_main = file.items.iter().any(|item| matches!(item, Item::Fn(f) if f.sig.ident == "main"));
        rewrite.finish(source, &calls, hook, has_main)
    }

    /// Names of the tests, in source order: paths inside the crate, `tests::` left off (`adds`, `nested::adds`,
    /// `property_tests::never_panics`).
    #[must_use]
    pub fn tests(&self) -> &[String] {
        &self.tests
    }

    /// The program's text.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }
}

fn syntax(error: &syn::Error) -> HarnessError {
    let start = error.span().start();
    HarnessError::Syntax { line: start.line, column: start.column + 1, message: error.to_string() }
}

#[derive(Debug, Default)]
struct Rewrite {
    /// Bytes to blank out.
    blanks: Vec<Range<usize>>,
    /// Text to insert before a byte.
    inserts: Vec<(usize, String)>,
    tests: Vec<String>,
    /// The same, to look them up.
    names: BTreeSet<String>,
    hidden: Vec<String>,
    /// Names of macros that make tests.
    test_macros: BTreeSet<String>,
    uses_tokio: bool,
    obeys_clock: bool,
}

impl Rewrite {
    /// Statements that push the module's tests, its own and those of its modules.
    fn module(&mut self, items: &[Item], path: &mut Vec<String>) -> String {
        let mut calls = String::new();
        for item in items {
            match item {
                Item::Fn(item) => calls.extend(self.function(item, path)),
                Item::Mod(module) => calls.extend(self.nested(module, path)),
                Item::Macro(mac) if is_proptest(&mac.mac) => {
                    let Ok(block) = ProptestBlock::parse(mac.mac.tokens.clone()) else { continue };
                    for test in &block.tests {
                        let Some(declared) = Declared::of(&test.attrs) else { continue };
                        self.blank_attributes(&test.attrs);
                        let call = format!("{}()", test.name);
                        calls += &self.entry(&declared, path, &test.name.to_string(), &call);
                    }
                }
                Item::Macro(mac) => self.other_macro(mac, path),
                _ => {}
            }
        }
        calls
    }

    /// A macro that makes tests hides them from the rewriting. They must not be missing unseen.
    fn other_macro(&mut self, item: &ItemMacro, path: &[String]) {
        let has_tests = holds_test_attribute(item.mac.tokens.clone());
        let name = item.mac.path.segments.last().map(|segment| segment.ident.to_string()).unwrap_or_default();
        match &item.ident {
            Some(defined) if has_tests => drop(self.test_macros.insert(defined.to_string())),
            Some(_) => {}
            None if has_tests || self.test_macros.contains(&name) => {
                let test = self.unique_name(path, &format!("{name}!"));
                self.hidden.push(test);
            }
            None => {}
        }
    }

    fn function(&mut self, item: &ItemFn, path: &[String]) -> Option<String> {
        let declared = Declared::of(&item.attrs)?;
        self.blank_attributes(&item.attrs);
        let name = item.sig.ident.to_string();
        let kind = match &declared.kind {
            // `use tokio::test;` stands somewhere, or it would not have type-checked.
            TestKind::Plain if item.sig.asyncness.is_some() => {
                TestKind::Tokio { args: test_arguments(&item.attrs) }
            }
            kind => kind.clone(),
        };
        let call = match kind {
            TestKind::Plain | TestKind::Property => format!("{name}()"),
            TestKind::Tokio { args } => {
                self.uses_tokio = true;
                let runtime = self.tokio_runtime(&args);
                format!("crate::__testforge_tokio::{runtime}, async {{ {name}().await }})")
            }
        };
        Some(self.entry(&declared, path, &name, &call))
    }

    fn nested(&mut self, module: &ItemMod, path: &mut Vec<String>) -> Option<String> {
        let (brace, items) = module.content.as_ref()?;
        path.push(module.ident.to_string());
        let calls = self.module(items, path);
        path.pop();
        if calls.is_empty() {
            return None;
        }
        let list = "__testforge: &mut ::std::vec::Vec<crate::__testforge::Test>";
        let function = format!(" #[allow(unused)] pub(crate) fn __testforge_tests({list}) {{ {calls}}} ");
        self.inserts.push((brace.span.close().byte_range().start, function));
        let conditions = conditions(&module.attrs);
        Some(format!("{conditions}{}::__testforge_tests(__testforge); ", module.ident))
    }

    fn entry(&mut self, declared: &Declared, path: &[String], name: &str, call: &str) -> String {
        let test = self.unique_name(path, name);
        let mut entry = format!(
            "{}__testforge.push(crate::__testforge::Test::new({}, {test:?}, || crate::__testforge::result({call}))",
            declared.conditions,
            self.tests.len()
        );
        if let Some(ignored) = &declared.ignored {
            entry += &format!(".ignored({ignored})");
        }
        if let Some((when, expected)) = &declared.should_panic {
            let expected = expected.as_ref().map_or("None".to_owned(), |text| format!("Some({text:?})"));
            entry += &format!(".should_panic({when}, ::std::option::Option::{expected})");
        }
        self.names.insert(test.clone());
        self.tests.push(test);
        entry + "); "
    }

    fn unique_name(&self, path: &[String], name: &str) -> String {
        let shown = if path.first().is_some_and(|module| module == "tests") { &path[1..] } else { path };
        let join = |modules: &[String]| {
            modules.iter().map(String::as_str).chain([name]).collect::<Vec<_>>().join("::")
        };
        let short = join(shown);
        if self.names.contains(&short) { join(path) } else { short }
    }

    fn blank_attributes(&mut self, attrs: &[Attribute]) {
        for attr in attrs {
            if is_ours(attr) {
                let start = attr.pound_token.span.byte_range().start;
                self.blanks.push(start..attr.bracket_token.span.close().byte_range().end);
            }
        }
    }

    /// The call's head, up to the future.
    fn tokio_runtime(&self, args: &TokenStream) -> String {
        let value = |name: &str| argument(args, name);
        if value("flavor").is_some_and(|flavor| flavor.contains("multi_thread")) {
            let workers = value("worker_threads").unwrap_or_else(|| "2".to_owned());
            return format!("multi_thread({workers}");
        }
        let paused = match value("start_paused") {
            Some(value) => value,
            None => (!self.obeys_clock).to_string(),
        };
        format!("current_thread({paused}")
    }

    fn finish(
        mut self,
        source: &str,
        calls: &str,
        hook: Option<&str>,
        has_main: bool,
    ) -> Result<TestProgram, HarnessError> {
        let mut bytes = source.as_bytes().to_vec();
        for range in self.blanks {
            for byte in &mut bytes[range] {
                if *byte != b'\n' && *byte != b'\r' {
                    *byte = b' ';
                }
            }
        }
        self.inserts.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
        for (at, text) in self.inserts {
            bytes.splice(at..at, text.into_bytes());
        }
        // Attributes are blanked whole, so the text is still UTF-8.
        let mut source = String::from_utf8(bytes).map_err(|e| HarnessError::Compiler(e.to_string()))?;
        if !source.ends_with('\n') {
            source.push('\n');
        }
        source += &format!("#[allow(unused)] pub mod __testforge {{ pub use ::{RUNTIME_NAME}::*; }}\n");
        if self.uses_tokio {
            source += TOKIO_RUNTIME;
        }
        let hook = hook.map_or("::std::option::Option::None".to_owned(), |hook| {
            format!("::std::option::Option::Some(|| -> ::std::string::String {{ {hook} }})")
        });
        let body = format!(
            "{{ let mut __tests = ::std::vec::Vec::new(); {{ let __testforge = &mut __tests; {calls}}} \
             crate::__testforge::main(__tests, {hook}) }}"
        );
        let written = if has_main {
            source.insert_str(0, "#![no_main] ");
            write!(
                source,
                "#[allow(unused)] fn __testforge_entry() {body}\nmod __testforge_main {{ #[no_mangle] \
                 pub extern \"C\" fn main(_: i32, _: *const *const u8) -> i32 {{ crate::__testforge_entry(); 0 }} }}"
            )
        } else {
            writeln!(source, "#[allow(unused)] fn main() {body}")
        };
        written.map_err(|e| HarnessError::Compiler(e.to_string()))?;
        Ok(TestProgram { source, tests: self.tests, hidden: self.hidden })
    }
}

fn test_arguments(attrs: &[Attribute]) -> TokenStream {
    let test = attrs.iter().find(|attr| kind_of(std::slice::from_ref(attr)).is_some());
    match test.map(|attr| &attr.meta) {
        Some(Meta::List(list)) => list.tokens.clone(),
        _ => TokenStream::new(),
    }
}

/// The value of `name = value` in an attribute's arguments, as text.
fn argument(args: &TokenStream, name: &str) -> Option<String> {
    let tokens: Vec<TokenTree> = args.clone().into_iter().collect();
    let at = tokens.iter().position(|token| matches!(token, TokenTree::Ident(ident) if ident == name))?;
    Some(tokens.get(at + 2)?.to_string())
}

fn holds_test_attribute(stream: TokenStream) -> bool {
    let tokens: Vec<TokenTree> = stream.into_iter().collect();
    tokens.iter().enumerate().any(|(i, token)| match token {
        TokenTree::Punct(punct) if punct.as_char() == '#' => match tokens.get(i + 1) {
            Some(TokenTree::Group(group)) => names_test(group.stream()),
            _ => false,
        },
        TokenTree::Group(group) => holds_test_attribute(group.stream()),
        _ => false,
    })
}

/// `test`, `tokio::test`, `tokio::test(...)`.
fn names_test(attribute: TokenStream) -> bool {
    let path = attribute.into_iter().take_while(|token| !matches!(token, TokenTree::Group(_)));
    let last = path.filter(|token| matches!(token, TokenTree::Ident(_))).last();
    last.is_some_and(|ident| ident.to_string() == "test")
}

fn mentions_clock(source: &str) -> bool {
    let words: BTreeSet<&str> = source.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
    CLOCK_NAMES.iter().any(|name| words.contains(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROW: &str = "pub fn add(a: i32, b: i32) -> i32 { a + b }
#[cfg(test)]
mod tests {
    use super::*;
    #[test]
    #[should_panic(expected = \"a \\\"b\\\"\")]
    fn adds() { assert_eq!(add(1, 2), 3); }
    mod nested {
        #[test] #[ignore]
        fn adds() {}
        fn helper() {}
    }
    proptest::proptest! {
        #[test]
        fn commutes(a in 0..9, b in 0..9) { assert_eq!(super::add(a, b), super::add(b, a)); }
        fn no_test(a in 0..9) {}
    }
}
";

    #[test]
    fn tests_are_found_and_lines_stay() {
        let program = TestProgram::new(ROW, None).unwrap();
        assert_eq!(program.tests(), ["adds", "nested::adds", "commutes"]);
        let lines: Vec<&str> = program.source().lines().collect();
        assert_eq!(lines[6], "    fn adds() { assert_eq!(add(1, 2), 3); }");
        assert!(lines[14].starts_with("        fn commutes(a in 0..9, b in 0..9)"));
        assert!(!program.source().contains("#[test]"));
        assert!(program.source().contains(r#".should_panic(true, ::std::option::Option::Some("a \"b\""))"#));
    }

    #[test]
    fn the_rewritten_text_parses() {
        for (source, hook) in
            [(ROW, None), ("fn main() {} #[test] fn t() {}", Some("String::new()")), ("", None)]
        {
            let program = TestProgram::new(source, hook).unwrap();
            assert!(syn::parse_file(program.source()).is_ok(), "{}", program.source());
        }
    }

    #[test]
    fn a_name_used_twice_keeps_its_path() {
        let program = TestProgram::new("#[test] fn a() {} mod tests { #[test] fn a() {} }", None).unwrap();
        assert_eq!(program.tests(), ["a", "tests::a"]);
    }

    #[test]
    fn a_clock_that_could_be_seen_is_left_alone() {
        let start = |body: &str| {
            let source = format!("#[tokio::test]\nasync fn t() {{ {body} }}");
            TestProgram::new(&source, None).unwrap().source().contains("current_thread(true")
        };
        assert!(start("tokio::time::sleep(D).await"));
        assert!(!start("tokio::time::pause(); tokio::time::advance(D).await"));
        assert!(!start("let t = std::time::Instant::now();"));
    }

    #[test]
    fn tests_made_by_macros_are_told_apart() {
        let source = "macro_rules! make { ($n:ident) => { #[test] fn $n() {} } }
            macro_rules! other { () => {} }
            mod tests { make!(a); other!(); cfg_if! { if #[cfg(x)] { #[tokio::test] async fn b() {} } } #[test] fn c() {} }";
        let program = TestProgram::new(source, None).unwrap();
        assert_eq!(
            (program.tests(), program.hidden.as_slice()),
            (&["c".to_owned()][..], &["make!".to_owned(), "cfg_if!".to_owned()][..])
        );
    }

    #[test]
    fn a_syntax_error_has_its_place() {
        match TestProgram::new("fn a() {}\nfn b( {}", None) {
            Err(HarnessError::Syntax { line: 2, .. }) => {}
            other => panic!("{other:?}"),
        }
    }
}
