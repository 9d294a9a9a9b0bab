// items

// function
pub fn mean_std(v: &[f64]) -> Option<(f64, f64)> {
    let n = v.len() as f64;
    if n == 0.0 { return None; }
    let m = v.iter().sum::<f64>() / n;
    let s = (v.iter().map(|x| (x - m).powi(2)).sum::<f64>() / n).sqrt();
    Some((m, s))
}
// tests
#[test] fn t() { assert_eq!(mean_std(&[1.0, 3.0]), Some((2.0, 1.0))); assert_eq!(mean_std(&[]), None); }
