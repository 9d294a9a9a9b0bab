//! Mutation operators as tables: what replaces what, and under which name.
//!
//! Names follow the mutator names of the Stryker family, so that reports of other languages can be compared.

use syn::{BinOp, Lit};

/// Replacements of a binary operator, with the mutator's name. Empty for operators that are not mutated.
pub(crate) fn binary(op: &BinOp) -> (&'static str, &'static [&'static str]) {
    match op {
        BinOp::Add(_) => ("ArithmeticOperator", &["-", "*"]),
        BinOp::Sub(_) => ("ArithmeticOperator", &["+", "/"]),
        BinOp::Mul(_) => ("ArithmeticOperator", &["+", "/"]),
        BinOp::Div(_) => ("ArithmeticOperator", &["*", "%"]),
        BinOp::Rem(_) => ("ArithmeticOperator", &["/", "+"]),
        BinOp::And(_) => ("LogicalOperator", &["||"]),
        BinOp::Or(_) => ("LogicalOperator", &["&&"]),
        BinOp::Eq(_) => ("EqualityOperator", &["!="]),
        BinOp::Ne(_) => ("EqualityOperator", &["=="]),
        BinOp::Lt(_) => ("EqualityOperator", &["<=", ">="]),
        BinOp::Le(_) => ("EqualityOperator", &["<", ">"]),
        BinOp::Gt(_) => ("EqualityOperator", &[">=", "<="]),
        BinOp::Ge(_) => ("EqualityOperator", &[">", "<"]),
        BinOp::BitAnd(_) => ("BitwiseOperator", &["|", "^"]),
        BinOp::BitOr(_) => ("BitwiseOperator", &["&", "^"]),
        BinOp::BitXor(_) => ("BitwiseOperator", &["&", "|"]),
        BinOp::Shl(_) => ("BitwiseOperator", &[">>"]),
        BinOp::Shr(_) => ("BitwiseOperator", &["<<"]),
        BinOp::AddAssign(_) => ("AssignmentOperator", &["-=", "*="]),
        BinOp::SubAssign(_) => ("AssignmentOperator", &["+=", "/="]),
        BinOp::MulAssign(_) => ("AssignmentOperator", &["+=", "/="]),
        BinOp::DivAssign(_) => ("AssignmentOperator", &["*=", "%="]),
        BinOp::RemAssign(_) => ("AssignmentOperator", &["/=", "+="]),
        BinOp::BitAndAssign(_) => ("AssignmentOperator", &["|=", "^="]),
        BinOp::BitOrAssign(_) => ("AssignmentOperator", &["&=", "^="]),
        BinOp::BitXorAssign(_) => ("AssignmentOperator", &["&=", "|="]),
        BinOp::ShlAssign(_) => ("AssignmentOperator", &[">>="]),
        BinOp::ShrAssign(_) => ("AssignmentOperator", &["<<="]),
        _ => ("", &[]),
    }
}

pub(crate) fn is_assignment(op: &BinOp) -> bool {
    binary(op).0 == "AssignmentOperator"
}

/// A comparison or a logical operator: its own mutants already flip the condition that it makes.
pub(crate) fn is_condition(op: &BinOp) -> bool {
    matches!(binary(op).0, "EqualityOperator" | "LogicalOperator")
}

/// Methods of the standard library whose counterpart takes and returns the same types.
const METHODS: [(&str, &str); 23] = [
    ("min", "max"),
    ("any", "all"),
    ("is_some", "is_none"),
    ("is_ok", "is_err"),
    ("first", "last"),
    ("starts_with", "ends_with"),
    ("strip_prefix", "strip_suffix"),
    ("split_once", "rsplit_once"),
    ("find", "rfind"),
    ("to_uppercase", "to_lowercase"),
    ("to_ascii_uppercase", "to_ascii_lowercase"),
    ("is_uppercase", "is_lowercase"),
    ("is_ascii_uppercase", "is_ascii_lowercase"),
    ("trim_start", "trim_end"),
    ("floor", "ceil"),
    ("leading_zeros", "trailing_zeros"),
    ("rotate_left", "rotate_right"),
    ("wrapping_add", "wrapping_sub"),
    ("saturating_add", "saturating_sub"),
    ("checked_add", "checked_sub"),
    ("overflowing_add", "overflowing_sub"),
    ("push_back", "push_front"),
    ("pop_back", "pop_front"),
];

/// The counterpart of a method: `min` for `max` and the other way round.
pub(crate) fn method(name: &str) -> Option<&'static str> {
    METHODS.iter().find_map(|&(a, b)| match name {
        _ if name == a => Some(b),
        _ if name == b => Some(a),
        _ => None,
    })
}

