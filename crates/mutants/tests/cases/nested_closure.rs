// items
use std::collections::HashMap;
// function
pub fn top<'a>(words: &'a [&'a str], n: usize) -> Vec<(&'a str, usize)> {
    let mut counts: HashMap<&str, usize> = HashMap::new();
    words.iter().for_each(|w| *counts.entry(w).or_insert(0) += 1);
    let mut v: Vec<_> = counts.into_iter().collect();
    v.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(b.0)));
    v.truncate(n);
    v
}
// tests
#[test] fn t() { assert_eq!(top(&["a", "b", "a", "c", "b"], 2), [("a", 2), ("b", 2)]); }
