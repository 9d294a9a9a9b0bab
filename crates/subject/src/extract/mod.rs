//! A crate's source as data: modules, items, doc examples, unit tests and property tests.
//!
//! The module tree is resolved from the crate's root (`mod x;`, `#[path]`); items whose `cfg` is off are left out. Texts
//! stay as they were written: an item is a range of its file and the tokens on it, so that comments and layout survive.

mod attributes;
pub mod config;
mod docs;
pub mod lex;
mod walk;

pub(crate) use walk::collect_uses;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use thiserror::Error;

use self::config::Config;
use self::lex::Token;

pub type ItemId = usize;
pub type ModuleId = usize;
pub type TextId = usize;

/// Why a crate could not be read.
#[derive(Debug, Error)]
pub enum ExtractError {
    #[error("{path} is not among the files of the crate")]
    NoRoot { path: String },
    #[error("{path}:{line}: does not parse: {message}")]
    Syntax { path: String, line: usize, message: String },
}

/// The files of a crate, by path inside it (`src/lib.rs`).
#[derive(Debug, Clone, Default)]
pub struct CrateFiles {
    /// As `use` declarations spell it.
    pub name: String,
    pub root: String,
    pub files: BTreeMap<String, String>,
    /// Integration tests, by path; they see the crate from outside.
    pub integration_tests: Vec<String>,
    pub config: Config,
}

/// A crate that was read.
#[derive(Debug, Clone, Default)]
pub struct Krate {
    pub name: String,
    pub texts: Vec<Text>,
    /// Module 0 is the root.
    pub modules: Vec<Module>,
    pub items: Vec<Item>,
    pub cases: Vec<Case>,
    /// Files of `mod x;` declarations that do not parse or are not there.
    pub unreadable: Vec<String>,
}

/// A file, or the code of a doc example.
#[derive(Debug, Clone)]
pub struct Text {
    pub path: String,
    pub content: String,
}

#[derive(Debug, Clone, Default)]
pub struct Module {
    pub name: String,
    pub parent: Option<ModuleId>,
    /// What `crate` means here.
    pub root: ModuleId,
    pub items: Vec<ItemId>,
    pub children: BTreeMap<String, ModuleId>,
    pub uses: Vec<UseLeaf>,
    /// Only there under `cfg(test)`.
    pub test_only: bool,
}

/// One name that a `use` declaration brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UseLeaf {
    pub path: Vec<String>,
    pub kind: UseKind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UseKind {
    /// The name that it has here; `_` for a trait brought without a name.
    Name(String),
    Glob,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ItemKind {
    Fn,
    Struct,
    Enum,
    Union,
    TypeAlias,
    Const,
    Static,
    Trait,
    /// `macro_rules!`.
    Macro,
    /// A call of a macro where an item may stand.
    MacroCall,
    Impl,
}

/// A piece of text with its tokens, attributes taken out.
#[derive(Debug, Clone, Default)]
pub struct Fragment {
    pub text: TextId,
    /// From the first token after the outer attributes to the last.
    pub range: Range<usize>,
    pub tokens: Vec<Token>,
    /// Changes to make when it leaves the crate: attributes and doc comments inside that are not kept.
    pub edits: Vec<Edit>,
    /// Outer attributes that are kept, as written.
    pub attributes: Vec<String>,
    /// Doc comment up to its first heading or code fence, one entry per line.
    pub prose: Vec<String>,
}

/// Replaces a range of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edit {
    pub range: Range<usize>,
    pub text: String,
}

#[derive(Debug, Clone)]
pub struct Item {
    pub kind: ItemKind,
    /// Of an impl: its self type's last segment; of a macro call: the macro's name.
    pub name: String,
    pub module: ModuleId,
    /// First and last line, from 1.
    pub lines: [u32; 2],
    /// The whole item; of an impl the header alone, from `impl` to before `{`.
    pub code: Fragment,
    /// Of an impl.
    pub members: Vec<Member>,
    /// Of an impl of a trait: the trait's path.
    pub trait_path: Option<Vec<String>>,
    /// Of an impl: the path of its self type; empty when that is no path.
    pub self_path: Vec<String>,
    /// Variants of an enum; names declared by a trait.
    pub names: BTreeSet<String>,
    pub test_only: bool,
}

#[derive(Debug, Clone)]
pub struct Member {
    pub name: String,
    pub is_fn: bool,
    pub lines: [u32; 2],
    pub code: Fragment,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CaseKind {
    DocExample,
    Unit,
    Property,
}

/// A test that the crate brings.
#[derive(Debug, Clone)]
pub struct Case {
    pub kind: CaseKind,
    pub name: String,
    /// Where its names are looked up.
    pub module: ModuleId,
    /// A function; of a property test the function inside `proptest!`.
    pub code: Fragment,
    /// Whose documentation holds the example.
    pub owner: Option<Focal>,
    /// `#![proptest_config(...)]` of a property test, as written.
    pub config: Option<String>,
}

/// A function of the crate: a free one, or a member of an impl.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Focal {
    pub item: ItemId,
    pub member: Option<usize>,
}

impl Krate {
    /// Reads a crate. A module that can't be read is noted and left out; a root that can't be read is an error.
    ///
    /// # Errors
    /// See [`ExtractError`].
    pub fn read(files: &CrateFiles) -> Result<Self, ExtractError> {
        walk::read(files)
    }

    /// Functions that a row could be about: not test code, not `main`; of a trait impl only a sole method.
    pub fn functions(&self) -> Vec<Focal> {
        let mut found = Vec::new();
        for (id, item) in self.items.iter().enumerate().filter(|(_, item)| !item.test_only) {
            match item.kind {
                ItemKind::Fn if item.name != "main" => found.push(Focal { item: id, member: None }),
                ItemKind::Impl => {
                    let methods = item.members.iter().filter(|m| m.is_fn).count();
                    let sole = item.trait_path.is_none() || methods == 1;
                    let members = item.members.iter().enumerate().filter(|(_, m)| m.is_fn && sole);
                    found.extend(members.map(|(i, _)| Focal { item: id, member: Some(i) }));
                }
                _ => {}
            }
        }
        found
    }

    /// The function's own name.
    pub fn name_of(&self, focal: Focal) -> &str {
        let item = &self.items[focal.item];
        focal.member.map_or(&item.name, |m| &item.members[m].name)
    }

    /// Path inside the crate: `text::pad_left`, `Stack::push`.
    pub fn path_of(&self, focal: Focal) -> String {
        let item = &self.items[focal.item];
        let mut path = self.module_path(item.module);
        path.push(item.name.clone());
        if let Some(member) = focal.member {
            path.push(item.members[member].name.clone());
        }
        path.join("::")
    }

    pub fn code_of(&self, focal: Focal) -> &Fragment {
        let item = &self.items[focal.item];
        focal.member.map_or(&item.code, |m| &item.members[m].code)
    }

    pub fn lines_of(&self, focal: Focal) -> [u32; 2] {
        let item = &self.items[focal.item];
        focal.member.map_or(item.lines, |m| item.members[m].lines)
    }

    /// The file that holds the function.
    pub fn file_of(&self, focal: Focal) -> &str {
        &self.texts[self.code_of(focal).text].path
    }

    fn module_path(&self, module: ModuleId) -> Vec<String> {
        let mut path = Vec::new();
        let mut at = Some(module);
        while let Some(id) = at {
            if self.modules[id].parent.is_some() {
                path.push(self.modules[id].name.clone());
            }
            at = self.modules[id].parent;
        }
        path.reverse();
        path
    }
}

#[cfg(test)]
#[path = "extract_test.rs"]
mod test;
