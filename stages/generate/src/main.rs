//! The stage `generate`.

fn main() -> std::process::ExitCode {
    stage_kit::main::<generate::Generate>()
}
