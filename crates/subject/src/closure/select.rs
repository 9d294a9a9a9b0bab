//! Which items come along.

use std::collections::{BTreeMap, BTreeSet};

use super::resolve::{Resolver, Target, is_relative};
use super::scan::declaration;
use super::{Breadth, Closer};
use crate::extract::{Focal, ItemId, ItemKind, Krate, ModuleId, UseKind};

/// Items that come along; of an impl the members that do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Chosen {
    pub(super) items: BTreeMap<ItemId, BTreeSet<usize>>,
}

/// What an impl is of, resolved once.
#[derive(Debug, Clone)]
pub(super) struct ImplFacts {
    id: ItemId,
    /// The local type.
    self_item: Option<ItemId>,
    /// The local trait.
    trait_item: Option<ItemId>,
    /// Last segment of the trait's path.
    trait_name: Option<String>,
}

/// Impls of these come with the type: they are used without being named.
const ALWAYS: [&str; 13] = [
    "Clone",
    "Copy",
    "Debug",
    "PartialEq",
    "Eq",
    "PartialOrd",
    "Ord",
    "Hash",
    "Deref",
    "DerefMut",
    "Drop",
    "Index",
    "IndexMut",
];

/// Words that stand for a use of the trait. A trait that is not here comes when one of its methods is named.
const SIGNS: [(&str, &[&str]); 34] = [
    ("ExactSizeIterator", &["len"]),
    ("DoubleEndedIterator", &["rev", "next_back", "rfold"]),
    ("FusedIterator", &["fuse"]),
    ("Add", &["+"]),
    ("AddAssign", &["+"]),
    ("Sub", &["-"]),
    ("SubAssign", &["-"]),
    ("Neg", &["-"]),
    ("Mul", &["*"]),
    ("MulAssign", &["*"]),
    ("Div", &["/"]),
    ("DivAssign", &["/"]),
    ("Rem", &["%"]),
    ("RemAssign", &["%"]),
    ("Not", &["!"]),
    ("BitAnd", &["&"]),
    ("BitAndAssign", &["&"]),
    ("BitOr", &["|"]),
    ("BitOrAssign", &["|"]),
    ("BitXor", &["^"]),
    ("BitXorAssign", &["^"]),
    ("Shl", &["<"]),
    ("Shr", &[">"]),
    ("Display", &["to_string", "format", "write", "writeln", "Error"]),
    ("Error", &["Error"]),
    ("From", &["from", "into", "?"]),
    ("TryFrom", &["try_from", "try_into"]),
    ("FromStr", &["parse", "from_str"]),
    ("Default", &["default", "unwrap_or_default", "Default"]),
    (
        "Iterator",
        &[
            "next",
            "for",
            "Iterator",
            "map",
            "filter",
            "by_ref",
            "take",
            "zip",
            "enumerate",
            "skip",
            "fold",
            "count",
            "last",
            "nth",
            "chain",
            "peekable",
            "sum",
            "collect",
        ],
    ),
    ("IntoIterator", &["into_iter", "for"]),
    ("FromIterator", &["collect"]),
    ("AsRef", &["as_ref", "AsRef"]),
    ("Sum", &["sum"]),
];

/// Traits of std whose methods need the trait in scope, and words that show their use.
const TRAIT_METHODS: [(&str, &[&str]); 12] = [
    ("Write", &["write", "writeln", "write_str", "write_char", "write_fmt", "write_all", "flush"]),
    ("Read", &["read", "read_to_end", "read_to_string", "read_exact", "bytes", "by_ref", "take"]),
    ("BufRead", &["lines", "read_line", "read_until", "fill_buf", "consume", "split"]),
    ("FromStr", &["from_str"]),
    ("Hash", &["hash"]),
    ("Hasher", &["finish", "write", "write_u8"]),
    ("BuildHasher", &["build_hasher", "hash_one"]),
    ("Borrow", &["borrow"]),
    ("BorrowMut", &["borrow_mut"]),
    ("Error", &["source", "description"]),
    ("Seek", &["seek"]),
    ("Any", &["type_id"]),
];

