//! How values of an argument's type are made.

use std::collections::{BTreeMap, BTreeSet};

use quote::ToTokens;
use subject::extract::lex::{self, flatten};

/// An argument: how its values are made and how they are passed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Argument {
    pub(super) variables: Vec<Variable>,
    /// The value, with `{}` for the name of the argument where a variable's name begins.
    pub(super) value: String,
    /// `{}` is the value.
    pub(super) pass: String,
    pub(super) kind: Kind,
}

/// Something that `proptest!` draws.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Variable {
    /// What follows the name of the argument: `_red`; empty for a plain value.
    pub(super) suffix: String,
    /// Strategies, the widest first.
    pub(super) strategies: Vec<String>,
    /// A number's type, `text`, else empty.
    pub(super) ty: String,
    /// The narrowest strategy is made from what the tests call the function with.
    pub(super) is_like_examples: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    Unsigned(String),
    Signed(String),
    Float(String),
    Bool,
    Char,
    Text,
    List(String),
    /// A list of texts.
    Words,
    /// Numbers, as many as the type says.
    Array,
    /// An `Option` of a number.
    Maybe,
    /// A struct, an enum or a tuple, put together from its parts.
    Whole(String),
}

impl Kind {
    pub(super) fn is_number(&self) -> bool {
        matches!(self, Self::Unsigned(_) | Self::Signed(_) | Self::Float(_))
    }
}

impl Argument {
    fn plain(strategies: Vec<String>, pass: &str, kind: Kind) -> Self {
        let ty = match &kind {
            Kind::Unsigned(ty) | Kind::Signed(ty) | Kind::Float(ty) => ty.clone(),
            Kind::Text => "text".to_owned(),
            _ => String::new(),
        };
        let variables = vec![Variable { suffix: String::new(), strategies, ty, is_like_examples: false }];
        Self { variables, value: "{}".to_owned(), pass: pass.to_owned(), kind }
    }

    pub(super) fn value(&self, name: &str) -> String {
        self.value.replace("{}", name)
    }
}

/// The row's own types, as far as values of them can be put together from numbers and the like.
#[derive(Debug, Default)]
pub(super) struct Types {
    structs: BTreeMap<String, Vec<(Option<String>, syn::Type)>>,
    /// Variants without fields.
    enums: BTreeMap<String, Vec<String>>,
    /// Compare and print.
    comparable: BTreeSet<String>,
}

/// A `match` of more arms says nothing to a reader.
const MAX_VARIANTS: usize = 20;
const MAX_FIELDS: usize = 6;
/// Structs in structs.
const MAX_DEPTH: usize = 3;

impl Types {
    pub(super) fn of(items: &[String]) -> Self {
        let mut types = Self::default();
        let mut traits: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for item in items.iter().filter_map(|text| syn::parse_file(text).ok()).flat_map(|file| file.items) {
            types.item(&item, &mut traits);
        }
        let both = |of: &BTreeSet<String>| of.contains("PartialEq") && of.contains("Debug");
        types.comparable = traits.into_iter().filter(|(_, of)| both(of)).map(|(name, _)| name).collect();
        types
    }

    fn item(&mut self, item: &syn::Item, traits: &mut BTreeMap<String, BTreeSet<String>>) {
        match item {
            syn::Item::Struct(item) if item.generics.params.is_empty() => {
                let name = item.ident.to_string();
                traits.entry(name.clone()).or_default().extend(derived(&item.attrs));
                let field = |f: &syn::Field| (f.ident.as_ref().map(ToString::to_string), f.ty.clone());
                self.structs.insert(name, item.fields.iter().map(field).collect());
            }
            syn::Item::Enum(item) if item.generics.params.is_empty() => {
                let name = item.ident.to_string();
                traits.entry(name.clone()).or_default().extend(derived(&item.attrs));
                if item.variants.iter().all(|v| matches!(v.fields, syn::Fields::Unit)) {
                    self.enums.insert(name, item.variants.iter().map(|v| v.ident.to_string()).collect());
                }
            }
            syn::Item::Impl(block) => {
                let of = spaceless(&block.self_ty);
                if let Some((path, _)) = &block.trait_ {
                    let last = spaceless(path).rsplit("::").next().map(str::to_owned);
                    traits.entry(of).or_default().extend(last);
                }
            }
            _ => {}
        }
    }

    /// Values of these types compare and print.
    pub(super) fn is_comparable(&self, ty: &str) -> bool {
        let plain =
            ["bool", "char", "String", "&str", "Cow<str>", "&[u8]", "()", "PathBuf", "Ordering", "Duration"];
        if number(ty).is_some() || plain.contains(&ty) || self.comparable.contains(ty) {
            return true;
        }
        if let Some(element) = ty.strip_prefix('[').and_then(|t| t.strip_suffix(']')) {
            return element.split_once(';').is_some_and(|(element, _)| number(element).is_some());
        }
        let result = ty.strip_prefix("Result<").and_then(|t| t.strip_suffix('>'));
        if let Some((value, error)) = result.and_then(|inner| inner.rsplit_once(',')) {
            return self.is_comparable(value) && self.is_comparable(error);
        }
        for outer in ["Option<", "Vec<", "Box<"] {
            if let Some(inner) = ty.strip_prefix(outer).and_then(|t| t.strip_suffix('>')) {
                return self.is_comparable(inner);
            }
        }
        match ty.strip_prefix('(').and_then(|t| t.strip_suffix(')')) {
            Some(inner) if !inner.contains(['(', '<']) => {
                inner.split(',').filter(|t| !t.is_empty()).all(|t| self.is_comparable(t))
            }
            _ => false,
        }
    }

