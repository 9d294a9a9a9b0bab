//! One pass over every function of the suite, in the order of its statements.

use std::collections::BTreeSet;

use syn::visit::{self, Visit};
use syn::{Block, Expr, ExprCall, Item, ItemFn, Local, Macro, Pat, UseTree};

use super::calls::Focal;
use super::edges::is_edge;
use super::scope::{Known, Scope, names};
use super::tautology::{is_constant, is_tautology};
use crate::focal::type_name;
use crate::proptest_block::{PropertyParam, PropertyTest, ProptestBlock, ProptestClosure};
use crate::tests::{is_proptest, kind_of, should_panic};
use crate::{FocalFn, TestSuite, macros};

#[derive(Debug, Default)]
pub(super) struct Found {
    pub n_assertions: u32,
    pub n_on_result: u32,
    pub n_tautologies: u32,
    pub calls_focal: bool,
    pub has_edge_case: bool,
    pub redefines_focal: bool,
}

pub(super) fn walk(suite: &TestSuite, function: &FocalFn) -> Found {
    let found = pass(suite, &Focal::new(function, suite, false));
    if !found.redefines_focal {
        return found;
    }
    // The bare name may be the other one: what counts is `super::name`.
    Found { redefines_focal: true, ..pass(suite, &Focal::new(function, suite, true)) }
}

fn pass(suite: &TestSuite, focal: &Focal<'_>) -> Found {
    let mut walker = Walker {
        focal,
        scope: Scope::default(),
        found: Found::default(),
        condition: None,
        in_call: false,
        shadowed: shadowed(suite),
    };
    suite.modules.iter().flat_map(|module| &module.items).for_each(|item| walker.visit_item(item));
    walker.found
}

/// Macros of the suite's own under the names of those that assert: what they do, nobody knows.
fn shadowed(suite: &TestSuite) -> BTreeSet<String> {
    struct Defined(BTreeSet<String>);
    impl<'ast> Visit<'ast> for Defined {
        fn visit_item_macro(&mut self, item: &'ast syn::ItemMacro) {
            let name = item.ident.as_ref().map(ToString::to_string);
            self.0.extend(name.filter(|name| STANDARD_ASSERTIONS.contains(&name.as_str())));
        }
    }
    let mut defined = Defined(BTreeSet::new());
    suite.modules.iter().flat_map(|module| &module.items).for_each(|item| defined.visit_item(item));
    defined.0
}

const STANDARD_ASSERTIONS: [&str; 9] = [
    "assert",
    "assert_eq",
    "assert_ne",
    "debug_assert",
    "debug_assert_eq",
    "debug_assert_ne",
    "prop_assert",
    "prop_assert_eq",
    "prop_assert_ne",
];

struct Walker<'w> {
    focal: &'w Focal<'w>,
    scope: Scope,
    found: Found,
    /// Inside a condition: whether it looks at the focal function's result.
    condition: Option<bool>,
    /// The next path is the function of a call that was seen already.
    in_call: bool,
    shadowed: BTreeSet<String>,
}

