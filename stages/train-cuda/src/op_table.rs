//! Where a step's time goes: each kind of work against what the device can do at most.

use engine::cuda::{Limits, WorkTime};

/// Kinds of work, longest first: device time, rates, and the greater of the two shares of the limits.
///
/// `None`: the limits could not be found, and there are no shares.
pub(crate) fn table(times: &[WorkTime], limits: Option<Limits>) -> String {
    if times.is_empty() {
        return "work: not timed, only a GPU keeps its times\n".to_owned();
    }
    let total: f64 = times.iter().map(|t| t.ms).sum();
    let mut text = match limits {
        Some(Limits { flops_per_s, bytes_per_s }) => format!(
            "limits, measured just now: {:.0} TFLOP/s (product of bfloat16 matrices), {:.0} GB/s (sum of two matrices)\n",
            flops_per_s / 1e12,
            bytes_per_s / 1e9
        ),
        None => "limits: not measured, no memory was free for it\n".to_owned(),
    };
    text.push_str(&format!(
        "{:48} {:>7} {:>9} {:>6} {:>9} {:>9} {:>7}\n",
        "work", "runs", "ms", "share", "TFLOP/s", "GB/s", "limit"
    ));
    for t in times {
        let seconds = t.ms / 1e3;
        let (flops, bytes) = (t.flops / seconds, t.bytes / seconds);
        let share = |limits: Limits| (flops / limits.flops_per_s).max(bytes / limits.bytes_per_s);
        text.push_str(&format!(
            "{:48} {:>7} {:>9.3} {:>5.1}% {:>9.1} {:>9.0} {:>7}\n",
            t.name,
            t.launches,
            t.ms,
            100.0 * t.ms / total,
            flops / 1e12,
            bytes / 1e9,
            limits.map_or("-".to_owned(), |limits| format!("{:.1}%", 100.0 * share(limits)))
        ));
    }
    let launches: usize = times.iter().map(|t| t.launches).sum();
    text.push_str(&format!("{:48} {launches:>7} {total:>9.3}\n", "all"));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_greater_share_counts() {
        let time = |flops, bytes| WorkTime { name: "work".to_owned(), launches: 2, ms: 1.0, flops, bytes };
        let limits = Limits { flops_per_s: 100e12, bytes_per_s: 1000e9 };
        let text = table(&[time(50e9, 0.1e9), time(1e9, 0.8e9)], Some(limits));
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].contains("100 TFLOP/s") && lines[0].contains("1000 GB/s"), "{text}");
        assert!(lines[2].ends_with("50.0%") && lines[3].ends_with("80.0%"), "{text}");
        assert!(lines[4].starts_with("all") && lines[4].ends_with("2.000"), "{text}");
        assert_eq!(table(&[], None), "work: not timed, only a GPU keeps its times\n");
        assert!(table(&[time(1.0, 1.0)], None).lines().nth(2).is_some_and(|line| line.ends_with('-')));
    }
}
