//! What a piece of text refers to, and how its paths read once everything stands in one module.

use std::collections::{BTreeMap, BTreeSet};

use super::resolve::{Resolver, Target, is_relative};
use crate::extract::lex::{Kind, Token, is_path_separator};
use crate::extract::{
    Edit, Fragment, ItemId, ItemKind, Krate, ModuleId, TextId, UseKind, UseLeaf, collect_uses,
};

/// The references of one fragment.
#[derive(Debug, Clone, Default)]
pub(super) struct Scan {
    text: TextId,
    pub(super) items: BTreeSet<ItemId>,
    /// Names after `.` or `::`: methods and associated items.
    pub(super) members: BTreeSet<String>,
    /// Every identifier, and the operators `+ - * / % ! & | ^ < > ?` as themselves.
    pub(super) words: BTreeSet<String>,
    /// Name -> `use` declaration that brings it.
    pub(super) imports: BTreeMap<String, String>,
    pub(super) edits: Vec<Edit>,
    /// A crate that is neither std nor allowed.
    pub(super) outside: Option<String>,
    /// Something a row may not touch: files, network, clock, environment.
    pub(super) forbidden: Option<String>,
}

const FORBIDDEN_PATHS: [&str; 10] = [
    "std::fs",
    "std::net",
    "std::env",
    "std::process",
    "std::os",
    "std::time::Instant",
    "std::time::SystemTime",
    "std::io::stdin",
    "std::io::stdout",
    "std::io::stderr",
];
const FORBIDDEN_MACROS: [&str; 9] =
    ["include", "include_str", "include_bytes", "env", "option_env", "file", "line", "column", "module_path"];
const KEYWORDS: [&str; 34] = [
    "as", "async", "await", "break", "const", "continue", "dyn", "else", "enum", "extern", "false", "fn",
    "for", "if", "impl", "in", "let", "loop", "match", "mod", "move", "mut", "pub", "ref", "return",
    "static", "struct", "trait", "true", "type", "unsafe", "use", "where", "while",
];

pub(super) struct Scanner<'a> {
    pub(super) krate: &'a Krate,
    pub(super) resolver: &'a Resolver<'a>,
    pub(super) macros: &'a BTreeMap<String, Vec<ItemId>>,
    pub(super) externs: &'a BTreeSet<String>,
}

/// Names that `use` declarations inside the fragment bring.
#[derive(Default)]
struct Overlay {
    names: BTreeMap<String, Vec<Target>>,
    globs: Vec<ModuleId>,
}

/// A path in the tokens: indices of its segments' tokens.
struct PathAt {
    segments: Vec<usize>,
    end: usize,
}