    /// `None` when no strategy makes such a value.
    pub(super) fn argument(&self, text: &str) -> Option<Argument> {
        plain(text).or_else(|| self.whole(text, 0))
    }

    fn whole(&self, text: &str, depth: usize) -> Option<Argument> {
        let (pass, name) = text.strip_prefix('&').map_or(("{}", text), |name| ("&{}", name));
        let part = |ty: &str| plain(ty).or_else(|| self.whole(ty, depth + 1)).filter(|a| a.pass == "{}");
        if depth == MAX_DEPTH {
            return None;
        }
        if let Some(variants) = self.enums.get(name) {
            return enumeration(name, variants, pass);
        }
        let (fields, open, close) = if let Some(fields) = self.structs.get(name) {
            let is_named = fields.iter().any(|(name, _)| name.is_some());
            let fields: Vec<(Option<String>, String)> =
                fields.iter().map(|(name, ty)| (name.clone(), spaceless(ty))).collect();
            let (open, close) = if is_named { (" { ", " }") } else { ("(", ")") };
            (fields, format!("{name}{open}"), close)
        } else {
            let inner = name.strip_prefix('(').and_then(|t| t.strip_suffix(')'))?;
            let parts = inner.split(',').filter(|t| !t.is_empty());
            let fields: Vec<(Option<String>, String)> = parts.map(|t| (None, t.to_owned())).collect();
            (fields, "(".to_owned(), ")")
        };
        if fields.is_empty() || fields.len() > MAX_FIELDS {
            return None;
        }
        let mut variables = Vec::new();
        let mut values = Vec::new();
        for (i, (field, ty)) in fields.iter().enumerate() {
            let made = part(ty).filter(|made| {
                !matches!(made.kind, Kind::List(_) | Kind::Text | Kind::Words | Kind::Array)
            })?;
            let own = format!(
                "_{}",
                field
                    .as_deref()
                    .map_or_else(|| (i + 1).to_string(), |name| name.trim_start_matches("r#").to_owned())
            );
            values.push(match field {
                Some(field) => format!("{field}: {}", made.value(&format!("{{}}{own}"))),
                None => made.value(&format!("{{}}{own}")),
            });
            let named = |v: Variable| Variable { suffix: format!("{own}{}", v.suffix), ..v };
            variables.extend(made.variables.into_iter().map(named));
        }
        let trailing = if name.starts_with('(') && values.len() == 1 { "," } else { "" };
        let value = format!("{open}{}{trailing}{close}", values.join(", "));
        let kind = Kind::Whole(name.to_owned());
        Some(Argument { variables, value, pass: pass.to_owned(), kind })
    }
}

fn enumeration(name: &str, variants: &[String], pass: &str) -> Option<Argument> {
    let (last, others) = variants.split_last().filter(|_| variants.len() <= MAX_VARIANTS)?;
    let arms: String =
        others.iter().enumerate().map(|(i, variant)| format!("{i} => {name}::{variant}, ")).collect();
    let strategy = format!("0usize..{}", variants.len());
    let variables = vec![Variable {
        suffix: String::new(),
        strategies: vec![strategy],
        ty: String::new(),
        is_like_examples: false,
    }];
    let value = format!("(match {{}} {{ {arms}_ => {name}::{last} }})");
    Some(Argument { variables, value, pass: pass.to_owned(), kind: Kind::Whole(name.to_owned()) })
}

