//! The stage `train-cuda`.

fn main() -> std::process::ExitCode {
    stage_kit::main::<train_cuda::TrainCuda>()
}
