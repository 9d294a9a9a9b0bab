//! Syntax trees: tree-sitter's, copied into a flat arena.
//!
//! A copy, because generated text may nest without bound: on the arena everything but the data flow runs without recursion.

use std::collections::BTreeMap;

use tree_sitter::{Node as Raw, Parser, TreeCursor};

/// (row, column in bytes).
pub(super) type Point = (usize, usize);

#[derive(Debug)]
pub(super) struct Node {
    pub(super) kind: &'static str,
    pub(super) field: Option<&'static str>,
    pub(super) named: bool,
    pub(super) missing: bool,
    pub(super) error: bool,
    pub(super) bytes: std::ops::Range<usize>,
    pub(super) start: Point,
    pub(super) end: Point,
    pub(super) children: Vec<usize>,
    /// The root's is 0.
    pub(super) depth: usize,
}

/// Nodes in pre-order: a child's index is greater than its parent's. The root is node 0.
#[derive(Debug)]
pub(super) struct Tree {
    pub(super) nodes: Vec<Node>,
}

impl Tree {
    /// `None` when the grammar does not fit the library, which the tests of this module rule out.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut parser = Parser::new();
        parser.set_language(&tree_sitter_rust::language()).ok()?;
        let tree = parser.parse(text, None)?;
        Some(Self::copy(tree.walk()))
    }

    fn copy(mut cursor: TreeCursor<'_>) -> Self {
        let mut nodes = vec![node(&cursor, 0)];
        let mut path = vec![0];
        loop {
            if cursor.goto_first_child() {
                let parent = path.last().copied().unwrap_or(0);
                path.push(append(&mut nodes, parent, &cursor, path.len()));
                continue;
            }
            while !cursor.goto_next_sibling() {
                if !cursor.goto_parent() {
                    return Self { nodes };
                }
                path.pop();
            }
            path.pop();
            let parent = path.last().copied().unwrap_or(0);
            path.push(append(&mut nodes, parent, &cursor, path.len()));
        }
    }

    pub(super) fn children(&self, node: usize) -> impl DoubleEndedIterator<Item = usize> + '_ {
        self.nodes[node].children.iter().copied()
    }

    /// The first child in the field.
    pub(super) fn field(&self, node: usize, field: &str) -> Option<usize> {
        self.children(node).find(|&child| self.nodes[child].field == Some(field))
    }

    pub(super) fn depth_max(&self) -> usize {
        self.nodes.iter().map(|node| node.depth).max().unwrap_or(0)
    }

    /// Nodes that have children, and the root: the subtrees that CodeBLEU compares.
    pub(super) fn subtrees(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.nodes.len()).filter(|&i| i == 0 || !self.nodes[i].children.is_empty())
    }
}

fn append(nodes: &mut Vec<Node>, parent: usize, cursor: &TreeCursor<'_>, depth: usize) -> usize {
    let index = nodes.len();
    nodes.push(node(cursor, depth));
    nodes[parent].children.push(index);
    index
}

fn node(cursor: &TreeCursor<'_>, depth: usize) -> Node {
    let raw: Raw<'_> = cursor.node();
    let point = |p: tree_sitter::Point| (p.row, p.column);
    Node {
        kind: raw.kind(),
        field: cursor.field_name(),
        named: raw.is_named(),
        missing: raw.is_missing(),
        error: raw.is_error(),
        bytes: raw.byte_range(),
        start: point(raw.start_position()),
        end: point(raw.end_position()),
        children: Vec::new(),
        depth,
    }
}

