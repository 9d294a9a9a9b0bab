//! `mutation_report.html`: one page, no script, no network. The source of every function with its mutants below their lines.

use std::collections::BTreeMap;
use std::fmt::Write;

use record::mutation::{
    Control, Mutant, MutantStatus, MutatedFile, MutationReport, SampleResult, TestResults,
};

const STYLE: &str = include_str!("report.css");

/// Statuses in the order of the page: what asks for better tests comes first.
const STATUSES: [(MutantStatus, &str, &str); 7] = [
    (MutantStatus::Survived, "survived", "survived"),
    (MutantStatus::NoCoverage, "uncovered", "not covered"),
    (MutantStatus::Killed, "killed", "killed"),
    (MutantStatus::Timeout, "timeout", "timed out"),
    (MutantStatus::CompileError, "unviable", "does not compile"),
    (MutantStatus::Ignored, "ignored", "not run"),
    (MutantStatus::RuntimeError, "error", "error"),
];

/// The page for the raw sample of each function.
pub(crate) fn page(report: &MutationReport, results: &TestResults) -> String {
    let mut out = String::new();
    head(&mut out);
    let raw = raw_results(results);
    verdict(&mut out, report, &raw);
    controls(&mut out, results);
    filters(&mut out, report);
    table(&mut out, report, &raw);
    for (i, (name, file)) in report.files.iter().enumerate() {
        function(&mut out, i, name, file, raw.get(task(name)).copied());
    }
    foot(&mut out, results);
    out
}

/// `String` never fails to be written to.
macro_rules! put {
    ($out:expr, $($arg:tt)*) => { let _ = write!($out, $($arg)*); };
}

fn head(out: &mut String) {
    put!(
        out,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>Mutation report</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>Mutation report</h1>\n"
    );
}

fn task(file: &str) -> &str {
    file.strip_suffix(".rs").unwrap_or(file)
}

fn raw_results(results: &TestResults) -> BTreeMap<&str, &SampleResult> {
    let mut raw: BTreeMap<&str, &SampleResult> = BTreeMap::new();
    for sample in &results.samples {
        let first = raw.entry(sample.task_id.as_str()).or_insert(sample);
        if (sample.round, sample.sample_idx) < (first.round, first.sample_idx) {
            *first = sample;
        }
    }
    raw
}

/// (killed, counted) over mutants that compile and were run.
fn score<'m>(mutants: impl Iterator<Item = &'m Mutant>) -> (u32, u32) {
    mutants.fold((0, 0), |(killed, all), mutant| match mutant.status {
        MutantStatus::Killed | MutantStatus::Timeout => (killed + 1, all + 1),
        MutantStatus::Survived | MutantStatus::NoCoverage => (killed, all + 1),
        _ => (killed, all),
    })
}

fn percent(part: u32, whole: u32) -> String {
    if whole == 0 { "–".to_owned() } else { format!("{:.0} %", 100.0 * f64::from(part) / f64::from(whole)) }
}

fn verdict(out: &mut String, report: &MutationReport, raw: &BTreeMap<&str, &SampleResult>) {
    let n = raw.len();
    let compiled = raw.values().filter(|sample| sample.compiled).count();
    let passed: Vec<&str> = raw.iter().filter(|(_, s)| s.passed).map(|(task, _)| *task).collect();
    let of_passed = report.files.iter().filter(|(name, _)| passed.contains(&task(name)));
    let (killed, counted) = score(of_passed.flat_map(|(_, file)| &file.mutants));
    put!(
        out,
        "<p class=\"verdict\">Of {n} functions, {compiled} first samples compile and {} pass on the function as it is. \
         Those that pass notice <b>{killed} of {counted}</b> mutants ({}).</p>\n",
        passed.len(),
        percent(killed, counted)
    );
    let in_source = raw.values().filter_map(|s| s.mutants).map(|m| m.in_source).sum::<u32>();
    if in_source > 0 {
        put!(
            out,
            "<p>{in_source} of them do not compile under the switch; each was written into the source and compiled for itself.</p>\n"
        );
    }
    put!(
        out,
        "<p>A mutant is the function with one small change. Score = (killed + timed out) / (all − those that do not \
         compile − those not run). A suite that does not pass on the function as it is kills nothing.</p>\n"
    );
}

