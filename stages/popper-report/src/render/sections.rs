//! The sections of `report.html` after the checks.

use std::fmt::Write;

use record::report::{CheckVerdict, Comparison, Measured};

use super::findings::verdict_word as test_verdict;
use super::html::badge;
use super::text::{clipped, compared, compared_interval, esc, number, prose, short};
use super::{Page, charts};
use crate::checks::{self, RestsOn};
use crate::cohort::Function;
use crate::inputs::provenance;
use crate::measures::{MEASURES, Rates};
use crate::verdict::{ASSURED_MUTATION_SCORE, ASSURED_YIELD};

/// Opens a table with these column heads; a head that starts with `>` is right-aligned.
fn table(out: &mut String, heads: &[&str]) {
    let name = heads.iter().map(|head| head.trim_start_matches('>')).collect::<Vec<_>>().join(", ");
    let _ = write!(
        out,
        "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"Table: {name}\"><table class=\"stack\"><thead><tr>"
    );
    for head in heads {
        let _ = match head.strip_prefix('>') {
            Some(head) => write!(out, "<th scope=\"col\" class=\"r\">{head}</th>"),
            None => write!(out, "<th scope=\"col\">{head}</th>"),
        };
    }
    out.push_str("</tr></thead><tbody>\n");
}

/// One row; cells are HTML already. The heads name the cells on a narrow page.
fn row(out: &mut String, heads: &[&str], cells: &[String]) {
    out.push_str("<tr>");
    for (i, (head, cell)) in heads.iter().zip(cells).enumerate() {
        let name = head.trim_start_matches('>');
        let named = if i == 0 || name.is_empty() { String::new() } else { format!(" data-h=\"{name}\"") };
        let class = if head.starts_with('>') { " class=\"r\"" } else { "" };
        let _ = write!(out, "<td{class}{named}>{cell}</td>");
    }
    out.push_str("</tr>\n");
}

const TABLE_END: &str = "</tbody></table></div>\n";

