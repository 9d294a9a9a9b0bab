//! Values that a function may return instead of computing one, chosen by the shape of its return type.
//!
//! There is no type information: a value that does not type-check is an unviable mutant and leaves the score.

use quote::ToTokens;
use syn::visit::{self, Visit};
use syn::{GenericArgument, Generics, PathArguments, ReturnType, Type, TypePath};

/// Expressions of the type, at most [`MAX_VALUES`]. An empty string stands for `()`.
pub(crate) fn of_return(output: &ReturnType, generics: &[&Generics]) -> Vec<String> {
    let mut values = match output {
        ReturnType::Default => vec![String::new()],
        ReturnType::Type(_, ty) if has_no_value(ty, generics) => Vec::new(),
        ReturnType::Type(_, ty) => match of_type(ty) {
            values if values == ["()"] => vec![String::new()],
            values => values,
        },
    };
    values.truncate(MAX_VALUES);
    values
}

const MAX_VALUES: usize = 5;

/// `impl Trait`, `!`, and the function's own type parameters.
fn has_no_value(ty: &Type, generics: &[&Generics]) -> bool {
    let is_parameter = |ty: &Type| {
        let Type::Path(path) = ty else { return false };
        let params = || generics.iter().flat_map(|generics| generics.type_params());
        path.qself.is_some() || path.path.get_ident().is_some_and(|ident| params().any(|p| p.ident == *ident))
    };
    matches!(ty, Type::Never(_)) || is_parameter(ty) || contains_impl(ty)
}

fn contains_impl(ty: &Type) -> bool {
    struct Search(bool);
    impl<'ast> Visit<'ast> for Search {
        fn visit_type(&mut self, ty: &'ast Type) {
            self.0 |= matches!(ty, Type::ImplTrait(_));
            visit::visit_type(self, ty);
        }
    }
    let mut search = Search(false);
    search.visit_type(ty);
    search.0
}

fn strings(values: &[&str]) -> Vec<String> {
    values.iter().map(|&value| value.to_owned()).collect()
}

fn of_type(ty: &Type) -> Vec<String> {
    match ty {
        Type::Path(path) if path.qself.is_none() => of_path(path),
        Type::Tuple(tuple) if tuple.elems.is_empty() => strings(&["()"]),
        Type::Tuple(tuple) => of_tuple(tuple.elems.iter()),
        Type::Array(array) => {
            let len = array.len.to_token_stream();
            of_type(&array.elem).iter().map(|value| format!("[{value}; {len}]")).collect()
        }
        Type::Reference(reference) if reference.mutability.is_none() => of_reference(&reference.elem),
        Type::Reference(_) | Type::Slice(_) | Type::Ptr(_) | Type::FnPtr(_) | Type::TraitObject(_) => {
            Vec::new()
        }
        Type::Paren(paren) => of_type(&paren.elem),
        Type::Group(group) => of_type(&group.elem),
        _ => Vec::new(),
    }
}

fn of_reference(elem: &Type) -> Vec<String> {
    match elem {
        Type::Path(path) if path.path.is_ident("str") => strings(&["\"\"", "\"xyzzy\""]),
        Type::Path(path) if path.path.get_ident().is_some_and(|name| scalar(&name.to_string()).is_some()) => {
            of_type(elem).iter().map(|value| format!("&{value}")).collect()
        }
        Type::Slice(_) => strings(&["&[]"]),
        _ => Vec::new(),
    }
}

fn of_tuple<'t>(elems: impl Iterator<Item = &'t Type>) -> Vec<String> {
    let choices: Vec<Vec<String>> = elems.map(of_type).collect();
    let Some(first) = choices.iter().map(|c| c.first().cloned()).collect::<Option<Vec<String>>>() else {
        return Vec::new();
    };
    let tuple = |parts: &[String]| format!("({},)", parts.join(", "));
    let mut values = vec![tuple(&first)];
    for (i, choice) in choices.iter().enumerate() {
        for other in choice.iter().skip(1) {
            let mut parts = first.clone();
            parts[i].clone_from(other);
            values.push(tuple(&parts));
        }
    }
    values
}

fn scalar(name: &str) -> Option<&'static [&'static str]> {
    Some(match name {
        "bool" => &["true", "false"],
        "u8" | "u16" | "u32" | "u64" | "u128" | "usize" => &["0", "1"],
        "i8" | "i16" | "i32" | "i64" | "i128" | "isize" => &["0", "1", "-1"],
        "f32" | "f64" => &["0.0", "1.0", "-1.0"],
        "char" => &["'\\0'", "'x'"],
        _ => return None,
    })
}

