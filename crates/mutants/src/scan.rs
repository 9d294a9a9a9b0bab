//! Finds everything in a function that can be mutated or probed.
//!
//! Constant contexts, patterns, types and macro bodies stay as they are: the first three can't hold a run-time switch,
//! and the tokens of a macro have no known grammar (the calls are counted).

use std::collections::BTreeMap;
use std::ops::Range;

use record::mutation::Location;
use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{Attribute, Block, Expr, Generics, Signature, Stmt};

use crate::edits::{Arm, Counted, Edit, EditKind, MODULE};
use crate::lines::LineIndex;
use crate::values;

/// One mutant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MutantSite {
    /// From 1. The switch's value that turns it on.
    pub id: u32,
    /// Mutants of one site are reached together.
    pub site: u32,
    /// `ArithmeticOperator`, `EqualityOperator`, ...
    pub mutator: &'static str,
    /// In `function_code`.
    pub location: Location,
    /// Bytes of `function_code`.
    pub range: Range<usize>,
    /// What stands there, and what a reader is shown instead.
    pub original: String,
    pub replacement: String,
    /// Replaces `range` when the mutant is written into the source.
    pub(crate) planted: String,
}

/// One of the ways on from a decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BranchSite {
    /// `then`, `else`, `arm`, `continue`, `early_return`, `short_circuit`, `both_sides`, `zero_times`, `some_times`.
    pub kind: &'static str,
    pub location: Location,
}

#[derive(Debug)]
pub(crate) struct Scan<'s> {
    pub source: &'s str,
    pub index: LineIndex,
    pub edits: Vec<Edit>,
    pub mutants: Vec<MutantSite>,
    pub branches: Vec<BranchSite>,
    /// Line -> number of its probe.
    pub lines: BTreeMap<u32, u32>,
    pub n_sites: u32,
    pub opaque_macros: u32,
    /// Inside `&[1, 2]` and the like, which must stay constants: the place of the whole reference.
    pub(crate) constant: Option<Range<usize>>,
}

/// Bytes of the source that a piece of syntax covers.
pub(crate) fn bytes(node: &impl Spanned) -> Range<usize> {
    node.span().byte_range()
}

impl<'s> Scan<'s> {
    pub(crate) fn new(source: &'s str) -> Self {
        Self {
            source,
            index: LineIndex::new(source),
            edits: Vec::new(),
            mutants: Vec::new(),
            branches: Vec::new(),
            lines: BTreeMap::new(),
            n_sites: 0,
            opaque_macros: 0,
            constant: None,
        }
    }

    /// Scans the focal function: early returns at its head, then its body.
    pub(crate) fn function(&mut self, sig: &Signature, body: &Block, outer: Option<&Generics>) {
        let head = after_brace(body);
        self.point(head, format!(" crate::{MODULE}::enter();"));
        let generics: Vec<&Generics> = std::iter::once(&sig.generics).chain(outer).collect();
        let whole = bytes(body);
        let text = self.text(&whole).trim_start_matches('{').trim_end_matches('}').trim().to_owned();
        let values = values::of_return(&sig.output, &generics);
        let values = values.into_iter().filter(|value| *value != text).collect::<Vec<_>>();
        if !values.is_empty() {
            let site = self.new_site();
            let mut arms = Vec::new();
            for value in values {
                let mutator = if value.is_empty() { "BlockStatement" } else { "ReturnValue" };
                let shown = if value.is_empty() { "{}".to_owned() } else { format!("{{ {value} }}") };
                let mutant = self.mutant(site, mutator, whole.clone(), shown.clone(), shown);
                arms.push(Arm { mutant, code: value });
            }
            self.edits.push(Edit::new(head..head, EditKind::Returns { site, arms }));
        }
        self.visit_block(body);
    }

