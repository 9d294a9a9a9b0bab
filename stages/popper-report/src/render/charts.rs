//! Charts as inline SVG. The drawing stretches with the page, so all words stand beside it in HTML and keep their size.

use std::fmt::Write;

use record::report::{Check, CheckVerdict, Comparison, Measured};
use record::training::{StepRecord, ValidationRecord};

use super::text::{compared, esc, number};
use crate::checks::GROUPS;

/// Points drawn of a curve at most; beyond, each column keeps its lowest and highest.
const COLUMNS_MAX: usize = 600;

/// Points of each group: corroborated, falsified, not tested.
pub(super) fn groups(checks: &[Check]) -> String {
    let mut out = String::from("<div class=\"bars\">");
    for (letter, name) in GROUPS {
        let of = |verdict: CheckVerdict| -> u32 {
            let group = checks.iter().filter(|c| c.id.starts_with(letter) && c.verdict == verdict);
            group.map(|c| c.points).sum()
        };
        let [ok, bad, none] =
            [CheckVerdict::Corroborated, CheckVerdict::Falsified, CheckVerdict::NotTested].map(of);
        let total = ok + bad + none;
        let mut rest = Vec::new();
        if bad > 0 {
            rest.push(format!("{bad} falsified"));
        }
        if none > 0 {
            rest.push(format!("{none} not tested"));
        }
        let rest = if rest.is_empty() { "all corroborated".to_owned() } else { rest.join(", ") };
        let _ = write!(
            out,
            "<div class=\"bar\"><span class=\"label\">{name}</span>{}<span class=\"num\"><b>{ok}</b> of {total}</span>\
             <span class=\"rest\">{rest}</span></div>",
            stacked(
                &[(ok, "ok"), (bad, "bad"), (none, "none")],
                &format!("{name}: {ok} of {total} points; {rest}")
            )
        );
    }
    out.push_str("</div>");
    out
}

/// One bar of parts that add up to its width.
pub(super) fn stacked(parts: &[(u32, &str)], label: &str) -> String {
    let total: u32 = parts.iter().map(|(n, _)| n).sum();
    let mut out = svg(1000, 10, label);
    let mut x = 0.0;
    for (n, class) in parts.iter().filter(|(n, _)| *n > 0) {
        let width = f64::from(*n) / f64::from(total.max(1)) * 1000.0;
        let _ =
            write!(out, "<rect class=\"{class}\" x=\"{x:.1}\" y=\"0\" width=\"{width:.1}\" height=\"10\"/>");
        x += width;
    }
    out.push_str("</svg>");
    out
}

/// A funnel: how many of `total` are left after each step.
pub(super) fn funnel(steps: &[(&str, usize)], total: usize) -> String {
    let mut out = String::from("<div class=\"bars\">");
    for (name, n) in steps {
        let label = format!("{name}: {n} of {total}");
        let bar = stacked(&[(*n as u32, "ink"), (total.saturating_sub(*n) as u32, "rail")], &label);
        let percent = if total == 0 { 0.0 } else { *n as f64 / total as f64 * 100.0 };
        let _ = write!(
            out,
            "<div class=\"bar\"><span class=\"label\">{}</span>{bar}<span class=\"num\"><b>{n}</b> of {total}</span>\
             <span class=\"rest\">{percent:.0} %</span></div>",
            esc(name)
        );
    }
    out.push_str("</div>");
    out
}

