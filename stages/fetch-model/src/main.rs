//! The program `fetch-model`: see the README beside it.

fn main() -> std::process::ExitCode {
    stage_kit::main::<fetch_model::FetchModel>()
}
