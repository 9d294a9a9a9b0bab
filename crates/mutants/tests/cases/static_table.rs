// items

// function
pub fn name(n: u8) -> &'static str {
    static NAMES: &[&str] = &["zero", "one"];
    const MORE: [&str; 2] = ["two", "three"];
    let extra: &'static [u8] = &[4, 5];
    match n { 0..=1 => NAMES[n as usize], 2 | 3 => MORE[(n - 2) as usize], x if extra.contains(&x) => "few", _ => "many" }
}
// tests
#[test] fn t() { assert_eq!(name(0), "zero"); assert_eq!(name(1), "one"); assert_eq!(name(3), "three"); assert_eq!(name(5), "few"); assert_eq!(name(9), "many"); }
