//! The header of every file of kernels says what a reader needs: formulas, operands, tolerance, speed on a named GPU.

use kernels::cuda::ops::SOURCES;

#[test]
fn every_header_has_its_maths_operands_tolerance_and_speed() {
    assert!(SOURCES.len() >= 24, "{} files", SOURCES.len());
    for source in SOURCES {
        let header: Vec<&str> = source.text.lines().take_while(|line| line.starts_with("//")).collect();
        let text = header.join("\n");
        let any = |words: &[&str]| words.iter().any(|word| text.contains(word));
        let name = source.name;
        assert!(header.len() > 8, "{name}: no header");
        // a faster version may name the file whose formulas and operands it shares
        let shares = SOURCES.iter().any(|other| other.name != name && text.contains(other.name));
        assert!(any(&["//   "]) || shares, "{name}: no formulas");
        assert!(any(&["// | "]) || shares, "{name}: no table of operands");
        assert!(any(&["Tolerance"]), "{name}: no tolerance");
        assert!(any(&["GB/s", "TB/s", "TFLOP/s"]), "{name}: no speed");
        assert!(any(&["H100", "H200"]), "{name}: no GPU is named for its speed");
    }
}
