//! Data flow between the local variables of Rust code.
//!
//! A variable is one binding; its number counts bindings from the top, so names do not matter and a shadowed name is two
//! variables. Edges: a use of a variable, and a definition or assignment from another. Bindings are found in `let`, `if let`,
//! `while let`, `for`, `match`, parameters and closures, and, by their tokens, inside macros (`proptest!`, `assert_eq!`).
//! Names bound by format strings (`"{x}"`) are not seen. Nodes deeper than 500 are not visited.

use std::collections::BTreeMap;

use crate::codebleu::tree::Tree;

const DEPTH_MAX: usize = 500;

/// (variable, relation, variable that it comes from).
pub(super) type Edge = (usize, Relation, usize);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Relation {
    Use,
    Computed,
}

pub(super) fn edges(tree: &Tree, text: &str) -> Vec<Edge> {
    let mut flow = Flow { tree, text, scopes: vec![BTreeMap::new()], n_variables: 0, edges: Vec::new() };
    flow.visit(0, &mut Vec::new());
    flow.edges
}

struct Flow<'t> {
    tree: &'t Tree,
    text: &'t str,
    scopes: Vec<BTreeMap<&'t str, usize>>,
    n_variables: usize,
    edges: Vec<Edge>,
}

impl<'t> Flow<'t> {
    fn kind(&self, i: usize) -> &'static str {
        self.tree.nodes[i].kind
    }

    fn code(&self, i: usize) -> &'t str {
        &self.text[self.tree.nodes[i].bytes.clone()]
    }

    fn scoped(&mut self, inside: impl FnOnce(&mut Self)) {
        self.scopes.push(BTreeMap::new());
        inside(self);
        self.scopes.pop();
    }

    fn use_of(&mut self, name: &str, uses: &mut Vec<usize>) {
        if let Some(&variable) = self.scopes.iter().rev().find_map(|scope| scope.get(name)) {
            self.edges.push((variable, Relation::Use, variable));
            if !uses.contains(&variable) {
                uses.push(variable);
            }
        }
    }

    fn bind(&mut self, name: &'t str, sources: &[usize]) {
        let variable = self.n_variables;
        self.n_variables += 1;
        self.computed(variable, sources);
        if let Some(scope) = self.scopes.last_mut() {
            scope.insert(name, variable);
        }
    }

    fn computed(&mut self, variable: usize, sources: &[usize]) {
        self.edges.extend(sources.iter().map(|&source| (variable, Relation::Computed, source)));
    }

    /// Follows the code below `i` in the order of evaluation; adds the variables it uses to `uses`.
    fn visit(&mut self, i: usize, uses: &mut Vec<usize>) {
        let tree = self.tree;
        if tree.nodes[i].depth > DEPTH_MAX {
            return;
        }
        match self.kind(i) {
            "identifier" | "shorthand_field_identifier" | "self" => self.use_of(self.code(i), uses),
            "function_item" => self.function(i),
            "closure_expression" => self.scoped(|flow| {
                flow.parameters(i);
                flow.visit_field(i, "body", uses);
            }),
            "block" | "if_expression" | "while_expression" => {
                self.scoped(|flow| flow.visit_children(i, uses))
            }
            "let_declaration" | "let_condition" => self.let_binding(i, uses),
            "for_expression" => self.scoped(|flow| {
                flow.let_binding(i, uses);
                flow.visit_field(i, "body", uses);
            }),
            "match_expression" => self.matching(i, uses),
            "assignment_expression" | "compound_assignment_expr" => self.assignment(i, uses),
            "token_tree" => self.tokens(&tree.nodes[i].children, uses),
            _ => self.visit_children(i, uses),
        }
    }

    fn visit_children(&mut self, i: usize, uses: &mut Vec<usize>) {
        let tree = self.tree;
        for child in tree.children(i) {
            self.visit(child, uses);
        }
    }

    fn visit_field(&mut self, i: usize, field: &str, uses: &mut Vec<usize>) {
        if let Some(child) = self.tree.field(i, field) {
            self.visit(child, uses);
        }
    }

    /// A function sees nothing of its surroundings.
    fn function(&mut self, i: usize) {
        let outer = std::mem::replace(&mut self.scopes, vec![BTreeMap::new()]);
        self.parameters(i);
        self.visit_field(i, "body", &mut Vec::new());
        self.scopes = outer;
    }

    fn parameters(&mut self, i: usize) {
        if let Some(parameters) = self.tree.field(i, "parameters") {
            self.bind_pattern(parameters, &[]);
        }
    }

    /// Binds `pattern` to what `value` uses; the binding is not visible in `value` or in the `else` of a let-else.
    fn let_binding(&mut self, i: usize, uses: &mut Vec<usize>) {
        let mut sources = Vec::new();
        self.visit_field(i, "value", &mut sources);
        self.visit_field(i, "alternative", uses);
        if let Some(pattern) = self.tree.field(i, "pattern") {
            self.bind_pattern(pattern, &sources);
        }
        extend(uses, &sources);
    }

    fn matching(&mut self, i: usize, uses: &mut Vec<usize>) {
        let tree = self.tree;
        let mut sources = Vec::new();
        self.visit_field(i, "value", &mut sources);
        for arm in tree.field(i, "body").into_iter().flat_map(|body| tree.children(body)) {
            let Some(pattern) = tree.field(arm, "pattern") else { continue };
            self.scoped(|flow| {
                flow.bind_pattern(pattern, &sources);
                flow.visit_field(pattern, "condition", uses);
                flow.visit_field(arm, "value", uses);
            });
        }
        extend(uses, &sources);
    }

    fn assignment(&mut self, i: usize, uses: &mut Vec<usize>) {
        let mut sources = Vec::new();
        self.visit_field(i, "right", &mut sources);
        let mut places = Vec::new();
        self.visit_field(i, "left", &mut places);
        if let Some(&variable) = places.first() {
            if self.kind(i) == "compound_assignment_expr" {
                self.computed(variable, &[variable]);
            }
            self.computed(variable, &sources);
        }
        extend(uses, &sources);
        extend(uses, &places);
    }

    /// Binds every name that the pattern introduces. A capital first letter means a constant or a variant.
    fn bind_pattern(&mut self, pattern: usize, sources: &[usize]) {
        let tree = self.tree;
        let mut pending = vec![pattern];
        while let Some(i) = pending.pop() {
            let node = &tree.nodes[i];
            match node.kind {
                "identifier" | "shorthand_field_identifier" | "self" => {
                    let name = self.code(i);
                    if is_variable(name) {
                        self.bind(name, sources);
                    }
                }
                "scoped_identifier" | "const_block" => {}
                _ => {
                    let inner = |c: &usize| !matches!(tree.nodes[*c].field, Some("type" | "condition"));
                    pending.extend(tree.children(i).rev().filter(inner));
                }
            }
        }
    }

    /// The tokens of a macro, which stand for statements and expressions most of the time.
    fn tokens(&mut self, tokens: &[usize], uses: &mut Vec<usize>) {
        let mut at = 0;
        while at < tokens.len() {
            at += match self.code(tokens[at]) {
                "let" => self.let_tokens(&tokens[at..], uses),
                "fn" => self.fn_tokens(&tokens[at..]),
                "|" if at == 0 || self.is_operator(tokens[at - 1]) => self.closure_tokens(&tokens[at..]),
                _ if self.is_at(tokens, at + 1, "in") && self.kind(tokens[at]) == "identifier" => {
                    let start = at + 2;
                    let end = start
                        + self.find(&tokens[start..], |flow, i| {
                            matches!(flow.code(i), "," | ";") || flow.is_braced(i)
                        });
                    self.bind_tokens(&tokens[at..=at], &tokens[start..end], uses);
                    end - at
                }
                _ => {
                    let is_member = at > 0 && self.code(tokens[at - 1]) == ".";
                    self.token(tokens[at], is_member, uses);
                    1
                }
            };
        }
    }

    fn token(&mut self, i: usize, is_member: bool, uses: &mut Vec<usize>) {
        let tree = self.tree;
        match self.kind(i) {
            "token_tree" if tree.nodes[i].depth > DEPTH_MAX => {}
            "token_tree" if self.is_braced(i) => {
                self.scoped(|flow| flow.tokens(&tree.nodes[i].children, uses));
            }
            "token_tree" => self.tokens(&tree.nodes[i].children, uses),
            "identifier" | "self" if !is_member => self.use_of(self.code(i), uses),
            _ => {}
        }
    }

    /// `let PATTERN [: TYPE] = VALUE`, up to `;` or, for `if let` and let-else, up to a block.
    fn let_tokens(&mut self, tokens: &[usize], uses: &mut Vec<usize>) -> usize {
        let equals = self.find(tokens, |flow, i| matches!(flow.code(i), "=" | ";"));
        let colon = self.find(&tokens[..equals], |flow, i| flow.code(i) == ":");
        let start = (equals + 1).min(tokens.len());
        let end = start
            + self
                .find(&tokens[start..], |flow, i| matches!(flow.code(i), ";" | "else") || flow.is_braced(i));
        self.bind_tokens(&tokens[1..colon.max(1)], &tokens[start..end], uses);
        end
    }

    fn bind_tokens(&mut self, pattern: &[usize], value: &[usize], uses: &mut Vec<usize>) {
        let mut sources = Vec::new();
        self.tokens(value, &mut sources);
        for &i in pattern {
            self.bind_pattern(i, &sources);
        }
        extend(uses, &sources);
    }

    /// `fn NAME (PARAMETERS) ... { BODY }`, parameters written `NAME: TYPE` or, for proptest, `NAME in STRATEGY`.
    fn fn_tokens(&mut self, tokens: &[usize]) -> usize {
        let tree = self.tree;
        let body = self.find(tokens, |flow, i| flow.is_braced(i));
        let parameters = self.find(&tokens[..body], |flow, i| flow.kind(i) == "token_tree");
        self.scoped(|flow| {
            if parameters < body {
                let inside = &tree.nodes[tokens[parameters]].children;
                for (at, &i) in inside.iter().enumerate() {
                    if flow.kind(i) == "identifier" && flow.is_at(inside, at + 1, ":") {
                        flow.bind(flow.code(i), &[]);
                    }
                }
                flow.token(tokens[parameters], false, &mut Vec::new());
            }
            if body < tokens.len() {
                flow.token(tokens[body], false, &mut Vec::new());
            }
        });
        (body + 1).min(tokens.len())
    }

    fn closure_tokens(&mut self, tokens: &[usize]) -> usize {
        let end = 1 + self.find(&tokens[1..], |flow, i| flow.code(i) == "|");
        if end == tokens.len() {
            return 1;
        }
        for &i in &tokens[1..end] {
            self.bind_pattern(i, &[]);
        }
        end + 1
    }

    /// Position of the first token that fits; the length where none does.
    fn find(&self, tokens: &[usize], fits: impl Fn(&Self, usize) -> bool) -> usize {
        tokens.iter().position(|&i| fits(self, i)).unwrap_or(tokens.len())
    }

    fn is_at(&self, tokens: &[usize], at: usize, code: &str) -> bool {
        tokens.get(at).is_some_and(|&i| self.code(i) == code)
    }

    fn is_braced(&self, i: usize) -> bool {
        self.kind(i) == "token_tree" && self.code(i).starts_with('{')
    }

    /// After such a token a `|` opens a closure.
    fn is_operator(&self, i: usize) -> bool {
        let node = &self.tree.nodes[i];
        !node.named && node.children.is_empty() && !matches!(self.code(i), ")" | "]" | "}")
    }
}

