//! Which expressions call the focal function.

use std::collections::BTreeSet;

use syn::visit::{self, Visit};
use syn::{BinOp, Expr, ExprPath, Item, ItemFn, Macro, UnOp};

use super::scope::Scope;
use crate::focal::type_name;
use crate::tests::kind_of;
use crate::{FocalFn, TestSuite, macros};

/// The focal function, and the suite's helpers that call it.
#[derive(Debug)]
pub(super) struct Focal<'f> {
    pub function: &'f FocalFn,
    helpers: BTreeSet<String>,
    /// The suite has something else of that name: only `super::name` and `crate::name` are the function, and no method is.
    qualified: bool,
}

/// A call, with all the values that go in.
#[derive(Debug)]
pub(super) struct FocalCall<'e> {
    pub receiver: Option<&'e Expr>,
    pub args: Vec<&'e Expr>,
}

impl<'f> Focal<'f> {
    pub(super) fn new(function: &'f FocalFn, suite: &TestSuite, qualified: bool) -> Self {
        let mut helpers = Helpers(Vec::new());
        suite.modules.iter().flat_map(|module| &module.items).for_each(|item| helpers.visit_item(item));
        let mut focal = Self { function, helpers: BTreeSet::new(), qualified };
        loop {
            let calling =
                helpers.0.iter().filter(|helper| focal.calls_in(|search| search.visit_block(&helper.block)));
            let names: BTreeSet<String> = calling.map(|helper| helper.sig.ident.to_string()).collect();
            if names == focal.helpers {
                return focal;
            }
            focal.helpers = names;
        }
    }

    /// The call that `expr` itself is.
    pub(super) fn call<'e>(&self, expr: &'e Expr) -> Option<FocalCall<'e>> {
        let trait_name = self.function.trait_name.as_deref().unwrap_or_default();
        match expr {
            Expr::Call(call) => match &*call.func {
                Expr::Path(path) if self.is_path(path) || self.is_helper(path) => {
                    Some(FocalCall { receiver: None, args: call.args.iter().collect() })
                }
                _ => None,
            },
            Expr::MethodCall(call) if self.is_method(&call.method.to_string(), trait_name) => {
                Some(FocalCall { receiver: Some(&*call.receiver), args: call.args.iter().collect() })
            }
            Expr::Binary(binary) if operator_trait(&binary.op).contains(&trait_name) => {
                Some(FocalCall { receiver: Some(&*binary.left), args: vec![&*binary.right] })
            }
            Expr::Unary(unary)
                if matches!((&unary.op, trait_name), (UnOp::Neg(_), "Neg") | (UnOp::Not(_), "Not")) =>
            {
                Some(FocalCall { receiver: Some(&*unary.expr), args: Vec::new() })
            }
            Expr::Index(index) if matches!(trait_name, "Index" | "IndexMut") => {
                Some(FocalCall { receiver: Some(&*index.expr), args: vec![&*index.index] })
            }
            // The function handed on as a value: `.map(double)`.
            Expr::Path(path) if self.is_path(path) => Some(FocalCall { receiver: None, args: Vec::new() }),
            _ => None,
        }
    }

    /// Whether a macro calls the focal function by what it does: `format!` of a `Display`, `assert_eq!` of a `PartialEq`.
    pub(super) fn is_macro(&self, mac: &Macro) -> bool {
        let name = macros::name(mac);
        match self.function.trait_name.as_deref() {
            Some("Display" | "Debug" | "LowerHex" | "UpperHex" | "Binary" | "Octal") => {
                matches!(name.as_str(), "format" | "write" | "writeln" | "print" | "println")
            }
            Some("PartialEq") => {
                matches!(name.as_str(), "assert_eq" | "assert_ne" | "prop_assert_eq" | "prop_assert_ne")
            }
            _ => false,
        }
    }

    fn is_path(&self, path: &ExprPath) -> bool {
        let segments: Vec<String> =
            path.path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        let Some((last, before)) = segments.split_last() else { return false };
        if *last != self.function.name {
            return false;
        }
        if self.qualified {
            let before = before.first().map(String::as_str);
            return self.function.self_type.is_none() && matches!(before, Some("super" | "crate"));
        }
        let owner =
            path.qself.as_ref().and_then(|qself| type_name(&qself.ty)).or_else(|| before.last().cloned());
        match (&self.function.self_type, owner) {
            (None, None) => true,
            (None, Some(owner)) => {
                path.qself.is_none() && owner.starts_with(|c: char| c.is_lowercase() || c == '_')
            }
            (Some(_), None) => false,
            (Some(own), Some(owner)) => {
                owner == *own
                    || owner == "Self"
                    || self.function.trait_name.as_deref() == Some(owner.as_str())
            }
        }
    }

    fn is_helper(&self, path: &ExprPath) -> bool {
        path.path.segments.last().is_some_and(|segment| self.helpers.contains(&segment.ident.to_string()))
    }

    fn is_method(&self, method: &str, trait_name: &str) -> bool {
        if self.qualified {
            return false;
        }
        let own = method == self.function.name && self.function.has_receiver;
        own || match trait_name {
            "FromStr" => method == "parse",
            "From" => method == "into",
            "TryFrom" => method == "try_into",
            "Display" => method == "to_string",
            "Iterator" => {
                ["collect", "count", "sum", "nth", "last", "take", "map", "filter", "fold"].contains(&method)
            }
            _ => false,
        }
    }

    /// Whether the focal function is called anywhere inside.
    pub(super) fn is_called_in(&self, expr: &Expr) -> bool {
        self.calls_in(|search| search.visit_expr(expr))
    }

    /// Whether `expr` mentions a call or a variable that holds a result.
    pub(super) fn is_result(&self, expr: &Expr, scope: &Scope) -> bool {
        let mut search = Search { focal: self, scope: Some(scope), found: false };
        search.visit_expr(expr);
        search.found
    }

    fn calls_in(&self, visit: impl FnOnce(&mut Search<'_, 'f>)) -> bool {
        let mut search = Search { focal: self, scope: None, found: false };
        visit(&mut search);
        search.found
    }
}

