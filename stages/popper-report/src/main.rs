//! The program `popper-report`.

fn main() -> std::process::ExitCode {
    stage_kit::main::<popper_report::PopperReport>()
}
