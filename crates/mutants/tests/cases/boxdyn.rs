// items

// function
pub fn make(op: &str) -> Result<Box<dyn Fn(i32, i32) -> i32>, String> {
    Ok(match op { "+" => Box::new(|a, b| a + b), "-" => Box::new(|a, b| a - b), "c" => { let k = 3; Box::new(move |a, b| a * k + b) }, _ => return Err(format!("bad {op}")) })
}
// tests
#[test] fn t() { assert_eq!(make("+").unwrap()(1, 2), 3); assert_eq!(make("-").unwrap()(1, 2), -1); assert_eq!(make("c").unwrap()(1, 2), 5); assert_eq!(make("?").err(), Some("bad ?".to_string())); }
