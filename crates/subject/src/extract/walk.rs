//! Reads the module tree.

use std::collections::BTreeSet;

use quote::ToTokens;
use syn::spanned::Spanned;

use super::attributes::{self, fragment, is_on, last_name, outer};
use super::config::Config;
use super::docs::{self, Documentation};
use super::lex::{Token, after_group, flatten};
use super::{
    Case, CaseKind, CrateFiles, ExtractError, Focal, Fragment, Item, ItemKind, Krate, Member, Module,
    ModuleId, Text, TextId, UseKind, UseLeaf,
};

pub(super) fn read(files: &CrateFiles) -> Result<Krate, ExtractError> {
    let krate = Krate { name: files.name.clone(), ..Krate::default() };
    let mut walker = Walker { files, krate, doc_scope: 0, open: Vec::new() };
    let root = files.root.clone();
    if !files.files.contains_key(&root) {
        return Err(ExtractError::NoRoot { path: root });
    }
    let root_module = walker.module("", None, false);
    walker.doc_scope = walker.module("doc", None, true);
    walker.file(&root, root_module, &directory_of(&root, true))?;
    for path in &files.integration_tests {
        let module = walker.module("integration", None, true);
        if walker.file(path, module, &directory_of(path, true)).is_err() {
            walker.krate.unreadable.push(path.clone());
        }
    }
    Ok(walker.krate)
}

struct Walker<'a> {
    files: &'a CrateFiles,
    krate: Krate,
    /// What a doc example sees: nothing but what it imports.
    doc_scope: ModuleId,
    /// The files on the way to the one that is being read.
    open: Vec<String>,
}

/// Module files that a crate may have: `#[path]` can name the same file again and again.
const MAX_MODULE_FILES: usize = 10_000;

/// Where an item is being read.
#[derive(Clone, Copy)]
struct Place<'p> {
    module: ModuleId,
    text: TextId,
    /// Folder of the module's child files.
    directory: &'p str,
    /// Folder of the file itself, for `#[path]`.
    beside: &'p str,
}

