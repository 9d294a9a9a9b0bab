//! Tests as data: which items they are made of, which of them are tests, and how each one is meant to end.

use proc_macro2::TokenStream;
use record::corpus::CorpusRow;
use syn::{Attribute, Expr, Item, ItemMod, Lit, Meta, ReturnType, Type, parse_quote};

use crate::depth::parse_items;
use crate::{ProptestBlock, SubjectError};

/// The tests of one row or one sample, ready to stand at the root of the row's crate.
#[derive(Debug, Clone)]
pub struct TestSuite {
    /// Modules for the crate's root. Their items already hold the scaffold (`use super::*;`) that placement gives them.
    pub modules: Vec<TestModule>,
    /// In the order of the source.
    pub tests: Vec<TestFn>,
}

/// `mod NAME { ... }` at the crate's root.
#[derive(Debug, Clone)]
pub struct TestModule {
    pub name: String,
    /// Inner and outer attributes, `#[cfg(test)]` left out.
    pub attrs: Vec<Attribute>,
    pub items: Vec<Item>,
}

/// One test.
#[derive(Debug, Clone)]
pub struct TestFn {
    /// Unique in the suite: `adds`, `nested::adds`; with the root module's name before it unless that is `tests`.
    pub name: String,
    /// Names of the root module, the nested modules, and the function.
    pub path: Vec<String>,
    pub kind: TestKind,
    pub is_async: bool,
    pub should_panic: Option<ShouldPanic>,
    pub ignored: bool,
    /// Returns something else than `()`: an `Err` fails the test.
    pub fallible: bool,
}

#[derive(Debug, Clone)]
pub enum TestKind {
    /// `#[test]`
    Plain,
    /// `#[tokio::test(ARGS)]`
    Tokio { args: TokenStream },
    /// A function of a `proptest!` block.
    Property,
}

/// `#[should_panic]`, with the text that the message must contain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShouldPanic {
    pub expected: Option<String>,
}

impl TestSuite {
    /// Reads tests: bare items, or items wrapped in `#[cfg(test)] mod tests { ... }`.
    ///
    /// # Errors
    /// `code` is not a list of Rust items.
    pub fn parse(code: &str) -> Result<Self, SubjectError> {
        let modules = modules_of("tests", "the tests", code)?;
        Ok(Self::new(modules))
    }

    /// The row's own tests: `mod tests`, and `mod property_tests` where it has any.
    ///
    /// # Errors
    /// They do not parse.
    pub fn of_row(row: &CorpusRow) -> Result<Self, SubjectError> {
        let mut modules = modules_of("tests", "unit_tests", &row.unit_tests)?;
        if let Some(property) = &row.property_tests {
            let mut more = modules_of("property_tests", "property_tests", property)?;
            rename_clashes(&modules, &mut more);
            modules.extend(more);
        }
        Ok(Self::new(modules))
    }

    fn new(modules: Vec<TestModule>) -> Self {
        let mut tests = Vec::new();
        for module in &modules {
            collect(&module.items, &mut vec![module.name.clone()], &mut tests);
        }
        Self { modules, tests }
    }
}

fn rename_clashes(taken: &[TestModule], more: &mut [TestModule]) {
    for module in more {
        if taken.iter().any(|t| t.name == module.name) {
            module.name = format!("property_{}", module.name);
        }
    }
}

/// How test code stands in the crate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    /// Items that go inside a module of ours, which may need imports.
    Bare { super_glob: bool, proptest_glob: bool },
    /// Whole test modules that stand at the crate's root as they are.
    Modules,
}

pub(crate) fn layout(items: &[Item]) -> Layout {
    let wrapped = items.iter().all(|item| matches!(item, Item::Mod(module) if module.content.is_some()))
        && items.iter().any(|item| matches!(item, Item::Mod(module) if is_test_module(module)));
    if wrapped {
        return Layout::Modules;
    }
    let uses_proptest = items.iter().any(|item| {
        matches!(item, Item::Macro(mac) if mac.mac.path.is_ident("proptest") || mac.mac.path.is_ident("prop_compose"))
    });
    Layout::Bare {
        super_glob: !items.iter().any(is_super_glob),
        proptest_glob: uses_proptest && !items.iter().any(|item| imports_from(item, "proptest")),
    }
}

fn is_test_module(module: &ItemMod) -> bool {
    module.attrs.iter().any(is_cfg_test) || has_tests(module)
}

fn has_tests(module: &ItemMod) -> bool {
    let Some((_, items)) = &module.content else { return false };
    let mut found = Vec::new();
    collect(items, &mut Vec::new(), &mut found);
    !found.is_empty()
}

fn is_super_glob(item: &Item) -> bool {
    let Item::Use(item) = item else { return false };
    let syn::UseTree::Path(path) = &item.tree else { return false };
    path.ident == "super" && matches!(*path.tree, syn::UseTree::Glob(_))
}

fn imports_from(item: &Item, root: &str) -> bool {
    matches!(item, Item::Use(item) if matches!(&item.tree, syn::UseTree::Path(path) if path.ident == root))
}