impl Walker<'_> {
    fn known(&self, expr: &Expr) -> Known {
        Known {
            result: self.focal.is_result(expr, &self.scope),
            edge: is_edge(expr, &self.scope),
            constant: is_constant(expr, &self.scope) && !self.focal.is_called_in(expr),
            fresh: self.is_fresh(expr),
        }
    }

    /// `Stack::new()` for a method of `Stack`: a value that nothing was done to.
    fn is_fresh(&self, expr: &Expr) -> bool {
        let Some(own) = &self.focal.function.self_type else { return false };
        let Expr::Call(call) = expr else { return false };
        let Expr::Path(path) = &*call.func else { return false };
        let mut segments = path.path.segments.iter().rev().map(|segment| segment.ident.to_string());
        let made = segments.next().is_some_and(|name| matches!(name.as_str(), "new" | "default"));
        made && call.args.is_empty() && segments.next().is_some_and(|name| name == *own || name == "Default")
    }

    /// Runs `inside` in a scope of its own.
    fn scoped(&mut self, inside: impl FnOnce(&mut Self)) {
        let outer = self.scope.clone();
        inside(self);
        let inner = std::mem::replace(&mut self.scope, outer);
        self.scope.absorb(&inner);
    }

    /// Runs `inside` under a condition.
    fn under(&mut self, on_result: bool, inside: impl FnOnce(&mut Self)) {
        let before = self.condition;
        self.condition = Some(before == Some(true) || on_result);
        inside(self);
        self.condition = before;
    }

    /// Binds a pattern to a value, part by part where both are tuples.
    fn bind(&mut self, pat: &Pat, value: &Expr) {
        match (pat, value) {
            (Pat::Tuple(pats), Expr::Tuple(values)) if pats.elems.len() == values.elems.len() => {
                for (pat, value) in pats.elems.iter().zip(&values.elems) {
                    self.bind(pat, value);
                }
            }
            (Pat::Type(typed), _) => self.bind(&typed.pat, value),
            (Pat::Reference(reference), _) => self.bind(&reference.pat, value),
            _ => {
                let known = self.known(value);
                self.scope.bind(pat, known);
            }
        }
    }

    /// Binds a loop's pattern to each element of a list in turn, and keeps what any of them says.
    fn bind_each(&mut self, pat: &Pat, list: &Expr) {
        let elements = elements(list);
        if elements.is_empty() {
            let known = Known { constant: false, fresh: false, ..self.known(list) };
            self.scope.bind(pat, known);
            return;
        }
        let mut merged: Vec<(String, Known)> = Vec::new();
        for element in &elements {
            self.bind(pat, element);
            for (name, _) in names(pat) {
                let known = self.scope.get(&name);
                match merged.iter_mut().find(|(other, _)| *other == name) {
                    Some((_, seen)) => {
                        seen.result |= known.result;
                        seen.edge |= known.edge;
                    }
                    None => merged.push((name, known)),
                }
            }
        }
        for (name, known) in merged {
            self.scope.set(&name, Known { constant: false, fresh: false, ..known });
        }
    }

    /// Notes a call of the focal function, its edge values, and what it changes.
    fn note_call(&mut self, expr: &Expr) {
        let Some(call) = self.focal.call(expr) else {
            if let Expr::Call(call) = expr
                && let Expr::Path(path) = &*call.func
                && path.path.get_ident().is_some_and(|name| self.scope.get(&name.to_string()).result)
            {
                self.found.has_edge_case |= call.args.iter().any(|arg| is_edge(arg, &self.scope));
            }
            return;
        };
        self.found.calls_focal = true;
        let fresh = call.receiver.is_some_and(|receiver| match root(receiver) {
            Some(name) => self.scope.get(&name).fresh,
            None => self.is_fresh(receiver),
        });
        let mut values = call.args.iter().copied().chain(call.receiver);
        self.found.has_edge_case |= fresh || values.any(|value| is_edge(value, &self.scope));
        for arg in &call.args {
            if let Expr::Reference(reference) = arg
                && reference.mutability.is_some()
                && let Some(name) = root(&reference.expr)
            {
                self.scope.change(&name, |known| known.result = true);
            }
        }
        if self.focal.function.mutates_receiver
            && let Some(name) = call.receiver.and_then(root)
        {
            self.scope.change(&name, |known| known.result = true);
        }
    }

    /// What an expression does to variables.
    fn note_effects(&mut self, expr: &Expr) {
        match expr {
            Expr::MethodCall(call) => {
                if let Some(name) = root(&call.receiver) {
                    self.scope.change(&name, |known| known.fresh = false);
                }
            }
            Expr::Reference(reference) if reference.mutability.is_some() => {
                if let Some(name) = root(&reference.expr) {
                    self.scope.change(&name, |known| (known.fresh, known.constant) = (false, false));
                }
            }
            Expr::Assign(assign) => {
                let known = self.known(&assign.right);
                if let Some(name) = root(&assign.left) {
                    self.scope.change(&name, |old| *old = Known { constant: false, ..known });
                }
            }
            Expr::Binary(binary) => {
                let result = self.focal.is_result(&binary.right, &self.scope);
                let is_assignment = crate::macros::is_compound_assignment(&binary.op);
                if is_assignment && let Some(name) = root(&binary.left) {
                    self.scope
                        .change(&name, |old| (old.result, old.constant) = (old.result || result, false));
                }
            }
            _ => {}
        }
    }

    fn assertion(&mut self, name: &str, mac: &Macro) {
        let Some(body) = macros::body(mac) else {
            self.found.n_assertions += 1;
            return;
        };
        if self.shadowed.contains(name) {
            return body.exprs.iter().for_each(|expr| self.visit_expr(expr));
        }
        self.found.n_assertions += 1;
        let n_values = if matches!(name, "assert" | "debug_assert" | "prop_assert") { 1 } else { 2 };
        let on_result = body.exprs.iter().take(n_values).any(|expr| self.focal.is_result(expr, &self.scope));
        self.found.n_on_result += u32::from(on_result || self.focal.is_macro(mac));
        self.found.n_tautologies += u32::from(is_tautology(name, &body, self.focal, &self.scope));
        body.exprs.iter().for_each(|expr| self.visit_expr(expr));
    }

    /// `assert_close(a, b)`: a function that asserts, by its name.
    fn note_assertion_function(&mut self, call: &ExprCall) {
        let Expr::Path(path) = &*call.func else { return };
        if path.path.segments.last().is_some_and(|last| last.ident.to_string().starts_with("assert")) {
            self.found.n_assertions += 1;
            let on_result = call.args.iter().any(|arg| self.focal.is_result(arg, &self.scope));
            self.found.n_on_result += u32::from(on_result);
        }
    }

    fn property_test(&mut self, test: &PropertyTest) {
        self.scoped(|walker| {
            walker.bind_params(&test.params);
            walker.visit_block(&test.body);
        });
    }

    fn bind_params(&mut self, params: &[PropertyParam]) {
        for param in params {
            match param {
                PropertyParam::Strategy { pat, strategy } => {
                    let known = Known { constant: false, ..self.known(strategy) };
                    self.scope.bind(pat, known);
                }
                PropertyParam::Arbitrary { pat, .. } => self.scope.bind(pat, Known::default()),
            }
        }
    }

    fn test_function(&mut self, function: &ItemFn) {
        let before = std::mem::take(&mut self.found.calls_focal);
        self.scoped(|walker| {
            for input in &function.sig.inputs {
                if let syn::FnArg::Typed(typed) = input {
                    walker.scope.bind(&typed.pat, Known::default());
                }
            }
            walker.visit_block(&function.block);
        });
        if should_panic(&function.attrs).is_some() && self.found.calls_focal {
            self.found.n_assertions += 1;
            self.found.n_on_result += 1;
        }
        self.found.calls_focal |= before;
    }

    fn redefines(&self, item: &Item) -> bool {
        let function = self.focal.function;
        let own = function.self_type.as_deref();
        match item {
            // A test of that name is none that could be called in its place.
            Item::Fn(item) => {
                own.is_none() && item.sig.ident == function.name && kind_of(&item.attrs).is_none()
            }
            Item::Struct(item) => own.is_some_and(|own| item.ident == own),
            Item::Enum(item) => own.is_some_and(|own| item.ident == own),
            Item::Impl(block) => {
                let same = |member: &syn::ImplItem| matches!(member, syn::ImplItem::Fn(f) if f.sig.ident == function.name);
                own.is_some() && type_name(&block.self_ty).as_deref() == own && block.items.iter().any(same)
            }
            Item::Use(item) => own.is_none() && imports(&item.tree, &function.name, true),
            _ => false,
        }
    }
}

