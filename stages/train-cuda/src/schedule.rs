//! Learning rate and the order of the rows: pure functions of their arguments.

use model::philox::{Purpose, Stream};

/// Steps of one epoch: the last one may hold fewer rows.
pub(crate) fn steps_per_epoch(n_rows: usize, rows_per_step: usize) -> u64 {
    n_rows.div_ceil(rows_per_step) as u64
}

/// Linear warm-up, then a cosine down to a floor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Schedule {
    pub(crate) base_lr: f64,
    /// `ceil(warm-up ratio x total)`.
    pub(crate) n_warm: u64,
    pub(crate) n_total: u64,
    pub(crate) min_ratio: f64,
}

impl Schedule {
    pub(crate) fn new(base_lr: f64, warmup_ratio: f64, min_ratio: f64, n_total: u64) -> Self {
        Self { base_lr, n_warm: (warmup_ratio * n_total as f64).ceil() as u64, n_total, min_ratio }
    }

    /// Learning rate of step `s`, from 0: `base (s+1)/warm` while `s < warm`, then
    /// `base (floor + (1 - floor) (1 + cos(pi t))/2)` with `t = (s - warm)/(total - warm)`.
    pub(crate) fn lr(&self, s: u64) -> f64 {
        if s < self.n_warm {
            return self.base_lr * (s + 1) as f64 / self.n_warm as f64;
        }
        let t = (s - self.n_warm) as f64 / self.n_total.saturating_sub(self.n_warm).max(1) as f64;
        let cosine = 0.5 * (1.0 + libm::cos(std::f64::consts::PI * t.min(1.0)));
        self.base_lr * (self.min_ratio + (1.0 - self.min_ratio) * cosine)
    }
}

/// Order of `n_rows` rows in epoch `epoch` (from 0): Fisher and Yates' shuffle (Durstenfeld's form), a pure function of the
/// seed and the epoch; the file's order when `shuffle` is false.
pub(crate) fn order(n_rows: usize, seed: u64, epoch: u64, shuffle: bool) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n_rows).collect();
    if shuffle {
        let stream = Stream::new(seed, Purpose::Shuffle, [epoch as u32, (epoch >> 32) as u32, 0]);
        for i in (1..n_rows).rev() {
            order.swap(i, stream.below(i as u64, i as u64 + 1) as usize);
        }
    }
    order
}

/// Where a run stands: step `done` of all, from 0, in which epoch and at which row of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Position {
    /// From 0.
    pub(crate) epoch: u64,
    /// Steps of this epoch that are done.
    pub(crate) step_in_epoch: u64,
}

impl Position {
    pub(crate) fn of(steps_done: u64, steps_per_epoch: u64) -> Self {
        Self { epoch: steps_done / steps_per_epoch, step_in_epoch: steps_done % steps_per_epoch }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rates that the reference implementation logged for ten steps with one of warm-up.
    #[test]
    fn rates_of_the_reference_run() {
        let wanted = [
            2e-4,
            2e-4,
            0.000_194_572_335_870_731_76,
            0.000_178_943_999_880_708_03,
            0.000_155,
            0.000_125_628_335_990_023_75,
            9.437_166_400_997_628e-5,
            6.500_000_000_000_002e-5,
            4.105_600_011_929_199_5e-5,
            2.542_766_412_926_825e-5,
        ];
        let schedule = Schedule::new(2e-4, 0.1, 0.1, 10);
        assert_eq!(schedule.n_warm, 1);
        for (s, wanted) in wanted.into_iter().enumerate() {
            let lr = schedule.lr(s as u64);
            assert!((lr / wanted - 1.0).abs() < 1e-12, "step {s}: {lr} {wanted}");
        }
    }

    #[test]
    fn the_recipe_warms_up_for_45_steps_and_ends_at_a_tenth() {
        let s = Schedule::new(2e-4, 0.03, 0.1, 1500);
        assert_eq!(s.n_warm, 45);
        assert!((s.lr(0) - 2e-4 / 45.0).abs() < 1e-18);
        assert!((s.lr(44) - 2e-4).abs() < 1e-18);
        assert_eq!(s.lr(45), 2e-4);
        assert!((s.lr(1500) - 2e-5).abs() < 1e-18);
        assert!((45..1499).all(|i| s.lr(i + 1) < s.lr(i)));
    }

    #[test]
    fn a_run_without_warm_up_or_of_warm_up_alone_has_rates() {
        let none = Schedule::new(1.0, 0.0, 0.1, 4);
        assert_eq!((none.n_warm, none.lr(0)), (0, 1.0));
        let all = Schedule::new(1.0, 1.0, 0.1, 4);
        assert_eq!((0..4).map(|s| all.lr(s)).collect::<Vec<_>>(), [0.25, 0.5, 0.75, 1.0]);
    }

    #[test]
    fn an_order_is_a_permutation_that_seed_and_epoch_decide() {
        let a = order(50, 1, 0, true);
        assert_eq!(a, order(50, 1, 0, true));
        assert_ne!(a, order(50, 1, 1, true));
        assert_ne!(a, order(50, 2, 0, true));
        let mut sorted = a;
        sorted.sort_unstable();
        assert_eq!(sorted, order(50, 1, 0, false));
        assert_eq!(order(0, 1, 0, true), Vec::<usize>::new());
    }

    #[test]
    fn every_place_of_the_order_is_equally_likely() {
        let n = 2000;
        let mut counts = [[0u32; 4]; 4];
        for epoch in 0..n {
            for (place, row) in order(4, 3, epoch, true).into_iter().enumerate() {
                counts[place][row] += 1;
            }
        }
        assert!(counts.iter().flatten().all(|&c| (c as f64 / n as f64 - 0.25).abs() < 0.05), "{counts:?}");
    }

    #[test]
    fn the_last_step_of_an_epoch_may_be_short() {
        assert_eq!(steps_per_epoch(7, 4), 2);
        assert_eq!(steps_per_epoch(8, 4), 2);
        assert_eq!(Position::of(5, 2), Position { epoch: 2, step_in_epoch: 1 });
    }
}
