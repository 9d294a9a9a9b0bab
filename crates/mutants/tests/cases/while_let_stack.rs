// items

// function
pub fn balanced(s: &str) -> bool {
    let mut st = vec![];
    for c in s.chars() {
        match c {
            '(' | '[' => st.push(c),
            ')' | ']' => { let want = if c == ')' { '(' } else { '[' }; if st.pop() != Some(want) { return false; } }
            _ => {}
        }
    }
    st.is_empty()
}
// tests
#[test] fn t() { assert!(balanced("(a[b])")); assert!(!balanced("(]")); assert!(!balanced("(")); }
