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

/// The first pass of a step, started while the step before it ended: the device goes on while its user looks at that one.
#[derive(Debug)]
struct Begun {
    step: u64,
    first: Packed,
    loss: Note,
}

impl Begun {
    fn is_first_of(&self, step: u64, now: &Prepared) -> bool {
        self.step == step && now.packed.first().is_some_and(|first| first.is_same(&self.first))
    }
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
    begun: Option<Begun>,
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
        let (config, step, unsettled, begun) = (config.clone(), 0, false, None);
        Ok(Trainer { options, config, lora, params, backend, programs, peak_bytes, step, unsettled, begun })
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

    /// As [`Trainer::step`]; while the device is at work, `next` prepares the step after this one, whose first pass is then on
    /// its way before this one has ended.
    ///
    /// # Errors
    /// As [`Trainer::step`], but for those of `next`, which are returned with what it returned. Where the device refuses the
    /// next step's first pass, its error stands for what `next` returned: that step is to be prepared and tried again.
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
        let inputs = without_rows(scalars);
        self.backend.ready(&self.programs.update, &inputs)?;
        // The update does nothing when the norm is not finite, as it is whenever a loss is not.
        self.unsettled = true;
        self.backend.submit(&self.programs.update, inputs)?;
        let norm = self.backend.note(&self.programs.update, self.programs.norm)?;
        let ahead = next(self.packer());
        // The update is on its way: whatever goes wrong with the step after it must not hide that this one counts.
        let (begun, ahead) = match self.begin(&ahead, scalars) {
            Ok(begun) => (begun, ahead),
            Err(e) => (None, Some(Err(e))),
        };
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
        // What fails here comes up again when that step does.
        self.begun = begun.and_then(|(step, first)| {
            let loss = self.backend.note(&self.programs.train, self.programs.train_loss).ok()?;
            Some(Begun { step, first, loss })
        });
        Ok((StepOutcome { loss: sum / label_tokens as f64, grad_norm, label_tokens, tokens }, ahead))
    }

    /// Sum of the token losses, without dropout and without a gradient.
    ///
    /// # Errors
    /// When the micro-batch does not fit.
    pub fn evaluate(&mut self, micro: &MicroBatch) -> Result<LossSum, EngineError> {
        let losses = self.evaluate_all(std::slice::from_ref(micro))?;
        losses.into_iter().next().ok_or_else(|| EngineError::Mismatch("a loss is missing".to_owned()))
    }

    /// [`Trainer::evaluate`] of each of them: the device goes from one to the next without waiting for anybody.
    ///
    /// # Errors
    /// When one of them does not fit.
    pub fn evaluate_all(&mut self, micro_batches: &[MicroBatch]) -> Result<Vec<LossSum>, EngineError> {
        self.settled()?;
        self.finish_begun()?;
        let packer = self.packer();
        let packed: Vec<Packed> =
            micro_batches.iter().map(|micro| packer.pack(micro)).collect::<Result<_, _>>()?;
        let label_tokens: Vec<u64> = packed.iter().map(Packed::label_tokens).collect();
        let (scalars, mut losses) = (self.scalars(), Vec::new());
        for packed in &packed {
            self.backend.submit(&self.programs.evaluate, inputs_of(packed, scalars))?;
            losses.push(self.backend.note(&self.programs.evaluate, self.programs.evaluate_loss)?);
            self.settle_when_many(&mut losses)?;
        }
        self.backend.wait()?;
        settle(&mut losses, |note| self.backend.noted(note));
        let sums = losses.into_iter().zip(label_tokens);
        Ok(sums.map(|(note, label_tokens)| LossSum { sum: self.sum(&[note]), label_tokens }).collect())
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
        let inputs = inputs_of(&self.packer().pack(micro)?, self.scalars());
        let none = without_rows(inputs.scalars);
        self.begun = None;
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
        (self.unsettled, self.begun) = (true, None);
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

    /// Starts the first pass of the next step behind this one's update, on a backend that can: its number and rows then.
    fn begin(&mut self, ahead: &Ahead, scalars: Scalars) -> Result<Option<(u64, Packed)>, EngineError> {
        let Some(Ok(Prepared { packed })) = ahead else { return Ok(None) };
        let Some(first) = packed.first().cloned() else { return Ok(None) };
        let scalars = Scalars { step: self.step + 1, ..scalars };
        let inputs = inputs_of(&first, scalars);
        self.backend.ready(&self.programs.train, &inputs)?;
        if !self.backend.submit_ahead(&self.programs.zero, without_rows(scalars))? {
            return Ok(None);
        }
        self.backend.submit_ahead(&self.programs.train, inputs)?;
        Ok(Some((scalars.step, first)))
    }

    /// Before anything else is run: what was begun of the next step stays, its loss as a value.
    fn finish_begun(&mut self) -> Result<(), EngineError> {
        if let Some(begun) = &mut self.begun {
            self.backend.wait()?;
            settle(std::slice::from_mut(&mut begun.loss), |note| self.backend.noted(note));
        }
        Ok(())
    }

    /// Gradients of the summed losses of all micro-batches in the slab, with what was begun of them; returns where the sums of
    /// their losses will be. Waits only where there are more of them than a backend keeps.
    fn accumulate(&mut self, prepared: &Prepared, scalars: Scalars) -> Result<Vec<Note>, EngineError> {
        let begun = self.begun.take().filter(|begun| begun.is_first_of(scalars.step, prepared));
        let mut losses: Vec<Note> = begun.into_iter().map(|begun| begun.loss).collect();
        if losses.is_empty() {
            self.backend.submit(&self.programs.zero, without_rows(scalars))?;
        }
        for packed in &prepared.packed[losses.len()..] {
            self.backend.submit(&self.programs.train, inputs_of(packed, scalars))?;
            losses.push(self.backend.note(&self.programs.train, self.programs.train_loss)?);
            self.settle_when_many(&mut losses)?;
        }
        Ok(losses)
    }

    /// A backend keeps some notes: those of very many micro-batches are read on the way.
    fn settle_when_many(&mut self, losses: &mut [Note]) -> Result<(), EngineError> {
        if losses.len().is_multiple_of(NOTES / 2) {
            self.backend.wait()?;
            settle(losses, |note| self.backend.noted(note));
        }
        Ok(())
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

fn inputs_of(packed: &Packed, scalars: Scalars) -> Inputs {
    Inputs { dims: packed.dims, index: packed.index.clone(), scalars }
}

/// The inputs of a program over the slabs.
fn without_rows(scalars: Scalars) -> Inputs {
    let dims = Dims { tokens: 0, loss_rows: 0, seqs: 0, chunk: 1 };
    Inputs { dims, index: Arc::default(), scalars }
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
mod tests;
