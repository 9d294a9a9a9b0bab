//! What is done with each kind of statement and expression: mutants first, then probes.

use std::ops::Range;

use quote::ToTokens;
use syn::visit::Visit;
use syn::{
    Arm, Block, Expr, ExprBinary, ExprIf, ExprLit, ExprMatch, ExprMethodCall, ExprRange, ExprStruct,
    ExprUnary, Item, Lit, Pat, RangeLimits, Stmt, UnOp,
};

use crate::edits::{Counted, Edit, EditKind, MODULE};
use crate::operators;
use crate::scan::{Scan, after_brace, bytes, contains_let, is_conditional, is_negative_literal};

impl Scan<'_> {
    pub(crate) fn statement(&mut self, stmt: &Stmt) {
        let attrs = match stmt {
            Stmt::Local(local) => &local.attrs[..],
            Stmt::Macro(mac) => &mac.attrs[..],
            Stmt::Item(item) => return self.nested_item(item),
            Stmt::Expr(..) => &[],
        };
        if is_conditional(attrs) {
            return;
        }
        let range = bytes(stmt);
        let (line, call) = self.line_call(range.start);
        self.around(range.start..range.start, call, String::new(), vec![line]);
        match stmt {
            Stmt::Local(local) => self.local(local, &range),
            Stmt::Expr(expr, semi) => {
                if semi.is_some() && is_deletable(expr) {
                    let site = self.new_site();
                    let mutant =
                        self.mutant(site, "StatementDeletion", range.clone(), String::new(), String::new());
                    self.edits.push(Edit::new(range, EditKind::Statement { site, mutant }));
                }
                self.visit_expr(expr);
            }
            Stmt::Macro(mac) => self.visit_macro(&mac.mac),
            Stmt::Item(_) => {}
        }
    }

    /// A helper function inside the function is part of it; other items hold nothing that runs.
    fn nested_item(&mut self, item: &Item) {
        if let Item::Fn(function) = item
            && function.sig.constness.is_none()
            && !is_conditional(&function.attrs)
        {
            self.visit_block(&function.block);
        }
    }

    fn local(&mut self, local: &syn::Local, range: &Range<usize>) {
        let Some(init) = &local.init else { return };
        if let Some((_, diverge)) = &init.diverge
            && let Expr::Block(block) = &**diverge
        {
            let bound = self.branch("then", &bytes(&local.pat));
            let other = self.branch("else", &bytes(block));
            let after = format!(" crate::{MODULE}::hit({bound});");
            self.around(range.clone(), String::new(), after, vec![Counted::Branch(bound)]);
            self.hit(after_brace(&block.block), other);
        }
        self.visit_expr(&init.expr);
        if let Some((_, diverge)) = &init.diverge {
            self.visit_expr(diverge);
        }
    }

    pub(crate) fn expression(&mut self, expr: &Expr) {
        match expr {
            Expr::Binary(binary) => self.binary(binary),
            Expr::Unary(unary) => self.unary(unary),
            Expr::Lit(lit) => self.literal(lit),
            Expr::MethodCall(call) => self.method_call(call),
            Expr::If(branch) => self.if_else(branch),
            Expr::Match(matching) => self.matching(matching),
            Expr::Range(range) => self.range_end(range),
            Expr::Struct(literal) => self.struct_literal(literal),
            Expr::Break(jump) if jump.expr.is_none() && jump.attrs.is_empty() => {
                let label = jump
                    .label
                    .as_ref()
                    .map(|label| format!(" {}", label.to_token_stream()))
                    .unwrap_or_default();
                self.jump(bytes(expr), format!("continue{label}"));
            }
            Expr::Continue(jump) if jump.attrs.is_empty() => {
                let label = jump
                    .label
                    .as_ref()
                    .map(|label| format!(" {}", label.to_token_stream()))
                    .unwrap_or_default();
                self.jump(bytes(expr), format!("break{label}"));
            }
            Expr::Try(tried) => {
                let on = self.branch("continue", &bytes(tried));
                let off = self.branch("early_return", &bytes(tried));
                let after = format!(", {on}, {off})");
                let counts = vec![Counted::Branch(on), Counted::Branch(off)];
                self.around(bytes(&tried.expr), format!("crate::{MODULE}::tried("), after, counts);
            }
            Expr::ForLoop(repeat) => {
                self.repeated(bytes(repeat), &repeat.body, !repeat.attrs.is_empty());
                self.emptied(&repeat.body);
            }
            Expr::While(repeat) => {
                self.condition(&repeat.cond, &["false"]);
                self.repeated(bytes(repeat), &repeat.body, !repeat.attrs.is_empty());
                if contains_let(&repeat.cond) {
                    self.emptied(&repeat.body);
                }
            }
            Expr::Loop(repeat) => self.tick(after_brace(&repeat.body)),
            Expr::Closure(closure) if closure.constness.is_none() => self.closure_body(&closure.body),
            _ => {}
        }
    }

    fn binary(&mut self, binary: &ExprBinary) {
        let (mutator, others) = operators::binary(&binary.op);
        let logical = mutator == "LogicalOperator";
        if !binary.attrs.is_empty() || logical && (contains_let(&binary.left) || contains_let(&binary.right))
        {
            return;
        }
        let (left, op, right) = (bytes(&binary.left), bytes(&binary.op), bytes(&binary.right));
        let whole = left.start..right.end;
        let (l, r) = (self.text(&left), self.text(&right));
        let (head, tail) = (self.text(&(left.start..op.start)), self.text(&(op.end..right.end)));
        let assigns = operators::is_assignment(&binary.op);
        let options = others.iter().map(|other| {
            let code = if assigns { format!("{l} {other} ({r})") } else { format!("({l}) {other} ({r})") };
            (format!("{head}{other}{tail}"), code)
        });
        let options = options.collect();
        self.choice(mutator, whole.clone(), options);
        if logical {
            let short = self.branch("short_circuit", &whole);
            let both = self.branch("both_sides", &whole);
            let decides = matches!(binary.op, syn::BinOp::Or(_));
            let after = format!(", {short}, {decides})");
            self.around(left, format!("crate::{MODULE}::lhs("), after, vec![Counted::Branch(short)]);
            let before = format!("(crate::{MODULE}::hit({both}) && (");
            self.around(right, before, "))".to_owned(), vec![Counted::Branch(both)]);
        }
    }

    fn unary(&mut self, unary: &ExprUnary) {
        if !unary.attrs.is_empty() || matches!(unary.op, UnOp::Deref(_)) {
            return;
        }
        let whole = bytes(unary);
        let operand = self.text(&bytes(&unary.expr)).to_owned();
        if is_negative_literal(unary) {
            if let Expr::Lit(lit) = &*unary.expr {
                let (mutator, values) = operators::literal(&lit.lit);
                let others = values.into_iter().map(|value| format!("-{value}"));
                let options =
                    std::iter::once(operand).chain(others).map(|code| (code.clone(), code)).collect();
                self.literal_choice(mutator, whole, options);
            }
            return;
        }
        self.choice("UnaryOperator", whole, vec![(operand.clone(), operand)]);
    }

    fn literal(&mut self, lit: &ExprLit) {
        if !lit.attrs.is_empty() {
            return;
        }
        let (mutator, values) = operators::literal(&lit.lit);
        let options = values.into_iter().map(|value| (value.clone(), value)).collect();
        self.literal_choice(mutator, bytes(lit), options);
    }

    /// A literal inside a constant reference is changed together with the whole reference, or the constant would be lost.
    fn literal_choice(&mut self, mutator: &'static str, range: Range<usize>, options: Vec<(String, String)>) {
        let Some(outer) = self.constant.clone() else { return self.choice(mutator, range, options) };
        let head = self.text(&(outer.start..range.start)).to_owned();
        let tail = self.text(&(range.end..outer.end)).to_owned();
        let whole = |inner: &str| format!("{head}{inner}{tail}");
        let options = options.into_iter().map(|(shown, code)| (whole(&shown), whole(&code))).collect();
        self.choice(mutator, outer, options);
    }

    /// Notes that `expr` is a reference to a constant; `true` when it is the outermost one.
    pub(crate) fn enter_constant(&mut self, expr: &Expr) -> bool {
        let Expr::Reference(reference) = expr else { return false };
        let constant =
            reference.mutability.is_none() && self.constant.is_none() && is_constant(&reference.expr);
        if constant {
            self.constant = Some(bytes(expr));
        }
        constant
    }

    fn method_call(&mut self, call: &ExprMethodCall) {
        let name = call.method.to_string();
        if let Some(other) = operators::method(&name)
            && call.attrs.is_empty()
        {
            let (whole, at) = (bytes(call), bytes(&call.method));
            let (head, tail) = (self.text(&(whole.start..at.start)), self.text(&(at.end..whole.end)));
            let code = format!("{head}{other}{tail}");
            self.choice("MethodExpression", whole, vec![(code.clone(), code)]);
        }
    }

    /// Forces a condition that has no mutants of its own to one value.
    fn condition(&mut self, cond: &Expr, values: &[&str]) {
        if contains_let(cond) || has_own_mutants(cond) {
            return;
        }
        let options = values.iter().map(|&value| (value.to_owned(), value.to_owned())).collect();
        self.choice("ConditionalExpression", bytes(cond), options);
    }

    fn if_else(&mut self, branch: &ExprIf) {
        self.condition(&branch.cond, &["true", "false"]);
        let then = bytes(&branch.then_branch);
        let yes = self.branch("then", &then);
        self.hit(after_brace(&branch.then_branch), yes);
        match &branch.else_branch {
            None => {
                if contains_let(&branch.cond) {
                    self.emptied(&branch.then_branch);
                }
                let no = self.branch("else", &then);
                let after = format!(" else {{ crate::{MODULE}::hit({no}); }}");
                self.around(then, String::new(), after, vec![Counted::Branch(no)]);
            }
            Some((_, other)) => {
                if let Expr::Block(block) = &**other {
                    let no = self.branch("else", &bytes(block));
                    self.hit(after_brace(&block.block), no);
                }
            }
        }
    }

    /// A mutant that leaves out what a block of type `()` does.
    fn emptied(&mut self, block: &Block) {
        if block.stmts.is_empty() || has_value(block) {
            return;
        }
        let site = self.new_site();
        let empty = || "{}".to_owned();
        let mutant = self.mutant(site, "BlockStatement", bytes(block), empty(), empty());
        let inside = after_brace(block)..block.brace_token.span.close().byte_range().start;
        self.edits.push(Edit::new(inside, EditKind::Statement { site, mutant }));
    }

    fn matching(&mut self, matching: &ExprMatch) {
        let last_catch_all = matching.arms.iter().rposition(|arm| is_catch_all(&arm.pat));
        for (i, arm) in matching.arms.iter().enumerate() {
            if !is_conditional(&arm.attrs) {
                self.arm(arm, last_catch_all.is_some_and(|last| i < last));
            }
        }
    }

    fn arm(&mut self, arm: &Arm, others_catch: bool) {
        match &arm.pat {
            Pat::Guard(guard) if !contains_let(&guard.guard) => {
                let options = ["true", "false"].map(|value| (value.to_owned(), value.to_owned()));
                self.choice("ConditionalExpression", bytes(&guard.guard), options.to_vec());
            }
            Pat::Guard(_) => {}
            pat if others_catch && !is_catch_all(pat) => {
                let site = self.new_site();
                let mutant = self.mutant(site, "MatchArm", bytes(arm), String::new(), String::new());
                let end = bytes(pat).end;
                self.edits.push(Edit::new(end..end, EditKind::NewGuard { site, mutant }));
            }
            _ => {}
        }
        if is_unreachable(&arm.body) {
            return;
        }
        let body = bytes(&arm.body);
        let branch = self.branch("arm", &bytes(&arm.pat));
        match &*arm.body {
            Expr::Block(block) if block.attrs.is_empty() && block.label.is_none() => {
                self.hit(after_brace(&block.block), branch);
            }
            _ => {
                let (line, call) = self.line_call(body.start);
                let before = format!("{{ crate::{MODULE}::hit({branch}); {call}");
                self.around(body, before, " }".to_owned(), vec![Counted::Branch(branch), line]);
            }
        }
    }

    fn range_end(&mut self, range: &ExprRange) {
        let Some(end) = &range.end else { return };
        if matches!(&**end, Expr::Lit(_)) || !range.attrs.is_empty() {
            return;
        }
        let place = bytes(end);
        let text = self.text(&place);
        let step = match range.limits {
            RangeLimits::HalfOpen(_) => "+ 1",
            RangeLimits::Closed(_) => "- 1",
        };
        self.choice("RangeBoundary", place, vec![(format!("{text} {step}"), format!("({text}) {step}"))]);
    }

    fn struct_literal(&mut self, literal: &ExprStruct) {
        let Some(rest) = &literal.rest else { return };
        if !literal.attrs.is_empty() {
            return;
        }
        let whole = bytes(literal);
        let open = literal.brace_token.span.open().byte_range().end;
        let head = self.text(&(whole.start..open)).to_owned();
        let base = self.text(&bytes(rest)).to_owned();
        let fields: Vec<&str> = literal.fields.iter().map(|field| self.text(&bytes(field))).collect();
        let mut options = Vec::new();
        for skipped in 0..fields.len() {
            let kept = fields
                .iter()
                .enumerate()
                .filter(|(i, _)| *i != skipped)
                .map(|(_, field)| format!("{field}, "));
            let code = format!("{head} {}..{base} }}", kept.collect::<String>());
            options.push((code.clone(), code));
        }
        self.choice("ObjectLiteral", whole, options);
    }

    fn jump(&mut self, range: Range<usize>, other: String) {
        self.choice("LoopControl", range, vec![(other.clone(), other)]);
    }

    fn tick(&mut self, offset: usize) {
        self.point(offset, format!(" crate::{MODULE}::tick();"));
    }

    /// A `for` or `while` loop: fuel, and whether its body ran.
    fn repeated(&mut self, whole: Range<usize>, body: &Block, has_attrs: bool) {
        let start = after_brace(body);
        self.tick(start);
        if has_attrs {
            return;
        }
        let zero = self.branch("zero_times", &whole);
        let some = self.branch("some_times", &whole);
        let before = format!("{{ let __tf_loop_{zero} = crate::{MODULE}::enter_loop({zero}, {some}); ");
        let counts = vec![Counted::Branch(zero), Counted::Branch(some)];
        let after = format!(" __tf_loop_{zero}.end(); }}");
        let outer = self.around(whole, before, after, counts);
        let again = format!(" __tf_loop_{zero}.again();");
        let inner = self.around(start..start, again, String::new(), Vec::new());
        self.edits[outer].partner = Some(inner);
        self.edits[inner].partner = Some(outer);
    }

    fn closure_body(&mut self, body: &Expr) {
        match body {
            Expr::Block(block) if block.attrs.is_empty() && block.label.is_none() => {
                self.tick(after_brace(&block.block))
            }
            _ => {
                let before = format!("{{ crate::{MODULE}::tick(); ");
                self.around(bytes(body), before, " }".to_owned(), Vec::new());
            }
        }
    }
}

