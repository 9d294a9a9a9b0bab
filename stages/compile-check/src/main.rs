//! The program `compile-check`: see the README beside it.

fn main() -> std::process::ExitCode {
    stage_kit::main::<compile_check::CompileCheck>()
}
