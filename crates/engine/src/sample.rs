//! Chooses a token from logits.

use crate::api::Sampling;
use model::philox::{Purpose, Stream};

/// The next token: the greatest logit (the lowest id of equals), or a draw keyed by (seed, sequence, position).
///
/// Ids from `banned_from` on are never chosen. `None` when no allowed logit is a number.
pub(crate) fn choose(
    logits: &[f32],
    sampling: &Sampling,
    sequence: u64,
    position: u64,
    banned_from: Option<u32>,
) -> Option<u32> {
    let allowed = banned_from.map_or(logits.len(), |id| (id as usize).min(logits.len()));
    let logits = &logits[..allowed];
    if logits.iter().any(|value| value.is_nan()) {
        return None;
    }
    let best = greatest(logits)?;
    match *sampling {
        Sampling::Greedy => Some(best),
        Sampling::Sample { temperature, .. } if temperature <= 0.0 => Some(best),
        Sampling::Sample { temperature, top_k, top_p, seed } => {
            let stream = Stream::new(seed, Purpose::Sampling, [sequence as u32, (sequence >> 32) as u32, 0]);
            let u = f64::from(stream.uniform_at(position));
            Some(draw(logits, logits[best as usize], temperature, (top_k, top_p), u))
        }
    }
}

fn greatest(logits: &[f32]) -> Option<u32> {
    let mut best: Option<(usize, f32)> = None;
    for (id, &value) in logits.iter().enumerate() {
        if best.is_none_or(|(_, most)| value > most) {
            best = Some((id, value));
        }
    }
    best.map(|(id, _)| id as u32)
}

/// Inverse of the cumulative distribution at `u`, over the tokens that top-k and then top-p leave, most likely first.
fn draw(logits: &[f32], top: f32, temperature: f32, (top_k, top_p): (usize, f32), u: f64) -> u32 {
    let weight = |value: f32| libm::exp((f64::from(value) - f64::from(top)) / f64::from(temperature));
    let mut candidates: Vec<(u32, f64)> =
        logits.iter().enumerate().map(|(id, &value)| (id as u32, weight(value))).collect();
    let by_weight = |a: &(u32, f64), b: &(u32, f64)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    if top_k > 0 && top_k < candidates.len() {
        candidates.select_nth_unstable_by(top_k - 1, by_weight);
        candidates.truncate(top_k);
    }
    candidates.sort_unstable_by(by_weight);
    let total: f64 = candidates.iter().map(|c| c.1).sum();
    if top_p < 1.0 {
        let mut mass = 0.0;
        let enough = candidates.iter().position(|c| {
            mass += c.1;
            mass >= f64::from(top_p) * total
        });
        candidates.truncate(enough.map_or(candidates.len(), |last| last + 1));
    }
    let total: f64 = candidates.iter().map(|c| c.1).sum();
    let mut left = u * total;
    for &(id, weight) in &candidates {
        left -= weight;
        if left < 0.0 {
            return id;
        }
    }
    candidates.last().map_or(0, |c| c.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(top_k: usize, top_p: f32, temperature: f32) -> Sampling {
        Sampling::Sample { temperature, top_k, top_p, seed: 3 }
    }

    #[test]
    fn greedy_takes_the_first_of_equals_and_nothing_banned() {
        let logits = [0.0, 2.0, 2.0, 9.0];
        assert_eq!(choose(&logits, &Sampling::Greedy, 0, 0, Some(3)), Some(1));
        assert_eq!(choose(&logits, &Sampling::Greedy, 0, 0, None), Some(3));
        assert_eq!(choose(&[f32::NAN, 1.0], &Sampling::Greedy, 0, 0, None), None);
        assert_eq!(choose(&[], &Sampling::Greedy, 0, 0, None), None);
    }

    #[test]
    fn frequencies_follow_the_softmax() {
        let logits = [0.0f32, 1.0, 2.0, -1.0];
        let n = 20_000;
        let mut counts = [0.0f64; 4];
        for position in 0..n {
            let id = choose(&logits, &sample(0, 1.0, 2.0), 5, position, None).unwrap();
            counts[id as usize] += 1.0 / n as f64;
        }
        let total: f64 = logits.iter().map(|&l| (f64::from(l) / 2.0).exp()).sum();
        for (count, &logit) in counts.iter().zip(&logits) {
            let expected = (f64::from(logit) / 2.0).exp() / total;
            assert!((count - expected).abs() < 0.015, "{count} {expected}");
        }
    }

    #[test]
    fn limits_hold() {
        let logits = [3.0f32, 2.9, 0.0, 2.8];
        for position in 0..500 {
            let limited = choose(&logits, &sample(2, 1.0, 1.0), 1, position, None).unwrap();
            assert!(limited < 2);
            let nucleus = choose(&logits, &sample(0, 0.3, 1.0), 1, position, None).unwrap();
            assert_eq!(nucleus, 0);
            let banned = choose(&logits, &sample(0, 1.0, 5.0), 1, position, Some(3)).unwrap();
            assert!(banned < 3);
        }
        assert_eq!(choose(&logits, &sample(0, 1.0, 0.0), 1, 0, None), Some(0));
    }

    #[test]
    fn a_draw_depends_on_sequence_and_position_alone() {
        let logits: Vec<f32> = (0..50).map(|i| (i % 7) as f32 * 0.1).collect();
        let at = |sequence, position| choose(&logits, &sample(0, 1.0, 1.0), sequence, position, None);
        assert_eq!(at(1, 2), at(1, 2));
        assert!((0..20).any(|p| at(1, p) != at(2, p)));
        assert!((0..20).any(|p| at(1, p) != at(1, p + 1)));
    }
}
