//! Training: micro-batches in, updated parameters out.

use crate::EngineError;
use crate::any::{AnyBackend, AnyProgram, Purpose};
use crate::api::{AdamW, LossSum, MicroBatch, Mode, StepOutcome, TrainOptions, TrainState};
use crate::backend::{Backend, Caps, Inputs, NOTES, Note, Scalars, Slab};
use crate::batch::{Packed, Packer, Prepared};
use crate::cuda::{Limits, Planned, WorkTime, together};
use crate::device::ComputeDevice;
use crate::place::{Layout, place};
use crate::plan::{
    Class, Dims, Mat, ModelParams, ParamSpec, Plan, TrainPlan, optimizer_plans, train_plan_in_chunks,
};
use crate::setup;
use model::Tensor;
use model::adapter::{Adapter, LoraConfig};
use model::config::Config;
use model::weights::Weights;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The step after the one that runs, once it is prepared; `None`: there is none.
pub type Ahead = Option<Result<Prepared, EngineError>>;

/// Plans of a trainer, ready to run.
#[derive(Debug)]
struct Programs {
    train: AnyProgram,
    train_loss: Mat,
    evaluate: AnyProgram,
    evaluate_loss: Mat,
    zero: AnyProgram,
    update: AnyProgram,
    norm: Mat,
}

/// Forward, backward and update of one model.
#[derive(Debug)]
pub struct Trainer {
    options: TrainOptions,
    config: Config,
    lora: Option<LoraConfig>,
    params: ModelParams,
    backend: AnyBackend,
    programs: Programs,
    peak_bytes: u64,
    step: u64,
    /// An update was begun and is not known to have ended: the slabs may be ahead of `step`.
    unsettled: bool,
}

impl Trainer {
    /// Plans, places and loads everything; no step allocates more.
    ///
    /// # Errors
    /// When weights, adapter and options do not fit together.
    pub fn new(
        config: &Config,
        weights: &Weights,
        adapter: Option<&Adapter>,
        options: TrainOptions,
    ) -> Result<Self, EngineError> {
        check_options(&options, adapter)?;
        setup::check_rank(options.device, adapter)?;
        let lora = adapter.map(|adapter| adapter.config.clone());
        let params = parameters(config, lora.as_ref(), &options);
        let mut backend = AnyBackend::new(Purpose {
            device: options.device,
            precision: options.precision,
            threads: options.threads,
            packed: packed(&options),
            few_rows: false,
        })?;
        backend.allocate(&params)?;
        let quantise = match options.mode {
            Mode::Qlora { double_quant } => Some(double_quant),
            Mode::Full | Mode::Lora => None,
        };
        setup::store_base(&mut backend, &params, weights, quantise, options.threads)?;
        if let Some(adapter) = adapter {
            setup::store_adapter(&mut backend, &params, adapter)?;
        }
        let (programs, arena) = compile(&mut backend, &params, &options)?;
        let peak_bytes = arena + backend.held_bytes() + scores_bytes(&options);
        let (config, step, unsettled) = (config.clone(), 0, false);
        Ok(Trainer { options, config, lora, params, backend, programs, peak_bytes, step, unsettled })
    }

    /// What [`Trainer::planned_peak_bytes`] of such a trainer would be, without weights, memory or a device. On a GPU the room
    /// for partial sums is not in it: some tens of MB.
    #[must_use]
    pub fn plan_bytes(config: &Config, lora: Option<&LoraConfig>, options: &TrainOptions) -> u64 {
        let params = parameters(config, lora, options);
        let on_gpu = matches!(options.device, ComputeDevice::Cuda { .. });
        let caps = if on_gpu { crate::cuda::caps() } else { crate::cpu::caps(true) };
        let layout = |plan: &Plan| match on_gpu {
            true => crate::cuda::layout(options.precision, plan),
            false => Layout::uniform(size_of::<f32>()),
        };
        let Plans { train, evaluate, .. } = Plans::new(&params, options, &caps);
        let peak = |plan: &Plan| place(plan, layout(plan), &caps.claims).peak;
        let arena = peak(&train.plan).max(peak(&evaluate.plan));
        let held = match on_gpu {
            true => {
                crate::cuda::planned_bytes(options.precision, &params, packed(options), train.plan.capacity)
            }
            false => crate::cpu::planned_bytes(options.precision, &params),
        };
        (arena + held) as u64 + scores_bytes(options)
    }