impl Page<'_> {
    pub(super) fn html_losses_on_the_way(&self, out: &mut String) {
        out.push_str(
            "<h2>Where answers are lost</h2>\n<p class=\"hint\">Holdout functions whose first answer is still standing after each step.</p>\n",
        );
        out.push_str(&charts::funnel(&self.findings.funnel, self.findings.total));
        if !self.findings.errors.is_empty() {
            let heads = ["Error", ">Samples", "For instance"];
            out.push_str("<h3>Most frequent errors</h3>\n");
            table(out, &heads);
            for (code, n, message) in &self.findings.errors {
                let cells = [format!("<code>{}</code>", esc(code)), n.to_string(), prose(message)];
                row(out, &heads, &cells);
            }
            out.push_str(TABLE_END);
        }
        if !self.findings.verdicts.is_empty() {
            let list: Vec<String> =
                self.findings.verdicts.iter().map(|(word, n)| format!("{n} {word}")).collect();
            let _ = writeln!(out, "<p>Tests that ran and did not pass: {}.</p>", esc(&list.join(", ")));
        }
    }

    pub(super) fn html_comparison(&self, out: &mut String) {
        out.push_str("<h2>Tuned against base</h2>\n");
        if self.base.is_none() {
            let _ = writeln!(
                out,
                "<p>{} The base model's results were not given, so no gain is claimed. The tuned model alone:</p>",
                badge(CheckVerdict::NotTested)
            );
        } else if let Some(broken) = self.base_is_not_trusted() {
            let _ = writeln!(
                out,
                "<p>{} Nothing is compared that rests on running tests, because of the base model's results: {}.</p>",
                badge(CheckVerdict::NotTested),
                esc(&broken)
            );
        } else {
            out.push_str(
                "<p class=\"hint\">The same functions, prompts and budget. The difference is drawn by a paired bootstrap over functions; \
                 an interval that holds 0 shows no gain.</p>\n",
            );
        }
        let rows: Vec<(&Comparison, String)> = self
            .report
            .comparison
            .iter()
            .filter(|c| !c.metric.starts_with("assured"))
            .map(|c| (c, label(&c.metric)))
            .collect();
        out.push_str(
            "<p class=\"legend\"><span class=\"key tuned\">tuned</span><span class=\"key base\">base</span><span>0 to 100 %, lines are 95 % intervals</span></p>",
        );
        out.push_str(&charts::versus(&rows));
        comparison_table(out, &rows);
    }

    /// Why the base model's runs do not count, in words.
    pub(super) fn base_is_not_trusted(&self) -> Option<String> {
        let base = self.subject.inputs.base.as_ref()?;
        checks::distrust(base, RestsOn::Running)
    }

    pub(super) fn html_strata(&self, out: &mut String) {
        out.push_str(
            "<h2>By stratum</h2>\n<p class=\"hint\">First answers of the tuned model. Few functions each: descriptive only.</p>\n",
        );
        let heads = ["Stratum", ">Functions", ">Parse", ">Type-check", ">Pass", ">Mutants killed"];
        table(out, &heads);
        for (name, functions) in self.subject.tuned.strata() {
            let n = functions.len();
            let share = |of: &dyn Fn(&Function<'_>) -> bool| {
                format!("{} of {n}", functions.iter().filter(|f| of(f)).count())
            };
            let mutants = Rates::of(&functions, |f| f.mutants(), self.subject.seed).measured("%", 100.0);
            let cells = [
                esc(&name),
                n.to_string(),
                share(&|f| f.parses()),
                share(&|f| f.type_checks()),
                if self.subject.tuned.counts_runs { share(&|f| f.passes()) } else { "not tested".to_owned() },
                mutants.map_or("not tested".to_owned(), |m| format!("{:.1} %", m.value)),
            ];
            row(out, &heads, &cells);
        }
        out.push_str(TABLE_END);
    }

    pub(super) fn html_training(&self, out: &mut String) {
        out.push_str("<h2>Training</h2>\n");
        let training = &self.subject.inputs.training;
        let steps = training.steps.as_ref().map_or(&[][..], |s| &s.value);
        match charts::loss(steps, &training.validations) {
            Some(chart) => out.push_str(&chart),
            None => {
                let _ =
                    writeln!(out, "<p>{} No training steps were given.</p>", badge(CheckVerdict::NotTested));
            }
        }
        let mut facts: Vec<String> = Vec::new();
        if let Some(m) = &training.manifest {
            facts.push(format!(
                "mode {}, {} trainable parameters, {} epochs",
                m.mode, m.n_trainable, m.epochs
            ));
            facts.push(format!(
                "training loss {} → {}",
                number(m.first_train_loss),
                number(m.final_train_loss)
            ));
            if let (Some(before), Some(best)) = (m.validation_loss_before, m.best_validation_loss) {
                facts.push(format!("validation loss {} → {}", number(before), number(best)));
            }
        }
        if let Some(log) = &self.subject.inputs.log {
            let l = &log.value;
            facts.push(format!("{} on {}, {} tokens/s", l.backend, l.device, number(l.tokens_per_s)));
        }
        if !facts.is_empty() {
            let _ = writeln!(out, "<p class=\"soft\">{}.</p>", esc(&facts.join("; ")));
        }
    }

    pub(super) fn html_controls(&self, out: &mut String) {
        out.push_str(
            "<h2>Controls</h2>\n<p class=\"hint\">Experiments whose outcome is known beforehand. If one comes out otherwise, the harness measures nothing.</p>\n",
        );
        let heads = ["Control", "Must", ">As known", "Verdict"];
        table(out, &heads);
        for (name, control) in checks::controls(&self.subject.inputs.tuned.mutation.value.controls) {
            let verdict = match control.holds {
                Some(true) => CheckVerdict::Corroborated,
                Some(false) => CheckVerdict::Falsified,
                None => CheckVerdict::NotTested,
            };
            let counts = format!("{} of {}", control.as_expected, control.cases);
            row(out, &heads, &[name.to_owned(), esc(&control.expected), counts, badge(verdict)]);
        }
        out.push_str(TABLE_END);
    }

    pub(super) fn html_assured(&self, out: &mut String) {
        out.push_str("<h2>Assured suite</h2>\n");
        let rows: Vec<(&Comparison, String)> = self
            .report
            .comparison
            .iter()
            .filter(|c| c.metric.starts_with("assured"))
            .map(|c| (c, label(&c.metric)))
            .collect();
        if rows.is_empty() {
            let _ = writeln!(out, "<p>{} No assured suite was given.</p>", badge(CheckVerdict::NotTested));
            return;
        }
        out.push_str(
            "<p class=\"hint\">What is left after drawing again, repairing, and keeping only suites that pass and kill a mutant. \
             What is kept passes by construction, so it decides nothing above; the yield says for how many functions there is a suite.</p>\n",
        );
        comparison_table(out, &rows);
    }

    pub(super) fn html_tiers(&self, out: &mut String) {
        out.push_str("<h2>Tiers</h2>\n<p class=\"hint\">How far it got. Gates decide, tiers describe.</p>\n");
        let heads = ["Metric", ">Measured", ">Minimum", ">Target", ">Stretch", "Reached"];
        table(out, &heads);
        for tier in &self.report.tiers {
            let verdict = match tier.reached.as_str() {
                "not tested" => CheckVerdict::NotTested,
                "below" => CheckVerdict::Falsified,
                _ => CheckVerdict::Corroborated,
            };
            let badge = format!(
                "<span class=\"badge {}\">{}</span>",
                super::text::class(verdict),
                esc(&tier.reached)
            );
            let cells = [
                esc(&tier.metric),
                tier.measured.map_or("—".to_owned(), |m| format!("{} {}", number(m), esc(&tier.unit))),
                esc(&tier.minimum),
                esc(&tier.target),
                esc(&tier.stretch),
                badge,
            ];
            row(out, &heads, &cells);
        }
        out.push_str(TABLE_END);
    }

    pub(super) fn html_hypotheses(&self, out: &mut String) {
        out.push_str("<h2>Hypotheses</h2>\n");
        let heads = ["Id", "Statement", "Verdict"];
        table(out, &heads);
        let (with_text, without): (Vec<_>, Vec<_>) =
            self.report.hypotheses.iter().partition(|h| !h.statement.is_empty());
        for h in with_text {
            let cells = [
                format!("<code>{}</code>", esc(&h.id)),
                format!("{}<span class=\"detail\">{}</span>", esc(&h.statement), prose(&h.detail)),
                badge(h.verdict),
            ];
            row(out, &heads, &cells);
        }
        if let Some(first) = without.first() {
            let ids: Vec<String> = without.iter().map(|h| format!("<code>{}</code>", esc(&h.id))).collect();
            let text = format!("{}<span class=\"detail\">{}</span>", ids.join(", "), prose(&first.detail));
            row(out, &heads, &[String::new(), text, badge(first.verdict)]);
        }
        out.push_str(TABLE_END);
    }

    pub(super) fn html_examples(&self, out: &mut String) {
        let _ = writeln!(
            out,
            "<h2>Look for yourself</h2>\n<p class=\"hint\">{} first answers, drawn with seed {}: neither the best nor the worst.</p>",
            self.examples.len(),
            self.subject.seed
        );
        for example in &self.examples {
            let metadata = example.function.metadata();
            let stratum = metadata.stratum.as_deref().unwrap_or("no stratum");
            let what = if example.is_raw { "Answer (no test code found in it)" } else { "Generated tests" };
            let _ = write!(
                out,
                "<article class=\"card example\"><h3><span>{}</span>{}</h3><span class=\"detail\">{} · {} · {}</span>\
                 <div class=\"pair\"><div><div class=\"label-s\">Function</div><pre tabindex=\"0\">{}</pre></div>\
                 <div><div class=\"label-s\">{what}</div><pre tabindex=\"0\">{}</pre></div></div>",
                esc(&metadata.item),
                badge(example.verdict),
                prose(&example.outcome),
                esc(stratum),
                esc(&example.function.row.id),
                esc(example.function.row.function_code.trim_end()),
                esc(&example.shown)
            );
            html_tests(out, &example.function);
            out.push_str("</article>\n");
        }
    }

    pub(super) fn html_provenance(&self, out: &mut String) {
        out.push_str("<h2>Provenance</h2>\n");
        let heads = ["What", "Value"];
        table(out, &heads);
        for (name, value) in self.provenance_facts() {
            row(out, &heads, &[esc(&name), format!("<span class=\"digest\">{}</span>", esc(&value))]);
        }
        out.push_str(TABLE_END);
        let heads = ["File", "SHA-256"];
        table(out, &heads);
        for (path, sha256) in provenance(self.subject.inputs) {
            row(out, &heads, &[esc(&path), format!("<span class=\"digest\">{}</span>", esc(&sha256))]);
        }
        out.push_str(TABLE_END);
    }

    /// Name and value of what the results depend on.
    pub(super) fn provenance_facts(&self) -> Vec<(String, String)> {
        let inputs = self.subject.inputs;
        let mut facts: Vec<(String, String)> = Vec::new();
        let mut add = |name: &str, value: String| facts.push((name.to_owned(), value));
        add("seed", self.subject.seed.to_string());
        let compile = &inputs.tuned.compile.value;
        add("compiler", compile.toolchain.lines().next().unwrap_or("").to_owned());
        add("linter", compile.linter.clone().unwrap_or_else(|| "none found".to_owned()));
        for (name, isolation) in [
            ("isolation, compiling", &compile.isolation),
            ("isolation, running", &inputs.tuned.mutation.value.isolation),
        ] {
            add(name, format!("level {}: {}", isolation.level, isolation.layers.join(", ")));
        }
        for (name, evaluation) in [
            ("tuned", Some(&inputs.tuned)),
            ("base", inputs.base.as_ref()),
            ("repeat", inputs.repeat.as_ref()),
        ] {
            let Some(sample) = evaluation.and_then(|e| e.samples.first()) else { continue };
            let adapter = sample.adapter_sha256.as_deref().map_or("none", short);
            add(
                &format!("{name}: model, adapter, tokenizer, template"),
                [
                    short(&sample.model_sha256),
                    adapter,
                    short(&sample.tokenizer_sha256),
                    short(&sample.template_sha256),
                ]
                .join(" · "),
            );
        }
        if let Some(manifest) = &inputs.corpus.manifest {
            let counts: Vec<String> = manifest.counts.iter().map(|(k, v)| format!("{k} {v}")).collect();
            add("corpus rows", counts.join(", "));
            let l = &manifest.leakage;
            add(
                "holdout rows found in training",
                format!(
                    "{} exact, {} normalised, {} by 13-grams, {} nearly the same",
                    l.exact, l.normalized, l.ngram13, l.near
                ),
            );
        }
        facts
    }
}

