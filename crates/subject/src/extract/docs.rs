//! Documentation: its prose, and the examples in it made into test functions.

use super::lex::{Kind, flatten};

/// What a doc comment holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Documentation {
    /// Up to the first heading or code fence.
    pub(super) prose: Vec<String>,
    pub(super) examples: Vec<Example>,
}

/// A runnable example.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Example {
    /// Hidden lines restored.
    pub(super) code: String,
    pub(super) should_panic: bool,
}

/// Reads the lines of a doc comment, comment marks already gone.
pub(super) fn read(lines: &[String]) -> Documentation {
    let mut docs = Documentation::default();
    let indent = lines.iter().filter(|l| !l.trim().is_empty()).map(|l| l.len() - l.trim_start().len()).min();
    let mut fence: Option<(String, bool, bool, Vec<String>)> = None;
    let mut in_prose = true;
    for line in lines {
        let line = line.get(indent.unwrap_or(0)..).unwrap_or("").trim_end();
        let bare = line.trim_start();
        if let Some((mark, runnable, should_panic, code)) = &mut fence {
            if bare.starts_with(mark.as_str()) && bare.trim_start_matches(['`', '~']).is_empty() {
                if *runnable {
                    docs.examples.push(Example { code: code.join("\n"), should_panic: *should_panic });
                }
                fence = None;
            } else {
                code.push(shown(line));
            }
            continue;
        }
        let mark: String = bare.chars().take_while(|&c| c == '`' || c == '~').collect();
        if mark.len() >= 3 {
            let (runnable, should_panic) = tags(&bare[mark.len()..]);
            fence = Some((mark, runnable, should_panic, Vec::new()));
            in_prose = false;
        } else if bare.starts_with('#') {
            in_prose = false;
        } else if in_prose {
            docs.prose.push(line.to_owned());
        }
    }
    while docs.prose.last().is_some_and(String::is_empty) {
        docs.prose.pop();
    }
    docs
}

/// A line as rustdoc compiles it: `# x` is `x`, `##x` is `#x`.
fn shown(line: &str) -> String {
    let bare = line.trim_start();
    if bare == "#" {
        return String::new();
    }
    let indent = &line[..line.len() - bare.len()];
    if let Some(hidden) = bare.strip_prefix("# ") {
        return format!("{indent}{hidden}");
    }
    match bare.strip_prefix("##") {
        Some(rest) => format!("{indent}#{rest}"),
        None => line.to_owned(),
    }
}

/// Whether the fence's tags make rustdoc run it, and whether it should panic.
fn tags(info: &str) -> (bool, bool) {
    let mut should_panic = false;
    for tag in info.split([',', ' ']).map(str::trim).filter(|t| !t.is_empty()) {
        match tag {
            "rust" | "test_harness" => {}
            "should_panic" => should_panic = true,
            edition if edition.starts_with("edition") => {}
            _ => return (false, false),
        }
    }
    (true, should_panic)
}

/// The example as a function `name` without attributes. `None` when it does not parse as statements or as a `main`.
pub(super) fn function(example: &Example, name: &str) -> Option<String> {
    let lines = example.code.lines().filter(|line| {
        let bare = line.trim_start();
        !bare.starts_with("#![") && !bare.starts_with("extern crate ") && !bare.starts_with("#[macro_use]")
    });
    let code = lines.collect::<Vec<_>>().join("\n");
    if crate::depth::too_deep(&code).is_some() {
        return None;
    }
    let block: syn::Block = syn::parse_str(&format!("{{\n{code}\n}}")).ok()?;
    if let Some(main) = main_of(&block) {
        return from_main(&code, &block, main, name);
    }
    let output = match block.stmts.last() {
        Some(syn::Stmt::Expr(expr, None)) => declared_result(expr),
        _ => None,
    };
    Some(wrap(name, &output.map_or(String::new(), |o| format!(" -> {o}")), &code))
}

fn main_of(block: &syn::Block) -> Option<&syn::ItemFn> {
    block.stmts.iter().find_map(|stmt| match stmt {
        syn::Stmt::Item(syn::Item::Fn(function)) if function.sig.ident == "main" => Some(function),
        _ => None,
    })
}

/// The body of the example's own `main`, with the items beside it moved in.
fn from_main(code: &str, block: &syn::Block, main: &syn::ItemFn, name: &str) -> Option<String> {
    use quote::ToTokens;
    if main.sig.asyncness.is_some() || !main.attrs.is_empty() {
        return None;
    }
    // Positions count from the brace and newline put before the code.
    let text = format!("{{\n{code}\n}}");
    let slice = |tokens: proc_macro2::TokenStream| {
        let tokens = flatten(tokens);
        let range = tokens.first()?.range.start..tokens.last()?.range.end;
        text.get(range).map(str::to_owned)
    };
    let mut parts = Vec::new();
    for stmt in &block.stmts {
        match stmt {
            syn::Stmt::Item(syn::Item::Fn(function)) if function.sig.ident == "main" => {}
            other => parts.push(slice(other.to_token_stream())?),
        }
    }
    let body = slice(main.block.to_token_stream())?;
    parts.push(dedent(body.strip_prefix('{')?.strip_suffix('}')?));
    let output = match &main.sig.output {
        syn::ReturnType::Default => String::new(),
        output => format!(" {}", slice(output.to_token_stream())?),
    };
    Some(wrap(name, &output, &parts.join("\n")))
}