pub(super) fn impl_facts(krate: &Krate, resolver: &Resolver<'_>) -> Vec<ImplFacts> {
    let local = |module, path: &[String]| {
        resolver.path(module, path).into_iter().find_map(|(target, n)| match target {
            Target::Item(id) if n == path.len() => Some(id),
            _ => None,
        })
    };
    let impls = krate.items.iter().enumerate().filter(|(_, item)| item.kind == ItemKind::Impl);
    let facts = impls.map(|(id, item)| ImplFacts {
        id,
        self_item: local(item.module, &item.self_path),
        trait_item: item.trait_path.as_ref().and_then(|path| local(item.module, path)),
        trait_name: item.trait_path.as_ref().and_then(|path| path.last().cloned()),
    });
    facts.collect()
}

/// Grows the set until nothing is missing.
pub(super) fn choose(closer: &Closer<'_>, focal: Focal, cases: &[usize], breadth: Breadth) -> Chosen {
    let mut chosen = Chosen::default();
    loop {
        let before = chosen.clone();
        let mut members = BTreeSet::new();
        let mut words = BTreeSet::new();
        for (scan, _) in closer.scans_of(&before, focal, cases) {
            members.extend(scan.members.iter().cloned());
            words.extend(scan.words.iter().cloned());
            for &id in &scan.items {
                if closer.krate.items[id].kind != ItemKind::Impl && Some(id) != own_function(focal) {
                    chosen.items.entry(id).or_default();
                }
            }
        }
        impls(closer, focal, &Said { members, words, breadth }, &mut chosen);
        macro_calls(closer, &mut chosen);
        if chosen == before {
            return chosen;
        }
    }
}

fn own_function(focal: Focal) -> Option<ItemId> {
    focal.member.is_none().then_some(focal.item)
}

/// What the chosen texts say, all together.
struct Said {
    members: BTreeSet<String>,
    words: BTreeSet<String>,
    breadth: Breadth,
}

fn impls(closer: &Closer<'_>, focal: Focal, said: &Said, chosen: &mut Chosen) {
    let krate = closer.krate;
    for facts in &closer.impls {
        let item = &krate.items[facts.id];
        let own = focal.item == facts.id;
        let type_is_here = facts.self_item.is_some_and(|id| chosen.items.contains_key(&id));
        let wanted: BTreeSet<usize> = match (&facts.trait_name, facts.self_item) {
            (None, _) if type_is_here => {
                let named = |m: &usize| {
                    said.members.contains(&item.members[*m].name) && !(own && focal.member == Some(*m))
                };
                (0..item.members.len()).filter(named).collect()
            }
            (Some(_), _) if own => continue,
            (Some(name), Some(_)) if type_is_here => {
                let wanted = match facts.trait_item {
                    Some(id) => chosen.items.contains_key(&id),
                    None => std_impl_is_used(closer, facts, name, said),
                };
                if !wanted {
                    continue;
                }
                chosen.items.entry(facts.id).or_default();
                (0..item.members.len()).collect()
            }
            (Some(_), None) if foreign_impl_is_used(closer, facts, &said.words, chosen) => {
                chosen.items.entry(facts.id).or_default();
                (0..item.members.len()).collect()
            }
            // `impl From<Local> for String`.
            (Some(name), None) if facts.trait_item.is_none() && names_a_local_type(closer, facts, chosen) => {
                if !std_impl_is_used(closer, facts, name, said) {
                    continue;
                }
                chosen.items.entry(facts.id).or_default();
                (0..item.members.len()).collect()
            }
            _ => continue,
        };
        if !wanted.is_empty() {
            chosen.items.entry(facts.id).or_default().extend(wanted);
        }
    }
}

fn std_impl_is_used(closer: &Closer<'_>, facts: &ImplFacts, name: &str, said: &Said) -> bool {
    let item = &closer.krate.items[facts.id];
    let fragments = std::iter::once(&item.code).chain(item.members.iter().map(|m| &m.code));
    let leaves = |fragment| {
        let scan = closer.scan(fragment, item.module);
        scan.outside.is_some() || scan.forbidden.is_some()
    };
    if fragments.into_iter().any(leaves) {
        return false;
    }
    if name == "Drop"
        || item.members.iter().any(|m| m.is_fn && m.name != "fmt" && said.members.contains(&m.name))
    {
        return true;
    }
    let signs = SIGNS.iter().find(|(sign, _)| *sign == name);
    let hinted = signs.is_some_and(|(_, signs)| signs.iter().any(|s| said.words.contains(*s)));
    said.breadth == Breadth::Generous && (hinted || ALWAYS.contains(&name))
}

