//! What the tests that really run things share: a row around a function, and a place to run it in.

use harness::{Harness, Libraries, Limits, Toolchain};
use record::corpus::{CorpusRow, LinkTier, Oracle, RowContext, RowMetadata, SourceClass};
use sandbox::Sandbox;

pub(crate) fn row(function: &str, items: &[&str]) -> CorpusRow {
    CorpusRow {
        id: "row".into(),
        function_code: function.into(),
        unit_tests: String::new(),
        property_tests: None,
        context: RowContext { imports: Vec::new(), items: items.iter().map(|&item| item.into()).collect() },
        metadata: RowMetadata {
            crate_name: "c".into(),
            version: "1.0.0".into(),
            path: "src/lib.rs".into(),
            item: String::new(),
            lines: [1, 1],
            license: "MIT".into(),
            complexity: 1,
            has_generics: false,
            has_lifetimes: false,
            is_async: false,
            is_unsafe: false,
            uses_macros: false,
            returns_result: false,
            source_class: SourceClass::Curated,
            property_class: None,
            oracle: Oracle::Human,
            link_tier: LinkTier::Curated,
            mutants_killed: 0,
            stratum: None,
            sha256: String::new(),
        },
    }
}

pub(crate) struct Bench {
    pub(crate) harness: Harness,
    _scratch: tempfile::TempDir,
}

impl Bench {
    pub(crate) fn new() -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().to_path_buf();
        let toolchain = Toolchain::find().unwrap();
        let harness = Harness::new(toolchain, Libraries::none(), Sandbox::probe(), path, Limits::default());
        Self { harness, _scratch: scratch }
    }
}
