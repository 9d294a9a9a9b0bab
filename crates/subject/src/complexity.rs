//! Cyclomatic complexity and the other facts about a function that its syntax alone tells.

use proc_macro2::TokenStream;
use syn::visit::{self, Visit};
use thiserror::Error;

/// Why a text has no complexity.
#[derive(Debug, Error)]
pub enum ComplexityError {
    #[error("not Rust: {0}")]
    Syntax(#[from] syn::Error),
    #[error("{0} functions where one was expected")]
    Count(usize),
}

/// What the syntax of one function tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Cyclomatic complexity, see [`measure`].
    pub complexity: u32,
    /// The function, or the `impl` around it, has type or const parameters, or takes `impl Trait`.
    pub has_generics: bool,
    /// A named lifetime other than `'static` and `'_`.
    pub has_lifetimes: bool,
    /// `async fn`, or an `async` block inside.
    pub is_async: bool,
    /// `unsafe fn`, or an `unsafe` block inside.
    pub is_unsafe: bool,
    /// A macro is called in the body.
    pub uses_macros: bool,
    /// The return type's last name is `Result`.
    pub returns_result: bool,
}

/// Measures a free function, or the one method of an `impl` block.
///
/// Cyclomatic complexity is McCabe's: one, plus one for each decision. Decisions are `if` (`if let` and `else if` too),
/// `while`, `for`, `loop`, `let ... else`, each arm of a `match` after the first, each guard, each `&&` and `||`, and each
/// `?`. Closures belong to the function around them; functions nested inside it do not. What stands inside the
/// parentheses of a macro call is not seen.
///
/// # Errors
/// The text does not parse, or holds no function, or more than one.
pub fn measure(function_code: &str) -> Result<Shape, ComplexityError> {
    let file = syn::parse_file(function_code)?;
    let mut found = Vec::new();
    for item in &file.items {
        match item {
            syn::Item::Fn(function) => found.push((&function.sig, &*function.block, None)),
            syn::Item::Impl(block) => {
                for member in &block.items {
                    if let syn::ImplItem::Fn(method) = member {
                        found.push((&method.sig, &method.block, Some(block)));
                    }
                }
            }
            _ => {}
        }
    }
    let [(signature, body, header)] = found[..] else { return Err(ComplexityError::Count(found.len())) };
    let mut visitor = Counter::new();
    visitor.visit_signature(signature);
    if let Some(header) = header {
        visitor.visit_generics(&header.generics);
        visitor.visit_type(&header.self_ty);
        if let Some((path, _)) = &header.trait_ {
            visitor.visit_path(path);
        }
    }
    // A macro in the signature is a type macro, not a call in the body.
    visitor.shape.uses_macros = false;
    visitor.visit_block(body);
    visitor.shape.is_async |= signature.asyncness.is_some();
    visitor.shape.is_unsafe |= matches!(signature.safety, syn::Safety::Unsafe(_));
    visitor.shape.returns_result = returns_result(&signature.output);
    Ok(visitor.shape)
}

fn returns_result(output: &syn::ReturnType) -> bool {
    let syn::ReturnType::Type(_, ty) = output else { return false };
    let syn::Type::Path(path) = &**ty else { return false };
    path.path.segments.last().is_some_and(|segment| segment.ident == "Result")
}

struct Counter {
    shape: Shape,
}

impl Counter {
    fn new() -> Self {
        let shape = Shape {
            complexity: 1,
            has_generics: false,
            has_lifetimes: false,
            is_async: false,
            is_unsafe: false,
            uses_macros: false,
            returns_result: false,
        };
        Self { shape }
    }
}

impl<'ast> Visit<'ast> for Counter {
    fn visit_expr_if(&mut self, node: &'ast syn::ExprIf) {
        self.shape.complexity += 1;
        visit::visit_expr_if(self, node);
    }

    fn visit_expr_while(&mut self, node: &'ast syn::ExprWhile) {
        self.shape.complexity += 1;
        visit::visit_expr_while(self, node);
    }

    fn visit_expr_for_loop(&mut self, node: &'ast syn::ExprForLoop) {
        self.shape.complexity += 1;
        visit::visit_expr_for_loop(self, node);
    }

    fn visit_expr_loop(&mut self, node: &'ast syn::ExprLoop) {
        self.shape.complexity += 1;
        visit::visit_expr_loop(self, node);
    }

    fn visit_local(&mut self, node: &'ast syn::Local) {
        if node.init.as_ref().is_some_and(|init| init.diverge.is_some()) {
            self.shape.complexity += 1;
        }
        visit::visit_local(self, node);
    }

    fn visit_expr_match(&mut self, node: &'ast syn::ExprMatch) {
        self.shape.complexity += node.arms.len().saturating_sub(1) as u32;
        visit::visit_expr_match(self, node);
    }

    fn visit_pat_guard(&mut self, node: &'ast syn::PatGuard) {
        self.shape.complexity += 1;
        visit::visit_pat_guard(self, node);
    }

    fn visit_expr_binary(&mut self, node: &'ast syn::ExprBinary) {
        if matches!(node.op, syn::BinOp::And(_) | syn::BinOp::Or(_)) {
            self.shape.complexity += 1;
        }
        visit::visit_expr_binary(self, node);
    }

    fn visit_expr_try(&mut self, node: &'ast syn::ExprTry) {
        self.shape.complexity += 1;
        visit::visit_expr_try(self, node);
    }

    fn visit_expr_async(&mut self, node: &'ast syn::ExprAsync) {
        self.shape.is_async = true;
        visit::visit_expr_async(self, node);
    }

