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
        let shown =
            |value: Option<f64>, digits: usize| value.map_or("?".to_owned(), |v| format!("{v:.digits$}"));
        format!(
            "GPU: {} | Util: {}% | VRAM: {}/{} GB | Temp: {} °C | Power: {}/{} W",
            g.device_name,
            shown(g.utilization_percent, 0),
            shown(g.vram_used_gb, 1),
            shown(g.vram_total_gb, 1),
            shown(g.temperature_celsius, 0),
            shown(g.power_watts, 0),
            shown(g.power_limit_watts, 0)
        )
    });
    let alerts: String = shown.alerts.iter().map(|alert| format!("           ALERT: {alert}\n")).collect();
    format!(
        "[{}] {} | Epoch {}/{} | Step {}/{} | Loss {loss} | LR {:.2e} | Grad {grad} | {:.0} tok/s | ETA {eta}\n           {gpu}\n{alerts}",
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
    use super::*;
    use record::training::GpuState;

    /// What was not read is a question mark.
    #[test]
    fn a_gpu_that_tells_little_and_an_alert() {
        let gpu = GpuState { device_name: "H100".into(), vram_used_gb: Some(5.26), ..GpuState::default() };
        let shown = Shown {
            timestamp_ms: 0,
            elapsed_s: 65,
            epoch: 1,
            total_epochs: 3,
            step: 3,
            steps_per_epoch: 30,
            loss: Some(1.5),
            loss_trend: Trend::Falling,
            learning_rate: 2e-4,
            gradient_norm: Some(0.5),
            tokens_per_second: 1000.4,
            eta_seconds: Some(60),
            gpu: Some(gpu),
            sample: None,
            status: TrainingStatus::Running,
            alerts: vec!["hot".into()],
        };
        let expected = "[00:01:05] Running | Epoch 1/3 | Step 3/30 | Loss 1.5000 ↓ | LR 2.00e-4 | Grad 0.500 | 1000 tok/s | ETA 00:01:00
           GPU: H100 | Util: ?% | VRAM: 5.3/? GB | Temp: ? °C | Power: ?/? W
           ALERT: hot
";
        assert_eq!(text(&shown), expected);
    }

    #[test]
    fn a_clock_has_two_digits_each() {
        assert_eq!(clock(3725), "01:02:05");
    }
}