impl Scanner<'_> {
    pub(super) fn scan(&self, fragment: &Fragment, module: ModuleId) -> Scan {
        let mut scan = Scan { text: fragment.text, ..Scan::default() };
        let tokens = &fragment.tokens;
        let content = &self.krate.texts[fragment.text].content;
        let (overlay, declarations) = self.declarations(tokens, content, module, &mut scan);
        let bound = bound_names(tokens);
        let mut at = 0;
        while at < tokens.len() {
            if let Some(end) = declarations.get(&at) {
                at = *end;
                continue;
            }
            at = self.token(tokens, at, module, &overlay, &bound, &mut scan);
        }
        scan
    }

    /// Reads one token or path; returns the index after it.
    fn token(
        &self,
        tokens: &[Token],
        at: usize,
        module: ModuleId,
        overlay: &Overlay,
        bound: &BTreeSet<String>,
        scan: &mut Scan,
    ) -> usize {
        let token = &tokens[at];
        if let Kind::Punct(c) = token.kind {
            scan.words.insert(c.to_string());
        }
        if token.kind != Kind::Ident {
            return at + 1;
        }
        if token.text == "pub" && visibility(tokens, at + 1) {
            let end = crate::extract::lex::after_group(tokens, at + 1);
            scan.edits.push(Edit { range: token.range.end..tokens[end - 1].range.end, text: String::new() });
            return end;
        }
        let after_dot = at > 0 && tokens[at - 1].is('.') && !(at > 1 && tokens[at - 2].is('.'));
        let after_path = at > 1 && is_path_separator(tokens, at - 2);
        scan.words.insert(token.text.clone());
        if after_dot || after_path {
            scan.members.insert(token.text.clone());
            if after_dot {
                self.methods(&token.text, module, overlay, scan);
            }
            return at + 1;
        }
        let lifetime = at > 0 && tokens[at - 1].is('\'');
        if lifetime || KEYWORDS.contains(&token.text.as_str()) {
            return at + 1;
        }
        let path = path_at(tokens, at);
        for &i in &path.segments {
            scan.words.insert(tokens[i].text.clone());
        }
        for &i in &path.segments[1..] {
            scan.members.insert(tokens[i].text.clone());
        }
        self.path(tokens, &path, module, overlay, bound, scan);
        path.end
    }

    fn path(
        &self,
        tokens: &[Token],
        path: &PathAt,
        module: ModuleId,
        overlay: &Overlay,
        bound: &BTreeSet<String>,
        scan: &mut Scan,
    ) {
        let names: Vec<String> = path.segments.iter().map(|&i| tokens[i].text.clone()).collect();
        let is_macro = tokens.get(path.end).is_some_and(|t| t.is('!'))
            && tokens.get(path.end + 1).is_some_and(|t| matches!(t.kind, Kind::Open(_)));
        if is_macro {
            self.macro_call(tokens, path, &names, scan);
            return;
        }
        if names.len() == 1 {
            let next = tokens.get(path.end);
            let labelled = next.is_some_and(|t| t.is(':')) && !is_path_separator(tokens, path.end);
            let called = next.is_some_and(|t| t.opens('('));
            if labelled || names[0] == "self" || names[0] == "Self" || (!called && bound.contains(&names[0]))
            {
                return;
            }
        }
        let found = self.lookup(module, overlay, &names);
        for (target, n) in found {
            self.reference(tokens, path, &names, (target, n), module, overlay, bound, scan);
        }
    }

    fn lookup(&self, module: ModuleId, overlay: &Overlay, names: &[String]) -> Vec<(Target, usize)> {
        if let Some(targets) = overlay.names.get(&names[0]) {
            let mut found = Vec::new();
            for target in targets {
                match target {
                    Target::Module(inner) if names.len() > 1 => {
                        let rest = self.resolver.path(*inner, &names[1..]);
                        found.extend(rest.into_iter().map(|(t, n)| (t, n + 1)));
                    }
                    Target::External(start) => {
                        let whole = start.iter().chain(&names[1..]).cloned().collect();
                        found.push((Target::External(whole), names.len()));
                    }
                    target => found.push((target.clone(), 1)),
                }
            }
            return found;
        }
        for &glob in &overlay.globs {
            let found = self.resolver.path(glob, names);
            if !found.is_empty() && !is_relative(names) {
                return found;
            }
        }
        self.resolver.path(module, names)
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "one token's whole situation; a struct for one call would only rename it"
    )]
    fn reference(
        &self,
        tokens: &[Token],
        path: &PathAt,
        names: &[String],
        (target, n): (Target, usize),
        module: ModuleId,
        overlay: &Overlay,
        bound: &BTreeSet<String>,
        scan: &mut Scan,
    ) {
        let start = self.path_start(tokens, path);
        let range = start..tokens[path.segments[n - 1]].range.end;
        match target {
            Target::Item(id) => {
                scan.items.insert(id);
                let name = &self.krate.items[id].name;
                if n > 1 || *name != names[0] || start != tokens[path.segments[0]].range.start {
                    // A local variable of the same name would hide it.
                    let text = if bound.contains(name) { format!("self::{name}") } else { name.clone() };
                    push_edit(scan, range, text);
                }
            }
            Target::Variant(id, variant) => {
                scan.items.insert(id);
                let item = &self.krate.items[id];
                let whole = format!("{}::{variant}", item.name);
                // The declaration of the enum itself names its variants bare.
                let declares = item.code.range.contains(&range.start) && scan.text == item.code.text;
                if !overlay.names.contains_key(&names[0]) && !declares {
                    push_edit(scan, range, whole);
                }
            }
            Target::Module(_) => {}
            Target::External(whole) => {
                self.check_external(&whole, scan);
                if overlay.names.contains_key(&names[0]) {
                    return;
                }
                let own = self.resolver.name(module, &names[0]);
                match own.first() {
                    Some(Target::External(start)) => {
                        scan.imports.insert(names[0].clone(), declaration(start, &names[0]));
                    }
                    // Through a module of the crate: spell the outside path.
                    Some(_) => push_edit(scan, range, as_std(&whole)),
                    None if is_relative(names) => push_edit(scan, range, as_std(&whole)),
                    None if names[0] == "alloc" => {
                        push_edit(scan, tokens[path.segments[0]].range.clone(), "std".to_owned());
                    }
                    None => {}
                }
            }
        }
    }

    fn check_external(&self, path: &[String], scan: &mut Scan) {
        let root = path.first().map_or("", String::as_str);
        if !matches!(root, "std" | "core" | "alloc") && !self.externs.contains(root) {
            scan.outside = Some(root.to_owned());
        }
        let whole = as_std(path);
        let hit = FORBIDDEN_PATHS.iter().find(|p| whole == **p || whole.starts_with(&format!("{p}::")));
        if let Some(hit) = hit {
            scan.forbidden = Some((*hit).to_owned());
        }
    }

    fn macro_call(&self, tokens: &[Token], path: &PathAt, names: &[String], scan: &mut Scan) {
        let Some(name) = names.last() else { return };
        if FORBIDDEN_MACROS.contains(&name.as_str()) {
            scan.forbidden = Some(format!("{name}!"));
        }
        let local = self.macros.get(name);
        if let Some(ids) = local {
            scan.items.extend(ids);
            let start = self.path_start(tokens, path);
            let range = start..tokens[path.end - 1].range.end;
            if names.len() > 1 || start != tokens[path.segments[0]].range.start {
                push_edit(scan, range, name.clone());
            }
        } else if names[0] == "alloc" || names[0] == "core" {
            push_edit(scan, tokens[path.segments[0]].range.clone(), "std".to_owned());
        } else if is_relative(names) {
            // A macro of std that the crate hands on.
            let range = self.path_start(tokens, path)..tokens[path.end - 1].range.end;
            push_edit(scan, range, format!("std::{name}"));
        }
    }

    /// Where the path starts: `$crate` and a leading `::` belong to it.
    fn path_start(&self, tokens: &[Token], path: &PathAt) -> usize {
        let first = path.segments[0];
        if first > 0 && tokens[first - 1].is('$') && tokens[first].text == "crate" {
            return tokens[first - 1].range.start;
        }
        tokens[first].range.start
    }

    /// Traits of the crate that are in scope and declare a method of this name.
    fn methods(&self, name: &str, module: ModuleId, overlay: &Overlay, scan: &mut Scan) {
        for (id, item) in self.krate.items.iter().enumerate() {
            if item.kind != ItemKind::Trait || !item.names.contains(name) {
                continue;
            }
            let by_name = self.lookup(module, overlay, std::slice::from_ref(&item.name));
            let unnamed = self.krate.modules[module].uses.iter().any(|leaf| {
                leaf.path.last() == Some(&item.name)
                    && self.resolver.use_path(module, &leaf.path).contains(&Target::Item(id))
            });
            if unnamed || by_name.iter().any(|(target, _)| *target == Target::Item(id)) {
                scan.items.insert(id);
            }
        }
    }

    /// Reads the `use` declarations inside the fragment; what they bring from the crate is at hand anyway.
    fn declarations(
        &self,
        tokens: &[Token],
        content: &str,
        module: ModuleId,
        scan: &mut Scan,
    ) -> (Overlay, BTreeMap<usize, usize>) {
        let mut overlay = Overlay::default();
        let mut ranges = BTreeMap::new();
        for start in (0..tokens.len()).filter(|&i| tokens[i].is_ident("use")) {
            let Some(end) = (start..tokens.len()).find(|&i| tokens[i].is(';')) else { continue };
            let range = tokens[start].range.start..tokens[end].range.end;
            let Ok(item) = syn::parse_str::<syn::ItemUse>(&content[range.clone()]) else { continue };
            let mut leaves = Vec::new();
            collect_uses(&item.tree, &mut Vec::new(), &mut leaves);
            let kept: Vec<String> =
                leaves.iter().filter_map(|leaf| self.leaf(leaf, module, &mut overlay, scan)).collect();
            scan.edits.push(Edit { range, text: kept.join("\n") });
            ranges.insert(start, end + 1);
        }
        (overlay, ranges)
    }

    /// The declaration that stays, if one is needed.
    fn leaf(
        &self,
        leaf: &UseLeaf,
        module: ModuleId,
        overlay: &mut Overlay,
        scan: &mut Scan,
    ) -> Option<String> {
        let targets = self.resolver.use_path(module, &leaf.path);
        let mut kept = None;
        for target in &targets {
            match (target, &leaf.kind) {
                (Target::Item(id), UseKind::Glob) => {
                    scan.items.insert(*id);
                    kept = Some(format!("use {}::*;", self.krate.items[*id].name));
                }
                (Target::Item(id), UseKind::Name(_)) => {
                    scan.items.insert(*id);
                }
                (Target::Variant(id, variant), UseKind::Name(name)) => {
                    scan.items.insert(*id);
                    let path = [self.krate.items[*id].name.clone(), variant.clone()];
                    kept = Some(declaration(&path, name));
                }
                (Target::Module(inner), UseKind::Glob) => overlay.globs.push(*inner),
                (Target::External(path), _) => kept = Some(self.external_leaf(path, &leaf.kind, scan)),
                _ => {}
            }
        }
        if targets.is_empty() && !is_relative(&leaf.path) && leaf.path.first() != Some(&self.krate.name) {
            // A macro of the crate is imported by name, and is at hand without.
            let last = leaf.path.last().map_or("", String::as_str);
            if !self.macros.contains_key(last) {
                kept = Some(self.external_leaf(&leaf.path, &leaf.kind, scan));
            }
        }
        if let UseKind::Name(name) = &leaf.kind {
            let targets =
                if targets.is_empty() { vec![Target::External(leaf.path.clone())] } else { targets };
            overlay.names.insert(name.clone(), targets);
        }
        kept
    }

    fn external_leaf(&self, path: &[String], kind: &UseKind, scan: &mut Scan) -> String {
        self.check_external(path, scan);
        match kind {
            UseKind::Glob => format!("use {}::*;", as_std(path)),
            UseKind::Name(name) => declaration(path, name),
        }
    }
}