    /// Bytes that the trainer holds at most: parameters, gradients, moments, arena, scratch of the threads.
    #[must_use]
    pub fn planned_peak_bytes(&self) -> u64 {
        self.peak_bytes
    }

    /// One optimizer step over the micro-batches: gradients of the summed token losses divided by all label tokens,
    /// clipped, then AdamW.
    ///
    /// # Errors
    /// When a micro-batch does not fit, nothing has a label, or loss or gradient is not finite; parameters are unchanged
    /// then. When the device fails before the update is begun they are too; when it fails after that, they are of no step any
    /// more, and whatever depends on them is refused with [`EngineError::Unsettled`] until [`Trainer::load_state`].
    pub fn step(
        &mut self,
        micro_batches: &[MicroBatch],
        optimizer: &AdamW,
    ) -> Result<StepOutcome, EngineError> {
        let prepared = self.packer().prepare(micro_batches)?;
        Ok(self.step_and_prepare(&prepared, optimizer, |_| None)?.0)
    }

    /// As [`Trainer::step`]; while the device is at work, `next` prepares the step after this one, whose inputs are then on
    /// their way before this one has ended.
    ///
    /// # Errors
    /// As [`Trainer::step`], but for those of `next`, which are returned with what it returned.
    pub fn step_and_prepare(
        &mut self,
        now: &Prepared,
        optimizer: &AdamW,
        next: impl FnOnce(Packer) -> Ahead,
    ) -> Result<(StepOutcome, Ahead), EngineError> {
        self.settled()?;
        let (label_tokens, tokens) = (now.label_tokens(), now.tokens());
        if label_tokens == 0 {
            return Err(EngineError::NoLabels { step: self.step + 1 });
        }
        let mut scalars = self.scalars();
        scalars.inv_labels = 1.0 / label_tokens as f64;
        scalars.optimizer = *optimizer;
        let losses = self.accumulate(now, scalars)?;
        if losses.iter().any(|note| matches!(note, Note::Value(loss) if !loss.is_finite())) {
            return Err(EngineError::NonFinite { what: "the loss", step: self.step + 1 });
        }
        let dims = Dims { tokens: 0, loss_rows: 0, seqs: 0, chunk: 1 };
        let inputs = Inputs { dims, index: Arc::default(), scalars };
        self.backend.ready(&self.programs.update, &inputs)?;
        // The update does nothing when the norm is not finite, as it is whenever a loss is not.
        self.unsettled = true;
        self.backend.submit(&self.programs.update, inputs)?;
        let norm = self.backend.note(&self.programs.update, self.programs.norm)?;
        let ahead = next(self.packer());
        // The update is on its way: whatever goes wrong with the step after it must not hide that this one counts.
        let ahead = self.send_ahead(&ahead, scalars).map_or_else(|e| Some(Err(e)), |()| ahead);
        self.backend.wait()?;
        self.unsettled = false;
        let sum = self.sum(&losses);
        let grad_norm = f64::from(self.backend.noted(norm));
        let failed = |what| Err(EngineError::NonFinite { what, step: self.step + 1 });
        if !sum.is_finite() {
            return failed("the loss");
        }
        if !grad_norm.is_finite() {
            return failed("the gradient norm");
        }
        self.step += 1;
        Ok((StepOutcome { loss: sum / label_tokens as f64, grad_norm, label_tokens, tokens }, ahead))
    }

    /// Sum of the token losses, without dropout and without a gradient.
    ///
    /// # Errors
    /// When the micro-batch does not fit.
    pub fn evaluate(&mut self, micro: &MicroBatch) -> Result<LossSum, EngineError> {
        self.settled()?;
        let packed = self.packer().pack(micro)?;
        let label_tokens = packed.label_tokens();
        let Packed { dims, index } = packed;
        let inputs = Inputs { dims, index, scalars: self.scalars() };
        self.backend.submit(&self.programs.evaluate, inputs)?;
        self.backend.wait()?;
        let sum = self.backend.peek(&self.programs.evaluate, self.programs.evaluate_loss, dims)?;
        Ok(LossSum { sum: f64::from(sum[0]), label_tokens })
    }

