//! The data flow that Python's codebleu 0.7.0 finds in Rust: see the faults listed in [`super::compat`].

use std::collections::BTreeMap;

use crate::codebleu::tree::{Node, Point, Tree};

const DEPTH_MAX: usize = 500;
const VISITS_MAX: u32 = 2_000_000;

/// Variables renumbered in order of appearance: (variable, relation, where it comes from).
pub(super) type Edge = (usize, Relation, Vec<usize>);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Relation {
    ComesFrom,
    ComputedFrom,
}

/// A token's use or definition, before names are renumbered.
#[derive(Debug, Clone)]
struct Item {
    name: String,
    token: usize,
    relation: Relation,
    sources: Vec<String>,
    source_tokens: Vec<usize>,
}

/// Name -> tokens that last defined it.
type States = BTreeMap<String, Vec<usize>>;

/// Where the package would raise an exception; it then goes on without data flow.
struct Raised;

pub(super) fn edges(tree: &Tree, text: &str) -> Vec<Edge> {
    if tree.depth_max() > DEPTH_MAX {
        return Vec::new();
    }
    let mut walker = Walker { tree, tokens: tokens(tree, text), visits: 0 };
    let Ok((mut items, _)) = walker.visit(0, &States::new()) else { return Vec::new() };
    items.sort_by_key(|item| item.token);
    let mut used: Vec<usize> = Vec::new();
    for item in items.iter().filter(|item| !item.source_tokens.is_empty()) {
        used.push(item.token);
        used.extend(&item.source_tokens);
    }
    used.sort_unstable();
    items.retain(|item| used.binary_search(&item.token).is_ok());
    renumbered(merged(items, |item| item.token))
}

/// Joins the sources of items with the same key; the first item of a key gives the rest. In order of appearance.
fn merged<K: Ord>(items: Vec<Item>, key: impl Fn(&Item) -> K) -> Vec<Item> {
    let mut at: BTreeMap<K, usize> = BTreeMap::new();
    let mut out: Vec<Item> = Vec::new();
    for item in items {
        let place = *at.entry(key(&item)).or_insert(out.len());
        if place == out.len() {
            out.push(item);
            continue;
        }
        out[place].sources.extend(item.sources);
        out[place].source_tokens.extend(item.source_tokens);
        distinct(&mut out[place].sources);
        distinct(&mut out[place].source_tokens);
    }
    out
}

fn distinct<T: PartialEq>(values: &mut Vec<T>) {
    let mut kept = Vec::with_capacity(values.len());
    for value in values.drain(..) {
        if !kept.contains(&value) {
            kept.push(value);
        }
    }
    *values = kept;
}

fn renumbered(items: Vec<Item>) -> Vec<Edge> {
    let mut numbers: BTreeMap<String, usize> = BTreeMap::new();
    let mut number = |name: String| {
        let next = numbers.len();
        *numbers.entry(name).or_insert(next)
    };
    let edge = |item: Item| {
        let sources = item.sources.into_iter().map(&mut number).collect();
        (number(item.name), item.relation, sources)
    };
    items.into_iter().map(edge).collect()
}

/// Place in the text -> (number, code) of a leaf; of two leaves in one place, the later.
type Tokens = BTreeMap<(Point, Point), (usize, String)>;

fn is_token(node: &Node) -> bool {
    node.children.is_empty() || node.kind == "string_literal"
}

fn tokens(tree: &Tree, text: &str) -> Tokens {
    let lines: Vec<Vec<char>> = text.split('\n').map(|line| line.chars().collect()).collect();
    let mut tokens = Tokens::new();
    let mut pending = vec![0];
    let mut number = 0;
    while let Some(i) = pending.pop() {
        let node = &tree.nodes[i];
        if is_token(node) {
            tokens.insert((node.start, node.end), (number, code(node, &lines)));
            number += 1;
        } else {
            pending.extend(tree.children(i).rev());
        }
    }
    tokens
}

/// The node's text as the package cuts it: byte columns taken for character columns, line breaks dropped.
fn code(node: &Node, lines: &[Vec<char>]) -> String {
    let cut = |row: usize, from: usize, to: usize| -> String {
        let line = lines.get(row).map_or(&[][..], Vec::as_slice);
        let to = to.min(line.len());
        line[from.min(to)..to].iter().collect()
    };
    let ((first, from), (last, to)) = (node.start, node.end);
    if first == last {
        return cut(first, from, to);
    }
    let mut code = cut(first, from, usize::MAX);
    for row in first + 1..last {
        code.push_str(&cut(row, 0, usize::MAX));
    }
    code + &cut(last, 0, to)
}

struct Walker<'t> {
    tree: &'t Tree,
    tokens: Tokens,
    visits: u32,
}

type Found = Result<(Vec<Item>, States), Raised>;