impl Walker<'_> {
    fn module(&mut self, name: &str, parent: Option<ModuleId>, test_only: bool) -> ModuleId {
        let id = self.krate.modules.len();
        let root = parent.map_or(id, |p| self.krate.modules[p].root);
        self.krate.modules.push(Module {
            name: name.to_owned(),
            parent,
            root,
            test_only,
            ..Module::default()
        });
        if let Some(parent) = parent {
            self.krate.modules[parent].children.insert(name.to_owned(), id);
        }
        id
    }

    fn file(&mut self, path: &str, module: ModuleId, directory: &str) -> Result<(), ExtractError> {
        let refused = |line, message: &str| ExtractError::Syntax {
            path: path.to_owned(),
            line,
            message: message.to_owned(),
        };
        if self.open.iter().any(|open| open == path) {
            return Err(refused(1, "the file is a module of itself"));
        }
        if self.krate.texts.len() >= MAX_MODULE_FILES {
            return Err(refused(1, "the crate has too many module files"));
        }
        if let Some((line, why)) = self.files.files.get(path).and_then(|text| crate::depth::too_deep(text)) {
            return Err(refused(line as usize, why));
        }
        self.open.push(path.to_owned());
        let read = self.open_file(path, module, directory);
        self.open.pop();
        read
    }

    fn open_file(&mut self, path: &str, module: ModuleId, directory: &str) -> Result<(), ExtractError> {
        let Some(content) = self.files.files.get(path) else {
            return Err(ExtractError::NoRoot { path: path.to_owned() });
        };
        let content = plain(content);
        let parsed = syn::parse_file(&content).map_err(|e| ExtractError::Syntax {
            path: path.to_owned(),
            line: e.span().start().line,
            message: e.to_string(),
        })?;
        let text = self.krate.texts.len();
        self.krate.texts.push(Text { path: path.to_owned(), content });
        let mut attributes = Vec::new();
        for attribute in &parsed.attrs {
            attributes.extend(flatten(attribute.to_token_stream()));
        }
        if !is_on(&attributes, &self.files.config.testing()) {
            return Ok(());
        }
        let name = if self.krate.modules[module].name.is_empty() {
            self.krate.name.clone()
        } else {
            self.krate.modules[module].name.clone()
        };
        self.examples(&documentation(&attributes), &name, None);
        let beside = directory_of(path, true);
        self.items(parsed.items, Place { module, text, directory, beside: &beside });
        Ok(())
    }

    fn items(&mut self, items: Vec<syn::Item>, place: Place<'_>) {
        for item in items {
            let attrs = attributes_of(&item);
            let on = is_on(&attrs, &self.files.config);
            if on || is_on(&attrs, &self.files.config.testing()) {
                self.item(item, &attrs, place, !on);
            }
        }
    }

    fn item(&mut self, item: syn::Item, attrs: &[Token], place: Place<'_>, under_test: bool) {
        let test_only = under_test || self.krate.modules[place.module].test_only;
        match item {
            syn::Item::Mod(item) => self.child(item, attrs, place, test_only),
            syn::Item::Use(item) => {
                let mut leaves = Vec::new();
                collect_uses(&item.tree, &mut Vec::new(), &mut leaves);
                self.krate.modules[place.module].uses.extend(leaves);
            }
            syn::Item::Fn(ref function) if is_test(attrs) => {
                if function.sig.inputs.is_empty() && !has(attrs, "ignore") {
                    let code = self.fragment(&item, place.text);
                    self.case(CaseKind::Unit, function.sig.ident.to_string(), place.module, code);
                }
            }
            syn::Item::Macro(ref mac) if crate::tests::is_proptest(&mac.mac) => {
                self.properties(&flatten(mac.mac.tokens.clone()), place);
            }
            item => self.plain(&item, place, test_only),
        }
    }

    fn child(&mut self, item: syn::ItemMod, attrs: &[Token], place: Place<'_>, test_only: bool) {
        let name = item.ident.to_string();
        let module = self.module(&name, Some(place.module), test_only);
        if let Some((_, items)) = item.content {
            self.examples(&documentation(attrs), &name, None);
            let directory = join(place.directory, &name);
            self.items(items, Place { module, directory: &directory, ..place });
            return;
        }
        let given = outer(attrs).into_iter().find(|a| attributes::name(a) == Some("path"));
        let candidates = match given.and_then(attributes::value).and_then(unquote) {
            Some(path) => vec![(join(place.beside, &path), true)],
            None => vec![
                (join(place.directory, &format!("{name}.rs")), false),
                (join(place.directory, &format!("{name}/mod.rs")), true),
            ],
        };
        let found = candidates.into_iter().find(|(path, _)| self.files.files.contains_key(path));
        let Some((path, is_directory)) = found else {
            self.krate.unreadable.push(format!("{}::{name}", self.krate.modules[place.module].name));
            return;
        };
        self.examples(&documentation(attrs), &name, None);
        if self.file(&path, module, &directory_of(&path, is_directory)).is_err() {
            self.krate.unreadable.push(path);
        }
    }

    fn fragment(&self, item: &impl ToTokens, text: TextId) -> Fragment {
        let tokens = flatten(item.to_token_stream());
        let docs = documentation(&tokens);
        let mut made = fragment(text, &self.krate.texts[text].content, &tokens, &self.files.config);
        made.prose = docs.prose;
        made
    }

    fn plain(&mut self, item: &syn::Item, place: Place<'_>, test_only: bool) {
        let Some((kind, name)) = kind_of(item) else { return };
        let id = self.krate.items.len();
        let mut made = Item {
            kind,
            name,
            module: place.module,
            lines: lines(item.span()),
            code: self.fragment(item, place.text),
            members: Vec::new(),
            trait_path: None,
            self_path: Vec::new(),
            names: declared_names(item),
            test_only,
        };
        let docs = documentation(&flatten(item.to_token_stream()));
        if let syn::Item::Impl(block) = item {
            self.members(block, &mut made, place.text, id);
        }
        let name = made.name.clone();
        self.krate.items.push(made);
        self.krate.modules[place.module].items.push(id);
        let focal = (kind == ItemKind::Fn).then_some(Focal { item: id, member: None });
        self.examples(&docs, &name, focal);
    }

    fn members(&mut self, block: &syn::ItemImpl, item: &mut Item, text: TextId, id: usize) {
        let brace = block.brace_token.span.open().byte_range().start;
        item.code.tokens.retain(|t| t.range.start < brace);
        item.code.edits.retain(|e| e.range.start < brace);
        if let Some(last) = item.code.tokens.last() {
            item.code.range.end = last.range.end;
        }
        item.trait_path = block.trait_.as_ref().map(|(path, _)| segments(path));
        item.self_path = type_path(&block.self_ty);
        for member in &block.items {
            let tokens = flatten(member.to_token_stream());
            let on = is_on(&tokens, &self.files.config);
            let (name, is_fn) = match member {
                syn::ImplItem::Fn(f) => (f.sig.ident.to_string(), true),
                syn::ImplItem::Const(c) => (c.ident.to_string(), false),
                syn::ImplItem::Type(t) => (t.ident.to_string(), false),
                syn::ImplItem::Macro(m) => {
                    (m.mac.path.segments.last().map(|s| s.ident.to_string()).unwrap_or_default(), false)
                }
                _ => continue,
            };
            if !on {
                continue;
            }
            let focal = Focal { item: id, member: Some(item.members.len()) };
            let code = self.fragment(member, text);
            item.members.push(Member { name: name.clone(), is_fn, lines: lines(member.span()), code });
            if is_fn {
                self.examples(&documentation(&tokens), &name, Some(focal));
            }
        }
    }

    fn examples(&mut self, docs: &Documentation, about: &str, owner: Option<Focal>) {
        let about = about.trim_start_matches("r#");
        for (i, example) in docs.examples.iter().enumerate() {
            let number = if docs.examples.len() > 1 { format!("_{}", i + 1) } else { String::new() };
            let name = format!("{}_example{number}", about.to_lowercase());
            let Some(content) = docs::function(example, &name) else { continue };
            let Ok(stream) = content.parse::<proc_macro2::TokenStream>() else { continue };
            let text = self.krate.texts.len();
            let mut code = fragment(text, &content, &flatten(stream), &Config::default());
            code.attributes.push("#[test]".to_owned());
            if example.should_panic {
                code.attributes.push("#[should_panic]".to_owned());
            }
            self.krate.texts.push(Text { path: String::new(), content });
            let module = self.doc_scope;
            self.krate.cases.push(Case {
                kind: CaseKind::DocExample,
                name,
                module,
                code,
                owner,
                config: None,
            });
        }
    }

    fn case(&mut self, kind: CaseKind, name: String, module: ModuleId, code: Fragment) {
        self.krate.cases.push(Case { kind, name, module, code, owner: None, config: None });
    }

    /// Takes a `proptest!` block apart: one case per function.
    fn properties(&mut self, tokens: &[Token], place: Place<'_>) {
        let content = self.krate.texts[place.text].content.clone();
        let mut config = None;
        let mut start = 0;
        if tokens.first().is_some_and(|t| t.is('#')) && tokens.get(1).is_some_and(|t| t.is('!')) {
            start = after_group(tokens, 2);
            config =
                tokens.get(start - 1).map(|end| content[tokens[0].range.start..end.range.end].to_owned());
        }
        while start < tokens.len() {
            let Some(brace) = body_of_function(tokens, start) else { return };
            let end = after_group(tokens, brace);
            let code = fragment(place.text, &content, &tokens[start..end], &self.files.config);
            let name = code.tokens.iter().skip_while(|t| !t.is_ident("fn")).nth(1).map(|t| t.text.clone());
            if let Some(name) = name {
                let config = config.clone();
                let case =
                    Case { kind: CaseKind::Property, name, module: place.module, code, owner: None, config };
                self.krate.cases.push(case);
            }
            start = end;
        }
    }
}

