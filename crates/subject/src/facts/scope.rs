//! What is known of the variables in scope.

use std::collections::BTreeMap;

use syn::Pat;
use syn::visit::{self, Visit};

/// What a value is known to be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Known {
    /// It comes from the focal function.
    pub result: bool,
    /// It is, or holds, an edge value.
    pub edge: bool,
    /// It is made of literals alone.
    pub constant: bool,
    /// It was made empty and not touched since.
    pub fresh: bool,
}

/// Variables by name; inner scopes are copies that are thrown away.
#[derive(Debug, Clone, Default)]
pub(super) struct Scope {
    variables: BTreeMap<String, Known>,
}

impl Scope {
    pub(super) fn get(&self, name: &str) -> Known {
        self.variables.get(name).copied().unwrap_or_default()
    }

    pub(super) fn set(&mut self, name: &str, known: Known) {
        self.variables.insert(name.to_owned(), known);
    }

    pub(super) fn change(&mut self, name: &str, change: impl FnOnce(&mut Known)) {
        change(self.variables.entry(name.to_owned()).or_default());
    }

    /// Gives every name of the pattern the same knowledge. A `mut` binding is no constant.
    pub(super) fn bind(&mut self, pat: &Pat, known: Known) {
        for (name, is_mut) in names(pat) {
            self.set(&name, Known { constant: known.constant && !is_mut, ..known });
        }
    }

    /// What an inner scope learned about variables of this one. Shadowing inside it is not told apart.
    pub(super) fn absorb(&mut self, inner: &Self) {
        for (name, known) in &mut self.variables {
            if let Some(seen) = inner.variables.get(name) {
                known.result |= seen.result;
                known.fresh &= seen.fresh;
                known.constant &= seen.constant;
            }
        }
    }
}

/// The names that a pattern binds, and whether each is `mut`.
pub(super) fn names(pat: &Pat) -> Vec<(String, bool)> {
    struct Names(Vec<(String, bool)>);
    impl<'ast> Visit<'ast> for Names {
        fn visit_pat_ident(&mut self, ident: &'ast syn::PatIdent) {
            let is_mut = ident.mutability.is_some();
            self.0.push((ident.ident.to_string(), is_mut));
            visit::visit_pat_ident(self, ident);
        }
        fn visit_expr(&mut self, _: &'ast syn::Expr) {}
    }
    let mut found = Names(Vec::new());
    found.visit_pat(pat);
    found.0
}