fn of_path(path: &TypePath) -> Vec<String> {
    let Some(last) = path.path.segments.last() else { return Vec::new() };
    let name = last.ident.to_string();
    if let Some(values) = scalar(&name) {
        return strings(values);
    }
    let args = type_args(&last.arguments);
    let inner = |i: usize| args.get(i).map(|ty| of_type(ty)).unwrap_or_default();
    let wrap = |open: &str, values: Vec<String>| {
        values.into_iter().map(|v| format!("{open}({v})")).collect::<Vec<_>>()
    };
    match name.as_str() {
        "String" => strings(&["::std::string::String::new()", "::std::string::String::from(\"xyzzy\")"]),
        "Option" => [strings(&["None"]), wrap("Some", inner(0))].concat(),
        "Result" if args.is_empty() => strings(&["Ok(())"]),
        "Result" => {
            [wrap("Ok", inner(0)), wrap("Err", args.get(1).map(|ty| of_error(ty)).unwrap_or_default())]
                .concat()
        }
        "Vec" => {
            let some = inner(0).into_iter().map(|value| format!("::std::vec![{value}]"));
            std::iter::once("::std::vec::Vec::new()".to_owned()).chain(some).collect()
        }
        "VecDeque" | "BTreeSet" | "HashSet" | "BinaryHeap" => {
            let some =
                inner(0).into_iter().map(|value| format!("::std::iter::FromIterator::from_iter([{value}])"));
            std::iter::once(DEFAULT.to_owned()).chain(some).collect()
        }
        "Box" => wrap("::std::boxed::Box::new", inner(0)),
        "Rc" => wrap("::std::rc::Rc::new", inner(0)),
        "Arc" => wrap("::std::sync::Arc::new", inner(0)),
        "Cow" => strings(&[DEFAULT]),
        "Ordering" => strings(&[
            "::std::cmp::Ordering::Less",
            "::std::cmp::Ordering::Equal",
            "::std::cmp::Ordering::Greater",
        ]),
        _ => strings(&[DEFAULT]),
    }
}

const DEFAULT: &str = "::std::default::Default::default()";

/// Errors are mostly enums of the crate's own: only types with an obvious value are tried.
fn of_error(ty: &Type) -> Vec<String> {
    match ty {
        Type::Path(path)
            if path
                .path
                .segments
                .last()
                .is_some_and(|s| s.ident == "String" || scalar(&s.ident.to_string()).is_some()) =>
        {
            of_type(ty).into_iter().take(1).collect()
        }
        Type::Reference(_) | Type::Tuple(_) => of_type(ty).into_iter().take(1).collect(),
        _ => Vec::new(),
    }
}

fn type_args(arguments: &PathArguments) -> Vec<&Type> {
    let PathArguments::AngleBracketed(arguments) = arguments else { return Vec::new() };
    let types = arguments.args.iter().filter_map(|arg| match arg {
        GenericArgument::Type(ty) => Some(ty),
        _ => None,
    });
    types.collect()
}

#[cfg(test)]
mod test {
    use syn::{Generics, ItemFn, parse_str};

    use super::of_return;

    fn values(signature: &str) -> Vec<String> {
        let item: ItemFn = parse_str(&format!("{signature} {{ loop {{}} }}")).unwrap();
        of_return(&item.sig.output, &[&item.sig.generics, &Generics::default()])
    }

    #[test]
    fn values_follow_the_type() {
        assert_eq!(values("fn f() -> bool"), ["true", "false"]);
        assert_eq!(values("fn f() -> i64"), ["0", "1", "-1"]);
        assert_eq!(values("fn f()"), [""]);
        assert_eq!(values("fn f() -> ()"), [""]);
        assert_eq!(values("fn f() -> Option<bool>"), ["None", "Some(true)", "Some(false)"]);
        assert_eq!(
            values("fn f() -> Result<u8, String>"),
            ["Ok(0)", "Ok(1)", "Err(::std::string::String::new())"]
        );
        assert_eq!(values("fn f() -> fmt::Result"), ["Ok(())"]);
        assert_eq!(values("fn f<'a>(s: &'a str) -> &'a str"), ["\"\"", "\"xyzzy\""]);
        assert_eq!(values("fn f() -> (bool, u8)"), ["(true, 0,)", "(false, 0,)", "(true, 1,)"]);
        assert_eq!(values("fn f() -> [u8; 4]"), ["[0; 4]", "[1; 4]"]);
        assert_eq!(
            values("fn f() -> Vec<u8>"),
            ["::std::vec::Vec::new()", "::std::vec![0]", "::std::vec![1]"]
        );
    }

    #[test]
    fn types_without_a_known_value_have_none() {
        assert!(values("fn f() -> impl Iterator<Item = u8>").is_empty());
        assert!(values("fn f() -> Option<impl Fn()>").is_empty());
        assert!(values("fn f<T>(t: T) -> T").is_empty());
        assert!(values("fn f() -> !").is_empty());
        assert!(values("fn f(v: &mut [u8]) -> &mut u8").is_empty());
    }
}
