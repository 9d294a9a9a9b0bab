//! The stage `train-cuda`.

use std::ffi::OsString;

fn main() -> std::process::ExitCode {
    let mut arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    if let Some(at) = arguments.iter().position(|a| a == "--bench") {
        arguments.remove(at);
    } else if !arguments.iter().any(|a| a == "--profile-ops") {
        return stage_kit::main::<train_cuda::TrainCuda>();
    }
    train_cuda::bench::main(arguments.into_iter())
}
