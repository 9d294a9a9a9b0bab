//! The stage `train-cuda`.

fn main() -> std::process::ExitCode {
    match std::env::args_os().nth(1) {
        Some(first) if first == "--bench" => train_cuda::bench::main(std::env::args_os().skip(2)),
        Some(first) if first == "--profile-ops" => train_cuda::bench::main(std::env::args_os().skip(1)),
        _ => stage_kit::main::<train_cuda::TrainCuda>(),
    }
}
