// items

// function
pub fn parse(input: Option<&str>) -> u8 {
    let Some(text) = input else { return 0 };
    let x = match text.len() { 0 => 1, n if n > 3 => 2, 1..=2 => 3, _ => 4 };
    x
}
// tests
#[test] fn t() { assert_eq!(parse(None), 0); assert_eq!(parse(Some("")), 1); assert_eq!(parse(Some("abcd")), 2); assert_eq!(parse(Some("a")), 3); }
