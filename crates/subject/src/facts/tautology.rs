//! Assertions that can't fail.

use quote::ToTokens;
use syn::{BinOp, Expr, ExprBinary, Lit, Pat, UnOp};

use super::calls::Focal;
use super::scope::Scope;
use crate::macros::{self, MacroBody};

/// Whether an assertion macro holds whatever the focal function does.
pub(super) fn is_tautology(name: &str, body: &MacroBody, focal: &Focal<'_>, scope: &Scope) -> bool {
    let checks = Checks { focal, scope };
    let base = name.trim_start_matches("debug_").trim_start_matches("prop_");
    match (base, body.exprs.as_slice()) {
        ("assert", [condition, ..]) => checks.always(condition),
        ("assert_eq", [left, right, ..]) => same(left, right) || checks.both_constant(left, right),
        ("assert_ne", [left, right, ..]) => checks.both_constant(left, right),
        ("assert_matches", _) => body.pattern.as_ref().is_some_and(matches_anything) && body.exprs.len() == 1,
        _ => false,
    }
}

struct Checks<'c> {
    focal: &'c Focal<'c>,
    scope: &'c Scope,
}

impl Checks<'_> {
    fn both_constant(&self, left: &Expr, right: &Expr) -> bool {
        self.is_constant(left) && self.is_constant(right)
    }

    /// The condition is true in every run.
    fn always(&self, condition: &Expr) -> bool {
        match condition {
            Expr::Paren(paren) => self.always(&paren.expr),
            Expr::Group(group) => self.always(&group.expr),
            Expr::Binary(binary) => self.always_binary(binary),
            Expr::Macro(mac) if macros::name(&mac.mac) == "matches" => {
                macros::body(&mac.mac).is_some_and(|body| {
                    body.exprs.len() == 1 && body.pattern.as_ref().is_some_and(matches_anything)
                })
            }
            _ => self.is_constant(condition),
        }
    }

    fn always_binary(&self, binary: &ExprBinary) -> bool {
        let (left, right) = (&*binary.left, &*binary.right);
        match binary.op {
            BinOp::Eq(_) if same(left, right) => true,
            BinOp::Le(_) | BinOp::Ge(_) if same(left, right) => true,
            BinOp::Ge(_) => is_length(left) && is_zero(right) || self.both_constant(left, right),
            BinOp::Le(_) => is_zero(left) && is_length(right) || self.both_constant(left, right),
            BinOp::Or(_) => {
                self.always(left)
                    || self.always(right)
                    || is_opposite(left, right)
                    || is_opposite(right, left)
            }
            BinOp::And(_) => self.always(left) && self.always(right),
            _ => self.both_constant(left, right),
        }
    }

    /// Made of literals and of variables that hold nothing else.
    pub(super) fn is_constant(&self, expr: &Expr) -> bool {
        if self.focal.is_called_in(expr) {
            return false;
        }
        is_constant(expr, self.scope)
    }
}

pub(super) fn is_constant(expr: &Expr, scope: &Scope) -> bool {
    let inner = |expr: &Expr| is_constant(expr, scope);
    match expr {
        Expr::Lit(_) => true,
        Expr::Path(path) => match path.path.get_ident() {
            Some(name) => *name == "None" || scope.get(&name.to_string()).constant,
            None => path
                .path
                .segments
                .last()
                .is_some_and(|last| matches!(last.ident.to_string().as_str(), "MIN" | "MAX")),
        },
        Expr::Paren(e) => inner(&e.expr),
        Expr::Group(e) => inner(&e.expr),
        Expr::Unary(e) => !matches!(e.op, UnOp::Deref(_)) && inner(&e.expr),
        Expr::Reference(e) => e.mutability.is_none() && inner(&e.expr),
        Expr::Cast(e) => inner(&e.expr),
        Expr::Binary(e) => inner(&e.left) && inner(&e.right),
        Expr::Tuple(e) => e.elems.iter().all(inner),
        Expr::Array(e) => e.elems.iter().all(inner),
        Expr::Call(call) => is_plain_constructor(&call.func) && call.args.iter().all(inner),
        Expr::MethodCall(call) => {
            let hands_on =
                ["to_string", "to_owned", "into", "clone", "len", "is_empty", "as_str", "abs", "to_vec"];
            hands_on.contains(&call.method.to_string().as_str())
                && call.args.is_empty()
                && inner(&call.receiver)
        }
        Expr::Macro(mac) if macros::name(&mac.mac) == "vec" => {
            macros::body(&mac.mac).is_some_and(|body| body.exprs.iter().all(inner))
        }
        _ => false,
    }
}

fn is_plain_constructor(func: &Expr) -> bool {
    let Expr::Path(path) = func else { return false };
    let text = path.path.to_token_stream().to_string().replace(' ', "");
    matches!(text.as_str(), "Some" | "Ok" | "Err" | "String::from" | "String::new" | "Vec::new")
}

/// The same text, references and parentheses apart.
fn same(left: &Expr, right: &Expr) -> bool {
    bare(left).to_token_stream().to_string() == bare(right).to_token_stream().to_string()
}

fn bare(expr: &Expr) -> &Expr {
    match expr {
        Expr::Paren(paren) => bare(&paren.expr),
        Expr::Group(group) => bare(&group.expr),
        Expr::Reference(reference) => bare(&reference.expr),
        _ => expr,
    }
}

fn is_length(expr: &Expr) -> bool {
    matches!(bare(expr), Expr::MethodCall(call) if call.method == "len" || call.method == "count")
}

fn is_zero(expr: &Expr) -> bool {
    matches!(bare(expr), Expr::Lit(lit) if matches!(&lit.lit, Lit::Int(value) if value.base10_digits() == "0"))
}

/// `a` and `!a`; `a.is_ok()` and `a.is_err()`; `a.is_some()` and `a.is_none()`.
fn is_opposite(left: &Expr, right: &Expr) -> bool {
    match (bare(left), bare(right)) {
        (left, Expr::Unary(unary)) if matches!(unary.op, UnOp::Not(_)) => same(left, &unary.expr),
        (Expr::MethodCall(a), Expr::MethodCall(b)) => {
            let pair = (a.method.to_string(), b.method.to_string());
            matches!((pair.0.as_str(), pair.1.as_str()), ("is_ok", "is_err") | ("is_some", "is_none"))
                && same(&a.receiver, &b.receiver)
        }
        _ => false,
    }
}

fn matches_anything(pat: &Pat) -> bool {
    match pat {
        Pat::Wild(_) => true,
        Pat::Ident(ident) => {
            ident.subpat.is_none() && ident.ident.to_string().starts_with(char::is_lowercase)
        }
        Pat::Paren(paren) => matches_anything(&paren.pat),
        Pat::Or(or) => or.cases.iter().any(matches_anything),
        _ => false,
    }
}
