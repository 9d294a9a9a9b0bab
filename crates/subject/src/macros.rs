//! What stands inside a macro call, as far as it can be read as Rust.
//!
//! To `syn` the body of `assert_eq!(a, b)` is a bag of tokens. Most macros that tests use take expressions, so most bodies
//! can be read; what can't be read is reported as such and never guessed.

use syn::parse::{ParseStream, Parser};
use syn::{BinOp, Expr, Macro, Pat, Token};

/// A macro's body, read.
#[derive(Debug, Clone, Default)]
pub struct MacroBody {
    /// Expressions, in order. In `vec![x; n]` both; in `matches!(e, P if g)` `e` and `g`.
    pub exprs: Vec<Expr>,
    /// The pattern of `matches!` and `assert_matches!`.
    pub pattern: Option<Pat>,
}

/// The last segment of the macro's path: `assert_eq` of `std::assert_eq!`.
pub fn name(mac: &Macro) -> String {
    mac.path.segments.last().map(|segment| segment.ident.to_string()).unwrap_or_default()
}

/// Reads a macro's body. `None` when it is not a list of expressions.
pub fn body(mac: &Macro) -> Option<MacroBody> {
    let tokens = mac.tokens.clone();
    match name(mac).as_str() {
        "matches" | "assert_matches" | "debug_assert_matches" => parse_matches.parse2(tokens).ok(),
        _ => parse_exprs.parse2(tokens).ok(),
    }
}

fn parse_exprs(input: ParseStream<'_>) -> syn::Result<MacroBody> {
    let mut exprs = Vec::new();
    while !input.is_empty() {
        exprs.push(input.parse::<Expr>()?);
        if input.is_empty() {
            break;
        }
        if input.peek(Token![;]) {
            input.parse::<Token![;]>()?;
        } else {
            input.parse::<Token![,]>()?;
        }
    }
    Ok(MacroBody { exprs, pattern: None })
}

fn parse_matches(input: ParseStream<'_>) -> syn::Result<MacroBody> {
    let mut exprs = vec![input.parse::<Expr>()?];
    input.parse::<Token![,]>()?;
    let mut pattern = Pat::parse_multi_with_leading_vert(input)?;
    if let Pat::Guard(guard) = pattern {
        exprs.push(*guard.guard);
        pattern = *guard.pat;
    }
    if input.peek(Token![if]) {
        input.parse::<Token![if]>()?;
        exprs.push(input.parse()?);
    }
    while input.peek(Token![,]) {
        input.parse::<Token![,]>()?;
        if !input.is_empty() {
            exprs.push(input.parse()?);
        }
    }
    Ok(MacroBody { exprs, pattern: Some(pattern) })
}

/// `+=`, `<<=` and their like.
pub(crate) fn is_compound_assignment(op: &BinOp) -> bool {
    matches!(
        op,
        BinOp::AddAssign(_)
            | BinOp::SubAssign(_)
            | BinOp::MulAssign(_)
            | BinOp::DivAssign(_)
            | BinOp::RemAssign(_)
            | BinOp::BitXorAssign(_)
            | BinOp::BitAndAssign(_)
            | BinOp::BitOrAssign(_)
            | BinOp::ShlAssign(_)
            | BinOp::ShrAssign(_)
    )
}

#[cfg(test)]
mod test {
    use syn::parse_quote;

    use super::body;

    #[test]
    fn bodies_of_common_macros_are_read() {
        assert_eq!(body(&parse_quote!(assert_eq!(f(1), 2, "why {}", x))).unwrap().exprs.len(), 4);
        assert_eq!(body(&parse_quote!(vec![0; 3])).unwrap().exprs.len(), 2);
        assert_eq!(body(&parse_quote!(format!("{a}", a = 1))).unwrap().exprs.len(), 2);
        let matched = body(&parse_quote!(matches!(f(1), Some(x) | Ok(x) if x > 1))).unwrap();
        assert_eq!(matched.exprs.len(), 2);
        assert!(matched.pattern.is_some());
    }

    #[test]
    fn a_body_of_another_grammar_is_not_read() {
        assert!(body(&parse_quote!(select! { a = b => {} })).is_none());
    }
}