/// Index of the brace that opens the body of the next function.
fn body_of_function(tokens: &[Token], start: usize) -> Option<usize> {
    let keyword = (start..tokens.len()).find(|&i| tokens[i].is_ident("fn"))?;
    let paren = (keyword..tokens.len()).find(|&i| tokens[i].opens('('))?;
    (after_group(tokens, paren)..tokens.len()).find(|&i| tokens[i].opens('{'))
}

/// Byte-order mark, shebang and carriage returns gone, so that positions count in what is kept.
fn plain(content: &str) -> String {
    let content = content.strip_prefix('\u{feff}').unwrap_or(content).replace("\r\n", "\n");
    if content.starts_with("#!") && !content.starts_with("#![") {
        format!("// {}", &content[2..])
    } else {
        content
    }
}

fn attributes_of(item: &syn::Item) -> Vec<Token> {
    let tokens = flatten(item.to_token_stream());
    let n: usize = outer(&tokens).iter().map(|a| a.len()).sum();
    tokens.into_iter().take(n).collect()
}

fn has(attrs: &[Token], name: &str) -> bool {
    outer(attrs).iter().any(|a| last_name(a) == Some(name))
}

fn is_test(attrs: &[Token]) -> bool {
    has(attrs, "test")
}

fn documentation(tokens: &[Token]) -> Documentation {
    let mut lines = Vec::new();
    let inner = tokens.first().is_some_and(|t| t.is('#'));
    if !inner {
        return Documentation::default();
    }
    for attribute in outer(tokens) {
        if attributes::name(attribute) != Some("doc") {
            continue;
        }
        let Some(text) = attributes::value(attribute).and_then(unquote) else { continue };
        if text.contains('\n') {
            lines.extend(text.lines().map(|l| l.trim_start().trim_start_matches('*').to_owned()));
        } else {
            lines.push(text);
        }
    }
    docs::read(&lines)
}

