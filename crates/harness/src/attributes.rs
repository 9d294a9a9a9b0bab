//! Attributes of tests, those that stand under a condition (`#[cfg_attr(CONDITION, ...)]`) included.

use proc_macro2::TokenStream;
use subject::tests::{TestKind, kind_of, should_panic};
use syn::parse::{Parse, ParseStream};
use syn::punctuated::Punctuated;
use syn::spanned::Spanned;
use syn::{Attribute, Meta, Token, parse_quote};

/// An attribute and the condition, as text, under which it is there. `None`: always.
type Conditional = (Option<String>, Attribute);

/// How one test is declared.
#[derive(Debug)]
pub(crate) struct Declared {
    pub(crate) kind: TestKind,
    /// `#[cfg(...)] `, once for each condition under which it is a test.
    pub(crate) conditions: String,
    /// An expression of type `bool`; `None`: never.
    pub(crate) ignored: Option<String>,
    /// The same, and the text that the message must contain.
    pub(crate) should_panic: Option<(String, Option<String>)>,
}

impl Declared {
    /// `None`: it is no test.
    pub(crate) fn of(attrs: &[Attribute]) -> Option<Self> {
        let all = expanded(attrs);
        let (condition, kind) =
            all.iter().find_map(|(condition, attr)| Some((condition, kind_of(one(attr))?)))?;
        let mut conditions = conditions(attrs);
        if let Some(condition) = condition {
            conditions += &format!("#[cfg({condition})] ");
        }
        let ignored = all.iter().filter(|(_, attr)| attr.path().is_ident("ignore"));
        let ignored: Vec<String> = ignored.map(|(condition, _)| truth(condition.as_deref())).collect();
        let panics = |(condition, attr): &Conditional| {
            Some((truth(condition.as_deref()), should_panic(one(attr))?.expected))
        };
        Some(Self {
            kind,
            conditions,
            ignored: (!ignored.is_empty()).then(|| ignored.join(" || ")),
            should_panic: all.iter().find_map(panics),
        })
    }
}

/// Whether an attribute is one that only a test harness understands.
pub(crate) fn is_ours(attr: &Attribute) -> bool {
    expanded(one(attr)).iter().any(|(_, attr)| {
        kind_of(one(attr)).is_some() || attr.path().is_ident("should_panic") || attr.path().is_ident("ignore")
    })
}

/// `#[cfg(...)]` attributes, to repeat where the item is named.
pub(crate) fn conditions(attrs: &[Attribute]) -> String {
    let conditions = attrs.iter().filter(|attr| attr.path().is_ident("cfg"));
    conditions.filter_map(|attr| attr.span().source_text()).map(|text| text + " ").collect()
}

fn one(attr: &Attribute) -> &[Attribute] {
    std::slice::from_ref(attr)
}

fn truth(condition: Option<&str>) -> String {
    condition.map_or("true".to_owned(), |condition| format!("::core::cfg!({condition})"))
}

fn expanded(attrs: &[Attribute]) -> Vec<Conditional> {
    attrs.iter().flat_map(|attr| expand(None, attr)).collect()
}

fn expand(outer: Option<String>, attr: &Attribute) -> Vec<Conditional> {
    let Meta::List(list) = &attr.meta else { return vec![(outer, attr.clone())] };
    if !list.path.is_ident("cfg_attr") {
        return vec![(outer, attr.clone())];
    }
    let Ok(parts) = list.parse_args::<CfgAttr>() else { return Vec::new() };
    let condition = match outer {
        Some(outer) => format!("all({outer}, {})", parts.condition),
        None => parts.condition.to_string(),
    };
    parts.attrs.iter().flat_map(|meta| expand(Some(condition.clone()), &parse_quote!(#[#meta]))).collect()
}

struct CfgAttr {
    condition: TokenStream,
    attrs: Punctuated<Meta, Token![,]>,
}

impl Parse for CfgAttr {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        let mut condition = TokenStream::new();
        while !input.is_empty() && !input.peek(Token![,]) {
            condition.extend([input.parse::<proc_macro2::TokenTree>()?]);
        }
        input.parse::<Option<Token![,]>>()?;
        Ok(Self { condition, attrs: Punctuated::parse_terminated(input)? })
    }
}