/// Tuned and base on one scale of 0 to 1, each with its interval.
pub(super) fn versus(rows: &[(&Comparison, String)]) -> String {
    let mut out = String::from("<div class=\"bars versus\">");
    for (row, label) in rows {
        let mut plot = svg(1000, 24, label);
        for tick in [0, 250, 500, 750, 1000] {
            let _ = write!(plot, "<path class=\"grid\" d=\"M{tick} 0V24\"/>");
        }
        for (measured, y, class) in [(&row.tuned, 7, "tuned"), (&row.base, 17, "base")] {
            if let Some(m) = measured {
                interval(&mut plot, m, y, class);
            }
        }
        plot.push_str("</svg>");
        let shown = |m: &Option<Measured>| {
            m.as_ref().map_or("not tested".to_owned(), |m| compared(&row.metric, m, false))
        };
        let _ = write!(
            out,
            "<div class=\"bar\"><span class=\"label\">{}</span>{plot}<span class=\"num\"><b class=\"tuned\">{}</b></span>\
             <span class=\"rest\">{}</span></div>",
            esc(label),
            shown(&row.tuned),
            shown(&row.base)
        );
    }
    out.push_str("</div>");
    out
}

/// A dot (a line of no length with a round end) and a thin line for the interval.
fn interval(plot: &mut String, m: &Measured, y: u32, class: &str) {
    let x = |v: f64| (v * 1000.0).clamp(0.0, 1000.0);
    if let Some([low, high]) = m.interval95 {
        let _ = write!(plot, "<path class=\"span {class}\" d=\"M{:.1} {y}H{:.1}\"/>", x(low), x(high));
    }
    let _ = write!(plot, "<path class=\"dot {class}\" d=\"M{:.1} {y}h0\"/>", x(m.value));
}

/// Training loss at every step and validation loss where it was measured, over optimizer steps.
pub(super) fn loss(steps: &[StepRecord], validations: &[ValidationRecord]) -> Option<String> {
    let train: Vec<(f64, f64)> = steps.iter().map(|s| (s.step as f64, s.loss)).collect();
    let validation: Vec<(f64, f64)> = validations.iter().map(|v| (v.step as f64, v.loss)).collect();
    let all: Vec<(f64, f64)> =
        train.iter().chain(&validation).copied().filter(|(_, y)| y.is_finite()).collect();
    if train.is_empty() || all.is_empty() {
        return None;
    }
    let fold =
        |of: fn(f64, f64) -> f64, start, pick: fn(&(f64, f64)) -> f64| all.iter().map(pick).fold(start, of);
    let (x0, x1) = (fold(f64::min, f64::INFINITY, |p| p.0), fold(f64::max, f64::NEG_INFINITY, |p| p.0));
    let (low, high) = (fold(f64::min, f64::INFINITY, |p| p.1), fold(f64::max, f64::NEG_INFINITY, |p| p.1));
    let ticks = ticks(low, high);
    let (y0, y1) = (ticks[0], ticks[ticks.len() - 1]);
    let place = |(x, y): (f64, f64)| ((x - x0) / (x1 - x0).max(1.0) * 1000.0, (y1 - y) / (y1 - y0) * 400.0);
    let (first, last) = (train[0].1, train[train.len() - 1].1);
    let label = format!("Training loss from {first:.3} to {last:.3} in {} steps", train.len());
    let mut plot = svg(1000, 400, &label);
    for tick in &ticks {
        let _ = write!(plot, "<path class=\"grid\" d=\"M0 {:.1}H1000\"/>", place((x0, *tick)).1);
    }
    let _ = write!(plot, "<path class=\"curve tuned\" d=\"{}\"/>", path(&thinned(&train), place));
    if validation.len() > 1 {
        let _ = write!(plot, "<path class=\"curve base\" d=\"{}\"/>", path(&validation, place));
    }
    for point in &validation {
        let (x, y) = place(*point);
        let _ = write!(plot, "<path class=\"dot base\" d=\"M{x:.1} {y:.1}h0\"/>");
    }
    plot.push_str("</svg>");
    let mut axis = String::new();
    for tick in &ticks {
        let top = place((x0, *tick)).1 / 4.0;
        let _ = write!(axis, "<span style=\"top:{top:.2}%\">{}</span>", number(*tick));
    }
    Some(format!(
        "<div class=\"plot\"><div class=\"y\">{axis}</div>{plot}<div class=\"x\"><span>step {x0:.0}</span><span>step {x1:.0}</span></div></div>\
         <p class=\"legend\"><span class=\"key tuned\">training, nats per label token</span>{}</p>",
        if validation.is_empty() { "" } else { "<span class=\"key base\">validation</span>" }
    ))
}

