// items

// function
pub fn lookup(m: &std::collections::BTreeMap<u8, u8>, k: u8) -> u8 { let v = m.get(&k).unwrap_or(&9); if let Some(w) = m.get(v) { if *w > 1 { return *w; } } *v }
// tests
#[test] fn t() { let m = [(1, 2), (2, 5)].into(); assert_eq!(lookup(&m, 1), 5); assert_eq!(lookup(&m, 7), 9); }
