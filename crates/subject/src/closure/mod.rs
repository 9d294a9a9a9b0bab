//! What a function and its tests need to stand alone: the items of their crate that they refer to, directly or through
//! one another, moved into one module, with paths rewritten to it.
//!
//! Of a type come its declaration, the methods that are called by name, and those trait impls whose names or operators
//! occur. Of a trait come its declaration and its impls for types that are in play. Names are looked up as Rust does
//! (`resolve`); what only type inference could tell is decided by name, so that a little too much may come along.

mod render;
mod resolve;
mod scan;
mod select;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;

use thiserror::Error;

use self::resolve::Resolver;
use self::scan::{Scan, Scanner};
use self::select::Chosen;
use crate::extract::{Case, CaseKind, Edit, Focal, Fragment, ItemId, ItemKind, Krate, ModuleId};

/// Why a function can't leave its crate.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ClosureError {
    #[error("needs the crate `{0}`")]
    OutsideDependency(String),
    #[error("touches {0}")]
    Forbidden(String),
    #[error("two things are called `{0}`")]
    NameConflict(String),
}

impl ClosureError {
    /// For counting.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::OutsideDependency(_) => "outside_dependency",
            Self::Forbidden(_) => "touches_the_system",
            Self::NameConflict(_) => "name_conflict",
        }
    }
}

/// A function with everything that it and its tests need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StandAlone {
    pub function_code: String,
    /// Whole `use` declarations, sorted.
    pub imports: Vec<String>,
    /// Macros first, then in the order of the source.
    pub items: Vec<String>,
    pub unit_tests: String,
    pub property_tests: Option<String>,
}

/// How much of what may be needed comes along.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Breadth {
    /// Of the std traits that a type implements, those whose methods are called by name.
    Lean,
    /// Also those that operators, macros and derives may ask for.
    Generous,
}

/// Makes functions of one crate stand alone.
#[derive(Debug)]
pub struct Closer<'k> {
    krate: &'k Krate,
    resolver: Resolver<'k>,
    macros: BTreeMap<String, Vec<ItemId>>,
    /// Crates that a row may link.
    externs: BTreeSet<String>,
    scans: RefCell<HashMap<(usize, usize, ModuleId), Rc<Scan>>>,
    impls: Vec<select::ImplFacts>,
}

impl<'k> Closer<'k> {
    pub fn new(krate: &'k Krate, externs: BTreeSet<String>) -> Self {
        let resolver = Resolver::new(krate);
        let mut macros = BTreeMap::<String, Vec<ItemId>>::new();
        for (id, item) in krate.items.iter().enumerate().filter(|(_, i)| i.kind == ItemKind::Macro) {
            macros.entry(item.name.clone()).or_default().push(id);
        }
        let impls = select::impl_facts(krate, &resolver);
        Self { krate, resolver, macros, externs, scans: RefCell::default(), impls }
    }

    /// The functions of the crate that a case refers to. A method is known by its name alone, so its type must be named
    /// too, or stand in the module around the test.
    pub fn callees(&self, case: usize, functions: &[Focal]) -> Vec<Focal> {
        let case = &self.krate.cases[case];
        let scan = self.scan(&case.code, case.module);
        let outer = self.krate.modules[case.module].parent;
        let called = |focal: &&Focal| {
            let item = &self.krate.items[focal.item];
            match focal.member {
                None => scan.items.contains(&focal.item),
                Some(member) => {
                    let of_trait = item.trait_path.as_ref().and_then(|path| path.last());
                    let near = scan.words.contains(&item.name)
                        || of_trait.is_some_and(|name| scan.words.contains(name))
                        || outer == Some(item.module);
                    near && scan.members.contains(&item.members[member].name)
                }
            }
        };
        functions.iter().filter(called).copied().collect()
    }

    /// Takes the function and the cases out of the crate.
    ///
    /// # Errors
    /// See [`ClosureError`].
    pub fn close(&self, focal: Focal, cases: &[usize], breadth: Breadth) -> Result<StandAlone, ClosureError> {
        let chosen = select::choose(self, focal, cases, breadth);
        self.check(&chosen, focal, cases)?;
        let imports = self.imports(&chosen, focal, cases)?;
        let (mut macros, mut rest) = (Vec::new(), Vec::new());
        for (&id, members) in &chosen.items {
            let item = &self.krate.items[id];
            if item.test_only || (id == focal.item && focal.member.is_none()) {
                continue;
            }
            let text =
                if item.kind == ItemKind::Impl { self.impl_block(id, members, None) } else { self.item(id) };
            if item.kind == ItemKind::Macro { macros.push(text) } else { rest.push(text) }
        }
        macros.append(&mut rest);
        let of_kind = |property: bool| {
            let of = |case: &&usize| (self.krate.cases[**case].kind == CaseKind::Property) == property;
            cases.iter().filter(of).copied().collect::<Vec<_>>()
        };
        let (unit, property) = (of_kind(false), of_kind(true));
        let property_tests = if property.is_empty() { None } else { Some(self.suite(&property, &imports)?) };
        Ok(StandAlone {
            function_code: self.function(focal),
            unit_tests: self.suite(&unit, &imports)?,
            property_tests,
            imports: imports.into_values().collect(),
            items: macros,
        })
    }

