use std::collections::BTreeMap;

#[derive(Debug, PartialEq, Eq)]
pub enum AliasError {
    Unknown(String),
    Cycle(String),
}

/// Follows aliases (`name -> @other`) to a value that is none; a chain longer than there are names is a cycle.
// focal
pub fn resolve<'a>(table: &'a BTreeMap<String, String>, name: &str) -> Result<&'a str, AliasError> {
    let mut current = name;
    for _ in 0..=table.len() {
        let value = table.get(current).ok_or_else(|| AliasError::Unknown(current.to_string()))?;
        match value.strip_prefix('@') {
            Some(next) => current = next,
            None => return Ok(value),
        }
    }
    Err(AliasError::Cycle(name.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(entries: &[(&str, &str)]) -> BTreeMap<String, String> {
        entries.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()
    }

    #[test]
    fn test_a_plain_value_is_itself() {
        assert_eq!(resolve(&table(&[("a", "red")]), "a"), Ok("red"));
    }

    #[test]
    fn test_follows_a_chain() {
        let table = table(&[("a", "@b"), ("b", "@c"), ("c", "blue")]);
        assert_eq!(resolve(&table, "a"), Ok("blue"));
    }

    #[test]
    fn test_names_the_unknown() {
        assert_eq!(resolve(&table(&[]), "a"), Err(AliasError::Unknown("a".to_string())));
        assert_eq!(resolve(&table(&[("a", "@b")]), "a"), Err(AliasError::Unknown("b".to_string())));
    }

    #[test]
    fn test_tells_a_cycle() {
        let table = table(&[("a", "@b"), ("b", "@a")]);
        assert_eq!(resolve(&table, "b"), Err(AliasError::Cycle("b".to_string())));
        assert_eq!(resolve(&self::table(&[("s", "@s")]), "s"), Err(AliasError::Cycle("s".to_string())));
    }
}
