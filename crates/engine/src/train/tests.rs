use super::*;
use crate::api::{Precision, SavePolicy, Sequence};
use crate::backend::BackendError;
use crate::plan::{ParamId, Place, Role, Rows};

fn trainer() -> Trainer {
    let config = Config { vocab_size: 64, ..model::init::architecture("tiny").unwrap() };
    let options = TrainOptions {
        mode: Mode::Lora,
        dropout: 0.0,
        precision: Precision::Float32,
        threads: 1,
        seed: 1,
        save: SavePolicy::All,
        max_tokens: 16,
        device: ComputeDevice::Cpu,
        packed_base: false,
    };
    let adapter = Adapter::init(&config, &LoraConfig { r: 2, ..LoraConfig::default() }, 1);
    Trainer::new(&config, &model::init::random_weights(&config, 1), Some(&adapter), options).unwrap()
}

/// The update is done when its norm can't be noted: the slabs are a step ahead of the count.
#[test]
fn a_trainer_whose_update_did_not_end_well_gives_no_state_until_one_is_loaded() {
    let rule = AdamW { lr: 1e-2, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0, clip: 1.0 };
    let ids: Vec<u32> = (1..9).collect();
    let labels = ids.iter().map(|&id| id as i32).collect();
    let micro = [MicroBatch { sequences: vec![Sequence { sample_id: 0, input_ids: ids, labels }] }];
    let (mut trainer, mut whole) = (trainer(), trainer());
    for trainer in [&mut trainer, &mut whole] {
        trainer.step(&micro, &rule).unwrap();
    }
    let before = trainer.state().unwrap();
    assert_eq!(before, whole.state().unwrap());

    let (_, mut update, _) = optimizer_plans();
    let nowhere = update.buffer("nowhere", Rows::Const(1), 1, Role::Param, Place::Param(ParamId(0)));
    let placement = place(&update, trainer.backend.layout(&update), &trainer.backend.caps().claims);
    let broken = trainer.backend.compile(update, placement).unwrap();
    let good = (std::mem::replace(&mut trainer.programs.update, broken), trainer.programs.norm);
    trainer.programs.norm = nowhere;
    let error = trainer.step(&micro, &rule).unwrap_err();
    assert!(matches!(error, EngineError::Backend(BackendError::Plan { .. })), "{error}");
    assert_ne!(trainer.backend.load_slab(Slab::Master).unwrap(), before.master, "no update was made");
    let refused = [
        trainer.state().err(),
        trainer.adapter().err(),
        trainer.weights().err(),
        trainer.evaluate(&micro[0]).err(),
        trainer.gradients(&micro[0]).err(),
        trainer.step(&micro, &rule).err(),
    ];
    for error in refused {
        assert!(matches!(error, Some(EngineError::Unsettled { step: 2 })), "{error:?}");
    }

    (trainer.programs.update, trainer.programs.norm) = good;
    trainer.load_state(&before).unwrap();
    for trainer in [&mut trainer, &mut whole] {
        trainer.step(&micro, &rule).unwrap();
    }
    assert_eq!(trainer.state().unwrap(), whole.state().unwrap());
}

#[test]
fn many_evaluations_are_those_of_each() {
    let mut trainer = trainer();
    let micro = |n: u32| {
        let ids: Vec<u32> = (n..n + 3 + n % 9).collect();
        let labels = ids.iter().map(|&id| if id % 3 == 0 { -100 } else { id as i32 }).collect();
        MicroBatch { sequences: vec![Sequence { sample_id: u64::from(n), input_ids: ids, labels }] }
    };
    let all: Vec<MicroBatch> = (0..24).map(micro).collect();
    let alone: Vec<LossSum> = all.iter().map(|micro| trainer.evaluate(micro).unwrap()).collect();
    assert_eq!(trainer.evaluate_all(&all).unwrap(), alone);
    assert!(alone.iter().all(|loss| loss.sum > 0.0 && loss.label_tokens > 0));
    assert_ne!(alone[0], alone[1]);
    assert_eq!(trainer.evaluate_all(&[]).unwrap(), []);
    let mut too_long = all[..2].to_vec();
    let again = vec![too_long[1].sequences[0].clone(); 9];
    too_long[1].sequences.extend(again);
    assert!(trainer.evaluate_all(&too_long).is_err());
    assert_eq!(trainer.evaluate(&all[3]).unwrap(), alone[3]);
}

/// As a backend that forgets its notes at every wait.
#[test]
fn losses_of_very_many_micro_batches_are_all_counted() {
    let n = 2 * NOTES + 3;
    let (mut losses, mut pending) = (Vec::new(), Vec::new());
    let read = |kept: &[f32], note| match note {
        Note::Value(value) => value,
        Note::Pending(index) => kept.get(index).copied().unwrap_or(f32::NAN),
    };
    for i in 0..n {
        pending.push(i as f32);
        assert!(pending.len() < NOTES, "no room for loss {i} and the norm");
        losses.push(Note::Pending(pending.len() - 1));
        if losses.len().is_multiple_of(NOTES / 2) {
            let kept = std::mem::take(&mut pending);
            settle(&mut losses, |note| read(&kept, note));
        }
    }
    let sum: f64 = losses.iter().map(|&note| f64::from(read(&pending, note))).sum();
    assert_eq!(sum, (n * (n - 1) / 2) as f64);
}
