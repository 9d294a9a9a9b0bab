//! Which crate goes into which split, and in which order its rows are tried.

use std::collections::BTreeMap;

use stage_kit::digest::sha256_hex;

use crate::candidates::Candidate;

/// The splits that are filled from crates.
pub const SPLITS: [&str; 3] = ["train", "validation", "test"];

/// Assigns whole crates, so that no crate stands in two splits. `sizes`: candidates per crate; `wanted`: rows per split.
///
/// Crates come in an order drawn from the seed; each goes to the split that is furthest below its share of all
/// candidates, to training when it would overfill the split by more than half of itself.
pub fn assign(sizes: &BTreeMap<String, usize>, wanted: [u64; 3], seed: u64) -> BTreeMap<String, usize> {
    let total: usize = sizes.values().sum();
    let asked: u64 = wanted.iter().sum::<u64>().max(1);
    let share = [0, 1, 2].map(|i| total as f64 * wanted[i] as f64 / asked as f64);
    let mut have = [0.0; 3];
    let mut order: Vec<(&String, usize)> = sizes.iter().map(|(name, size)| (name, *size)).collect();
    order.sort_by_key(|(name, _)| draw(seed, name));
    let mut assigned = BTreeMap::new();
    for (name, size) in order {
        let size = size as f64;
        let room = |s: usize| share[s] - have[s];
        let fits = (1..3).filter(|&s| room(s) >= size / 2.0).max_by(|&a, &b| {
            (room(a) / share[a].max(1.0)).total_cmp(&(room(b) / share[b].max(1.0))).then(b.cmp(&a))
        });
        let split = fits.filter(|&s| room(s) / share[s].max(1.0) >= room(0) / share[0].max(1.0)).unwrap_or(0);
        have[split] += size;
        assigned.insert(name.clone(), split);
    }
    assigned
}

/// The crate of training that a split gets when its own gave too few rows: the one that has about as many candidates as rows
/// are missing. Not all of them will hold, so few rows are left over, which nobody gets. `None` when training has no
/// crate left.
pub fn one_more(
    sizes: &BTreeMap<String, usize>,
    assigned: &BTreeMap<String, usize>,
    missing: usize,
    seed: u64,
) -> Option<String> {
    let of_training = sizes.iter().filter(|(name, size)| assigned.get(*name) == Some(&0) && **size > 0);
    let nearest = of_training.min_by_key(|(name, size)| (size.abs_diff(missing), draw(seed, name)));
    nearest.map(|(name, _)| name.clone())
}

/// Takes one row of each crate in turn, the rows of a crate in an order drawn from the seed: every crate has its part
/// when a split is full before all rows were tried.
pub fn interleave(rows: Vec<Candidate>, seed: u64, max_per_crate: usize) -> Vec<Candidate> {
    let mut by_crate = BTreeMap::<String, Vec<Candidate>>::new();
    for row in rows {
        by_crate.entry(row.row.metadata.crate_name.clone()).or_default().push(row);
    }
    let mut turns = Vec::new();
    for rows in by_crate.into_values() {
        let mut rows = rows;
        rows.sort_by_key(|row| draw(seed, &row.row.id));
        for (turn, row) in rows.into_iter().take(max_per_crate).enumerate() {
            turns.push((turn, draw(seed, &row.row.metadata.crate_name), row));
        }
    }
    turns.sort_by(|a, b| (a.0, &a.1, &a.2.row.id).cmp(&(b.0, &b.1, &b.2.row.id)));
    turns.into_iter().map(|(_, _, row)| row).collect()
}

/// A place in an order that depends on the seed alone.
pub fn draw(seed: u64, name: &str) -> String {
    sha256_hex(format!("{seed}/{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::row;

    fn sizes() -> BTreeMap<String, usize> {
        (0..20).map(|i| (format!("crate{i:02}"), 5 + i)).collect()
    }

    #[test]
    fn each_split_gets_about_its_share_and_each_crate_one_split() {
        for seed in 0..20 {
            let assigned = assign(&sizes(), [80, 10, 10], seed);
            assert_eq!(assigned.len(), 20);
            let rows =
                |split| sizes().iter().filter(|(n, _)| assigned[*n] == split).map(|(_, s)| s).sum::<usize>();
            let total: usize = sizes().values().sum();
            assert!(rows(0) * 10 >= total * 6, "{}", rows(0));
            assert!(rows(1) > 0 && rows(2) > 0, "seed {seed}: {} {}", rows(1), rows(2));
        }
    }

    #[test]
    fn the_seed_decides_and_nothing_else() {
        assert_eq!(assign(&sizes(), [8, 1, 1], 1), assign(&sizes(), [8, 1, 1], 1));
        assert!((2..9).any(|seed| assign(&sizes(), [8, 1, 1], seed) != assign(&sizes(), [8, 1, 1], 1)));
    }

    #[test]
    fn a_split_that_nothing_is_wanted_for_stays_empty() {
        assert!(assign(&sizes(), [10, 0, 0], 3).values().all(|&s| s == 0));
    }

    #[test]
    fn a_split_that_lacks_rows_gets_the_crate_of_training_that_fits() {
        let mut assigned: BTreeMap<String, usize> = sizes().into_keys().map(|name| (name, 0)).collect();
        let next = |assigned: &BTreeMap<String, usize>, missing| one_more(&sizes(), assigned, missing, 1);
        assert_eq!(next(&assigned, 10).as_deref(), Some("crate05"), "it has ten");
        assigned.insert("crate05".to_owned(), 2);
        let next_best = next(&assigned, 10).unwrap();
        assert!(["crate04", "crate06"].contains(&&*next_best), "{next_best}");
        assert_eq!(next(&assigned, 1000).as_deref(), Some("crate19"));
        assigned.values_mut().for_each(|split| *split = 1);
        assert_eq!(next(&assigned, 5), None);
    }

    #[test]
    fn crates_take_turns() {
        let rows = ["a", "a", "a", "b", "c"].iter().enumerate().map(|(i, name)| {
            let mut row = row(&format!("{name}{i}"), "fn f() {}", "");
            row.metadata.crate_name = (*name).to_owned();
            Candidate { row, fuller: None }
        });
        let order = interleave(rows.collect(), 1, 2);
        let mut first: Vec<&str> = order[..3].iter().map(|r| r.row.metadata.crate_name.as_str()).collect();
        first.sort_unstable();
        assert_eq!(first, ["a", "b", "c"]);
        assert_eq!(order.len(), 4);
    }
}
