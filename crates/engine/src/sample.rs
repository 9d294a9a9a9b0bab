//! From how a request is sampled to the draw of one token.

use crate::api::Sampling;
use kernels::sample::Draw;
use model::philox::{Purpose, Stream};

/// The draw of the token at `position` of a sequence, keyed by (seed, sequence, position). Ids from `allowed` on are never
/// chosen.
pub(crate) fn draw(sampling: &Sampling, sequence: u64, position: u64, allowed: u32) -> Draw {
    match *sampling {
        Sampling::Sample { temperature, top_k, top_p, seed } if temperature > 0.0 => {
            let stream = Stream::new(seed, Purpose::Sampling, [sequence as u32, (sequence >> 32) as u32, 0]);
            Draw::weighted(allowed, temperature, (top_k, top_p), stream.uniform_at(position))
        }
        _ => Draw::greatest(allowed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(top_k: usize, top_p: f32, temperature: f32) -> Sampling {
        Sampling::Sample { temperature, top_k, top_p, seed: 3 }
    }

    fn choose(
        logits: &[f32],
        sampling: &Sampling,
        sequence: u64,
        position: u64,
        banned_from: Option<u32>,
    ) -> Option<u32> {
        let allowed = banned_from.unwrap_or(u32::MAX);
        kernels::sample::choose(logits, &draw(sampling, sequence, position, allowed))
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