/// Whether a `use` brings in `name` from somewhere else than the crate under test.
fn imports(tree: &UseTree, name: &str, at_root: bool) -> bool {
    match tree {
        UseTree::Path(path) if at_root && ["super", "crate", "self"].iter().any(|own| path.ident == own) => {
            false
        }
        UseTree::Path(path) => imports(&path.tree, name, false),
        UseTree::Name(leaf) => leaf.ident == name,
        UseTree::Rename(leaf) => leaf.rename == name,
        UseTree::Group(group) => group.items.iter().any(|tree| imports(tree, name, at_root)),
        _ => false,
    }
}

/// The variable that an expression is a part of: `v` of `v.items[0]`, `&mut v` and `(*v)`.
fn root(expr: &Expr) -> Option<String> {
    match expr {
        Expr::Path(path) => path.path.get_ident().map(ToString::to_string),
        Expr::Field(field) => root(&field.base),
        Expr::Index(index) => root(&index.expr),
        Expr::Paren(paren) => root(&paren.expr),
        Expr::Reference(reference) => root(&reference.expr),
        Expr::Unary(unary) => root(&unary.expr),
        _ => None,
    }
}

/// The elements of a list that is written out: an array, `vec![..]`, their references and iterators.
fn elements(list: &Expr) -> Vec<Expr> {
    match list {
        Expr::Array(array) => array.elems.iter().cloned().collect(),
        Expr::Macro(mac) if macros::name(&mac.mac) == "vec" => {
            macros::body(&mac.mac).map(|body| body.exprs).unwrap_or_default()
        }
        Expr::Reference(reference) => elements(&reference.expr),
        Expr::Paren(paren) => elements(&paren.expr),
        Expr::MethodCall(call) if call.args.is_empty() => elements(&call.receiver),
        _ => Vec::new(),
    }
}

