//! The program `build-corpus`.

fn main() -> std::process::ExitCode {
    stage_kit::main::<build_corpus::BuildCorpus>()
}
