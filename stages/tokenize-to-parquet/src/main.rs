//! The program `tokenize-to-parquet`: see the README beside it.

fn main() -> std::process::ExitCode {
    stage_kit::main::<tokenize_to_parquet::TokenizeToParquet>()
}
