//! What a name means in a module: Rust's name resolution, as far as items and `use` declarations decide it.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};

use crate::extract::{ItemId, ItemKind, Krate, ModuleId, UseKind};

/// What a name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    Item(ItemId),
    Variant(ItemId, String),
    Module(ModuleId),
    /// A path that starts outside the crate: `std::fmt`.
    External(Vec<String>),
}

/// A target and how many segments of the path lead to it.
pub(super) type Found = (Target, usize);

#[derive(Debug)]
pub(super) struct Resolver<'k> {
    krate: &'k Krate,
    known: RefCell<HashMap<(ModuleId, String), Vec<Target>>>,
    open: RefCell<BTreeSet<(ModuleId, String)>>,
}

impl<'k> Resolver<'k> {
    pub(super) fn new(krate: &'k Krate) -> Self {
        Self { krate, known: RefCell::default(), open: RefCell::default() }
    }

    /// What `name` means in `module`. Empty: nothing that the crate declares.
    pub(super) fn name(&self, module: ModuleId, name: &str) -> Vec<Target> {
        let key = (module, name.to_owned());
        if let Some(known) = self.known.borrow().get(&key) {
            return known.clone();
        }
        let mut found = self.declared(module, name);
        // A glob or a re-export that leads back here brings nothing new.
        if !self.open.borrow_mut().insert(key.clone()) {
            return found;
        }
        self.imported(module, name, &mut found);
        if found.is_empty() {
            self.globbed(module, name, &mut found);
        }
        self.open.borrow_mut().remove(&key);
        self.known.borrow_mut().insert(key, found.clone());
        found
    }

    fn declared(&self, module: ModuleId, name: &str) -> Vec<Target> {
        let place = &self.krate.modules[module];
        let named = place.items.iter().filter(|&&id| {
            let item = &self.krate.items[id];
            item.name == name && !matches!(item.kind, ItemKind::Impl | ItemKind::MacroCall | ItemKind::Macro)
        });
        let mut found: Vec<Target> = named.map(|&id| Target::Item(id)).collect();
        found.extend(place.children.get(name).map(|&id| Target::Module(id)));
        found
    }

    fn imported(&self, module: ModuleId, name: &str, found: &mut Vec<Target>) {
        for leaf in &self.krate.modules[module].uses {
            if leaf.kind != UseKind::Name(name.to_owned()) {
                continue;
            }
            let mut targets = self.use_path(module, &leaf.path);
            if targets.is_empty() && !is_relative(&leaf.path) {
                targets.push(Target::External(leaf.path.clone()));
            }
            for target in targets {
                if !found.contains(&target) {
                    found.push(target);
                }
            }
        }
    }

    fn globbed(&self, module: ModuleId, name: &str, found: &mut Vec<Target>) {
        for leaf in &self.krate.modules[module].uses {
            if leaf.kind != UseKind::Glob {
                continue;
            }
            for target in self.use_path(module, &leaf.path) {
                match target {
                    Target::Module(inner) if inner != module => found.extend(self.name(inner, name)),
                    Target::Item(id)
                        if self.krate.items[id].kind == ItemKind::Enum
                            && self.krate.items[id].names.contains(name) =>
                    {
                        found.push(Target::Variant(id, name.to_owned()));
                    }
                    _ => {}
                }
            }
            if !found.is_empty() {
                return;
            }
        }
    }

    /// What the path of a `use` declaration leads to, whole. A path of the 2015 edition starts at the crate's root.
    pub(super) fn use_path(&self, module: ModuleId, path: &[String]) -> Vec<Target> {
        let whole = |module| {
            let found = self.path(module, path).into_iter();
            let targets = found.filter_map(|(target, n)| match target {
                target if n == path.len() => Some(target),
                Target::Item(id) if n + 1 == path.len() && self.krate.items[id].names.contains(&path[n]) => {
                    Some(Target::Variant(id, path[n].clone()))
                }
                _ => None,
            });
            targets.collect::<Vec<_>>()
        };
        let here = whole(module);
        if here.is_empty() && !is_relative(path) { whole(self.krate.modules[module].root) } else { here }
    }

    /// What a path leads to: an item that it names or passes through, a module, or something outside.
    pub(super) fn path(&self, module: ModuleId, path: &[String]) -> Vec<Found> {
        let Some(first) = path.first() else { return Vec::new() };
        let mut found = Vec::new();
        for start in self.first(module, first) {
            self.follow(start, path, 1, &mut found);
        }
        let items = found.iter().any(|(t, _)| matches!(t, Target::Item(_) | Target::Variant(..)));
        if items && path.len() == 1 {
            found.retain(|(t, _)| !matches!(t, Target::Module(_)));
        }
        let furthest = found.iter().map(|(_, n)| *n).max().unwrap_or(0);
        found.retain(|(_, n)| *n == furthest);
        found
    }

    fn first(&self, module: ModuleId, name: &str) -> Vec<Target> {
        let place = &self.krate.modules[module];
        match name {
            "crate" => return vec![Target::Module(place.root)],
            "self" => return vec![Target::Module(module)],
            "super" => return place.parent.map(Target::Module).into_iter().collect(),
            _ => {}
        }
        let found = self.name(module, name);
        if !found.is_empty() {
            return found;
        }
        if name == self.krate.name {
            return vec![Target::Module(0)];
        }
        if matches!(name, "std" | "core" | "alloc") {
            vec![Target::External(vec![name.to_owned()])]
        } else {
            Vec::new()
        }
    }

    fn follow(&self, target: Target, path: &[String], at: usize, found: &mut Vec<Found>) {
        match target {
            Target::Module(id) if at < path.len() => {
                let next = &path[at];
                let place = &self.krate.modules[id];
                let inner = match next.as_str() {
                    "super" => place.parent.map(Target::Module).into_iter().collect(),
                    "self" => vec![Target::Module(id)],
                    name => self.name(id, name),
                };
                for target in inner {
                    self.follow(target, path, at + 1, found);
                }
            }
            Target::External(mut start) => {
                start.extend_from_slice(&path[at..]);
                found.push((Target::External(start), path.len()));
            }
            target => found.push((target, at)),
        }
    }
}

pub(super) fn is_relative(path: &[String]) -> bool {
    path.first().is_some_and(|p| matches!(p.as_str(), "crate" | "self" | "super"))
}