/// Replacements of a literal with the mutator's name: neighbours and zero for numbers, the other `bool`, an empty or a
/// non-empty string.
pub(crate) fn literal(lit: &Lit) -> (&'static str, Vec<String>) {
    match lit {
        Lit::Bool(value) => ("BooleanLiteral", vec![(!value.value).to_string()]),
        Lit::Int(value) => ("IntegerLiteral", integers(value.base10_digits(), value.suffix())),
        Lit::Float(value) => ("FloatLiteral", floats(value.base10_digits(), value.suffix())),
        Lit::Str(value) => {
            let other = if value.value().is_empty() { "\"xyzzy\"" } else { "\"\"" };
            ("StringLiteral", vec![other.to_owned()])
        }
        _ => ("", Vec::new()),
    }
}

fn integers(digits: &str, suffix: &str) -> Vec<String> {
    let Ok(value) = digits.parse::<u128>() else { return Vec::new() };
    let mut others = Vec::new();
    if let Some(next) = value.checked_add(1)
        && Some(next) <= max_of(suffix)
    {
        others.push(next);
    }
    if value > 0 {
        others.push(value - 1);
    }
    if value > 1 {
        others.push(0);
    }
    others.into_iter().map(|other| format!("{other}{suffix}")).collect()
}

fn max_of(suffix: &str) -> Option<u128> {
    Some(match suffix {
        "u8" => u128::from(u8::MAX),
        "i8" => i8::MAX as u128,
        "u16" => u128::from(u16::MAX),
        "i16" => i16::MAX as u128,
        "u32" => u128::from(u32::MAX),
        "i32" => i32::MAX as u128,
        "u64" | "usize" => u128::from(u64::MAX),
        "i64" | "isize" => i64::MAX as u128,
        "i128" => i128::MAX as u128,
        _ => u128::MAX,
    })
}

fn floats(digits: &str, suffix: &str) -> Vec<String> {
    let Ok(value) = digits.parse::<f64>() else { return Vec::new() };
    let written = |value: f64| {
        let text = format!("{value:?}");
        format!("{text}{suffix}")
    };
    if value == 0.0 { vec![written(1.0)] } else { vec![written(0.0), written(value + 1.0)] }
}

#[cfg(test)]
mod test {
    use syn::parse_quote;

    use super::{literal, method};

    #[test]
    fn integers_become_their_neighbours_and_zero() {
        assert_eq!(literal(&parse_quote!(0)).1, ["1"]);
        assert_eq!(literal(&parse_quote!(1u8)).1, ["2u8", "0u8"]);
        assert_eq!(literal(&parse_quote!(0x10)).1, ["17", "15", "0"]);
        assert_eq!(literal(&parse_quote!(255u8)).1, ["254u8", "0u8"], "256u8 is no literal");
    }

    #[test]
    fn floats_bools_and_strings_have_another_value() {
        assert_eq!(literal(&parse_quote!(0.0)).1, ["1.0"]);
        assert_eq!(literal(&parse_quote!(2.5f32)).1, ["0.0f32", "3.5f32"]);
        assert_eq!(literal(&parse_quote!(1e300)).1.len(), 2);
        assert_eq!(literal(&parse_quote!(true)).1, ["false"]);
        assert_eq!(literal(&parse_quote!("")).1, ["\"xyzzy\""]);
        assert_eq!(literal(&parse_quote!("a")).1, ["\"\""]);
    }

    #[test]
    fn methods_swap_both_ways() {
        assert_eq!(method("min"), Some("max"));
        assert_eq!(method("max"), Some("min"));
        assert_eq!(method("len"), None);
    }
}