/// Gives equal numbers to subtrees that print as equal s-expressions: named nodes with their kinds and fields, without
/// names, literals and punctuation.
#[derive(Debug, Default)]
pub(super) struct Shapes {
    known: BTreeMap<Shape, usize>,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Shape {
    label: String,
    children: Vec<(Option<&'static str>, usize)>,
}

impl Shapes {
    /// The shape of every node, by node.
    pub(super) fn of(&mut self, tree: &Tree, text: &str) -> Vec<usize> {
        let mut shapes = vec![0; tree.nodes.len()];
        for (i, node) in tree.nodes.iter().enumerate().rev() {
            let printed = |&child: &usize| tree.nodes[child].named || tree.nodes[child].missing;
            let children = node.children.iter().filter(|c| printed(c));
            let children = children.map(|&c| (tree.nodes[c].field, shapes[c])).collect();
            let next = self.known.len();
            shapes[i] = *self.known.entry(Shape { label: label(node, text), children }).or_insert(next);
        }
        shapes
    }
}

fn label(node: &Node, text: &str) -> String {
    if node.error && node.children.is_empty() && !node.bytes.is_empty() {
        return format!("UNEXPECTED {:?}", text[node.bytes.clone()].chars().next());
    }
    let kind = node.kind;
    match (node.missing, node.named) {
        (true, true) => format!("MISSING {kind}"),
        (true, false) => format!("MISSING {kind:?}"),
        (false, true) => kind.to_owned(),
        (false, false) => format!("{kind:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Shapes must divide all nodes of some texts exactly as tree-sitter's own s-expressions do.
    fn check_against_sexp(texts: &[&str]) {
        let mut shapes = Shapes::default();
        let mut by_shape: BTreeMap<usize, String> = BTreeMap::new();
        let mut by_sexp: BTreeMap<String, usize> = BTreeMap::new();
        for text in texts {
            let mut parser = Parser::new();
            parser.set_language(&tree_sitter_rust::language()).unwrap();
            let raw = parser.parse(text, None).unwrap();
            let tree = Tree::copy(raw.walk());
            let ids = shapes.of(&tree, text);
            let mut cursor = raw.walk();
            let mut pending = vec![raw.root_node()];
            let mut sexps = Vec::new();
            while let Some(node) = pending.pop() {
                sexps.push(node.to_sexp());
                let children: Vec<_> = node.children(&mut cursor).collect();
                pending.extend(children.into_iter().rev());
            }
            assert_eq!(sexps.len(), tree.nodes.len());
            for (i, sexp) in tree.subtrees().map(|i| (i, sexps[i].clone())) {
                assert_eq!(by_shape.entry(ids[i]).or_insert_with(|| sexp.clone()), &sexp, "in {text:?}");
                assert_eq!(*by_sexp.entry(sexp.clone()).or_insert(ids[i]), ids[i], "{sexp} in {text:?}");
            }
        }
    }

    #[test]
    fn shapes_are_s_expressions() {
        check_against_sexp(&[
            "#[test]\nfn a() { let x = f(1)?; assert_eq!(x, 2); }",
            "fn a(x: &'a [u8; 4]) -> Vec<u8> where T: Clone { match x { Some(y) if y > 1 => 1, _ => {} } }",
            "fn broken( {",
            "}{ ) 'x \" fn",
            "let x = ; struct A { b: }",
            "",
            "mod m { impl<T> A for B<T> { async unsafe fn f(&mut self) {} } }",
            "a as b < c; if let Some(x) = y && z {} else {}",
        ]);
    }

    #[test]
    fn deep_nesting_does_not_recurse() {
        let text = format!("fn a() {{ let x = {}1; }}", "!".repeat(50_000));
        let tree = Tree::parse(&text).unwrap();
        assert!(tree.depth_max() > 10_000);
        assert_eq!(Shapes::default().of(&tree, &text).len(), tree.nodes.len());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn shapes_are_s_expressions_of_any_text(
            words in proptest::collection::vec(
                "fn|let|mut|x|y|=|;|\\{|\\}|\\(|\\)|if|else|1|\"s\"|,|::|<|>|&|#|!|match|=>|\\||for|in|é|'a|@", 0..25,
            ),
        ) {
            let text = words.join(" ");
            check_against_sexp(&[&text]);
        }
    }
}