    fn scan(&self, fragment: &Fragment, module: ModuleId) -> Rc<Scan> {
        let key = (fragment.text, fragment.range.start, module);
        if let Some(scan) = self.scans.borrow().get(&key) {
            return Rc::clone(scan);
        }
        let scanner = Scanner {
            krate: self.krate,
            resolver: &self.resolver,
            macros: &self.macros,
            externs: &self.externs,
        };
        let scan = Rc::new(scanner.scan(fragment, module));
        self.scans.borrow_mut().insert(key, Rc::clone(&scan));
        scan
    }

    /// Scans of everything chosen, each with whether it belongs to the tests.
    fn scans_of(&self, chosen: &Chosen, focal: Focal, cases: &[usize]) -> Vec<(Rc<Scan>, bool)> {
        let mut scans = Vec::new();
        let home = &self.krate.items[focal.item];
        scans.push((self.scan(&home.code, home.module), false));
        scans.push((self.scan(self.krate.code_of(focal), home.module), false));
        for (&id, members) in &chosen.items {
            let item = &self.krate.items[id];
            scans.push((self.scan(&item.code, item.module), item.test_only));
            let members =
                members.iter().map(|&m| (self.scan(&item.members[m].code, item.module), item.test_only));
            scans.extend(members);
        }
        for &case in cases {
            let case = &self.krate.cases[case];
            scans.push((self.scan(&case.code, case.module), true));
        }
        scans
    }

    fn check(&self, chosen: &Chosen, focal: Focal, cases: &[usize]) -> Result<(), ClosureError> {
        for (scan, _) in self.scans_of(chosen, focal, cases) {
            if let Some(name) = &scan.outside {
                return Err(ClosureError::OutsideDependency(name.clone()));
            }
            if let Some(what) = &scan.forbidden {
                return Err(ClosureError::Forbidden(what.clone()));
            }
        }
        let mut taken = BTreeSet::new();
        for &id in chosen.items.keys().chain(focal.member.is_none().then_some(&focal.item)) {
            let item = &self.krate.items[id];
            let space = match item.kind {
                ItemKind::Impl | ItemKind::MacroCall => continue,
                ItemKind::Macro => 0,
                ItemKind::Fn | ItemKind::Const | ItemKind::Static => 1,
                _ => 2,
            };
            if !taken.insert((item.test_only, space, item.name.as_str())) {
                return Err(ClosureError::NameConflict(item.name.clone()));
            }
        }
        let mut names = BTreeSet::new();
        for &case in cases {
            if !names.insert(self.krate.cases[case].name.as_str()) {
                return Err(ClosureError::NameConflict(self.krate.cases[case].name.clone()));
            }
        }
        Ok(())
    }

    fn imports(
        &self,
        chosen: &Chosen,
        focal: Focal,
        cases: &[usize],
    ) -> Result<BTreeMap<String, String>, ClosureError> {
        let mut imports = BTreeMap::new();
        for (scan, for_tests) in self.scans_of(chosen, focal, cases) {
            if for_tests {
                continue;
            }
            for (name, declaration) in &scan.imports {
                merge(&mut imports, name, declaration)?;
            }
        }
        let words = self.words(chosen, focal, cases);
        for module in self.modules(chosen, focal) {
            for (name, declaration) in select::trait_imports(self.krate, &self.resolver, module, &words) {
                if !imports.values().any(|d| *d == declaration) {
                    merge(&mut imports, &name, &declaration)?;
                }
            }
        }
        for &id in chosen.items.keys().filter(|id| !self.krate.items[**id].test_only) {
            let item = &self.krate.items[id];
            let is_macro = matches!(item.kind, ItemKind::Impl | ItemKind::MacroCall | ItemKind::Macro);
            if !is_macro && imports.contains_key(&item.name) {
                return Err(ClosureError::NameConflict(item.name.clone()));
            }
        }
        Ok(imports)
    }

    fn words(&self, chosen: &Chosen, focal: Focal, cases: &[usize]) -> BTreeSet<String> {
        let scans = self.scans_of(chosen, focal, cases);
        scans.iter().flat_map(|(scan, _)| scan.words.iter().cloned()).collect()
    }

    fn modules(&self, chosen: &Chosen, focal: Focal) -> BTreeSet<ModuleId> {
        let items = chosen.items.keys().chain([&focal.item]);
        items.filter(|id| !self.krate.items[**id].test_only).map(|id| self.krate.items[*id].module).collect()
    }