    pub(crate) fn text(&self, range: &Range<usize>) -> &'s str {
        self.source.get(range.clone()).unwrap_or_default()
    }

    pub(crate) fn new_site(&mut self) -> u32 {
        self.n_sites += 1;
        self.n_sites - 1
    }

    /// Records a mutant and gives its id.
    pub(crate) fn mutant(
        &mut self,
        site: u32,
        mutator: &'static str,
        range: Range<usize>,
        replacement: String,
        planted: String,
    ) -> u32 {
        let id = u32::try_from(self.mutants.len() + 1).unwrap_or(u32::MAX);
        let location = self.index.location(self.source, &range);
        let original = self.text(&range).to_owned();
        self.mutants.push(MutantSite { id, site, mutator, location, range, original, replacement, planted });
        id
    }

    /// A choice at `range`: (shown replacement, code of the arm) each.
    pub(crate) fn choice(
        &mut self,
        mutator: &'static str,
        range: Range<usize>,
        options: Vec<(String, String)>,
    ) {
        if options.is_empty() {
            return;
        }
        let site = self.new_site();
        let mut arms = Vec::new();
        for (shown, code) in options {
            let mutant = self.mutant(site, mutator, range.clone(), shown, format!("({code})"));
            arms.push(Arm { mutant, code });
        }
        self.edits.push(Edit::new(range, EditKind::Choice { site, arms }));
    }

    pub(crate) fn branch(&mut self, kind: &'static str, place: &Range<usize>) -> u32 {
        self.branches.push(BranchSite { kind, location: self.index.location(self.source, place) });
        u32::try_from(self.branches.len() - 1).unwrap_or(u32::MAX)
    }

    pub(crate) fn point(&mut self, offset: usize, text: String) {
        self.edits.push(Edit::new(offset..offset, EditKind::Point { text }));
    }

    /// A probe around `range`; gives the index of its edit.
    pub(crate) fn around(
        &mut self,
        range: Range<usize>,
        before: String,
        after: String,
        counts: Vec<Counted>,
    ) -> usize {
        let edit = Edit { counts, ..Edit::new(range, EditKind::Around { before, after }) };
        self.edits.push(edit);
        self.edits.len() - 1
    }

    /// A branch probe at one place.
    pub(crate) fn hit(&mut self, offset: usize, branch: u32) {
        let call = format!(" crate::{MODULE}::hit({branch});");
        self.around(offset..offset, call, String::new(), vec![Counted::Branch(branch)]);
    }

    /// The number of the line of `offset`, and the call that counts it.
    pub(crate) fn line_call(&mut self, offset: usize) -> (Counted, String) {
        let line = self.index.position(self.source, offset).line;
        let next = u32::try_from(self.lines.len()).unwrap_or(u32::MAX);
        let number = *self.lines.entry(line).or_insert(next);
        (Counted::Line(number), format!("crate::{MODULE}::line({number}); "))
    }
}

/// The place right after a block's opening brace.
pub(crate) fn after_brace(block: &Block) -> usize {
    block.brace_token.span.open().byte_range().end
}

pub(crate) fn is_conditional(attrs: &[Attribute]) -> bool {
    attrs.iter().any(|attr| attr.path().is_ident("cfg") || attr.path().is_ident("cfg_attr"))
}

/// `let` inside a condition: such a condition can't be taken apart.
pub(crate) fn contains_let(expr: &Expr) -> bool {
    match expr {
        Expr::Let(_) => true,
        Expr::Binary(binary) => contains_let(&binary.left) || contains_let(&binary.right),
        Expr::Paren(paren) => contains_let(&paren.expr),
        Expr::Group(group) => contains_let(&group.expr),
        _ => false,
    }
}

impl<'ast> Visit<'ast> for Scan<'_> {
    fn visit_block(&mut self, block: &'ast Block) {
        for stmt in &block.stmts {
            self.statement(stmt);
        }
    }

    fn visit_stmt(&mut self, stmt: &'ast Stmt) {
        self.statement(stmt);
    }

    fn visit_expr(&mut self, expr: &'ast Expr) {
        let outside = self.enter_constant(expr);
        self.expression(expr);
        match expr {
            // Handled together with their parts.
            Expr::Const(_) | Expr::Path(_) => {}
            Expr::Unary(unary) if is_negative_literal(unary) => {}
            Expr::Array(array) if is_table(array) => {}
            Expr::Repeat(repeat) => self.visit_expr(&repeat.expr),
            Expr::Let(binding) => self.visit_expr(&binding.expr),
            Expr::Cast(cast) => self.visit_expr(&cast.expr),
            Expr::Closure(closure) => self.visit_expr(&closure.body),
            Expr::MethodCall(call) if call.method == "expect" => self.visit_expr(&call.receiver),
            _ => visit::visit_expr(self, expr),
        }
        if outside {
            self.constant = None;
        }
    }

    fn visit_macro(&mut self, _: &'ast syn::Macro) {
        self.opaque_macros += 1;
    }

    // No run-time switch can stand in these.
    fn visit_pat(&mut self, pat: &'ast syn::Pat) {
        if let syn::Pat::Guard(guard) = pat {
            self.visit_expr(&guard.guard);
        }
    }
    fn visit_type(&mut self, _: &'ast syn::Type) {}
    fn visit_attribute(&mut self, _: &'ast Attribute) {}
    fn visit_generics(&mut self, _: &'ast Generics) {}
    fn visit_path(&mut self, _: &'ast syn::Path) {}
    fn visit_angle_bracketed_generic_arguments(&mut self, _: &'ast syn::AngleBracketedGenericArguments) {}
}

/// A long list of literals is data: one mutant for each of its entries would drown those of the code.
fn is_table(array: &syn::ExprArray) -> bool {
    const MAX_LITERALS: usize = 8;
    let is_literal = |expr: &Expr| match expr {
        Expr::Lit(_) => true,
        Expr::Unary(unary) => is_negative_literal(unary),
        _ => false,
    };
    array.elems.len() > MAX_LITERALS && array.elems.iter().all(is_literal)
}

pub(crate) fn is_negative_literal(unary: &syn::ExprUnary) -> bool {
    matches!(unary.op, syn::UnOp::Neg(_)) && matches!(&*unary.expr, Expr::Lit(_))
}