fn controls(out: &mut String, results: &TestResults) {
    put!(
        out,
        "<h2>Controls</h2>\n<table>\n<thead><tr><th>control</th><th>must come out as</th><th class=\"n\">as expected</th>\
         <th>holds</th></tr></thead>\n<tbody>\n"
    );
    let all = &results.controls;
    let rows: [(&str, &Control); 3] = [
        ("planted bug", &all.planted_bug),
        ("vacuous test", &all.vacuous_test),
        ("shuffled pairing", &all.shuffled_pairing),
    ];
    for (name, control) in rows {
        let holds = match control.holds {
            Some(true) => "yes",
            Some(false) => "<b class=\"bad\">no</b>",
            None => "not tested",
        };
        let expected = escape(&control.expected);
        let (good, cases) = (control.as_expected, control.cases);
        put!(
            out,
            "<tr><td>{name}</td><td>{expected}</td><td class=\"n\">{good} of {cases}</td><td>{holds}</td></tr>\n"
        );
    }
    out.push_str("</tbody>\n</table>\n");
}

fn filters(out: &mut String, report: &MutationReport) {
    out.push_str("<h2>Functions</h2>\n<fieldset class=\"filters\">\n<legend>Show mutants that</legend>\n");
    for (status, class, label) in STATUSES {
        let n = report.files.values().flat_map(|file| &file.mutants).filter(|m| m.status == status).count();
        if n > 0 {
            let checked = if matches!(class, "survived" | "uncovered") { " checked" } else { "" };
            put!(
                out,
                "<label><input type=\"checkbox\" id=\"f-{class}\"{checked}> <span class=\"chip {class}\">{label}</span> {n}</label>\n"
            );
        }
    }
    out.push_str("</fieldset>\n");
}

fn table(out: &mut String, report: &MutationReport, raw: &BTreeMap<&str, &SampleResult>) {
    out.push_str(
        "<div class=\"wide\">\n<table>\n<thead><tr><th>function</th><th>tests</th><th class=\"n\">killed</th><th class=\"n\">timed out</th>\
         <th class=\"n\">survived</th><th class=\"n\">not covered</th><th class=\"n\">branches</th><th class=\"n\">score</th>\
         </tr></thead>\n<tbody>\n",
    );
    for (i, (name, file)) in report.files.iter().enumerate() {
        let sample = raw.get(task(name)).copied();
        let count = |status| file.mutants.iter().filter(|m| m.status == status).count();
        let (killed, counted) = score(file.mutants.iter());
        let branches = sample.and_then(|s| s.coverage);
        let branches =
            branches.map_or("–".to_owned(), |c| format!("{} of {}", c.branches_covered, c.branches));
        put!(
            out,
            "<tr><td><a href=\"#{}\">{}</a></td><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td>\
             <td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{branches}</td>\
             <td class=\"n\"><meter min=\"0\" max=\"1\" value=\"{:.3}\"></meter> {}</td></tr>\n",
            anchor(i, name),
            escape(task(name)),
            state(sample),
            count(MutantStatus::Killed),
            count(MutantStatus::Timeout),
            count(MutantStatus::Survived),
            count(MutantStatus::NoCoverage),
            f64::from(killed) / f64::from(counted.max(1)),
            percent(killed, counted),
        );
    }
    out.push_str("</tbody>\n</table>\n</div>\n");
}

fn state(sample: Option<&SampleResult>) -> &'static str {
    match sample {
        Some(sample) if sample.passed => "pass",
        Some(sample) if sample.compiled => "<span class=\"bad\">do not pass</span>",
        _ => "<span class=\"bad\">do not compile</span>",
    }
}