    fn text(&self, fragment: &Fragment, module: ModuleId) -> String {
        render::code(&self.krate.texts, fragment, &self.scan(fragment, module).edits)
    }

    fn item(&self, id: ItemId) -> String {
        let item = &self.krate.items[id];
        render::with_attributes(&item.code, &self.text(&item.code, item.module), false)
    }

    fn impl_block(&self, id: ItemId, members: &BTreeSet<usize>, documented: Option<usize>) -> String {
        let item = &self.krate.items[id];
        let header = render::with_attributes(&item.code, &self.text(&item.code, item.module), false);
        let texts = members.iter().map(|&m| {
            let member = &item.members[m].code;
            let text = self.text(member, item.module);
            render::indent(&render::with_attributes(member, &text, documented == Some(m)))
        });
        format!("{header} {{\n{}\n}}", texts.collect::<Vec<_>>().join("\n\n"))
    }

    fn function(&self, focal: Focal) -> String {
        let item = &self.krate.items[focal.item];
        let Some(member) = focal.member else {
            return render::with_attributes(&item.code, &self.text(&item.code, item.module), true);
        };
        let members =
            if item.trait_path.is_some() { (0..item.members.len()).collect() } else { [member].into() };
        self.impl_block(focal.item, &members, Some(member))
    }

    /// The inside of a module of tests: `use` declarations, helpers, tests.
    fn suite(&self, cases: &[usize], outer: &BTreeMap<String, String>) -> Result<String, ClosureError> {
        let helpers = select::helpers(self, cases);
        let mut imports = BTreeMap::new();
        let mut parts = Vec::new();
        for (&id, members) in &helpers {
            let item = &self.krate.items[id];
            for fragment in std::iter::once(&item.code).chain(members.iter().map(|&m| &item.members[m].code))
            {
                for (name, declaration) in &self.scan(fragment, item.module).imports {
                    merge(&mut imports, name, declaration)?;
                }
            }
            let text =
                if item.kind == ItemKind::Impl { self.impl_block(id, members, None) } else { self.item(id) };
            if item.kind == ItemKind::Macro { parts.insert(0, text) } else { parts.push(text) }
        }
        let mut modules = BTreeSet::new();
        let mut words = BTreeSet::new();
        for &case in cases {
            let case = &self.krate.cases[case];
            let scan = self.scan(&case.code, case.module);
            for (name, declaration) in &scan.imports {
                merge(&mut imports, name, declaration)?;
            }
            modules.insert(case.module);
            words.extend(scan.words.iter().cloned());
        }
        for module in modules {
            for (name, declaration) in select::trait_imports(self.krate, &self.resolver, module, &words) {
                merge(&mut imports, &name, &declaration)?;
            }
        }
        imports.retain(|name, declaration| {
            outer.get(name) != Some(declaration) && !declaration.starts_with("use proptest")
        });
        parts.extend(self.tests(cases));
        let uses = imports.into_values().collect::<Vec<_>>().join("\n");
        if !uses.is_empty() {
            parts.insert(0, uses);
        }
        Ok(parts.join("\n\n"))
    }

    /// A test may be called like a function of the crate: here that would hide it.
    fn test_code(&self, case: &Case) -> String {
        let scan = self.scan(&case.code, case.module);
        let taken = scan.items.iter().any(|&id| self.krate.items[id].name == case.name);
        let mut edits = scan.edits.clone();
        let name = case.code.tokens.iter().skip_while(|t| !t.is_ident("fn")).nth(1);
        if let Some(name) = name.filter(|_| taken) {
            edits.push(Edit { range: name.range.clone(), text: format!("test_{}", case.name) });
        }
        render::code(&self.krate.texts, &case.code, &edits)
    }

    fn tests(&self, cases: &[usize]) -> Vec<String> {
        let mut tests = Vec::new();
        let mut blocks = BTreeMap::<Option<&str>, Vec<String>>::new();
        for &id in cases {
            let case = &self.krate.cases[id];
            let text = render::with_attributes(&case.code, &self.test_code(case), false);
            match case.kind {
                CaseKind::Property => {
                    blocks.entry(case.config.as_deref()).or_default().push(render::indent(&text))
                }
                _ => tests.push(text),
            }
        }
        for (config, properties) in blocks {
            let config = config.map_or(String::new(), |c| format!("    {c}\n\n"));
            tests.push(format!("proptest! {{\n{config}{}\n}}", properties.join("\n\n")));
        }
        tests
    }
}

fn merge(imports: &mut BTreeMap<String, String>, name: &str, declaration: &str) -> Result<(), ClosureError> {
    match imports.insert(name.to_owned(), declaration.to_owned()) {
        Some(other) if other != declaration => Err(ClosureError::NameConflict(name.to_owned())),
        _ => Ok(()),
    }
}

#[cfg(test)]
#[path = "closure_test.rs"]
mod test;
