//! The planner stays free of the world.

#[test]
fn the_plan_reads_no_file_clock_or_environment() {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/plan");
    let mut seen = 0;
    for file in crate::support::files(&dir) {
        let text = std::fs::read_to_string(&file).unwrap();
        seen += 1;
        for word in [
            "std::fs",
            "std::env",
            "std::io",
            "std::process",
            "std::net",
            "std::time",
            "crate::cache",
            "crate::exec",
            "crate::resolve",
        ] {
            assert!(!text.contains(word), "{} uses {word}", file.display());
        }
    }
    assert!(seen >= 4);
}