    /// Gradients of the mean token loss by every trainable tensor (PEFT or HF name), with the dropout of the next step.
    ///
    /// # Errors
    /// When the micro-batch does not fit or has no label.
    pub fn gradients(&mut self, micro: &MicroBatch) -> Result<BTreeMap<String, Vec<f32>>, EngineError> {
        self.settled()?;
        let prepared = self.packer().prepare(std::slice::from_ref(micro))?;
        let label_tokens = prepared.label_tokens();
        if label_tokens == 0 {
            return Err(EngineError::NoLabels { step: self.step + 1 });
        }
        self.accumulate(&prepared, self.scalars())?;
        self.backend.wait()?;
        let slab = self.backend.load_slab(Slab::Gradient)?;
        let scale = (1.0 / label_tokens as f64) as f32;
        let cut = |range: &crate::Range| {
            slab[range.start..range.start + range.len].iter().map(|&sum| sum * scale).collect()
        };
        Ok(self.params.table().iter().map(|(name, range)| (name.clone(), cut(range))).collect())
    }

    /// Device time of a step on one micro-batch by kind of work, longest first; empty on the CPU. Only for looking: the
    /// trainer's parameters are garbage afterwards.
    ///
    /// # Errors
    /// When the micro-batch does not fit or the device fails.
    pub fn profile(&mut self, micro: &MicroBatch) -> Result<Vec<WorkTime>, EngineError> {
        let Packed { dims, index } = self.packer().pack(micro)?;
        let inputs = Inputs { dims, index, scalars: self.scalars() };
        let dims = Dims { tokens: 0, loss_rows: 0, seqs: 0, chunk: 1 };
        let none = Inputs { dims, index: Arc::default(), scalars: inputs.scalars };
        let Programs { train, zero, update, .. } = &self.programs;
        let mut times = Vec::new();
        for (program, inputs) in [(zero, &none), (train, &inputs), (update, &none)] {
            times.extend(self.backend.profile(program, inputs)?);
        }
        Ok(together(times))
    }

    /// What the device reaches on large matrices, which takes some of its free memory for a moment; `None` on the CPU or
    /// where there is none free.
    ///
    /// # Errors
    /// When the device fails.
    pub fn limits(&self) -> Result<Option<Limits>, EngineError> {
        Ok(self.backend.limits()?)
    }

    /// What making the step's programs ready took on a GPU; `None` on the CPU.
    #[must_use]
    pub fn planned(&self) -> Option<Planned> {
        self.backend.planned()
    }

    /// Name of the GPU and bytes of its memory in use, by this process and others; `None` on the CPU.
    #[must_use]
    pub fn device_memory(&self) -> Option<(String, u64)> {
        self.backend.device_memory()
    }

    /// The adapter as it is now; `None` in full mode.
    ///
    /// # Errors
    /// When the device fails.
    pub fn adapter(&self) -> Result<Option<Adapter>, EngineError> {
        let Some(config) = self.lora.clone() else { return Ok(None) };
        self.settled()?;
        let master = self.backend.load_slab(Slab::Master)?;
        let mut tensors = BTreeMap::new();
        for spec in self.params.specs.iter().filter(|spec| spec.class == Class::Adapter) {
            let Some(start) = spec.slab else { continue };
            let name = &spec.pieces[0].name;
            let tensor =
                Tensor::from_f32(vec![spec.rows, spec.cols], &master[start..start + spec.elements()]);
            let wrong = || EngineError::Mismatch(format!("`{name}` has a wrong size"));
            tensors.insert(name.clone(), tensor.ok_or_else(wrong)?);
        }
        Ok(Some(Adapter { config, tensors }))
    }

    /// The base model in float32: the trained one in full mode, else the frozen one as used (after NF4 in qlora).
    ///
    /// # Errors
    /// When the tensors are not those of the configuration.
    pub fn weights(&self) -> Result<Weights, EngineError> {
        self.settled()?;
        let mut tensors = BTreeMap::new();
        let master = self.backend.load_slab(Slab::Master)?;
        for (id, spec) in self.params.iter() {
            if matches!(spec.class, Class::Adapter | Class::RopeTable) {
                continue;
            }
            let values = match spec.slab {
                Some(start) => master[start..start + spec.elements()].to_vec(),
                None => self.backend.load_param(id)?,
            };
            let mut rest = &values[..];
            for piece in &spec.pieces {
                let (own, tail) = rest.split_at(piece.rows * piece.cols);
                let vector = matches!(spec.class, Class::Norm | Class::Bias);
                let shape = if vector { vec![piece.cols] } else { vec![piece.rows, piece.cols] };
                let tensor = Tensor::from_f32(shape, own)
                    .ok_or_else(|| EngineError::Mismatch(format!("`{}` has a wrong size", piece.name)))?;
                tensors.insert(piece.name.clone(), tensor);
                rest = tail;
            }
        }
        Ok(Weights::from_tensors(tensors, &self.config)?)
    }