fn function(out: &mut String, i: usize, name: &str, file: &MutatedFile, sample: Option<&SampleResult>) {
    let (killed, counted) = score(file.mutants.iter());
    put!(
        out,
        "<section id=\"{}\">\n<h3>{}</h3>\n<p>Tests {}. {killed} of {counted} mutants noticed ({}).</p>\n",
        anchor(i, name),
        escape(task(name)),
        state(sample),
        percent(killed, counted)
    );
    let failing = sample.into_iter().flat_map(|s| &s.tests).filter(|t| t.message.is_some());
    for test in failing {
        let message = test.message.as_deref().unwrap_or_default();
        put!(out, "<p class=\"failure\"><code>{}</code>: {}</p>\n", escape(&test.name), escape(message));
    }
    out.push_str("<ol class=\"source\">\n");
    for (i, line) in file.source.lines().enumerate() {
        put!(out, "<li><code>{}</code>", escape(line));
        let here: Vec<&Mutant> =
            file.mutants.iter().filter(|m| m.location.start.line as usize == i + 1).collect();
        if !here.is_empty() {
            out.push_str("<ul>");
            here.iter().for_each(|mutant| self::mutant(out, file, mutant));
            out.push_str("</ul>");
        }
        out.push_str("</li>\n");
    }
    out.push_str("</ol>\n</section>\n");
}

fn mutant(out: &mut String, file: &MutatedFile, mutant: &Mutant) {
    let found = STATUSES.iter().find(|(status, ..)| *status == mutant.status);
    let (class, label) = found.map_or(("error", "error"), |(_, class, label)| (*class, *label));
    let replacement = if mutant.replacement.is_empty() { "(nothing)" } else { &mutant.replacement };
    let mut note = String::new();
    if let Some(test) = mutant.killed_by.first() {
        note = format!(" by {}", escape(test));
    } else if let Some(reason) = &mutant.status_reason {
        note = format!(": {}", escape(reason));
    }
    put!(
        out,
        "<li class=\"m {class}\"><span class=\"chip {class}\">{label}</span>{note} · {} <del>{}</del> → <ins>{}</ins></li>",
        escape(&mutant.mutator_name),
        escape(&short(original(file, mutant))),
        escape(&short(replacement)),
    );
}

/// What stands at the mutant's place.
fn original<'f>(file: &'f MutatedFile, mutant: &Mutant) -> &'f str {
    let offset = |position: record::mutation::Position| {
        let mut lines = file.source.split_inclusive('\n');
        let before: usize = lines.by_ref().take(position.line as usize - 1).map(str::len).sum();
        let line = lines.next().unwrap_or_default();
        let column = line.char_indices().nth(position.column as usize - 1).map_or(line.len(), |(i, _)| i);
        before + column
    };
    file.source.get(offset(mutant.location.start)..offset(mutant.location.end)).unwrap_or_default()
}

/// One line of at most 80 characters.
fn short(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.chars().count() <= 80 { line } else { line.chars().take(79).chain(['…']).collect() }
}

/// The number keeps `a/b` and `a_b` apart.
fn anchor(i: usize, name: &str) -> String {
    let word: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).collect();
    format!("{word}-{}", i + 1)
}

fn foot(out: &mut String, results: &TestResults) {
    let isolation = &results.isolation;
    put!(
        out,
        "<footer><p>Isolation level {} ({}). {}</p></footer>\n</main>\n</body>\n</html>\n",
        isolation.level,
        escape(&isolation.layers.join(", ")),
        escape(results.toolchain.lines().next().unwrap_or_default())
    );
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            _ => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod test {
    use record::mutation::{Location, MutantStatus, MutatedFile, Position};

    use super::{Mutant, escape, original, short};

    #[test]
    fn text_can_not_become_markup() {
        assert_eq!(escape("<script>'\"&"), "&lt;script&gt;&#39;&quot;&amp;");
        assert_eq!(short("a\n   b"), "a b");
        assert_eq!(short(&"x".repeat(99)).chars().count(), 80);
    }

    #[test]
    fn the_original_is_cut_by_line_and_character() {
        let at = |line, column| Position { line, column };
        let mutant = Mutant {
            id: "1".into(),
            mutator_name: "M".into(),
            replacement: String::new(),
            location: Location { start: at(2, 3), end: at(3, 2) },
            status: MutantStatus::Killed,
            status_reason: None,
            killed_by: Vec::new(),
        };
        let file =
            MutatedFile { language: "rust".into(), source: "a\né é\nxy\n".into(), mutants: Vec::new() };
        assert_eq!(original(&file, &mutant), "é\nx");
    }
}
