// items

// function
pub fn sum(text: &str) -> Result<i32, std::num::ParseIntError> {
    let mut total = 0;
    for part in text.split(',') { total += part.trim().parse::<i32>()?; }
    Ok(total)
}
// tests
#[test] fn t() { assert_eq!(sum("1, 2"), Ok(3)); assert!(sum("x").is_err()); }
