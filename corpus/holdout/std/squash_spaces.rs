/// Trims a label and turns each run of white space inside it into one `gap`.
// focal
pub fn squash_spaces(label: &str, gap: char) -> String {
    let mut squashed = String::with_capacity(label.len());
    let mut pending = false;
    for c in label.chars() {
        if c.is_whitespace() {
            pending = !squashed.is_empty();
        } else {
            if pending {
                squashed.push(gap);
                pending = false;
            }
            squashed.push(c);
        }
    }
    squashed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_runs_become_one_gap() {
        assert_eq!(squash_spaces("a  b \t c", '-'), "a-b-c");
    }

    #[test]
    fn test_ends_are_trimmed() {
        assert_eq!(squash_spaces("  left and right \n", ' '), "left and right");
    }

    #[test]
    fn test_nothing_but_space_is_empty() {
        assert_eq!(squash_spaces("", '_'), "");
        assert_eq!(squash_spaces(" \t ", '_'), "");
    }

    #[test]
    fn test_other_scripts_are_kept() {
        assert_eq!(squash_spaces("é  ñ", '_'), "é_ñ");
    }
}