fn operator_trait(op: &BinOp) -> &'static [&'static str] {
    match op {
        BinOp::Add(_) => &["Add"],
        BinOp::Sub(_) => &["Sub"],
        BinOp::Mul(_) => &["Mul"],
        BinOp::Div(_) => &["Div"],
        BinOp::Rem(_) => &["Rem"],
        BinOp::BitAnd(_) => &["BitAnd"],
        BinOp::BitOr(_) => &["BitOr"],
        BinOp::BitXor(_) => &["BitXor"],
        BinOp::Shl(_) => &["Shl"],
        BinOp::Shr(_) => &["Shr"],
        BinOp::AddAssign(_) => &["AddAssign"],
        BinOp::SubAssign(_) => &["SubAssign"],
        BinOp::MulAssign(_) => &["MulAssign"],
        BinOp::DivAssign(_) => &["DivAssign"],
        BinOp::Eq(_) | BinOp::Ne(_) => &["PartialEq"],
        BinOp::Lt(_) | BinOp::Le(_) | BinOp::Gt(_) | BinOp::Ge(_) => &["PartialOrd", "Ord"],
        _ => &[],
    }
}

struct Search<'s, 'f> {
    focal: &'s Focal<'f>,
    scope: Option<&'s Scope>,
    found: bool,
}

impl<'ast> Visit<'ast> for Search<'_, '_> {
    fn visit_expr(&mut self, expr: &'ast Expr) {
        let is_result = |path: &ExprPath| {
            let name = path.path.get_ident().map(ToString::to_string);
            self.scope.is_some_and(|scope| name.is_some_and(|name| scope.get(&name).result))
        };
        if self.focal.call(expr).is_some() || matches!(expr, Expr::Path(path) if is_result(path)) {
            self.found = true;
            return;
        }
        visit::visit_expr(self, expr);
    }

    fn visit_macro(&mut self, mac: &'ast Macro) {
        self.found |= self.focal.is_macro(mac);
        if let Some(body) = macros::body(mac) {
            // The parsed body is a new tree: search it on its own.
            let mut inner = Search { focal: self.focal, scope: self.scope, found: false };
            body.exprs.iter().for_each(|expr| inner.visit_expr(expr));
            self.found |= inner.found;
        }
    }
}

/// Functions of the suite that are no tests.
struct Helpers(Vec<ItemFn>);

impl<'ast> Visit<'ast> for Helpers {
    fn visit_item(&mut self, item: &'ast Item) {
        if let Item::Fn(function) = item
            && kind_of(&function.attrs).is_none()
        {
            self.0.push(function.clone());
        }
        visit::visit_item(self, item);
    }
}