/// Each column's first, lowest, highest and last point, in order, when there are too many.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    if points.len() <= COLUMNS_MAX * 4 {
        return points.to_vec();
    }
    let size = points.len().div_ceil(COLUMNS_MAX);
    let mut out = Vec::new();
    for column in points.chunks(size) {
        let by = |a: &&(f64, f64), b: &&(f64, f64)| a.1.total_cmp(&b.1);
        let ends = [column.first(), column.iter().min_by(by), column.iter().max_by(by), column.last()];
        let mut kept: Vec<(f64, f64)> = ends.into_iter().flatten().copied().collect();
        kept.sort_by(|a, b| a.0.total_cmp(&b.0));
        kept.dedup();
        out.extend(kept);
    }
    out
}

fn path(points: &[(f64, f64)], place: impl Fn((f64, f64)) -> (f64, f64)) -> String {
    let mut out = String::new();
    for (i, point) in points.iter().enumerate() {
        let (x, y) = place(*point);
        let _ = write!(out, "{}{x:.1} {y:.1}", if i == 0 { 'M' } else { 'L' });
    }
    if points.len() == 1 {
        out.push_str("h0");
    }
    out
}

/// Round values from at or below `low` to at or above `high`, three to seven of them.
fn ticks(low: f64, high: f64) -> Vec<f64> {
    let range = (high - low).max(1e-6);
    let power = 10f64.powi((range / 4.0).log10().floor() as i32);
    let step = [1.0, 2.0, 5.0, 10.0]
        .map(|m| m * power)
        .into_iter()
        .find(|s| range / s <= 5.0)
        .unwrap_or(power * 10.0);
    let first = (low / step).floor();
    let last = (high / step).ceil().max(first + 1.0);
    (0..=(last - first) as u32).map(|i| (first + f64::from(i)) * step).collect()
}

fn svg(width: u32, height: u32, label: &str) -> String {
    format!(
        "<svg viewBox=\"0 0 {width} {height}\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"{}\">",
        esc(label)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_enclose() {
        assert_eq!(ticks(0.0, 4.0), [0.0, 1.0, 2.0, 3.0, 4.0]);
        for (low, high) in [(0.3, 9.7), (1.0, 1.0), (5.2, 5.21), (0.0, 1e4), (-2.0, 3.0)] {
            let t = ticks(low, high);
            assert!((2..=8).contains(&t.len()), "{t:?}");
            assert!(t[0] <= low + 1e-9 && t[t.len() - 1] >= high - 1e-9, "{t:?}");
        }
    }

    #[test]
    fn thinning_keeps_the_extremes() {
        let mut points: Vec<(f64, f64)> = (0..10_000).map(|i| (f64::from(i), 1.0)).collect();
        points[1234].1 = 9.0;
        points[7777].1 = 0.1;
        let thin = thinned(&points);
        assert!(thin.len() <= COLUMNS_MAX * 4);
        assert!(thin.contains(&(1234.0, 9.0)) && thin.contains(&(7777.0, 0.1)));
        assert!(thin.is_sorted_by(|a, b| a.0 <= b.0));
    }

    #[test]
    fn a_curve_of_one_step_or_none() {
        assert!(loss(&[], &[]).is_none());
        let step =
            StepRecord { step: 1, epoch: 1, loss: 2.0, grad_norm: 1.0, lr: 1e-4, label_tokens: 1, tokens: 1 };
        let drawn = loss(&[step], &[]).unwrap();
        assert!(!drawn.contains("NaN") && !drawn.contains("inf"));
    }
}
