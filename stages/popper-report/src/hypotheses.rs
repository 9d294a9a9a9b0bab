//! Hypotheses about the training: those with a text are judged where there is data; the numbers H1 to H10 are kept.

use record::report::{CheckVerdict, Hypothesis};

use crate::checks::Subject;

/// What one finds: `None` is "not tested".
type Outcome = (Option<bool>, String);

pub(crate) fn all(subject: &Subject<'_>) -> Vec<Hypothesis> {
    let mut list = vec![
        hypothesis(
            "P1",
            "The GPU is used well: more than 100 tokens/s in generation, 500 GB/s and 1,500 samples/s",
            throughput(subject),
        ),
        hypothesis(
            "P2",
            "Training keeps the GPU busy: utilisation above 70 % with more than 10 GB in use",
            saturation(subject),
        ),
        hypothesis(
            "P3",
            "LoRA of rank 16 reaches a cross-entropy below 6.0 within 15 epochs",
            cross_entropy(subject),
        ),
        hypothesis("P4", "The gradient norm stays finite and below 100 in the whole run", gradient(subject)),
        hypothesis(
            "O-05",
            "Training lowers the validation loss of the model it starts from",
            learns(subject),
        ),
    ];
    for number in 1..=10 {
        let (statement, reason) = if number == 9 {
            (
                "Fifteen epochs at a learning rate of 6e-4 compare with full fine-tuning",
                "its preset was not part of this run",
            )
        } else {
            ("", "its text is not part of this project, so there is nothing to hold data against")
        };
        list.push(hypothesis(&format!("H{number}"), statement, (None, reason.to_owned())));
    }
    list
}

fn hypothesis(id: &str, statement: &str, (holds, detail): Outcome) -> Hypothesis {
    let verdict = match holds {
        Some(true) => CheckVerdict::Corroborated,
        Some(false) => CheckVerdict::Falsified,
        None => CheckVerdict::NotTested,
    };
    Hypothesis { id: id.to_owned(), statement: statement.to_owned(), verdict, detail }
}

fn throughput(subject: &Subject<'_>) -> Outcome {
    match subject.inputs.generation.as_ref().map(|g| g.tokens_per_s) {
        Some(rate) if rate <= 100.0 => (Some(false), format!("generation ran at {rate:.1} tokens/s")),
        Some(rate) => {
            (None, format!("generation ran at {rate:.1} tokens/s; bandwidth and samples/s were not measured"))
        }
        None => (None, "the input `timings` was not given".to_owned()),
    }
}

fn saturation(subject: &Subject<'_>) -> Outcome {
    let log = subject.inputs.log.as_ref().map(|l| &l.value);
    let read = log.and_then(|l| l.mean_gpu_utilization_percent.zip(l.peak_vram_bytes));
    let Some((busy, bytes)) = read else {
        return (None, "no GPU utilisation or memory was read".to_owned());
    };
    let gigabytes = bytes as f64 / 1e9;
    let detail = format!("utilisation {busy:.0} %, peak {gigabytes:.1} GB");
    if gigabytes <= 10.0 {
        return (
            None,
            format!("{detail}: this run keeps to a small memory budget; it takes one that fills the GPU"),
        );
    }
    (Some(busy > 70.0), detail)
}

fn cross_entropy(subject: &Subject<'_>) -> Outcome {
    let Some(manifest) = &subject.inputs.training.manifest else {
        return (None, "the input `adapter` was not given".to_owned());
    };
    let rank = manifest.params.get("rank").and_then(serde_json::Value::as_u64);
    if manifest.kind != "adapter" || rank != Some(16) || manifest.epochs > 15 {
        let rank = rank.map_or("unknown".to_owned(), |r| r.to_string());
        return (None, format!("this run is {} of rank {rank}, {} epochs", manifest.mode, manifest.epochs));
    }
    match manifest.best_validation_loss {
        Some(loss) => {
            (Some(loss < 6.0), format!("best validation loss {loss:.3} after {} epochs", manifest.epochs))
        }
        None => (None, "no validation was run".to_owned()),
    }
}

fn gradient(subject: &Subject<'_>) -> Outcome {
    let Some(steps) = &subject.inputs.training.steps else {
        return (None, "the input `checkpoints` was not given".to_owned());
    };
    if steps.value.is_empty() {
        return (None, "no step was recorded".to_owned());
    }
    let largest = steps.value.iter().map(|s| s.grad_norm).fold(0.0, f64::max);
    let is_finite = steps.value.iter().all(|s| s.grad_norm.is_finite() && s.loss.is_finite());
    let detail = format!("highest norm before clipping {largest:.3} in {} steps", steps.value.len());
    (Some(is_finite && largest < 100.0), detail)
}

fn learns(subject: &Subject<'_>) -> Outcome {
    let manifest = subject.inputs.training.manifest.as_ref();
    match manifest.and_then(|m| m.validation_loss_before.zip(m.best_validation_loss)) {
        Some((before, best)) => {
            (Some(best < before), format!("validation loss {before:.4} before, {best:.4} at best"))
        }
        None => (None, "no validation loss from before and after".to_owned()),
    }
}
