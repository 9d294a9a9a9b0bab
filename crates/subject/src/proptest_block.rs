//! The grammar of `proptest! { ... }` blocks and of the closure form `proptest!(|(x in s)| { ... })`.

use proc_macro2::TokenStream;
use syn::parse::{Parse, ParseStream};
use syn::punctuated::Punctuated;
use syn::{
    Attribute, Block, Expr, Ident, Pat, ReturnType, Token, Type, Visibility, braced, bracketed, parenthesized,
};

/// A `proptest!` block of test functions.
#[derive(Debug, Clone)]
pub struct ProptestBlock {
    /// The expression of `#![proptest_config(...)]`.
    pub config: Option<Expr>,
    pub tests: Vec<PropertyTest>,
}

/// One function of the block.
#[derive(Debug, Clone)]
pub struct PropertyTest {
    pub attrs: Vec<Attribute>,
    pub vis: Visibility,
    pub name: Ident,
    pub params: Vec<PropertyParam>,
    pub output: ReturnType,
    pub body: Block,
}

/// A variable of a property test.
#[derive(Debug, Clone)]
pub enum PropertyParam {
    /// `x in 0..10`
    Strategy { pat: Pat, strategy: Box<Expr> },
    /// `x: u32`
    Arbitrary { pat: Pat, ty: Box<Type> },
}

impl PropertyParam {
    pub fn pat(&self) -> &Pat {
        match self {
            Self::Strategy { pat, .. } | Self::Arbitrary { pat, .. } => pat,
        }
    }
}

impl ProptestBlock {
    /// Reads the tokens between the braces of `proptest! { ... }`.
    ///
    /// # Errors
    /// The tokens are of another form, for example the closure form.
    pub fn parse(tokens: TokenStream) -> syn::Result<Self> {
        syn::parse2(tokens)
    }
}

impl Parse for ProptestBlock {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        let config =
            if input.peek(Token![#]) && input.peek2(Token![!]) { Some(config(input)?) } else { None };
        let mut tests = Vec::new();
        while !input.is_empty() {
            tests.push(input.parse()?);
        }
        Ok(Self { config, tests })
    }
}

fn config(input: ParseStream<'_>) -> syn::Result<Expr> {
    input.parse::<Token![#]>()?;
    input.parse::<Token![!]>()?;
    let bracket;
    bracketed!(bracket in input);
    let name: Ident = bracket.parse()?;
    if name != "proptest_config" {
        return Err(syn::Error::new(name.span(), "expected `proptest_config`"));
    }
    let paren;
    parenthesized!(paren in bracket);
    paren.parse()
}

impl Parse for PropertyTest {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        let attrs = input.call(Attribute::parse_outer)?;
        let vis = input.parse()?;
        input.parse::<Token![fn]>()?;
        let name = input.parse()?;
        let paren;
        parenthesized!(paren in input);
        let params = Punctuated::<PropertyParam, Token![,]>::parse_terminated(&paren)?;
        let output = input.parse()?;
        let body = input.parse()?;
        Ok(Self { attrs, vis, name, params: params.into_iter().collect(), output, body })
    }
}

impl Parse for PropertyParam {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        let pat = Pat::parse_single(input)?;
        if input.peek(Token![in]) {
            input.parse::<Token![in]>()?;
            return Ok(Self::Strategy { pat, strategy: Box::new(input.parse()?) });
        }
        input.parse::<Token![:]>()?;
        Ok(Self::Arbitrary { pat, ty: Box::new(input.parse()?) })
    }
}

/// The closure form, `proptest!(config, |(x in s, y: T)| { ... })`.
#[derive(Debug, Clone)]
pub struct ProptestClosure {
    pub config: Option<Expr>,
    pub params: Vec<PropertyParam>,
    pub body: Expr,
}

impl Parse for ProptestClosure {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        let config = if input.peek(Token![|]) || input.peek(Token![move]) {
            None
        } else {
            let config = input.parse()?;
            input.parse::<Token![,]>()?;
            Some(config)
        };
        input.parse::<Option<Token![move]>>()?;
        input.parse::<Token![|]>()?;
        let paren;
        parenthesized!(paren in input);
        let params = Punctuated::<PropertyParam, Token![,]>::parse_terminated(&paren)?;
        input.parse::<Token![|]>()?;
        Ok(Self { config, params: params.into_iter().collect(), body: input.parse()? })
    }
}

/// Reads a block in braces on its own, for callers that hold a macro's whole tokens.
///
/// # Errors
/// `input` does not start with `{ ... }` in the block form.
pub fn parse_braced(input: ParseStream<'_>) -> syn::Result<ProptestBlock> {
    let inner;
    braced!(inner in input);
    inner.parse()
}

#[cfg(test)]
mod test {
    use quote::quote;

    use super::{PropertyParam, ProptestBlock, ProptestClosure};

    #[test]
    fn a_block_has_config_attributes_and_both_kinds_of_variables() {
        let block = ProptestBlock::parse(quote! {
            #![proptest_config(ProptestConfig::with_cases(8))]
            /// Says why.
            #[test]
            fn holds(a in 0..10i32, (b, mut c) in any::<(u8, u8)>(), d: u16,) { prop_assert!(a < 10); }
            #[test]
            #[should_panic]
            fn panics(ref s in ".*") { panic!() }
        })
        .unwrap();
        assert!(block.config.is_some());
        assert_eq!(block.tests.len(), 2);
        assert!(matches!(block.tests[0].params[2], PropertyParam::Arbitrary { .. }));
    }

    #[test]
    fn the_closure_form_is_another_grammar() {
        assert!(ProptestBlock::parse(quote!(|(x in 0..3)| { prop_assert!(x < 3) })).is_err());
        let closure: ProptestClosure =
            syn::parse2(quote!(cfg(), |(x in 0..3, y: u8)| { prop_assert!(x < 3) })).unwrap();
        assert_eq!(closure.params.len(), 2);
        assert!(closure.config.is_some());
    }
}
