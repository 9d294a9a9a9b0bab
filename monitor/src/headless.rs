//! The state as two lines of text, or as one line of JSON.

use record::training::TrainingStatus;

use crate::state::{Shown, Trend};

/// `[hh:mm:ss] STATUS | Epoch a/b | Step c/d | Loss x | ...`, then an indented line about the GPU.
pub fn text(shown: &Shown) -> String {
    let arrow = match shown.loss_trend {
        Trend::Falling => "↓",
        Trend::Flat => "→",
        Trend::Rising => "↑",
    };
    let loss = shown.loss.map_or("not finite".to_owned(), |l| format!("{l:.4} {arrow}"));
    let grad = shown.gradient_norm.map_or("not finite".to_owned(), |g| format!("{g:.3}"));
    let eta = shown.eta_seconds.map_or("?".to_owned(), clock);
    let gpu = shown.gpu.as_ref().map_or("GPU: none".to_owned(), |g| {
        format!(
            "GPU: {} | Util: {:.0}% | VRAM: {:.1}/{:.1} GB | Temp: {:.0} °C | Power: {:.0}/{:.0} W",
            g.device_name,
            g.utilization_percent,
            g.vram_used_gb,
            g.vram_total_gb,
            g.temperature_celsius,
            g.power_watts,
            g.power_limit_watts
        )
    });
    format!(
        "[{}] {} | Epoch {}/{} | Step {}/{} | Loss {loss} | LR {:.2e} | Grad {grad} | {:.0} tok/s | ETA {eta}\n           {gpu}\n",
        clock(shown.elapsed_s),
        status(&shown.status),
        shown.epoch,
        shown.total_epochs,
        shown.step,
        shown.steps_per_epoch,
        shown.learning_rate,
        shown.tokens_per_second,
    )
}

/// One JSON object and a newline.
pub fn json(shown: &Shown) -> String {
    serde_json::to_string(shown).map_or_else(|e| format!("{{\"error\":\"{e}\"}}\n"), |line| line + "\n")
}

fn status(status: &TrainingStatus) -> String {
    match status {
        TrainingStatus::Initializing => "Initializing".to_owned(),
        TrainingStatus::Running => "Running".to_owned(),
        TrainingStatus::Paused => "Paused".to_owned(),
        TrainingStatus::Completed => "Completed".to_owned(),
        TrainingStatus::Failed(why) => format!("Failed: {why}"),
    }
}

fn clock(seconds: u64) -> String {
    format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::clock;

    #[test]
    fn a_clock_has_two_digits_each() {
        assert_eq!(clock(3725), "01:02:05");
    }
}
