//! The focal function: the one function of a row that its tests are about.

use record::corpus::CorpusRow;
use syn::{ImplItem, Item, ItemImpl, Path, ReceiverKind, Signature, Type};

use crate::SubjectError;
use crate::depth::parse_items;

/// Name and shape of the focal function, as far as its tests can see them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FocalFn {
    /// `pad_left`, `push`, `from_str`.
    pub name: String,
    /// Last segment of the type in `impl Type`, generics dropped.
    pub self_type: Option<String>,
    /// Last segment of the trait in `impl Trait for Type`.
    pub trait_name: Option<String>,
    /// Takes `&mut self`: a call changes its receiver.
    pub mutates_receiver: bool,
    pub has_receiver: bool,
    pub is_async: bool,
    pub is_const: bool,
    pub is_unsafe: bool,
}

impl FocalFn {
    /// The focal function of a corpus row. Of several methods, the one that `metadata.item` names.
    ///
    /// # Errors
    /// `function_code` does not parse, or holds no function.
    pub fn of(row: &CorpusRow) -> Result<Self, SubjectError> {
        let wanted = row.metadata.item.rsplit("::").next().filter(|name| !name.is_empty());
        Self::find(&row.function_code, wanted)
    }

    /// The first function, or the first method of the first `impl` block.
    ///
    /// # Errors
    /// `code` does not parse, or holds no function.
    pub fn parse(code: &str) -> Result<Self, SubjectError> {
        Self::find(code, None)
    }

    fn find(code: &str, wanted: Option<&str>) -> Result<Self, SubjectError> {
        let file = parse_items("function_code", code)?;
        let mut candidates = Vec::new();
        for item in &file.items {
            match item {
                Item::Fn(item) => candidates.push(Self::new(&item.sig, None)),
                Item::Impl(block) => {
                    candidates.extend(methods(block).map(|sig| Self::new(sig, Some(block))));
                }
                _ => {}
            }
        }
        let by_name = candidates.iter().position(|c| Some(c.name.as_str()) == wanted);
        if candidates.is_empty() {
            let found = format!("{} item(s), none of them a function or an impl block", file.items.len());
            return Err(SubjectError::NoFunction { found });
        }
        Ok(candidates.swap_remove(by_name.unwrap_or(0)))
    }

    fn new(sig: &Signature, block: Option<&ItemImpl>) -> Self {
        Self {
            name: sig.ident.to_string(),
            self_type: block.and_then(|block| type_name(&block.self_ty)),
            trait_name: block
                .and_then(|block| block.trait_.as_ref())
                .and_then(|(path, _)| last_segment(path)),
            mutates_receiver: sig
                .receiver()
                .is_some_and(|r| matches!(&r.kind, ReceiverKind::Reference(_, _, Some(_)))),
            has_receiver: sig.receiver().is_some(),
            is_async: sig.asyncness.is_some(),
            is_const: sig.constness.is_some(),
            is_unsafe: matches!(sig.safety, syn::Safety::Unsafe(_)),
        }
    }
}

fn methods(block: &ItemImpl) -> impl Iterator<Item = &Signature> {
    block.items.iter().filter_map(|item| match item {
        ImplItem::Fn(method) => Some(&method.sig),
        _ => None,
    })
}

fn last_segment(path: &Path) -> Option<String> {
    path.segments.last().map(|segment| segment.ident.to_string())
}

/// `Stack` of `Stack<T>`, `&Stack<T>` and `crate::Stack`.
pub(crate) fn type_name(ty: &Type) -> Option<String> {
    match ty {
        Type::Path(path) => last_segment(&path.path),
        Type::Reference(reference) => type_name(&reference.elem),
        Type::Paren(paren) => type_name(&paren.elem),
        Type::Group(group) => type_name(&group.elem),
        _ => None,
    }
}

#[cfg(test)]
mod test {
    use super::FocalFn;

    #[test]
    fn a_free_function_has_no_type() {
        let focal = FocalFn::parse("/// Adds.\npub async fn add(a: i32, b: i32) -> i32 { a + b }").unwrap();
        assert_eq!((focal.name.as_str(), focal.self_type.as_deref()), ("add", None));
        assert!(focal.is_async && !focal.has_receiver);
    }

    #[test]
    fn a_method_knows_its_type_trait_and_receiver() {
        let focal = FocalFn::parse("impl<T: Clone> Stack<T> { pub fn push(&mut self, v: T) {} }").unwrap();
        assert_eq!(focal.self_type.as_deref(), Some("Stack"));
        assert!(focal.mutates_receiver);
        let focal = FocalFn::parse("impl std::str::FromStr for Rgb { type Err = (); fn from_str(s: &str) -> Result<Self, ()> { Err(()) } }").unwrap();
        assert_eq!(focal.trait_name.as_deref(), Some("FromStr"));
        assert!(!focal.mutates_receiver);
    }

    #[test]
    fn no_function_is_an_error_that_says_so() {
        assert!(FocalFn::parse("struct A;").unwrap_err().to_string().contains("no function"));
        assert!(FocalFn::parse("fn a( {").unwrap_err().to_string().contains("does not parse"));
    }
}