impl<'ast> Visit<'ast> for Walker<'_> {
    fn visit_item(&mut self, item: &'ast Item) {
        self.found.redefines_focal |= self.redefines(item);
        match item {
            Item::Fn(function) => self.test_function(function),
            _ => visit::visit_item(self, item),
        }
    }

    fn visit_block(&mut self, block: &'ast Block) {
        self.scoped(|walker| visit::visit_block(walker, block));
    }

    fn visit_local(&mut self, local: &'ast Local) {
        let Some(init) = &local.init else {
            self.scope.bind(&local.pat, Known::default());
            return;
        };
        self.visit_expr(&init.expr);
        if let Some((_, diverge)) = &init.diverge {
            let on_result = self.focal.is_result(&init.expr, &self.scope);
            self.under(on_result, |walker| walker.visit_expr(diverge));
        }
        let is_closure = matches!(&*init.expr, Expr::Closure(_));
        let own_name = |(name, _): &(String, bool)| *name == self.focal.function.name;
        if is_closure && self.focal.function.self_type.is_none() {
            self.found.redefines_focal |= names(&local.pat).iter().any(own_name);
        }
        self.bind(&local.pat, &init.expr);
    }

    fn visit_expr(&mut self, expr: &'ast Expr) {
        let is_callee = std::mem::take(&mut self.in_call);
        if !is_callee {
            self.note_call(expr);
        }
        self.note_effects(expr);
        match expr {
            Expr::Call(call) => {
                self.note_assertion_function(call);
                self.in_call = matches!(&*call.func, Expr::Path(_));
                self.visit_expr(&call.func);
                self.in_call = false;
                call.args.iter().for_each(|arg| self.visit_expr(arg));
            }
            Expr::If(branch) => {
                let on_result = self.focal.is_result(&branch.cond, &self.scope);
                self.scoped(|walker| {
                    walker.visit_expr(&branch.cond);
                    walker.under(on_result, |walker| walker.visit_block(&branch.then_branch));
                });
                if let Some((_, other)) = &branch.else_branch {
                    self.under(on_result, |walker| walker.visit_expr(other));
                }
            }
            Expr::Let(binding) => {
                self.visit_expr(&binding.expr);
                self.bind(&binding.pat, &binding.expr);
            }
            Expr::Match(matching) => {
                self.visit_expr(&matching.expr);
                let on_result = self.focal.is_result(&matching.expr, &self.scope);
                for arm in &matching.arms {
                    self.scoped(|walker| {
                        walker.bind(&arm.pat, &matching.expr);
                        if let Pat::Guard(guard) = &arm.pat {
                            walker.visit_expr(&guard.guard);
                        }
                        walker.under(on_result, |walker| walker.visit_expr(&arm.body));
                    });
                }
            }
            Expr::ForLoop(repeat) => {
                self.visit_expr(&repeat.expr);
                self.scoped(|walker| {
                    walker.bind_each(&repeat.pat, &repeat.expr);
                    walker.visit_block(&repeat.body);
                });
            }
            Expr::MethodCall(call) => {
                self.visit_expr(&call.receiver);
                for arg in &call.args {
                    match arg {
                        Expr::Closure(closure) => self.scoped(|walker| {
                            closure.inputs.iter().for_each(|pat| walker.bind_each(pat, &call.receiver));
                            walker.visit_expr(&closure.body);
                        }),
                        _ => self.visit_expr(arg),
                    }
                }
            }
            Expr::Closure(closure) => self.scoped(|walker| {
                closure.inputs.iter().for_each(|pat| walker.scope.bind(pat, Known::default()));
                walker.visit_expr(&closure.body);
            }),
            _ => visit::visit_expr(self, expr),
        }
    }

    fn visit_macro(&mut self, mac: &'ast Macro) {
        let name = macros::name(mac);
        if is_proptest(mac) {
            if let Ok(block) = ProptestBlock::parse(mac.tokens.clone()) {
                block.tests.iter().for_each(|test| self.property_test(test));
            } else if let Ok(closure) = syn::parse2::<ProptestClosure>(mac.tokens.clone()) {
                self.scoped(|walker| {
                    walker.bind_params(&closure.params);
                    walker.visit_expr(&closure.body);
                });
            }
            return;
        }
        if self.focal.is_macro(mac) {
            self.found.calls_focal = true;
        }
        let base = name.trim_start_matches("debug_").trim_start_matches("prop_");
        if base.starts_with("assert") {
            return self.assertion(&name, mac);
        }
        if matches!(base, "panic" | "unreachable" | "todo" | "unimplemented")
            && let Some(on_result) = self.condition
        {
            self.found.n_assertions += 1;
            self.found.n_on_result += u32::from(on_result);
        }
        if let Some(body) = macros::body(mac) {
            body.exprs.iter().for_each(|expr| self.visit_expr(expr));
        }
    }
}