fn unquote(literal: &str) -> Option<String> {
    syn::parse_str::<syn::LitStr>(literal).ok().map(|l| l.value())
}

/// The path of a type, through references.
fn type_path(ty: &syn::Type) -> Vec<String> {
    match ty {
        syn::Type::Path(path) => segments(&path.path),
        syn::Type::Reference(reference) => type_path(&reference.elem),
        _ => Vec::new(),
    }
}

fn segments(path: &syn::Path) -> Vec<String> {
    path.segments.iter().map(|s| s.ident.to_string()).collect()
}

fn lines(span: proc_macro2::Span) -> [u32; 2] {
    let number = |line: usize| u32::try_from(line).unwrap_or(u32::MAX);
    [number(span.start().line), number(span.end().line)]
}

fn kind_of(item: &syn::Item) -> Option<(ItemKind, String)> {
    Some(match item {
        syn::Item::Fn(i) => (ItemKind::Fn, i.sig.ident.to_string()),
        syn::Item::Struct(i) => (ItemKind::Struct, i.ident.to_string()),
        syn::Item::Enum(i) => (ItemKind::Enum, i.ident.to_string()),
        syn::Item::Union(i) => (ItemKind::Union, i.ident.to_string()),
        syn::Item::Type(i) => (ItemKind::TypeAlias, i.ident.to_string()),
        syn::Item::Const(i) => (ItemKind::Const, i.ident.to_string()),
        syn::Item::Static(i) => (ItemKind::Static, i.ident.to_string()),
        syn::Item::Trait(i) => (ItemKind::Trait, i.ident.to_string()),
        syn::Item::Impl(i) => (ItemKind::Impl, crate::focal::type_name(&i.self_ty).unwrap_or_default()),
        syn::Item::Macro(i) => match &i.ident {
            Some(name) => (ItemKind::Macro, name.to_string()),
            None => (ItemKind::MacroCall, i.mac.path.segments.last()?.ident.to_string()),
        },
        _ => return None,
    })
}

fn declared_names(item: &syn::Item) -> BTreeSet<String> {
    match item {
        syn::Item::Enum(i) => i.variants.iter().map(|v| v.ident.to_string()).collect(),
        syn::Item::Trait(i) => i
            .items
            .iter()
            .filter_map(|member| match member {
                syn::TraitItem::Fn(f) => Some(f.sig.ident.to_string()),
                syn::TraitItem::Const(c) => Some(c.ident.to_string()),
                syn::TraitItem::Type(t) => Some(t.ident.to_string()),
                _ => None,
            })
            .collect(),
        _ => BTreeSet::new(),
    }
}

/// The names that a `use` tree brings.
pub(crate) fn collect_uses(tree: &syn::UseTree, prefix: &mut Vec<String>, leaves: &mut Vec<UseLeaf>) {
    match tree {
        syn::UseTree::Path(path) => {
            prefix.push(path.ident.to_string());
            collect_uses(&path.tree, prefix, leaves);
            prefix.pop();
        }
        syn::UseTree::Name(name) => leaves.push(named(prefix, &name.ident.to_string(), None)),
        syn::UseTree::Rename(rename) => {
            leaves.push(named(prefix, &rename.ident.to_string(), Some(rename.rename.to_string())));
        }
        syn::UseTree::Glob(_) => leaves.push(UseLeaf { path: prefix.clone(), kind: UseKind::Glob }),
        syn::UseTree::Group(group) => group.items.iter().for_each(|t| collect_uses(t, prefix, leaves)),
    }
}

fn named(prefix: &[String], name: &str, alias: Option<String>) -> UseLeaf {
    let mut path = prefix.to_vec();
    if name != "self" || path.is_empty() {
        path.push(name.to_owned());
    }
    let last = path.last().cloned().unwrap_or_default();
    UseLeaf { path, kind: UseKind::Name(alias.unwrap_or(last)) }
}

/// Folder in which a file's child modules lie.
fn directory_of(path: &str, is_directory: bool) -> String {
    let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
    if is_directory || name == "mod.rs" {
        return parent.to_owned();
    }
    join(parent, name.strip_suffix(".rs").unwrap_or(name))
}

/// Joins with `/`, resolving `.` and `..`.
fn join(directory: &str, name: &str) -> String {
    let mut parts: Vec<&str> = directory.split('/').filter(|p| !p.is_empty()).collect();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}
