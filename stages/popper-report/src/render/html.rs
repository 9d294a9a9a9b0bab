//! `report.html`: one file, no network, no scripts.

use std::fmt::Write;

use record::report::{Check, CheckVerdict, Gate};

use super::text::{class, esc, mark, number, prose, spread, value};
use super::{Page, charts};
use crate::checks::{self, GROUPS};
use crate::verdict::{gate_name, verdict_word};

const STYLE: &str = include_str!("style.css");

impl Page<'_> {
    pub(crate) fn html(&self) -> String {
        let mut out = String::with_capacity(1 << 17);
        let title = esc(&self.params.title);
        let _ = write!(
            out,
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{title}</title>\n\
             <style>\n{STYLE}</style>\n</head>\n<body>\n<div class=\"page\">\n<header>\n<h1>{title}</h1>\n\
             <p class=\"verdict\">{}</p>\n",
            prose(&self.sentence)
        );
        self.html_head(&mut out);
        out.push_str("</header>\n<main>\n");
        self.html_regression(&mut out);
        self.html_checks(&mut out);
        self.html_losses_on_the_way(&mut out);
        self.html_comparison(&mut out);
        self.html_strata(&mut out);
        self.html_training(&mut out);
        self.html_controls(&mut out);
        self.html_assured(&mut out);
        self.html_tiers(&mut out);
        self.html_hypotheses(&mut out);
        self.html_examples(&mut out);
        self.html_provenance(&mut out);
        out.push_str(
            "</main>\n<footer>A check is a claim that was tried and could have failed. What was not tested scores nothing. \
             The first greedy answer for each function decides; intervals are 95 %.</footer>\n</div>\n</body>\n</html>\n",
        );
        out
    }

    fn html_head(&self, out: &mut String) {
        let report = self.report;
        let points = |verdict| checks::points(&report.checks, verdict);
        let parts = [
            (report.score, CheckVerdict::Corroborated),
            (points(CheckVerdict::Falsified), CheckVerdict::Falsified),
            (report.points_not_tested, CheckVerdict::NotTested),
        ];
        let _ = write!(
            out,
            "<div class=\"head\">\n<section class=\"card score\" aria-label=\"Score\"><span class=\"grade\">{}</span>\
             <span class=\"big\">{}</span><span class=\"of\">of 100</span>{}<ul>",
            esc(&report.grade),
            report.score,
            charts::stacked(&parts.map(|(n, v)| (n, class(v))), &format!("{} of 100 points", report.score))
        );
        for (n, verdict) in parts {
            let word = verdict_word(verdict);
            let _ = write!(out, "<li class=\"{}\"><span>{word}</span><b>{n}</b></li>", class(verdict));
        }
        out.push_str("</ul></section>\n<section class=\"gates\" aria-label=\"Gates\">");
        report.gates.iter().for_each(|gate| html_gate(out, gate));
        out.push_str("</section>\n</div>\n");
    }

    fn html_regression(&self, out: &mut String) {
        let Some(drops) = self.drops else { return };
        out.push_str("<h2>Against the earlier report</h2>\n");
        if drops.is_empty() {
            out.push_str("<p>Nothing got worse.</p>\n");
            return;
        }
        let _ = writeln!(
            out,
            "<p>{} Regression of knowledge:</p>\n<ul class=\"plain\">",
            badge(CheckVerdict::Falsified)
        );
        for drop in drops {
            let _ = writeln!(out, "<li>{}</li>", prose(drop));
        }
        out.push_str("</ul>\n");
    }

    fn html_checks(&self, out: &mut String) {
        out.push_str(
            "<h2>Checks</h2>\n<p class=\"hint\">Points by group: corroborated, falsified, not tested.</p>\n",
        );
        out.push_str(&charts::groups(&self.report.checks));
        for (letter, name) in GROUPS {
            let _ = write!(
                out,
                "<h3>{name}</h3>\n<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"{name}: checks\">\
                 <table class=\"checks stack\"><thead><tr><th scope=\"col\" class=\"i\"><span class=\"sr\">Check</span></th>\
                 <th scope=\"col\">Claim</th><th scope=\"col\" class=\"m\">Measured</th><th scope=\"col\" class=\"t\">Threshold</th>\
                 <th scope=\"col\" class=\"p r\">Points</th><th scope=\"col\" class=\"v r\">Verdict</th></tr></thead><tbody>\n"
            );
            for check in self.group(letter) {
                html_check(out, check);
            }
            out.push_str("</tbody></table></div>\n");
        }
    }
}

pub(super) fn badge(verdict: CheckVerdict) -> String {
    format!("<span class=\"badge {}\">{} {}</span>", class(verdict), mark(verdict), verdict_word(verdict))
}

fn html_gate(out: &mut String, gate: &Gate) {
    let shown = gate.measured.map_or("not measured".to_owned(), |m| gate_value(&gate.id, m));
    let _ = write!(
        out,
        "<div class=\"card gate {}\"><span class=\"name\">{} {}</span><span class=\"value\">{shown}</span>\
         <span class=\"detail\">{}: {}</span></div>",
        class(gate.verdict),
        esc(&capital(gate_name(&gate.id))),
        badge(gate.verdict),
        esc(&gate.id),
        esc(&gate.rule)
    );
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or(String::new(), |c| c.to_uppercase().chain(chars).collect())
}

pub(super) fn gate_value(id: &str, measured: f64) -> String {
    match id {
        "P-GATE-001" => format!("{measured:.0} points"),
        "P-GATE-004" => format!("{} GiB", number(measured)),
        _ => format!("{:.1} %", measured * 100.0),
    }
}

fn html_check(out: &mut String, check: &Check) {
    let measured = check.measured.as_ref().map_or("—".to_owned(), |m| {
        let spread = spread(m);
        let spread = if spread.is_empty() {
            String::new()
        } else {
            format!("<span class=\"detail\">{}</span>", esc(&spread))
        };
        format!("<b>{}</b>{spread}", esc(&value(m)))
    });
    let earned = if check.verdict == CheckVerdict::Corroborated { check.points } else { 0 };
    let _ = write!(
        out,
        "<tr id=\"{id}\"><td class=\"id\">{id}</td><td>{}<span class=\"detail\">{}</span>",
        esc(&check.claim),
        prose(&check.detail),
        id = esc(&check.id)
    );
    if !check.evidence.is_empty() {
        out.push_str("<details><summary>evidence</summary>");
        for evidence in &check.evidence {
            let _ = write!(
                out,
                "<div class=\"digest\">{} sha256:{}</div>",
                esc(&evidence.path),
                esc(&evidence.sha256)
            );
        }
        out.push_str("</details>");
    }
    let _ = writeln!(
        out,
        "</td><td class=\"num\" data-h=\"measured\">{measured}</td><td data-h=\"threshold\">{}</td>\
         <td class=\"r\" data-h=\"points\">{earned} of {}</td><td class=\"r\">{}</td></tr>",
        prose(&check.threshold),
        check.points,
        badge(check.verdict)
    );
}
