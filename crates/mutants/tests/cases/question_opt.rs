// items

// function
pub fn deep(v: &[Option<Vec<i32>>]) -> Option<i32> {
    let first = v.first()?.as_ref()?;
    let x = *first.iter().max_by_key(|x| x.abs())?;
    (x != 0).then(|| x.signum() * 10 + first.len() as i32)
}
// tests
#[test] fn t() { assert_eq!(deep(&[Some(vec![1, -5])]), Some(-8)); assert_eq!(deep(&[]), None); assert_eq!(deep(&[None]), None); assert_eq!(deep(&[Some(vec![0])]), None); }
