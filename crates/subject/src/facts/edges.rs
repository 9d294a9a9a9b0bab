//! Edge values: empty, zero, `None`, the least and the greatest of a type.

use syn::{Expr, ExprCall, Lit};

use super::scope::Scope;
use crate::macros;

const NAMES: [&str; 10] =
    ["MIN", "MAX", "EPSILON", "INFINITY", "NEG_INFINITY", "NAN", "MIN_POSITIVE", "ZERO", "None", "EMPTY"];
const COLLECTIONS: [&str; 9] =
    ["Vec", "String", "VecDeque", "HashMap", "HashSet", "BTreeMap", "BTreeSet", "BinaryHeap", "PathBuf"];
/// Methods that hand the value on.
const CONVERSIONS: [&str; 20] = [
    "to_string",
    "to_owned",
    "into",
    "to_vec",
    "clone",
    "as_str",
    "as_bytes",
    "as_slice",
    "as_ref",
    "as_mut",
    "iter",
    "into_iter",
    "chars",
    "bytes",
    "copied",
    "cloned",
    "collect",
    "unwrap",
    "to_bytes",
    "borrow",
];

/// Whether `expr` is an edge value or holds one.
pub(super) fn is_edge(expr: &Expr, scope: &Scope) -> bool {
    let inner = |expr: &Expr| is_edge(expr, scope);
    match expr {
        Expr::Lit(lit) => is_edge_literal(&lit.lit),
        Expr::Path(path) => {
            let last = path.path.segments.last().map(|segment| segment.ident.to_string()).unwrap_or_default();
            NAMES.contains(&last.as_str()) || path.path.get_ident().is_some() && scope.get(&last).edge
        }
        Expr::Reference(e) => inner(&e.expr),
        Expr::Paren(e) => inner(&e.expr),
        Expr::Group(e) => inner(&e.expr),
        Expr::Cast(e) => inner(&e.expr),
        Expr::Try(e) => inner(&e.expr),
        Expr::Await(e) => inner(&e.base),
        Expr::Unary(e) => inner(&e.expr),
        Expr::Field(e) => inner(&e.base),
        Expr::Array(array) => array.elems.is_empty() || array.elems.iter().any(inner),
        Expr::Tuple(tuple) => tuple.elems.iter().any(inner),
        Expr::Repeat(repeat) => inner(&repeat.len) || inner(&repeat.expr),
        Expr::Struct(literal) => literal.fields.iter().any(|field| inner(&field.expr)),
        Expr::Call(call) => is_edge_call(call, scope),
        Expr::MethodCall(call) if CONVERSIONS.contains(&call.method.to_string().as_str()) => {
            inner(&call.receiver)
        }
        Expr::Macro(mac) if macros::name(&mac.mac) == "vec" => match macros::body(&mac.mac) {
            Some(body) => body.exprs.is_empty() || body.exprs.iter().any(inner),
            None => false,
        },
        _ => false,
    }
}

fn is_edge_literal(lit: &Lit) -> bool {
    match lit {
        Lit::Int(value) => {
            let digits = value.base10_digits();
            digits == "0" || is_greatest(digits, value.suffix())
        }
        Lit::Float(value) => value.base10_digits().parse::<f64>().is_ok_and(|value| value == 0.0),
        Lit::Str(text) => text.value().is_empty(),
        Lit::ByteStr(bytes) => bytes.value().is_empty(),
        Lit::Char(c) => c.value() == '\0',
        Lit::Byte(b) => b.value() == 0,
        _ => false,
    }
}

fn is_greatest(digits: &str, suffix: &str) -> bool {
    let greatest = match suffix {
        "u8" => u8::MAX.to_string(),
        "i8" => i8::MAX.to_string(),
        "u16" => u16::MAX.to_string(),
        "i16" => i16::MAX.to_string(),
        "u32" => u32::MAX.to_string(),
        "i32" => i32::MAX.to_string(),
        "u64" | "usize" => u64::MAX.to_string(),
        "i64" | "isize" => i64::MAX.to_string(),
        _ => return false,
    };
    digits == greatest
}

/// Empty collections, `u8::max_value()`, and constructors of edge values: `Some(0)`, `Duration::from_secs(0)`.
fn is_edge_call(call: &ExprCall, scope: &Scope) -> bool {
    let Expr::Path(path) = &*call.func else { return false };
    let segments: Vec<String> = path.path.segments.iter().map(|segment| segment.ident.to_string()).collect();
    let Some((last, before)) = segments.split_last() else { return false };
    let owner = before.last().map(String::as_str).unwrap_or_default();
    let is_empty_one =
        COLLECTIONS.contains(&owner) && matches!(last.as_str(), "new" | "default" | "with_capacity");
    let is_type = |name: &str| name.starts_with(char::is_uppercase);
    is_empty_one
        || matches!(last.as_str(), "max_value" | "min_value")
        || matches!((owner, last.as_str()), ("Default", "default") | ("iter", "empty"))
        || (is_type(owner) || is_type(last)) && call.args.iter().any(|arg| is_edge(arg, scope))
}