/// `Result<T, E>` of a last expression `Ok::<T, E>(..)`.
fn declared_result(expr: &syn::Expr) -> Option<String> {
    use quote::ToTokens;
    let syn::Expr::Call(call) = expr else { return None };
    let syn::Expr::Path(path) = &*call.func else { return None };
    let last = path.path.segments.last().filter(|segment| segment.ident == "Ok")?;
    let syn::PathArguments::AngleBracketed(args) = &last.arguments else { return None };
    let types: Vec<String> = args.args.iter().map(|a| compact(&a.to_token_stream().to_string())).collect();
    Some(format!("Result<{}>", types.join(", ")))
}

/// Undoes the spaces that printing tokens puts around `::`, `<` and `>`.
fn compact(text: &str) -> String {
    text.replace(" :: ", "::").replace(" < ", "<").replace(" >", ">").replace("( )", "()").replace(" ,", ",")
}

fn wrap(name: &str, output: &str, body: &str) -> String {
    let body = body.trim_matches('\n').trim_end();
    let body = if has_multiline_literal(body) { body.to_owned() } else { indent(body) };
    format!("fn {name}(){output} {{\n{body}\n}}")
}

fn has_multiline_literal(code: &str) -> bool {
    let Ok(stream) = code.parse::<proc_macro2::TokenStream>() else { return true };
    flatten(stream).iter().any(|t| t.kind == Kind::Literal && t.text.contains('\n'))
}

fn indent(code: &str) -> String {
    let line = |l: &str| if l.trim().is_empty() { String::new() } else { format!("    {l}") };
    code.lines().map(line).collect::<Vec<_>>().join("\n")
}

fn dedent(code: &str) -> String {
    if has_multiline_literal(code) {
        return code.to_owned();
    }
    let margin = code.lines().filter(|l| !l.trim().is_empty()).map(|l| l.len() - l.trim_start().len()).min();
    let lines = code.lines().map(|l| l.get(margin.unwrap_or(0)..).unwrap_or("").trim_end());
    lines.collect::<Vec<_>>().join("\n").trim_matches('\n').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn prose_ends_at_the_first_heading_and_hidden_lines_come_back() {
        let docs = read(&lines(
            " Adds.\n\n # Examples\n ```\n # use a::b;\n assert_eq!(b(), 1);\n #\n ## x\n ```\n more",
        ));
        assert_eq!(docs.prose, ["Adds."]);
        assert_eq!(docs.examples[0].code, "use a::b;\nassert_eq!(b(), 1);\n\n# x");
    }

    #[test]
    fn tags_decide_what_runs() {
        for (tag, expected) in [
            ("", Some(false)),
            ("rust", Some(false)),
            ("edition2018", Some(false)),
            ("should_panic", Some(true)),
            ("rust,should_panic", Some(true)),
            ("ignore", None),
            ("no_run", None),
            ("compile_fail", None),
            ("text", None),
            ("toml", None),
        ] {
            let docs = read(&lines(&format!("```{tag}\nf();\n```")));
            assert_eq!(docs.examples.first().map(|e| e.should_panic), expected, "{tag}");
        }
    }

    fn made(code: &str) -> Option<String> {
        function(&Example { code: code.to_owned(), should_panic: false }, "t")
    }

    #[test]
    fn statements_are_wrapped() {
        assert_eq!(
            made("let a = 1;\nassert_eq!(a, 1);").unwrap(),
            "fn t() {\n    let a = 1;\n    assert_eq!(a, 1);\n}"
        );
    }

    #[test]
    fn a_trailing_ok_declares_the_return_type() {
        let code = made("let a: u8 = \"1\".parse()?;\nOk::<(), std::num::ParseIntError>(())").unwrap();
        assert!(code.starts_with("fn t() -> Result<(), std::num::ParseIntError> {"), "{code}");
    }

    #[test]
    fn a_main_gives_its_body_and_return_type() {
        let code =
            made("use std::fmt::Error;\nfn main() -> Result<(), Error> {\n    let a = 1;\n    Ok(())\n}")
                .unwrap();
        assert_eq!(
            code,
            "fn t() -> Result<(), Error> {\n    use std::fmt::Error;\n    let a = 1;\n    Ok(())\n}"
        );
    }

    #[test]
    fn text_inside_multi_line_strings_is_not_moved() {
        let code = made("let a = \"x\ny\";").unwrap();
        assert!(code.contains("\"x\ny\""), "{code}");
    }

    #[test]
    fn what_does_not_parse_is_no_test() {
        assert_eq!(made("let a = ;"), None);
    }
}