impl Walker<'_> {
    fn visit(&mut self, i: usize, states: &States) -> Found {
        self.visits += 1;
        if self.visits > VISITS_MAX {
            return Err(Raised);
        }
        let node = &self.tree.nodes[i];
        if is_token(node) {
            return Ok(self.leaf(node, states.clone()));
        }
        match node.kind {
            "function_item" => self.function(i, states),
            "assignment_expression" | "compound_assignment_expr" => self.assignment(i, states),
            "if_expression" | "match_expression" => self.branches(i, states),
            "for_expression" => self.repeated(i, states, 1),
            "while_expression" | "loop_expression" => self.repeated(i, states, 2),
            _ => self.sequence(i, states),
        }
    }

    fn token(&self, node: &Node) -> (usize, String) {
        self.tokens.get(&(node.start, node.end)).cloned().unwrap_or_default()
    }

    fn leaf(&self, node: &Node, mut states: States) -> (Vec<Item>, States) {
        let (token, name) = self.token(node);
        if node.kind == name {
            return (Vec::new(), states);
        }
        let mut item = Item {
            name: name.clone(),
            token,
            relation: Relation::ComesFrom,
            sources: Vec::new(),
            source_tokens: Vec::new(),
        };
        if let Some(defined) = states.get(&name) {
            item.sources.push(name);
            item.source_tokens.clone_from(defined);
        } else if node.kind == "identifier" {
            states.insert(name, vec![token]);
        }
        (vec![item], states)
    }

    /// Leaves whose text is not their kind: names and literals.
    fn variables(&self, i: usize) -> Vec<(usize, String)> {
        let mut found = Vec::new();
        let mut pending = vec![i];
        while let Some(i) = pending.pop() {
            let node = &self.tree.nodes[i];
            if !is_token(node) {
                pending.extend(self.tree.children(i).rev());
                continue;
            }
            let token = self.token(node);
            if token.1 != node.kind {
                found.push(token);
            }
        }
        found
    }

    /// Looks at the second and third child only: the name and the parameters of a plain function.
    fn function(&mut self, i: usize, states: &States) -> Found {
        let children = &self.tree.nodes[i].children;
        let name = *children.get(1).ok_or(Raised)?;
        let Some(&value) = children.get(2) else {
            let mut states = states.clone();
            let mut items = Vec::new();
            for (token, name) in self.variables(name) {
                states.insert(name.clone(), vec![token]);
                items.push(Item {
                    name,
                    token,
                    relation: Relation::ComesFrom,
                    sources: Vec::new(),
                    source_tokens: Vec::new(),
                });
            }
            return Ok((sorted(items), states));
        };
        self.definition(name, value, Relation::ComesFrom, states)
    }

    fn assignment(&mut self, i: usize, states: &States) -> Found {
        let left = self.tree.field(i, "left").ok_or(Raised)?;
        let right = self.tree.field(i, "right").ok_or(Raised)?;
        self.definition(left, right, Relation::ComputedFrom, states)
    }

    fn definition(&mut self, left: usize, right: usize, relation: Relation, states: &States) -> Found {
        let (mut items, mut states) = self.visit(right, states)?;
        let sources = self.variables(right);
        for (token, name) in self.variables(left) {
            items.extend(sources.iter().map(|(source_token, source)| Item {
                name: name.clone(),
                token,
                relation,
                sources: vec![source.clone()],
                source_tokens: vec![*source_token],
            }));
            states.insert(name, vec![token]);
        }
        Ok((sorted(items), states))
    }

    fn branches(&mut self, i: usize, states: &States) -> Found {
        let tree = self.tree;
        let mut current = states.clone();
        let mut others: Vec<States> = Vec::new();
        let mut items = Vec::new();
        let mut has_else = false;
        for child in tree.children(i) {
            let kind = tree.nodes[child].kind;
            has_else |= kind.contains("else");
            let is_branch =
                matches!(kind, "if_expression" | "if_let_expression" | "match_expression" | "else");
            if !is_branch && others.is_empty() {
                let (found, after) = self.visit(child, &current)?;
                items.extend(found);
                current = after;
            } else {
                let (found, after) = self.visit(child, states)?;
                items.extend(found);
                others.push(after);
            }
        }
        others.push(current);
        if !has_else {
            others.push(states.clone());
        }
        let mut joined = States::new();
        for (name, tokens) in others.into_iter().flatten() {
            joined.entry(name).or_default().extend(tokens);
        }
        for tokens in joined.values_mut() {
            tokens.sort_unstable();
            tokens.dedup();
        }
        Ok((sorted(items), joined))
    }

    fn repeated(&mut self, i: usize, states: &States, rounds: u32) -> Found {
        let tree = self.tree;
        let mut states = states.clone();
        let mut items = Vec::new();
        for _ in 0..rounds {
            for child in tree.children(i) {
                let (found, after) = self.visit(child, &states)?;
                items.extend(found);
                states = after;
            }
        }
        let joined = merged(items, |item| (item.name.clone(), item.token, item.relation));
        Ok((sorted(joined), states))
    }

    fn sequence(&mut self, i: usize, states: &States) -> Found {
        let tree = self.tree;
        let mut states = states.clone();
        let mut items = Vec::new();
        for child in tree.children(i) {
            let (found, after) = self.visit(child, &states)?;
            items.extend(found);
            states = after;
        }
        Ok((sorted(items), states))
    }
}

fn sorted(mut items: Vec<Item>) -> Vec<Item> {
    items.sort_by_key(|item| item.token);
    items
}
