//! `mutate-score`: what generated tests notice.

fn main() -> std::process::ExitCode {
    stage_kit::main::<mutate_score::MutateScore>()
}