/// Calls, and assignments to a place that was there before: without them the code still compiles, as a rule.
fn is_deletable(expr: &Expr) -> bool {
    match expr {
        Expr::Call(call) => call.attrs.is_empty(),
        Expr::MethodCall(call) => call.attrs.is_empty(),
        Expr::Try(tried) => is_deletable(&tried.expr),
        Expr::Await(awaited) => is_deletable(&awaited.base),
        Expr::Assign(assign) => {
            assign.attrs.is_empty()
                && matches!(&*assign.left, Expr::Field(_) | Expr::Index(_) | Expr::Unary(_))
        }
        _ => false,
    }
}

/// Ends with an expression whose value may be used.
fn has_value(block: &Block) -> bool {
    match block.stmts.last() {
        Some(Stmt::Expr(Expr::ForLoop(_) | Expr::While(_), None)) => false,
        Some(Stmt::Expr(_, semi)) => semi.is_none(),
        Some(Stmt::Macro(mac)) => mac.semi_token.is_none(),
        _ => false,
    }
}

fn has_own_mutants(cond: &Expr) -> bool {
    match cond {
        Expr::Binary(binary) => operators::is_condition(&binary.op),
        Expr::Unary(unary) => matches!(unary.op, UnOp::Not(_)),
        Expr::Lit(lit) => matches!(lit.lit, Lit::Bool(_)),
        Expr::Paren(paren) => has_own_mutants(&paren.expr),
        _ => false,
    }
}

/// `_`, or a name that binds everything.
fn is_catch_all(pat: &Pat) -> bool {
    match pat {
        Pat::Wild(_) => true,
        Pat::Ident(ident) => {
            let name = ident.ident.to_string();
            ident.subpat.is_none() && name.chars().next().is_some_and(|c| c.is_lowercase() || c == '_')
        }
        _ => false,
    }
}

fn is_unreachable(body: &Expr) -> bool {
    matches!(body, Expr::Macro(mac) if mac.mac.path.is_ident("unreachable"))
}

/// Literals, and arrays and tuples of them: the compiler keeps a reference to such a value for ever.
fn is_constant(expr: &Expr) -> bool {
    match expr {
        Expr::Lit(lit) => !matches!(lit.lit, Lit::Str(_)),
        Expr::Unary(unary) => is_negative_literal(unary),
        Expr::Array(array) => array.elems.iter().all(is_constant_part),
        Expr::Tuple(tuple) => tuple.elems.iter().all(is_constant_part),
        _ => false,
    }
}

fn is_constant_part(expr: &Expr) -> bool {
    matches!(expr, Expr::Lit(_)) || is_constant(expr)
}