    fn visit_expr_unsafe(&mut self, node: &'ast syn::ExprUnsafe) {
        self.shape.is_unsafe = true;
        visit::visit_expr_unsafe(self, node);
    }

    fn visit_macro(&mut self, _: &'ast syn::Macro) {
        self.shape.uses_macros = true;
    }

    fn visit_type_param(&mut self, node: &'ast syn::TypeParam) {
        self.shape.has_generics = true;
        visit::visit_type_param(self, node);
    }

    fn visit_const_param(&mut self, node: &'ast syn::ConstParam) {
        self.shape.has_generics = true;
        visit::visit_const_param(self, node);
    }

    fn visit_fn_arg(&mut self, node: &'ast syn::FnArg) {
        let mut finder = ImplTrait(false);
        finder.visit_fn_arg(node);
        self.shape.has_generics |= finder.0;
        visit::visit_fn_arg(self, node);
    }

    fn visit_lifetime(&mut self, node: &'ast syn::Lifetime) {
        if node.ident != "static" && node.ident != "_" {
            self.shape.has_lifetimes = true;
        }
    }

    // Labels of loops are written like lifetimes and are none.
    fn visit_label(&mut self, _: &'ast syn::Label) {}

    fn visit_expr_break(&mut self, node: &'ast syn::ExprBreak) {
        if let Some(value) = &node.expr {
            self.visit_expr(value);
        }
    }

    fn visit_expr_continue(&mut self, _: &'ast syn::ExprContinue) {}

    // Nested items are functions and types of their own.
    fn visit_item(&mut self, _: &'ast syn::Item) {}

    fn visit_token_stream(&mut self, _: &'ast TokenStream) {}
}

struct ImplTrait(bool);

impl<'ast> Visit<'ast> for ImplTrait {
    fn visit_type_impl_trait(&mut self, _: &'ast syn::TypeImplTrait) {
        self.0 = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complexity(code: &str) -> u32 {
        measure(code).unwrap().complexity
    }

    #[test]
    fn counts_each_kind_of_decision() {
        let cases = [
            ("fn f() {}", 1),
            ("fn f(a: bool) { if a {} }", 2),
            ("fn f(a: i32) -> i32 { if a > 0 { 1 } else if a < 0 { -1 } else { 0 } }", 3),
            ("fn f(a: Option<u8>) { if let Some(x) = a && x > 1 {} }", 3),
            ("fn f() { while true {} }", 2),
            ("fn f() { for _ in 0..3 {} }", 2),
            ("fn f() { loop { break } }", 2),
            ("fn f(a: u8) -> u8 { match a { 0 => 1, 1 => 2, _ => 3 } }", 3),
            ("fn f(a: u8) -> u8 { match a { x if x > 3 => 1, _ => 3 } }", 3),
            ("fn f(a: bool, b: bool, c: bool) -> bool { a && b || c }", 3),
            ("fn f(a: Option<u8>) -> Option<u8> { Some(a? + a?) }", 3),
            ("fn f(a: Option<u8>) { let Some(_) = a else { return }; }", 2),
            ("fn f() -> usize { (0..3).filter(|x| *x > 1 && *x < 3).count() }", 2),
            ("fn f() { fn g(a: bool) { if a {} } g(true) }", 1),
            ("fn f(a: bool) { assert!(a || !a); }", 1),
            ("impl S { fn f(&self) { if self.0 {} } }", 2),
        ];
        for (code, expected) in cases {
            assert_eq!(complexity(code), expected, "{code}");
        }
    }

    #[test]
    fn tells_generics_from_lifetimes_and_labels() {
        let shape = measure("fn f<'a, T: Ord>(a: &'a [T]) -> &'a T { &a[0] }").unwrap();
        assert!(shape.has_generics && shape.has_lifetimes);
        let shape = measure("fn f(a: &'static str) { 'outer: loop { break 'outer; } }").unwrap();
        assert!(!shape.has_generics && !shape.has_lifetimes);
        assert!(measure("fn f(a: impl Iterator<Item = u8>) {}").unwrap().has_generics);
        assert!(!measure("fn f() -> impl Iterator<Item = u8> { 0..3 }").unwrap().has_generics);
        assert!(measure("impl<T> S<T> { fn f(&self) {} }").unwrap().has_generics);
        assert!(measure("impl<'a> S<'a> { fn f(&self) {} }").unwrap().has_lifetimes);
    }

    #[test]
    fn tells_async_unsafe_macros_and_results() {
        assert!(measure("async fn f() {}").unwrap().is_async);
        assert!(measure("fn f() { let _ = async { 1 }; }").unwrap().is_async);
        assert!(measure("unsafe fn f() {}").unwrap().is_unsafe);
        assert!(measure("fn f(p: *const u8) -> u8 { unsafe { *p } }").unwrap().is_unsafe);
        assert!(measure("fn f() -> String { format!(\"x\") }").unwrap().uses_macros);
        assert!(measure("fn f() { println!(\"x\"); }").unwrap().uses_macros);
        assert!(!measure("fn f() {}").unwrap().uses_macros);
        assert!(measure("fn f() -> std::io::Result<u8> { Ok(1) }").unwrap().returns_result);
        assert!(!measure("fn f() -> Option<u8> { None }").unwrap().returns_result);
    }

    #[test]
    fn refuses_no_function_two_functions_and_nonsense() {
        assert!(matches!(measure("struct S;"), Err(ComplexityError::Count(0))));
        assert!(matches!(measure("fn f() {} fn g() {}"), Err(ComplexityError::Count(2))));
        assert!(matches!(measure("fn f( {"), Err(ComplexityError::Syntax(_))));
    }
}