fn derived(attrs: &[syn::Attribute]) -> Vec<String> {
    let derives = attrs.iter().filter(|attr| attr.path().is_ident("derive"));
    let text: String = derives.map(spaceless).collect();
    let words = text.split(|c: char| !c.is_alphanumeric() && c != '_');
    words.filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

/// The tokens without spaces and lifetimes: `&str` for `&'a str`, `Cow<str>` for `Cow<'_, str>`.
pub(super) fn spaceless(tokens: &(impl ToTokens + ?Sized)) -> String {
    let mut text = String::new();
    let mut in_lifetime = false;
    for token in flatten(tokens.to_token_stream()) {
        match token.kind {
            lex::Kind::Punct('\'') => in_lifetime = true,
            lex::Kind::Ident if in_lifetime => in_lifetime = false,
            lex::Kind::Ident | lex::Kind::Literal => {
                // `mut x`, `dyn T`: words stay apart.
                if text.ends_with(char::is_alphanumeric) {
                    text.push(' ');
                }
                text.push_str(&token.text);
            }
            lex::Kind::Punct(c) | lex::Kind::Open(c) | lex::Kind::Close(c) => text.push(c),
        }
    }
    text.replace("<,", "<")
}

fn plain(text: &str) -> Option<Argument> {
    let make = |strategies: Vec<String>, pass, kind| Some(Argument::plain(strategies, pass, kind));
    let words = || {
        vec!["\"\\\\PC{0,16}\"".to_owned(), "\"[ -~]{0,16}\"".to_owned(), "\"[a-zA-Z0-9]{1,8}\"".to_owned()]
    };
    let lists = || {
        let of = |words: &str| format!("prop::collection::vec({words}, 0..5)");
        vec![of("\"[ -~]{0,6}\""), of("\"[a-z]{1,4}\"")]
    };
    if let Some(numbers) = number(text) {
        return make(numbers.0, "{}", numbers.1);
    }
    if let Some(array) = array(text) {
        return Some(array);
    }
    match text {
        "bool" => return make(vec!["any::<bool>()".to_owned()], "{}", Kind::Bool),
        "char" => {
            return make(
                vec!["any::<char>()".to_owned(), "proptest::char::range(' ', '~')".to_owned()],
                "{}",
                Kind::Char,
            );
        }
        "&str" | "impl AsRef<str>" | "impl Into<String>" => return make(words(), "&{}", Kind::Text),
        "String" => return make(words(), "{}.clone()", Kind::Text),
        "&[&str]" => {
            return make(lists(), "&{}.iter().map(String::as_str).collect::<Vec<_>>()", Kind::Words);
        }
        "Vec<&str>" => {
            return make(lists(), "{}.iter().map(String::as_str).collect::<Vec<_>>()", Kind::Words);
        }
        "&[String]" | "&Vec<String>" => return make(lists(), "&{}", Kind::Words),
        "Vec<String>" => return make(lists(), "{}.clone()", Kind::Words),
        "impl AsRef<Path>" | "&Path" => {
            let paths = vec!["\"[a-c./]{0,12}\"".to_owned(), "\"[a-c]{1,3}(/[a-c]{1,3}){0,2}\"".to_owned()];
            return make(
                paths,
                if text == "&Path" { "std::path::Path::new(&{})" } else { "&{}" },
                Kind::Text,
            );
        }
        "&String" => return make(words(), "&{}", Kind::Text),
        "&char" => {
            let strategies = vec!["any::<char>()".to_owned(), "proptest::char::range(' ', '~')".to_owned()];
            return make(strategies, "&{}", Kind::Char);
        }
        _ => {}
    }
    if let Some(numbers) = text.strip_prefix('&').and_then(number) {
        return make(numbers.0, "&{}", numbers.1);
    }
    if let Some((strategies, _)) =
        text.strip_prefix("Option<").and_then(|t| t.strip_suffix('>')).and_then(number)
    {
        let strategies = strategies.iter().map(|s| format!("prop::option::of({s})")).collect();
        return make(strategies, "{}", Kind::Maybe);
    }
    let owned = text.starts_with("Vec<");
    let element = ["&[", "Vec<", "&Vec<"].iter().find_map(|open| text.strip_prefix(open))?;
    let element = element.strip_suffix([']', '>'])?;
    let (strategies, _) = number(element)?;
    let lists = strategies.iter().map(|s| format!("prop::collection::vec({s}, 0..12)")).collect();
    make(lists, if owned { "{}.clone()" } else { "&{}" }, Kind::List(element.to_owned()))
}

/// `[u8; 4]`, `&[f64; 3]`.
fn array(text: &str) -> Option<Argument> {
    let (pass, text) = text.strip_prefix('&').map_or(("{}", text), |inner| ("&{}", inner));
    let (element, length) = text.strip_prefix('[')?.strip_suffix(']')?.split_once(';')?;
    let length: usize = length.trim_end_matches("usize").parse().ok()?;
    let (strategies, _) = number(element).filter(|_| (1..=32).contains(&length))?;
    let strategies = strategies.iter().map(|s| format!("prop::array::uniform{length}({s})")).collect();
    Some(Argument::plain(strategies, pass, Kind::Array))
}

pub(super) fn number(ty: &str) -> Option<(Vec<String>, Kind)> {
    let any = format!("any::<{ty}>()");
    match ty {
        "u8" | "u16" | "u32" | "u64" | "u128" => {
            Some((vec![any, format!("0{ty}..200"), format!("1{ty}..20")], Kind::Unsigned(ty.to_owned())))
        }
        "usize" => {
            Some((vec!["0usize..64".to_owned(), "1usize..16".to_owned()], Kind::Unsigned(ty.to_owned())))
        }
        "i8" | "i16" | "i32" | "i64" | "i128" | "isize" => {
            Some((vec![any, format!("-100{ty}..100"), format!("1{ty}..20")], Kind::Signed(ty.to_owned())))
        }
        "f32" | "f64" => {
            Some((vec![format!("-1.0e6{ty}..1.0e6"), format!("0.0{ty}..1.0")], Kind::Float(ty.to_owned())))
        }
        _ => None,
    }
}
