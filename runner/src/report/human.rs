//! For people: bars on a terminal, plain lines elsewhere; a table at the end, failures last.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use record::experiment::{NodeState, RunOutcome};

use super::{GateSummary, Opening, Reporter, Summary, seconds, state_word, table};
use crate::exec::Happening;

/// Between two progress lines of one node, where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

struct Activity {
    started: Instant,
    said: Instant,
    /// Progress when it was first seen, for the rate.
    first: Option<(Instant, u64)>,
    bar: Option<ProgressBar>,
}

pub struct Human {
    bars: Option<MultiProgress>,
    width: usize,
    active: BTreeMap<String, Activity>,
}

impl std::fmt::Debug for Human {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Human").field("bars", &self.bars.is_some()).finish_non_exhaustive()
    }
}

impl Default for Human {
    fn default() -> Self {
        let live = std::io::stderr().is_terminal() && std::io::stdout().is_terminal();
        Self { bars: live.then(MultiProgress::new), width: 0, active: BTreeMap::new() }
    }
}

impl Human {
    fn line(&self, text: &str) {
        let write = || {
            let _ = writeln!(std::io::stdout().lock(), "{text}");
        };
        match &self.bars {
            Some(bars) => bars.suspend(write),
            None => write(),
        }
    }

    fn node_line(&self, node: &str, text: &str) {
        self.line(&format!("  {node:width$}  {text}", width = self.width));
    }