    /// Everything that training changes.
    ///
    /// # Errors
    /// When the device fails, or failed after an update was begun.
    pub fn state(&self) -> Result<TrainState, EngineError> {
        self.settled()?;
        Ok(TrainState {
            step: self.step,
            master: self.backend.load_slab(Slab::Master)?,
            m: self.backend.load_slab(Slab::M)?,
            v: self.backend.load_slab(Slab::V)?,
            table: self.params.table(),
        })
    }

    /// Goes on from a state: the next steps have the same bits as if nothing had happened in between.
    ///
    /// # Errors
    /// When the state is of another model or adapter.
    pub fn load_state(&mut self, state: &TrainState) -> Result<(), EngineError> {
        if state.table != self.params.table() {
            let message = "the state's tensors are not those of this model and mode";
            return Err(EngineError::Mismatch(message.to_owned()));
        }
        for slab in [&state.master, &state.m, &state.v] {
            if slab.len() != self.params.slab_len {
                let (given, needed) = (slab.len(), self.params.slab_len);
                return Err(EngineError::Mismatch(format!("the state has {given} numbers, not {needed}")));
            }
        }
        self.unsettled = true;
        self.backend.store_slab(Slab::Master, &state.master)?;
        self.backend.store_slab(Slab::M, &state.m)?;
        self.backend.store_slab(Slab::V, &state.v)?;
        (self.step, self.unsettled) = (state.step, false);
        Ok(())
    }

    fn settled(&self) -> Result<(), EngineError> {
        if self.unsettled { Err(EngineError::Unsettled { step: self.step + 1 }) } else { Ok(()) }
    }

    /// Hexadecimal SHA-256 of the frozen tensors as they are now: over the lines `name \0 SHA-256 of its float32 values \n` in
    /// the order of names.
    ///
    /// # Errors
    /// When the device fails.
    pub fn base_sha256(&self) -> Result<String, EngineError> {
        let is_base = |spec: &ParamSpec| spec.slab.is_none() && spec.class != Class::RopeTable;
        setup::digest(&self.backend, &self.params, self.options.threads, is_base)
    }

    /// What prepares micro-batches for this trainer.
    #[must_use]
    pub fn packer(&self) -> Packer {
        Packer {
            vocab: self.params.shape.vocab,
            max_tokens: self.options.max_tokens,
            chunk: self.backend.caps().head_chunk,
        }
    }

    /// What the next step's first micro-batch needs, made ready while this step runs; the others are while it does itself.
    fn send_ahead(&mut self, ahead: &Ahead, scalars: Scalars) -> Result<(), EngineError> {
        let Some(Ok(Prepared { packed })) = ahead else { return Ok(()) };
        let Some(Packed { dims, index }) = packed.first().cloned() else { return Ok(()) };
        let inputs = Inputs { dims, index, scalars };
        // Rows of text differ from step to step, and so do their counts: lowering them takes as long as a small step.
        self.backend.ready(&self.programs.train, &inputs)?;
        Ok(self.backend.send_ahead(&self.programs.train, &inputs)?)
    }

    /// Gradients of the summed losses of all micro-batches in the slab; returns where the sums of their losses will be. Does not wait.
    fn accumulate(&mut self, prepared: &Prepared, scalars: Scalars) -> Result<Vec<Note>, EngineError> {
        let none = Dims { tokens: 0, loss_rows: 0, seqs: 0, chunk: 1 };
        self.backend.submit(&self.programs.zero, Inputs { dims: none, index: Arc::default(), scalars })?;
        let mut losses = Vec::new();
        for Packed { dims, index } in prepared.packed.iter().cloned() {
            self.backend.submit(&self.programs.train, Inputs { dims, index, scalars })?;
            losses.push(self.backend.note(&self.programs.train, self.programs.train_loss)?);
            if losses.len().is_multiple_of(NOTES / 2) {
                self.backend.wait()?;
                settle(&mut losses, |note| self.backend.noted(note));
            }
        }
        Ok(losses)
    }

