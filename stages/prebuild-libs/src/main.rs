//! The program `prebuild-libs`: see the README beside it.

fn main() -> std::process::ExitCode {
    stage_kit::main::<prebuild_libs::PrebuildLibs>()
}
