//! `report.md` for a continuous-integration summary, and `hansei.md`, the reflection.

use std::fmt::Write;

use record::report::CheckVerdict;

use super::Page;
use super::html::gate_value;
use super::sections::label;
use super::text::{cell, compared, compared_interval, mark, number, spread, value};
use crate::checks::GROUPS;
use crate::verdict::{gate_name, verdict_word};

impl Page<'_> {
    pub(crate) fn markdown(&self) -> String {
        let report = self.report;
        let mut out = format!(
            "# {}\n\n**{}**\n\nScore: **{} of 100**, grade **{}**; {} points not tested.\n\n",
            cell(&self.params.title),
            cell(&self.sentence),
            report.score,
            report.grade,
            report.points_not_tested
        );
        out.push_str("| gate | | measured | verdict |\n| --- | --- | ---: | --- |\n");
        for gate in &report.gates {
            let shown = gate.measured.map_or("not measured".to_owned(), |m| gate_value(&gate.id, m));
            let (name, verdict) = (gate_name(&gate.id), verdict_word(gate.verdict));
            let _ = writeln!(out, "| {} | {name} | {shown} | {} {verdict} |", gate.id, mark(gate.verdict));
        }
        for (letter, name) in GROUPS {
            let _ = write!(
                out,
                "\n## {name}\n\n| | claim | measured | threshold | points | verdict |\n| --- | --- | --- | --- | ---: | --- |\n"
            );
            for check in self.group(letter) {
                let measured = check
                    .measured
                    .as_ref()
                    .map_or("—".to_owned(), |m| format!("{} ({})", value(m), spread(m)));
                let _ = writeln!(
                    out,
                    "| {} | {}: {} | {} | {} | {} | {} {} |",
                    check.id,
                    cell(&check.claim),
                    cell(&check.detail),
                    cell(&measured),
                    cell(&check.threshold),
                    check.points,
                    mark(check.verdict),
                    verdict_word(check.verdict)
                );
            }
        }
        self.markdown_comparison(&mut out);
        self.markdown_tiers(&mut out);
        out
    }

    fn markdown_comparison(&self, out: &mut String) {
        out.push_str("\n## Tuned against base\n");
        if let Some(broken) = self.base_is_not_trusted() {
            let _ = writeln!(
                out,
                "\nNothing is compared that rests on running tests, because of the base model's results: {broken}."
            );
        }
        out.push_str(
            "\n| measure | tuned | base | difference | 95 % |\n| --- | ---: | ---: | ---: | --- |\n",
        );
        for row in &self.report.comparison {
            let show = |m: &Option<record::report::Measured>, difference: bool| {
                m.as_ref().map_or("not tested".to_owned(), |m| compared(&row.metric, m, difference))
            };
            let _ = writeln!(
                out,
                "| {} | {} | {} | {} | {} |",
                cell(&label(&row.metric)),
                show(&row.tuned, false),
                show(&row.base, false),
                show(&row.difference, true),
                row.difference.as_ref().map_or(String::new(), |m| compared_interval(&row.metric, m))
            );
        }
    }

    fn markdown_tiers(&self, out: &mut String) {
        out.push_str("\n## Tiers\n\n| metric | measured | minimum | target | stretch | reached |\n| --- | ---: | --- | --- | --- | --- |\n");
        for tier in &self.report.tiers {
            let measured = tier.measured.map_or("—".to_owned(), |m| format!("{} {}", number(m), tier.unit));
            let _ = writeln!(
                out,
                "| {} | {measured} | {} | {} | {} | {} |",
                tier.metric, tier.minimum, tier.target, tier.stretch, tier.reached
            );
        }
    }

    /// What was expected, what happened, where to look next. Everything in it is read off the results.
    pub(crate) fn hansei(&self) -> String {
        let mut out = format!("# Hansei\n\n{}\n", cell(&self.sentence));
        if let Some(drops) = self.drops {
            out.push_str("\n## Against the earlier report\n\n");
            if drops.is_empty() {
                out.push_str("Nothing got worse.\n");
            } else {
                out.push_str("Regression of knowledge:\n\n");
                drops.iter().for_each(|drop| {
                    let _ = writeln!(out, "- {}", cell(drop));
                });
            }
        }
        self.hansei_checks(&mut out, CheckVerdict::Falsified, "Claims that fell");
        self.hansei_checks(&mut out, CheckVerdict::NotTested, "Claims that were not tested");
        out.push_str("\n## Where answers are lost\n\n");
        let mut before: Option<usize> = None;
        for &(name, n) in &self.findings.funnel {
            let lost = before.map_or(String::new(), |b| format!(" ({} lost)", b.saturating_sub(n)));
            let _ = writeln!(out, "- {name}: {n} of {}{lost}", self.findings.total);
            before = Some(n);
        }
        if !self.findings.errors.is_empty() {
            out.push_str("\nMost frequent errors:\n\n");
            for (code, n, message) in &self.findings.errors {
                let _ = writeln!(out, "- {} in {n} samples, such as: {}", cell(code), cell(message));
            }
        }
        out
    }

    fn hansei_checks(&self, out: &mut String, verdict: CheckVerdict, title: &str) {
        let _ = write!(out, "\n## {title}\n\n");
        let mut is_empty = true;
        for check in self.report.checks.iter().filter(|c| c.verdict == verdict) {
            is_empty = false;
            let measured = check
                .measured
                .as_ref()
                .map_or(String::new(), |m| format!(" Measured {}, expected {}.", value(m), check.threshold));
            let _ = writeln!(
                out,
                "- {} ({} points): {}.{measured} {}.",
                cell(&check.id),
                check.points,
                cell(&check.claim),
                cell(&check.detail)
            );
        }
        if is_empty {
            out.push_str("None.\n");
        }
    }
}