    fn sum(&self, losses: &[Note]) -> f64 {
        losses.iter().map(|&note| f64::from(self.backend.noted(note))).sum()
    }

    fn scalars(&self) -> Scalars {
        Scalars {
            inv_labels: 0.0,
            lora_scale: self.lora.as_ref().map_or(0.0, LoraConfig::scaling),
            step: self.step,
            seed: self.options.seed,
            drop_threshold: drop_threshold(self.options.dropout),
            optimizer: AdamW { lr: 0.0, beta1: 0.0, beta2: 0.0, eps: 0.0, weight_decay: 0.0, clip: 0.0 },
        }
    }
}

/// What was noted before a wait becomes values, since the next wait forgets it: a step of very many micro-batches has more
/// losses than a backend keeps.
fn settle(losses: &mut [Note], noted: impl Fn(Note) -> f32) {
    for loss in losses {
        *loss = Note::Value(noted(*loss));
    }
}

/// Drop probability in 1/65536.
fn drop_threshold(dropout: f32) -> u32 {
    (f64::from(dropout) * 65_536.0).round() as u32
}

fn check_options(options: &TrainOptions, adapter: Option<&Adapter>) -> Result<(), EngineError> {
    let mismatch = |message: &str| Err(EngineError::Mismatch(message.to_owned()));
    match (options.mode, adapter) {
        (Mode::Full, Some(_)) => mismatch("mode full trains the whole model: it takes no adapter"),
        (Mode::Lora | Mode::Qlora { .. }, None) => mismatch("modes lora and qlora need an adapter to train"),
        _ if !(0.0..1.0).contains(&options.dropout) || drop_threshold(options.dropout) > 65_535 => {
            mismatch("dropout must be at least 0 and below 1")
        }
        _ if options.max_tokens == 0 => mismatch("a micro-batch needs room for at least one token"),
        _ => Ok(()),
    }
}

fn parameters(config: &Config, lora: Option<&LoraConfig>, options: &TrainOptions) -> ModelParams {
    let full = options.mode == Mode::Full;
    ModelParams::new(setup::shape(config), lora.map(setup::lora_shape), full, !full, options.max_tokens)
}

/// Whether a GPU keeps the base in NF4, and with double quantisation or not.
fn packed(options: &TrainOptions) -> Option<bool> {
    match options.mode {
        Mode::Qlora { double_quant } if options.packed_base => Some(double_quant),
        _ => None,
    }
}

/// Scores of attention, which every thread of the CPU keeps for itself.
fn scores_bytes(options: &TrainOptions) -> u64 {
    if options.device != ComputeDevice::Cpu {
        return 0;
    }
    (2 * 64 * options.max_tokens * options.threads.max(1) * size_of::<f32>()) as u64
}

/// What a trainer runs.
struct Plans {
    train: TrainPlan,
    evaluate: TrainPlan,
    zero: Plan,
    update: Plan,
    norm: Mat,
}

impl Plans {
    fn new(params: &ModelParams, options: &TrainOptions, caps: &Caps) -> Self {
        let save = vec![options.save; params.shape.layers];
        let dropout = drop_threshold(options.dropout) > 0;
        let (tokens, chunk) = (options.max_tokens, caps.head_chunk);
        let train = train_plan_in_chunks(params, tokens, Some(&save), dropout, chunk);
        let evaluate = train_plan_in_chunks(params, tokens, None, false, chunk);
        let (zero, update, norm) = optimizer_plans();
        Self { train, evaluate, zero, update, norm }
    }
}

fn compile(
    backend: &mut AnyBackend,
    params: &ModelParams,
    options: &TrainOptions,
) -> Result<(Programs, u64), EngineError> {
    let caps = backend.caps();
    let mut peak = 0;
    let mut build = |plan: Plan| {
        let placement = place(&plan, backend.layout(&plan), &caps.claims);
        peak = peak.max(placement.peak as u64);
        backend.compile(plan, placement)
    };
    let Plans { train, evaluate, zero, update, norm } = Plans::new(params, options, &caps);
    let programs = Programs {
        train: build(train.plan)?,
        train_loss: train.loss_sum,
        evaluate: build(evaluate.plan)?,
        evaluate_loss: evaluate.loss_sum,
        zero: build(zero)?,
        update: build(update)?,
        norm,
    };
    Ok((programs, peak))
}

#[cfg(test)]
mod tests {
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
}
