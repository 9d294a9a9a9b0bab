// items

// function
pub fn f(a: i32, b: i32) -> i32 {
    // first
    let x = a // why
        + b // second
        * 2; /* block */
    if x // cond
        > 3 // three
    {
        x - 1
    } else {
        // nothing
        x
    }
}
// tests
#[test] fn t() { assert_eq!(f(1, 2), 4); assert_eq!(f(1, 1), 3); }