/// `std::...` for a path into std by any of its names, the path itself otherwise.
fn as_std(path: &[String]) -> String {
    let whole = path.join("::");
    match path.first().map(String::as_str) {
        Some("core" | "alloc") => format!("std{}", whole.strip_prefix(&path[0]).unwrap_or_default()),
        _ => whole,
    }
}

pub(super) fn declaration(path: &[String], name: &str) -> String {
    let whole = as_std(path);
    if path.last().is_some_and(|last| last == name) {
        format!("use {whole};")
    } else {
        format!("use {whole} as {name};")
    }
}

fn push_edit(scan: &mut Scan, range: std::ops::Range<usize>, text: String) {
    if !scan.edits.iter().any(|e| e.range == range) {
        scan.edits.push(Edit { range, text });
    }
}

/// `(crate)`, `(super)`, `(self)`, `(in ...)` after `pub`.
fn visibility(tokens: &[Token], at: usize) -> bool {
    tokens.get(at).is_some_and(|t| t.opens('('))
        && tokens.get(at + 1).is_some_and(|t| ["crate", "super", "self", "in"].iter().any(|n| t.is_ident(n)))
}

fn path_at(tokens: &[Token], at: usize) -> PathAt {
    let mut segments = vec![at];
    let mut end = at + 1;
    while is_path_separator(tokens, end) && tokens.get(end + 2).is_some_and(|t| t.kind == Kind::Ident) {
        segments.push(end + 2);
        end += 3;
    }
    PathAt { segments, end }
}

/// Names that the fragment binds itself: parameters, `let`, closures, patterns.
fn bound_names(tokens: &[Token]) -> BTreeSet<String> {
    let mut bound = BTreeSet::new();
    for (i, token) in tokens.iter().enumerate().filter(|(_, t)| t.kind == Kind::Ident) {
        let before = i.checked_sub(1).map(|j| &tokens[j]);
        let introduced =
            before.is_some_and(|t| ["let", "mut", "ref", "for"].iter().any(|k| t.is_ident(k)) || t.is('|'));
        let labelled = tokens.get(i + 1).is_some_and(|t| t.is(':')) && !is_path_separator(tokens, i + 1);
        let lower = token.text.chars().next().is_some_and(|c| c.is_lowercase() || c == '_');
        if lower && (introduced || labelled) {
            bound.insert(token.text.clone());
        }
    }
    bound
}