fn html_tests(out: &mut String, function: &Function<'_>) {
    let Some(run) = function.run.filter(|run| !run.tests.is_empty()) else { return };
    out.push_str("<ul class=\"plain\">");
    for test in &run.tests {
        let message = test.message.as_deref().and_then(|m| m.lines().next()).unwrap_or("");
        let message =
            if message.is_empty() { String::new() } else { format!(": {}", esc(&clipped(message, 300))) };
        let _ = write!(
            out,
            "<li><code>{}</code> {}<span class=\"soft\">{message}</span></li>",
            esc(&test.name),
            test_verdict(test.verdict)
        );
    }
    out.push_str("</ul>");
}

fn comparison_table(out: &mut String, rows: &[(&Comparison, String)]) {
    let heads = ["Measure", ">Tuned", ">Base", ">Difference", ">95 %", ">n"];
    table(out, &heads);
    for (comparison, label) in rows {
        let metric = &comparison.metric;
        let show = |m: &Option<Measured>, is_difference: bool| {
            m.as_ref().map_or("not tested".to_owned(), |m| compared(metric, m, is_difference))
        };
        let spread = comparison.difference.as_ref().or(comparison.tuned.as_ref());
        let cells = [
            esc(label),
            show(&comparison.tuned, false),
            show(&comparison.base, false),
            show(&comparison.difference, true),
            spread.map_or("—".to_owned(), |m| compared_interval(metric, m)),
            spread.and_then(|m| m.n).map_or("—".to_owned(), |n| n.to_string()),
        ];
        row(out, &heads, &cells);
    }
    out.push_str(TABLE_END);
}

/// A measure's name for a reader.
pub(super) fn label(metric: &str) -> String {
    if let Some(k) = metric.strip_prefix("pass_at_") {
        return format!("pass@{k}");
    }
    match metric {
        ASSURED_YIELD => return "Functions with an accepted suite".to_owned(),
        ASSURED_MUTATION_SCORE => return "Mutants killed by accepted suites".to_owned(),
        _ => {}
    }
    MEASURES.iter().find(|m| m.key == metric).map_or_else(|| metric.to_owned(), |m| m.label.to_owned())
}