fn is_variable(name: &str) -> bool {
    name != "_" && !name.starts_with(char::is_uppercase)
}

fn extend(uses: &mut Vec<usize>, more: &[usize]) {
    for &variable in more {
        if !uses.contains(&variable) {
            uses.push(variable);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Edges as `1=0` (computed) and `0` (use).
    fn check(text: &str, expected: &str) {
        let tree = Tree::parse(text).unwrap();
        let shown: Vec<String> = edges(&tree, text)
            .iter()
            .map(|(v, relation, s)| match relation {
                Relation::Use => v.to_string(),
                Relation::Computed => format!("{v}={s}"),
            })
            .collect();
        assert_eq!(shown.join(" "), expected, "in {text}");
    }

    #[test]
    fn let_use_and_shadowing() {
        check("fn f() { let a = 1; let b = g(a); h(b, a); }", "0 1=0 1 0");
        check("fn f() { let a = 1; let a = a + 1; a }", "0 1=0 1");
        check("fn f() { { let a = 1; } a }", "");
        check("fn f() { let Some(a) = g() else { return a; }; a }", "0");
    }

    #[test]
    fn parameters_assignments_and_loops() {
        check("fn f(a: u8, mut b: u8) { b = a; b += 1; }", "0 1 1=0 1 1=1");
        check("fn f(v: &[u8]) { for x in v { g(x) } }", "0 1=0 1");
        check("fn f(v: S) { v.field = 1; v.field }", "0 0");
    }

    #[test]
    fn branches_and_closures() {
        check("fn f(o: O) { match o { Some(x) if x > 1 => x, NONE => 0 } }", "0 1=0 1 1");
        check("fn f(o: O) { if let Some(x) = o { x } else { x } }", "0 1=0 1 1");
        check("fn f(v: V) { v.map(|x| x + 1); }", "0 1");
        check("fn f(p: P) { let P { a, b: c } = p; (a, c) }", "0 1=0 2=0 1 2");
    }

    #[test]
    fn macros_are_read_by_their_tokens() {
        check("fn f() { let x = 1; assert_eq!(g(x).x, 2); }", "0");
        check(
            "proptest! { #[test] fn p(v in any::<u8>(), w in h(v)) { let u = v; assert!(u == w); } }",
            "0 1=0 0 2=0 2 1",
        );
        check("fn f(a: A) { assert!(a.iter().all(|x| *x > 0)); }", "0 1");
        check("fn f(a: A) { vec![a, (a), B, b]; }", "0 0");
    }

    #[test]
    fn text_that_is_not_rust_is_survived() {
        for text in
            ["", "let", "m!{let}", "m!{fn}", "m!{fn f}", "m!{|}", "m!{x in}", "m!{let x: = }", "fn f( {"]
        {
            let tree = Tree::parse(text).unwrap();
            let _ = edges(&tree, text);
        }
        let deep = format!("fn f(a: A) {{ {}a{} }}", "(".repeat(5_000), ")".repeat(5_000));
        assert_eq!(edges(&Tree::parse(&deep).unwrap(), &deep), []);
        let deep = format!("m!{{ {}a{} }}", "(".repeat(5_000), ")".repeat(5_000));
        assert_eq!(edges(&Tree::parse(&deep).unwrap(), &deep), []);
    }
}
