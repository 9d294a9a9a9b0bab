//! The laws that a function's types allow, written as tests.

use super::arguments::{Argument, Kind, Types, number};
use super::{Law, NO_PANIC};

pub(super) struct Writer<'t> {
    /// For the names of the tests.
    pub(super) name: String,
    /// `f`, `Type::f`.
    pub(super) callee: String,
    pub(super) arguments: Vec<Argument>,
    pub(super) returns: String,
    pub(super) types: &'t Types,
}

impl Writer<'_> {
    pub(super) fn all(&self) -> Vec<Law> {
        let mut laws = Vec::new();
        match &self.arguments[..] {
            [only] if matches!(only.kind, Kind::Whole(_)) => self.unary_of_wholes(only, &mut laws),
            [only] => {
                self.of_character(only, &mut laws);
                self.unary(only, &mut laws);
                self.of_joined(only, &mut laws);
                self.of_contents(only, &mut laws);
            }
            [first, second] if first.kind == second.kind && first.pass == second.pass => {
                self.binary(&mut laws);
                self.of_equals(first, &mut laws);
            }
            _ => {}
        }
        self.of_each(&mut laws);
        self.any_arity(&mut laws);
        laws
    }

    fn is_comparable(&self) -> bool {
        self.types.is_comparable(&self.returns)
    }

    /// The result is of the argument's own kind.
    pub(super) fn same_kind(&self, argument: &Argument) -> bool {
        let returns = &self.returns;
        match &argument.kind {
            Kind::Unsigned(t) | Kind::Signed(t) | Kind::Float(t) | Kind::Whole(t) => t == returns,
            Kind::Bool => returns == "bool",
            Kind::Char => returns == "char",
            Kind::Maybe | Kind::Words | Kind::Array => false,
            Kind::Text => matches!(returns.as_str(), "String" | "&str" | "Cow<str>"),
            Kind::List(t) => *returns == format!("Vec<{t}>"),
        }
    }

    fn unary(&self, argument: &Argument, laws: &mut Vec<Law>) {
        let returns = &self.returns;
        let call = |value: &str| self.call(&[value]);
        if self.same_kind(argument) && argument.kind != Kind::Bool {
            let owned = if argument.kind == Kind::Text { ".to_string()" } else { "" };
            let once = format!("let once = {}{owned};", call("value"));
            let twice = format!("{}{owned}", call("once"));
            self.law(
                laws,
                "is_its_own_inverse",
                &format!("{once}\n        prop_assert_eq!({twice}, value);"),
            );
            self.law(laws, "is_idempotent", &format!("{once}\n        prop_assert_eq!({twice}, once);"));
        }
        if matches!(argument.kind, Kind::Float(_) | Kind::Signed(_)) && self.same_kind(argument) {
            let negated = call("(-value)").replace("((-value))", "(-value)");
            self.law(laws, "is_odd", &format!("prop_assert_eq!({negated}, -{});", call("value")));
            self.law(laws, "is_even", &format!("prop_assert_eq!({negated}, {});", call("value")));
        }
        if argument.kind.is_number() && is_ordered(returns) {
            let body = format!(
                "let next = value + 1 as {};\n        prop_assert!({} <= {});",
                number_type(argument),
                call("value"),
                call("next")
            );
            self.law(laws, "never_decreases", &body);
        }
        if argument.kind == Kind::Text && matches!(returns.as_str(), "String" | "&str" | "Cow<str>") {
            self.law(
                laws,
                "keeps_the_number_of_characters",
                &format!("prop_assert_eq!({}.chars().count(), value.chars().count());", call("value")),
            );
            self.law(laws, "never_grows", &format!("prop_assert!({}.len() <= value.len());", call("value")));
        }
        if matches!(argument.kind, Kind::List(_)) && self.same_kind(argument) {
            self.law(
                laws,
                "keeps_the_length",
                &format!("prop_assert_eq!({}.len(), value.len());", call("value")),
            );
        }
        self.unary_of_texts_and_lists(argument, laws);
        if !matches!(argument.kind, Kind::Float(_) | Kind::Bool) {
            self.keeps_apart(argument, laws);
        }
    }

    /// Laws that hold for many a function: what does not count in the argument, and how large the result can be.
    fn unary_of_texts_and_lists(&self, argument: &Argument, laws: &mut Vec<Law>) {
        let returns = &self.returns;
        let call = |value: &str| self.call(&[value]);
        let same = |one: &str, other: &str| format!("prop_assert_eq!({}, {});", call(one), call(other));
        let is_collection = matches!(argument.kind, Kind::Text | Kind::List(_));
        if self.is_comparable() && argument.kind == Kind::Text {
            let body = same("value.to_ascii_lowercase()", "value.to_ascii_uppercase()");
            self.law(laws, "ignores_the_case_of_letters", &body);
            let body =
                format!("let padded = format!(\"  {{value}} \");\n        {}", same("padded", "value"));
            self.law(laws, "ignores_space_around", &body);
        }
        if self.is_comparable() && argument.kind == Kind::Char {
            let body = same("value.to_ascii_lowercase()", "value.to_ascii_uppercase()");
            self.law(laws, "ignores_the_case_of_letters", &body);
        }
        if self.is_comparable() && matches!(argument.kind, Kind::List(_)) {
            let body = format!(
                "let mut reversed = value.clone();\n        reversed.reverse();\n        {}",
                same("reversed", "value")
            );
            self.law(laws, "ignores_the_order", &body);
        }
        if is_collection && returns == "usize" {
            self.law(
                laws,
                "is_at_most_the_length",
                &format!("prop_assert!({} <= value.len());", call("value")),
            );
        }
        if argument.kind == Kind::Text && returns == "String" {
            let body = format!("prop_assert_eq!({}.is_empty(), value.is_empty());", call("value"));
            self.law(laws, "is_empty_for_empty_text_alone", &body);
            let body = format!("prop_assert_eq!({}.is_ascii(), value.is_ascii());", call("value"));
            self.law(laws, "is_plain_for_plain_text_alone", &body);
        }
        if argument.kind.is_number() && self.same_kind(argument) {
            self.law(laws, "never_exceeds_the_value", &format!("prop_assert!({} <= value);", call("value")));
            self.law(laws, "is_at_least_the_value", &format!("prop_assert!({} >= value);", call("value")));
        }
    }

    /// Laws of what is put together from parts.
    fn unary_of_wholes(&self, argument: &Argument, laws: &mut Vec<Law>) {
        let value = argument.value("value");
        let (once, twice) = (self.call(&[&value]), self.call(&[&self.call(&[&value])]));
        if self.same_kind(argument) && self.is_comparable() {
            self.law(laws, "is_its_own_inverse", &format!("prop_assert_eq!({twice}, {value});"));
            self.law(laws, "is_idempotent", &format!("prop_assert_eq!({twice}, {once});"));
        }
        self.keeps_apart(argument, laws);
        // Variants of an enum are in no order that means something.
        if let [only] = &argument.variables[..]
            && !only.suffix.is_empty()
            && is_ordered(&self.returns)
        {
            let suffix = &only.suffix;
            let other = self.call(&[&argument.value("other")]);
            let body = format!(
                "prop_assume!(value{suffix} <= other{suffix});\n        let (low, high) = ({once}, {other});\n        prop_assert!(low <= high);"
            );
            self.law_of(laws, "never_decreases", &[("value", argument), ("other", argument)], &body);
        }
    }

    /// Different values give different results.
    fn keeps_apart(&self, argument: &Argument, laws: &mut Vec<Law>) {
        if !self.is_comparable() {
            return;
        }
        let drawn = |name: &str| {
            let all: Vec<String> = argument.variables.iter().map(|v| format!("{name}{}", v.suffix)).collect();
            if let [one] = &all[..] { one.clone() } else { format!("({})", all.join(", ")) }
        };
        let (value, other) = (self.call(&[&argument.value("value")]), self.call(&[&argument.value("other")]));
        let body = format!(
            "prop_assume!({} != {});\n        prop_assert_ne!({value}, {other});",
            drawn("value"),
            drawn("other")
        );
        self.law_of(laws, "keeps_different_values_apart", &[("value", argument), ("other", argument)], &body);
    }

    fn binary(&self, laws: &mut Vec<Law>) {
        let [one, _] = &self.arguments[..] else { return };
        if !self.is_comparable() {
            return;
        }
        let (first, second) = (one.value("first"), one.value("second"));
        let call = |a: &str, b: &str| self.call(&[a, b]);
        let body = format!("prop_assert_eq!({}, {});", call(&first, &second), call(&second, &first));
        self.law(laws, "is_symmetric", &body);
        let body = format!("prop_assert_eq!({}, {});", call(&first, &first), call(&second, &second));
        self.law(laws, "treats_equal_pairs_alike", &body);
        if one.kind.is_number() && self.same_kind(one) {
            let call = self.call(&["first", "second"]);
            for (key, bound) in [
                ("is_at_most_the_larger", "<= first.max(second)"),
                ("is_at_least_the_smaller", ">= first.min(second)"),
            ] {
                self.law(laws, key, &format!("prop_assert!({call} {bound});"));
            }
        }
        if one.kind == Kind::Text && self.returns == "usize" {
            let call = self.call(&["first", "second"]);
            let body = format!("prop_assert!({call} <= first.len().max(second.len()));");
            self.law(laws, "is_at_most_the_longer_length", &body);
        }
    }

    fn any_arity(&self, laws: &mut Vec<Law>) {
        let values: Vec<String> =
            self.names().iter().zip(&self.arguments).map(|(name, a)| a.value(name)).collect();
        let values: Vec<&str> = values.iter().map(String::as_str).collect();
        let call = self.call(&values);
        let returns = &self.returns;
        // `prop_assert!` takes its condition's text for a format, in which braces mean something else.
        let (result, shown) = if call.contains('{') {
            (format!("let result = {call};\n        "), "result".to_owned())
        } else {
            (String::new(), call.clone())
        };
        if let [receiver, rest @ ..] = &self.arguments[..]
            && !rest.is_empty()
            && self.same_kind(receiver)
            && self.is_comparable()
            && matches!(receiver.kind, Kind::Whole(_))
        {
            let again: Vec<&str> = std::iter::once(&*call).chain(values.iter().skip(1).copied()).collect();
            let body = format!("prop_assert_eq!({}, {call});", self.call(&again));
            self.law(laws, "does_nothing_the_second_time", &body);
        }
        if matches!(returns.as_str(), "f32" | "f64") {
            self.law(
                laws,
                "stays_between_zero_and_one",
                &format!("{result}prop_assert!((0.0..=1.0).contains(&{shown}));"),
            );
        }
        if matches!(returns.as_str(), "f32" | "f64" | "i8" | "i16" | "i32" | "i64" | "i128" | "isize") {
            let zero = if returns.starts_with('f') { "0.0" } else { "0" };
            self.law(laws, "is_never_negative", &format!("{result}prop_assert!({shown} >= {zero});"));
        }
        self.of_results(&call, laws);
        // The weakest one: whatever the inputs, there is a result.
        self.law(laws, NO_PANIC, &format!("let _ = {call};"));
    }

    pub(super) fn names(&self) -> Vec<String> {
        match self.arguments.len() {
            1 => vec!["value".to_owned()],
            2 => vec!["first".to_owned(), "second".to_owned()],
            n => (1..=n).map(|i| format!("value_{i}")).collect(),
        }
    }

    pub(super) fn call(&self, values: &[&str]) -> String {
        let passed: Vec<String> =
            self.arguments.iter().zip(values).map(|(a, v)| a.pass.replace("{}", v)).collect();
        format!("{}({})", self.callee, passed.join(", "))
    }

    pub(super) fn law(&self, laws: &mut Vec<Law>, key: &str, body: &str) {
        let names = self.names();
        let inputs: Vec<(&str, &Argument)> = names.iter().map(String::as_str).zip(&self.arguments).collect();
        self.law_of(laws, key, &inputs, body);
    }

    /// One test for each range of inputs.
    pub(super) fn law_of(&self, laws: &mut Vec<Law>, key: &str, inputs: &[(&str, &Argument)], body: &str) {
        let drawn = || inputs.iter().flat_map(|(name, a)| a.variables.iter().map(move |v| (name, v)));
        let n = drawn().map(|(_, v)| v.strategies.len()).max().unwrap_or(1);
        let like_examples = drawn().any(|(_, v)| v.is_like_examples);
        for width in 0..n {
            let inputs: Vec<String> = drawn()
                .map(|(name, v)| {
                    format!("{name}{} in {}", v.suffix, v.strategies[width.min(v.strategies.len() - 1)])
                })
                .collect();
            let range = match width {
                0 => "",
                1 => "_on_small_inputs",
                _ if like_examples => "_on_inputs_like_the_examples",
                _ => "_on_simple_inputs",
            };
            laws.push(Law {
                key: key.to_owned(),
                is_part: width > 0,
                ..self.test(&format!("{key}{range}"), &inputs, body)
            });
        }
    }

    /// The test of one law.
    pub(super) fn test(&self, name: &str, inputs: &[String], body: &str) -> Law {
        let key = name.to_owned();
        let name = format!("{}_{name}", self.name.trim_start_matches("r#"));
        let code = format!("    #[test]\n    fn {name}({}) {{\n        {body}\n    }}", inputs.join(", "));
        Law { name, code, key, is_part: false, is_a_guess: false }
    }
}

fn number_type(argument: &Argument) -> &str {
    match &argument.kind {
        Kind::Unsigned(t) | Kind::Signed(t) | Kind::Float(t) => t,
        _ => "u8",
    }
}

pub(super) fn is_ordered(ty: &str) -> bool {
    number(ty).is_some() || ty == "bool"
}