    fn start(&mut self, node: &str, reasons: &[String]) {
        let reasons: Vec<&str> = reasons.iter().map(String::as_str).filter(|r| !r.is_empty()).collect();
        let why = if reasons.is_empty() { String::new() } else { format!(" ({})", reasons.join("; ")) };
        self.node_line(node, &format!("start{why}"));
        let bar = self.bars.as_ref().map(|bars| {
            let bar = bars.add(ProgressBar::new_spinner());
            bar.set_style(style("  {prefix} {spinner} {elapsed} {msg}"));
            bar.set_prefix(format!("{node:width$}", width = self.width));
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        let now = Instant::now();
        self.active.insert(node.to_owned(), Activity { started: now, said: now, first: None, bar });
    }

    fn progress(&mut self, node: &str, done: u64, total: Option<u64>, unit: &str) {
        let Some(activity) = self.active.get_mut(node) else { return };
        let now = Instant::now();
        // A stage with several phases starts counting again.
        if activity.first.is_none_or(|(_, first)| done < first) {
            activity.first = Some((now, done));
        }
        let text = progress_text(done, total, unit, activity.first, now);
        if let Some(bar) = &activity.bar {
            match total {
                Some(total) => {
                    bar.set_style(style("  {prefix} [{bar:25}] {elapsed} {msg}"));
                    bar.set_length(total);
                    bar.set_position(done);
                }
                None => bar.set_style(style("  {prefix} {spinner} {elapsed} {msg}")),
            }
            bar.set_message(text);
        } else if now - activity.said >= LINE_INTERVAL {
            activity.said = now;
            let elapsed = seconds(activity.started.elapsed().as_secs_f64());
            self.node_line(node, &format!("{text} after {elapsed}"));
        }
    }

    fn end(&mut self, node: &str) {
        if let Some(bar) = self.active.remove(node).and_then(|a| a.bar) {
            bar.finish_and_clear();
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}

fn progress_text(
    done: u64,
    total: Option<u64>,
    unit: &str,
    first: Option<(Instant, u64)>,
    now: Instant,
) -> String {
    let rate = first.and_then(|(at, from)| {
        let elapsed = (now - at).as_secs_f64();
        (elapsed > 0.2 && done > from).then(|| (done - from) as f64 / elapsed)
    });
    let count = total.map_or_else(|| format!("{done} {unit}"), |total| format!("{done}/{total} {unit}"));
    match (rate, total) {
        (Some(rate), Some(total)) => {
            let left = total.saturating_sub(done) as f64 / rate;
            format!("{count}, {rate:.1}/s, {} left", seconds(left))
        }
        (Some(rate), None) => format!("{count}, {rate:.1}/s"),
        (None, _) => count,
    }
}

impl Reporter for Human {
    fn open(&mut self, opening: &Opening) {
        self.width = opening.nodes.iter().map(|n| n.chars().count()).max().unwrap_or(0);
        let profile = opening.profile.as_ref().map_or(String::new(), |p| format!(", profile {p}"));
        let n = opening.nodes.len();
        self.line(&format!(
            "experiment {}: {n} stage{}{profile}",
            opening.experiment,
            if n == 1 { "" } else { "s" }
        ));
    }

    fn happened(&mut self, happening: &Happening) {
        match happening {
            Happening::Hit { node, saved_s, .. } => {
                self.end(node);
                self.node_line(node, &format!("hit ({} saved)", seconds(*saved_s)));
            }
            Happening::Start { node, reasons, .. } => self.start(node, reasons),
            Happening::Progress { node, done, total, unit } => self.progress(node, *done, *total, unit),
            Happening::Note { node, text } => self.node_line(node, text),
            Happening::Warning { node: Some(node), text } => {
                self.node_line(node, &format!("warning: {text}"))
            }
            Happening::Warning { node: None, text } => self.line(&format!("warning: {text}")),
            Happening::Retry { node, attempt, wait_s } => {
                self.node_line(node, &format!("attempt {attempt} asks to be tried again: in {wait_s} s"));
            }
            Happening::Done { node, wall_s } => {
                self.end(node);
                self.node_line(node, &format!("done in {}", seconds(*wall_s)));
            }
            Happening::Failed { node, failure } => {
                self.end(node);
                self.node_line(node, &format!("FAILED: {}", failure.message));
            }
            Happening::Skipped { node, because } => {
                self.node_line(node, &format!("skipped: needs {because}"))
            }
            Happening::Interrupted { node } => {
                self.end(node);
                self.node_line(node, "interrupted");
            }
        }
    }

    fn close(&mut self, summary: &Summary) {
        self.line("");
        self.line(summary_table(summary).trim_end());
        let count = |state| summary.nodes.iter().filter(|n| n.state == state).count();
        let counts = format!("{} done, {} hits", count(NodeState::Done), count(NodeState::Hit));
        self.line(&format!("\n{} in {} ({counts})", outcome(summary.outcome), seconds(summary.wall_s)));
        self.line(&format!("folder: {}", summary.folder));
        if let Some(report) = &summary.report {
            self.line(&format!("report: {report}"));
        }
        if let Some(gate) = &summary.gate {
            self.gate(gate);
        }
        for node in &summary.nodes {
            let Some(failure) = &node.failure else { continue };
            self.line(&format!("\n{} FAILED: {}", node.name, failure.message));
            for line in &failure.tail {
                self.line(&format!("  | {line}"));
            }
            if let Some(log) = &failure.log {
                self.line(&format!("  log:  {log}"));
            }
            self.line(&format!("  next: {}", failure.next));
        }
    }
}

impl Human {
    fn gate(&self, gate: &GateSummary) {
        let verdict = match (gate.passed, gate.enforced) {
            (true, _) => "met",
            (false, true) => "NOT met",
            (false, false) => "not met (reported, not enforced in this profile)",
        };
        self.line(&format!("gate: {} {verdict}", gate.name));
        for unmet in &gate.unmet {
            self.line(&format!("  not met: {unmet}"));
        }
    }
}

fn summary_table(summary: &Summary) -> String {
    let row = |n: &super::SummaryNode| {
        let wall = n.wall_s.map_or(String::new(), seconds);
        let key = n.key.as_ref().map_or(String::new(), |k| k.chars().take(12).collect());
        vec![n.name.clone(), state_word(n.state).to_owned(), wall, key]
    };
    let rows: Vec<Vec<String>> = summary.nodes.iter().map(row).collect();
    table(&rows)
}

fn outcome(outcome: RunOutcome) -> &'static str {
    match outcome {
        RunOutcome::Running => "running",
        RunOutcome::Succeeded => "succeeded",
        RunOutcome::Failed => "FAILED",
        RunOutcome::GateNotMet => "finished, gate not met",
        RunOutcome::Interrupted => "interrupted",
    }
}
