//! More laws: what becomes of joined values, how a result follows one argument, what a result never is.

use super::Law;
use super::arguments::{Argument, Kind};
use super::writer::{Writer, is_ordered};

/// Predicates of a character that a function of one may mean.
const PREDICATES: [&str; 6] = [
    "is_uppercase",
    "is_lowercase",
    "is_alphanumeric",
    "is_numeric",
    "is_whitespace",
    "is_ascii_punctuation",
];

impl Writer<'_> {
    /// A character's predicate against those of the standard library.
    pub(super) fn of_character(&self, argument: &Argument, laws: &mut Vec<Law>) {
        if argument.kind != Kind::Char || self.returns != "bool" {
            return;
        }
        let call = self.call(&["value"]);
        for predicate in PREDICATES {
            let word = predicate.trim_start_matches("is_");
            let body = format!("prop_assert_eq!({call}, value.{predicate}());");
            self.law(laws, &format!("holds_for_{word}_characters_alone"), &body);
            let body = format!("prop_assert_eq!({call}, !value.{predicate}());");
            self.law(laws, &format!("holds_for_all_but_{word}_characters"), &body);
        }
        for predicate in &PREDICATES[..3] {
            let word = predicate.trim_start_matches("is_");
            let body = format!("prop_assert!(!{call} || value.{predicate}());");
            self.law(laws, &format!("holds_for_no_other_than_{word}_characters"), &body);
            let body = format!("prop_assert!(!value.{predicate}() || {call});");
            self.law(laws, &format!("holds_for_every_{word}_character"), &body);
        }
    }

    /// What the function makes of two values put together.
    pub(super) fn of_joined(&self, argument: &Argument, laws: &mut Vec<Law>) {
        let join = match argument.kind {
            Kind::Text => "let both = format!(\"{value}{other}\");",
            Kind::List(_) => "let both = [&value[..], &other[..]].concat();",
            _ => return,
        };
        let [both, value, other] = ["both", "value", "other"].map(|name| self.call(&[name]));
        let inputs = [("value", argument), ("other", argument)];
        let mut law = |key: &str, claim: String| {
            self.law_of(laws, key, &inputs, &format!("{join}\n        {claim}"));
        };
        match self.returns.as_str() {
            "bool" => law(
                "holds_for_both_where_it_holds_for_each",
                format!("prop_assert_eq!({both}, {value} && {other});"),
            ),
            "String" | "&str" | "Cow<str>" if argument.kind == Kind::Text => law(
                "works_piece_by_piece",
                format!("prop_assert_eq!({both}.to_string(), format!(\"{{}}{{}}\", {value}, {other}));"),
            ),
            returns if is_ordered(returns) => {
                law("adds_up", format!("prop_assert_eq!({both}, {value} + {other});"));
                law("never_decreases_with_more", format!("prop_assert!({both} >= {value});"));
            }
            _ => {}
        }
    }

    /// What a result holds of the value that it was made from.
    pub(super) fn of_contents(&self, argument: &Argument, laws: &mut Vec<Law>) {
        let call = self.call(&["value"]);
        let returns = self.returns.as_str();
        let is_text = matches!(returns, "String" | "&str" | "Cow<str>");
        let is_list = returns.starts_with("Vec<");
        let mut law = |key: &str, body: String| self.law(laws, key, &body);
        match &argument.kind {
            Kind::Text if is_text => {
                law("gives_a_part_of_the_value", format!("prop_assert!(value.contains(&*{call}));"));
                law("never_shrinks", format!("prop_assert!({call}.len() >= value.len());"));
                law("holds_no_capitals", format!("prop_assert!(!{call}.chars().any(char::is_uppercase));"));
                law("holds_no_space", format!("prop_assert!(!{call}.contains(' '));"));
            }
            Kind::Text if returns.starts_with("Option<") || returns.starts_with("Result<") => {
                let nothing = if returns.starts_with("Option<") { "is_none" } else { "is_err" };
                let body = format!("prop_assert!({call}.{nothing}());");
                let test =
                    self.test("finds_nothing_in_punctuation", &["value in \"[!-/]{1,8}\"".into()], &body);
                laws.push(test);
            }
            Kind::List(element) if is_text || is_list => {
                if returns == format!("Vec<{element}>") {
                    law(
                        "gives_a_sorted_list",
                        format!("prop_assert!({call}.windows(2).all(|pair| pair[0] <= pair[1]));"),
                    );
                }
                let body = format!(
                    "let blank = vec![Default::default(); value.len()];\n        prop_assert_eq!({call}.len(), {}.len());",
                    self.call(&["blank"])
                );
                law("has_a_length_that_the_length_decides", body);
                law("never_shrinks", format!("prop_assert!({call}.len() >= value.len());"));
            }
            Kind::List(_) | Kind::Words if returns.starts_with("Option<") => law(
                "finds_something_where_there_is_something",
                format!("prop_assert_eq!({call}.is_some(), !value.is_empty());"),
            ),
            kind if kind.is_number() && is_ordered(returns) => {
                let next = format!("let next = value + 1 as {};", argument.variables[0].ty);
                let body = format!("{next}\n        prop_assert!({call} >= {});", self.call(&["next"]));
                law("never_increases", body);
            }
            _ => {}
        }
    }

    /// Two arguments of one kind.
    pub(super) fn of_equals(&self, one: &Argument, laws: &mut Vec<Law>) {
        let returns = self.returns.as_str();
        let (first, second) = (one.value("first"), one.value("second"));
        let (same, call) = (self.call(&[&first, &first]), self.call(&[&first, &second]));
        let inputs = [("first", one)];
        if returns == "bool" && !same.contains('{') {
            self.law_of(laws, "holds_for_equal_values", &inputs, &format!("prop_assert!({same});"));
            self.law_of(laws, "fails_for_equal_values", &inputs, &format!("prop_assert!(!{same});"));
        }
        if is_ordered(returns) && returns != "bool" {
            let zero = if returns.starts_with('f') { "0.0" } else { "0" };
            let body = format!("prop_assert_eq!({same}, {zero});");
            self.law_of(laws, "is_zero_for_equal_values", &inputs, &body);
            if returns.starts_with(['f', 'i']) {
                let body = format!("prop_assert_eq!({call}, -{});", self.call(&[&second, &first]));
                self.law(laws, "changes_its_sign_when_swapped", &body);
            }
        }
        if one.kind.is_number() && self.same_kind(one) {
            let body = format!("prop_assert_eq!({same}, first);");
            self.law_of(laws, "gives_the_value_for_equal_values", &inputs, &body);
            let ty = &one.variables[0].ty;
            for (word, number) in [("zero", format!("0 as {ty}")), ("one", format!("1 as {ty}"))] {
                let body = format!("prop_assert_eq!({}, first);", self.call(&["first", &number]));
                self.law_of(laws, &format!("is_not_changed_by_{word}"), &inputs, &body);
            }
            let third = self.call(&["third", "second"]).replace("third", &self.call(&["first", "second"]));
            let body = format!("prop_assert_eq!({third}, {});", self.call(&["first", "second"]));
            self.law(laws, "does_nothing_the_second_time", &body);
        }
    }

    /// How the result follows one of several arguments.
    pub(super) fn of_each(&self, laws: &mut Vec<Law>) {
        let names = self.names();
        let values: Vec<String> = names.iter().zip(&self.arguments).map(|(name, a)| a.value(name)).collect();
        let with = |at: usize, value: &str| {
            let values: Vec<&str> =
                values.iter().enumerate().map(|(i, v)| if i == at { value } else { v }).collect();
            self.call(&values)
        };
        let plain: Vec<&str> = values.iter().map(String::as_str).collect();
        let call = self.call(&plain);
        if self.arguments.len() < 2 || call.contains('{') {
            return;
        }
        let is_text = matches!(self.returns.as_str(), "String" | "&str" | "Cow<str>");
        for (at, (name, argument)) in names.iter().zip(&self.arguments).enumerate() {
            let mut law = |key: &str, body: String| self.law(laws, &format!("{key}_{name}"), &body);
            if argument.kind.is_number() && is_ordered(&self.returns) {
                let ty = &argument.variables[0].ty;
                let more = with(at, &format!("{name} + 1 as {ty}"));
                law("never_decreases_with", format!("prop_assert!({more} >= {call});"));
                law("never_increases_with", format!("prop_assert!({more} <= {call});"));
            }
            if matches!(argument.kind, Kind::Float(_)) && self.returns.starts_with('f') {
                let double = with(at, &format!("2.0 * {name}"));
                law("doubles_with", format!("prop_assert_eq!({double}, 2.0 * {call});"));
                let negated = with(at, &format!("-{name}"));
                law("is_odd_in", format!("prop_assert_eq!({negated}, -{call});"));
                law("is_even_in", format!("prop_assert_eq!({negated}, {call});"));
            }
            if argument.kind == Kind::Text && is_text {
                law("starts_with", format!("prop_assert!({call}.starts_with({name}.as_str()));"));
                law("is_no_longer_than", format!("prop_assert!({call}.len() <= {name}.len());"));
            }
            if matches!(argument.kind, Kind::Unsigned(_)) && is_text {
                law("has_at_least_as_many_characters_as", {
                    format!("prop_assert!({call}.chars().count() >= {name} as usize);")
                });
                law("has_at_most_as_many_characters_as", {
                    format!("prop_assert!({call}.chars().count() <= {name} as usize);")
                });
            }
        }
        self.of_scale(laws);
    }

    /// A formula of which the result scales with its inputs; doubling is exact in binary floating point.
    fn of_scale(&self, laws: &mut Vec<Law>) {
        let all_floats = self.arguments.iter().all(|a| matches!(a.kind, Kind::Float(_)));
        if !all_floats || !self.returns.starts_with('f') {
            return;
        }
        let names = self.names();
        let plain: Vec<&str> = names.iter().map(String::as_str).collect();
        let doubled: Vec<String> = names.iter().map(|name| format!("2.0 * {name}")).collect();
        let all: Vec<&str> = doubled.iter().map(String::as_str).collect();
        let but_last: Vec<&str> =
            all[..all.len() - 1].iter().chain(&plain[plain.len() - 1..]).copied().collect();
        let call = self.call(&plain);
        let body = format!("prop_assert_eq!({}, 2.0 * {call});", self.call(&all));
        self.law(laws, "doubles_with_all_values", &body);
        let body = format!("prop_assert_eq!({}, 2.0 * {call});", self.call(&but_last));
        self.law(laws, "doubles_with_all_values_but_the_last", &body);
        let body = format!("prop_assert_eq!({}, {call});", self.call(&all));
        self.law(laws, "depends_on_ratios_alone", &body);
    }

    /// What the result is for all inputs of a kind. Weak, and true of many a function.
    pub(super) fn of_results(&self, call: &str, laws: &mut Vec<Law>) {
        let mut law = |key: &str, claim: &str| {
            let body = format!("let result = {call};\n        prop_assert!({claim});");
            self.law(laws, key, &body);
        };
        let returns = self.returns.as_str();
        if returns.starts_with("Option<") {
            law("finds_something", "result.is_some()");
            law("finds_nothing", "result.is_none()");
        } else if returns.starts_with("Result<") {
            law("succeeds", "result.is_ok()");
            law("fails", "result.is_err()");
        } else if returns.starts_with("Vec<") || matches!(returns, "String" | "&str" | "Cow<str>") {
            law("is_never_empty", "!result.is_empty()");
        } else if returns.starts_with('u') && is_ordered(returns) {
            law("is_never_zero", "result > 0");
        }
    }
}