fn modules_of(name: &str, what: &str, code: &str) -> Result<Vec<TestModule>, SubjectError> {
    let file = parse_items(what, code)?;
    match layout(&file.items) {
        Layout::Modules => Ok(file.items.into_iter().filter_map(as_module).collect()),
        Layout::Bare { super_glob, proptest_glob } => {
            let mut items = file.items;
            if super_glob || name == "property_tests" {
                items.push(parse_quote!(
                    #[allow(unused_imports)]
                    use super::*;
                ));
            }
            if proptest_glob || name == "property_tests" {
                items.push(parse_quote!(
                    #[allow(unused_imports)]
                    use proptest::prelude::*;
                ));
            }
            Ok(vec![TestModule { name: name.to_owned(), attrs: file.attrs, items }])
        }
    }
}

fn as_module(item: Item) -> Option<TestModule> {
    let Item::Mod(module) = item else { return None };
    let attrs = module.attrs.into_iter().filter(|attr| !is_cfg_test(attr)).collect();
    Some(TestModule { name: module.ident.to_string(), attrs, items: module.content?.1 })
}

fn collect(items: &[Item], path: &mut Vec<String>, tests: &mut Vec<TestFn>) {
    for item in items {
        match item {
            Item::Fn(item) => {
                if let Some(kind) = kind_of(&item.attrs) {
                    let fallible = is_fallible(&item.sig.output);
                    let name = item.sig.ident.to_string();
                    tests.push(test_fn(
                        path,
                        name,
                        kind,
                        &item.attrs,
                        item.sig.asyncness.is_some(),
                        fallible,
                    ));
                }
            }
            Item::Mod(module) => {
                if let Some((_, items)) = &module.content {
                    path.push(module.ident.to_string());
                    collect(items, path, tests);
                    path.pop();
                }
            }
            Item::Macro(mac) if is_proptest(&mac.mac) => {
                let Ok(block) = ProptestBlock::parse(mac.mac.tokens.clone()) else { continue };
                for test in block.tests.iter().filter(|test| kind_of(&test.attrs).is_some()) {
                    let name = test.name.to_string();
                    tests.push(test_fn(path, name, TestKind::Property, &test.attrs, false, false));
                }
            }
            _ => {}
        }
    }
}

/// `proptest!` and `proptest::proptest!`.
pub fn is_proptest(mac: &syn::Macro) -> bool {
    mac.path.segments.last().is_some_and(|segment| segment.ident == "proptest")
}

fn test_fn(
    path: &[String],
    name: String,
    kind: TestKind,
    attrs: &[Attribute],
    is_async: bool,
    fallible: bool,
) -> TestFn {
    let mut path = path.to_vec();
    path.push(name);
    let shown = if path.first().is_some_and(|module| module == "tests") { &path[1..] } else { &path[..] };
    TestFn {
        name: shown.join("::"),
        kind,
        is_async,
        should_panic: should_panic(attrs),
        ignored: attrs.iter().any(|attr| attr.path().is_ident("ignore")),
        fallible,
        path,
    }
}

/// Whether attributes make a function a test, and of which kind. `None`: it is a helper.
pub fn kind_of(attrs: &[Attribute]) -> Option<TestKind> {
    attrs.iter().find_map(|attr| {
        let path = attr.path();
        if path.segments.last()?.ident != "test" {
            return None;
        }
        match path.segments.first()?.ident.to_string().as_str() {
            "test" | "core" | "std" => Some(TestKind::Plain),
            "tokio" => {
                let args = match &attr.meta {
                    Meta::List(list) => list.tokens.clone(),
                    _ => TokenStream::new(),
                };
                Some(TestKind::Tokio { args })
            }
            _ => None,
        }
    })
}

/// `#[should_panic]`, `#[should_panic = "text"]`, `#[should_panic(expected = "text")]`.
pub fn should_panic(attrs: &[Attribute]) -> Option<ShouldPanic> {
    let attr = attrs.iter().find(|attr| attr.path().is_ident("should_panic"))?;
    let value = match &attr.meta {
        Meta::NameValue(pair) => Some(pair.value.clone()),
        Meta::List(list) => {
            syn::parse2::<syn::MetaNameValue>(list.tokens.clone()).ok().map(|pair| pair.value)
        }
        Meta::Path(_) => None,
    };
    let expected = match value {
        Some(Expr::Lit(lit)) => match lit.lit {
            Lit::Str(text) => Some(text.value()),
            _ => None,
        },
        _ => None,
    };
    Some(ShouldPanic { expected })
}

/// `#[cfg(test)]`
pub fn is_cfg_test(attr: &Attribute) -> bool {
    attr.path().is_ident("cfg")
        && matches!(&attr.meta, Meta::List(list) if list.tokens.to_string().trim() == "test")
}

fn is_fallible(output: &ReturnType) -> bool {
    match output {
        ReturnType::Default => false,
        ReturnType::Type(_, ty) => !matches!(&**ty, Type::Tuple(tuple) if tuple.elems.is_empty()),
    }
}

#[cfg(test)]
#[path = "tests_test.rs"]
mod test;
