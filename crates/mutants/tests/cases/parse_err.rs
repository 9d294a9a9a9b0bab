// items
#[derive(Debug, PartialEq)] pub enum E { Empty, Bad(std::num::ParseIntError) }
impl From<std::num::ParseIntError> for E { fn from(e: std::num::ParseIntError) -> Self { E::Bad(e) } }
// function
pub fn parse(s: &str) -> Result<Vec<u8>, E> {
    if s.is_empty() { return Err(E::Empty); }
    s.split(',').map(|p| Ok(p.trim().parse::<u8>()?)).collect()
}
// tests
#[test] fn t() { assert_eq!(parse(""), Err(E::Empty)); assert_eq!(parse("1, 2"), Ok(vec![1, 2])); assert!(matches!(parse("x"), Err(E::Bad(_)))); }