fn names_a_local_type(closer: &Closer<'_>, facts: &ImplFacts, chosen: &Chosen) -> bool {
    let item = &closer.krate.items[facts.id];
    let header = closer.scan(&item.code, item.module);
    header.items.iter().any(|id| chosen.items.contains_key(id))
}

/// An impl of a local trait for a type of std, or for every type: when the type is mentioned, or there are few.
fn foreign_impl_is_used(
    closer: &Closer<'_>,
    facts: &ImplFacts,
    words: &BTreeSet<String>,
    chosen: &Chosen,
) -> bool {
    let Some(id) = facts.trait_item.filter(|id| chosen.items.contains_key(id)) else { return false };
    let item = &closer.krate.items[facts.id];
    let siblings = closer.impls.iter().filter(|f| f.trait_item == Some(id)).count();
    let blanket = item.self_path.last().is_none_or(|name| name.len() == 1);
    let mentioned =
        item.self_path.last().is_some_and(|name| words.contains(name) || name == "i32" || name == "f64");
    siblings <= 4 || blanket || mentioned
}

/// Calls such as `impl_shape!(Square)`: when the macro makes an impl of a trait or for a type that is here.
fn macro_calls(closer: &Closer<'_>, chosen: &mut Chosen) {
    let krate = closer.krate;
    for (id, item) in krate.items.iter().enumerate() {
        if item.kind != ItemKind::MacroCall || item.test_only {
            continue;
        }
        let Some(definition) = closer.macros.get(&item.name).and_then(|ids| ids.first()) else { continue };
        let made = &krate.items[*definition];
        let body = closer.scan(&made.code, made.module);
        let call = closer.scan(&item.code, item.module);
        let is_trait =
            |id: &ItemId| krate.items[*id].kind == ItemKind::Trait && chosen.items.contains_key(id);
        let makes_impl = body.words.contains("impl");
        if makes_impl && body.items.iter().chain(&call.items).any(is_trait) {
            chosen.items.entry(id).or_default();
            chosen.items.entry(*definition).or_default();
        }
    }
}

/// `use` declarations of a module for traits of std whose methods are called, and its globs of std.
pub(super) fn trait_imports(
    krate: &Krate,
    resolver: &Resolver<'_>,
    module: ModuleId,
    words: &BTreeSet<String>,
) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for leaf in &krate.modules[module].uses {
        let std = matches!(leaf.path.first().map(String::as_str), Some("std" | "core" | "alloc"));
        if !std || is_relative(&leaf.path) {
            continue;
        }
        match &leaf.kind {
            UseKind::Glob => {
                let glob = declaration(&leaf.path, leaf.path.last().map_or("", String::as_str));
                let glob = format!("{}::*;", glob.trim_end_matches(';'));
                found.push((glob.clone(), glob));
            }
            UseKind::Name(name) => {
                let last = leaf.path.last().map_or("", String::as_str);
                let methods = TRAIT_METHODS.iter().find(|(n, _)| *n == last);
                if methods.is_some_and(|(_, methods)| methods.iter().any(|m| words.contains(*m))) {
                    let external = resolver.name(module, name);
                    if name == "_" || matches!(external.first(), Some(Target::External(_))) {
                        let key = if name == "_" { format!("_ {last}") } else { name.clone() };
                        found.push((key, declaration(&leaf.path, name)));
                    }
                }
            }
        }
    }
    found
}

/// Items of test modules that the cases need, directly or through one another.
pub(super) fn helpers(closer: &Closer<'_>, cases: &[usize]) -> BTreeMap<ItemId, BTreeSet<usize>> {
    let krate = closer.krate;
    let mut found = BTreeMap::<ItemId, BTreeSet<usize>>::new();
    let mut queue: Vec<ItemId> = Vec::new();
    for &case in cases {
        let case = &krate.cases[case];
        queue.extend(&closer.scan(&case.code, case.module).items);
    }
    while let Some(id) = queue.pop() {
        let item = &krate.items[id];
        if !item.test_only || found.contains_key(&id) {
            continue;
        }
        let members: BTreeSet<usize> = (0..item.members.len()).collect();
        queue.extend(&closer.scan(&item.code, item.module).items);
        for &m in &members {
            queue.extend(&closer.scan(&item.members[m].code, item.module).items);
        }
        found.insert(id, members);
        let own = closer.impls.iter().filter(|f| f.self_item == Some(id) && krate.items[f.id].test_only);
        queue.extend(own.map(|f| f.id));
    }
    found
}
