//! Generation: prompts in, tokens out, many sequences at a time.
//!
//! A sequence's logits are the same bits whatever runs beside it: products don't depend on the number of rows, and
//! attention sums over the sequence's own keys in order. So the schedule (who waits, who is admitted) changes only speed.

use crate::EngineError;
use crate::any::{AnyBackend, AnyProgram, Purpose};
use crate::api::{AdamW, Base, Finish, GenRequest, GenResult, GenerateOptions, Sampling};
use crate::backend::{Backend, Inputs, Scalars};
use crate::place::place;
use crate::plan::{Dims, Input, Mat, ModelParams, generate_plan};
use crate::sample::choose;
use crate::setup;
use model::adapter::Adapter;
use model::config::Config;
use model::weights::Weights;
use std::collections::{BTreeMap, VecDeque};

/// Most tokens of one forward.
const STEP_TOKENS: usize = 256;
/// Most sequences at a time, and rows of logits of one forward.
const STEP_ROWS: usize = 64;

/// Runs a model forward and samples from it.
#[derive(Debug)]
pub struct Generator {
    options: GenerateOptions,
    params: ModelParams,
    lora_scale: f64,
    backend: AnyBackend,
    program: AnyProgram,
    logits: Mat,
    step_tokens: usize,
    step_rows: usize,
}

/// Tokens of one forward.
#[derive(Debug, Default)]
struct Feed {
    index: BTreeMap<Input, Vec<u32>>,
    tokens: usize,
    rows: usize,
}

impl Feed {
    /// Adds the token at `position` of the sequence whose cache starts at row `first`.
    fn push(&mut self, id: u32, position: usize, first: usize, wants_logits: bool) {
        let mut put = |input: Input, value: usize| self.index.entry(input).or_default().push(value as u32);
        put(Input::TokenIds, id as usize);
        put(Input::Positions, position);
        put(Input::CacheRow, first + position);
        put(Input::CacheSpan, first);
        put(Input::CacheSpan, position + 1);
        if wants_logits {
            put(Input::LossIndex, self.tokens);
            self.rows += 1;
        }
        self.tokens += 1;
    }
}

/// A sequence that holds a part of the cache.
#[derive(Debug)]
struct Running {
    request: usize,
    /// Rows of the cache.
    first: usize,
    rows: usize,
    /// Prompt and what was drawn.
    ids: Vec<u32>,
    /// How many of `ids` are in the cache.
    fed: usize,
}

impl Generator {
    /// # Errors
    /// When weights, adapter and options do not fit together.
    pub fn new(
        config: &Config,
        weights: &Weights,
        adapter: Option<&Adapter>,
        options: GenerateOptions,
    ) -> Result<Self, EngineError> {
        if options.max_tokens == 0 {
            return Err(EngineError::Mismatch("generation needs room for at least one token".to_owned()));
        }
        let lora = adapter.map(|adapter| setup::lora_shape(&adapter.config));
        let params = ModelParams::new(setup::shape(config), lora, false, false, options.max_tokens);
        let mut backend = AnyBackend::new(Purpose {
            device: options.device,
            precision: options.precision,
            threads: options.threads,
            packed: None,
            few_rows: true,
        })?;
        backend.allocate(&params)?;
        let quantise = match options.base {
            Base::Float32 => None,
            Base::Nf4 { double_quant } => Some(double_quant),
        };
        setup::store_base(&mut backend, &params, weights, quantise, options.threads)?;
        if let Some(adapter) = adapter {
            setup::store_adapter(&mut backend, &params, adapter)?;
        }
        let step_tokens = STEP_TOKENS.min(options.max_tokens);
        let step_rows = STEP_ROWS.min(options.max_tokens);
        let plan = generate_plan(&params, step_tokens, step_rows);
        let placement = place(&plan.plan, backend.layout(&plan.plan), &backend.caps().claims);
        let program = backend.compile(plan.plan, placement)?;
        let lora_scale = adapter.map_or(0.0, |adapter| adapter.config.scaling());
        let logits = plan.logits;
        Ok(Generator { options, params, lora_scale, backend, program, logits, step_tokens, step_rows })
    }

    /// Logits of every token, `T x vocab`, row-major.
    ///
    /// # Errors
    /// When an id is outside the vocabulary, or the sequence does not fit.
    pub fn logits(&mut self, ids: &[u32]) -> Result<Vec<f32>, EngineError> {
        self.check_ids(ids, "the sequence")?;
        if ids.len() > self.options.max_tokens {
            let what = "the sequence".to_owned();
            return Err(EngineError::TooLong { what, given: ids.len(), room: self.options.max_tokens });
        }
        let mut all = Vec::with_capacity(ids.len() * self.params.shape.vocab);
        for (n, chunk) in ids.chunks(self.step_rows).enumerate() {
            let mut feed = Feed::default();
            for (i, &id) in chunk.iter().enumerate() {
                feed.push(id, n * self.step_rows + i, 0, true);
            }
            all.extend(self.forward(feed)?);
        }
        Ok(all)
    }

    /// Completes every request. Calls `on_token(request, tokens so far)` after each token.
    ///
    /// # Errors
    /// When an id is outside the vocabulary, a request does not fit, logits are not numbers, or `on_token` said `false`.
    pub fn generate(
        &mut self,
        requests: &[GenRequest],
        on_token: &mut dyn FnMut(usize, usize) -> bool,
    ) -> Result<Vec<GenResult>, EngineError> {
        for (n, request) in requests.iter().enumerate() {
            self.check_request(n, request)?;
        }
        let mut results: Vec<Option<GenResult>> = requests
            .iter()
            .map(|r| (r.max_new_tokens == 0).then(|| GenResult { ids: Vec::new(), finish: Finish::Length }))
            .collect();
        let mut waiting: VecDeque<usize> = (0..requests.len()).filter(|&n| results[n].is_none()).collect();
        let mut running: Vec<Running> = Vec::new();
        while !(waiting.is_empty() && running.is_empty()) {
            self.admit(requests, &mut waiting, &mut running);
            let (feed, asking) = self.feed(&mut running);
            let logits = self.forward(feed)?;
            let vocab = self.params.shape.vocab;
            for (row, slot) in logits.chunks_exact(vocab.max(1)).zip(asking) {
                let sequence = &mut running[slot];
                let request = &requests[sequence.request];
                let position = sequence.ids.len() as u64;
                let (sampling, banned) = (&request.sampling, request.banned_from);
                let id = choose(row, sampling, request.sequence_id, position, banned)
                    .ok_or(EngineError::Logits { request: sequence.request, position })?;
                let stop = request.stop_ids.contains(&id);
                if !stop {
                    sequence.ids.push(id);
                }
                let done = sequence.ids.len() - request.prompt_ids.len();
                if stop || done == request.max_new_tokens {
                    let finish = if stop { Finish::Stop } else { Finish::Length };
                    let ids = sequence.ids.split_off(request.prompt_ids.len());
                    results[sequence.request] = Some(GenResult { ids, finish });
                }
                if !on_token(sequence.request, done) {
                    return Err(EngineError::Cancelled);
                }
            }
            running.retain(|sequence| results[sequence.request].is_none());
        }
        Ok(results.into_iter().flatten().collect())
    }

    /// Gives waiting requests, in order, a part of the cache while there is one.
    fn admit(&self, requests: &[GenRequest], waiting: &mut VecDeque<usize>, running: &mut Vec<Running>) {
        while running.len() < self.step_rows {
            let Some(&request) = waiting.front() else { return };
            let rows = room_for(&requests[request]);
            let Some(first) = free_rows(running, rows, self.options.max_tokens) else { return };
            waiting.pop_front();
            let ids = requests[request].prompt_ids.clone();
            running.push(Running { request, first, rows, ids, fed: 0 });
        }
    }

    /// The tokens of the next forward: one of every sequence that is past its prompt, then prompts while there is room.
    /// Also gives the slots whose logits come back, in order.
    fn feed(&self, running: &mut [Running]) -> (Feed, Vec<usize>) {
        let mut feed = Feed::default();
        let mut asking = Vec::new();
        for wants_decode in [true, false] {
            for (slot, sequence) in running.iter_mut().enumerate() {
                let left = sequence.ids.len() - sequence.fed;
                if (left == 1) != wants_decode {
                    continue;
                }
                let count = left.min(self.step_tokens - feed.tokens);
                for position in sequence.fed..sequence.fed + count {
                    let last = position + 1 == sequence.ids.len();
                    feed.push(sequence.ids[position], position, sequence.first, last);
                    if last {
                        asking.push(slot);
                    }
                }
                sequence.fed += count;
            }
        }
        (feed, asking)
    }

    fn forward(&mut self, feed: Feed) -> Result<Vec<f32>, EngineError> {
        let Feed { mut index, tokens, rows } = feed;
        index.entry(Input::LossIndex).or_default();
        let dims = Dims { tokens, loss_rows: rows, seqs: 0, chunk: self.step_rows };
        let optimizer = AdamW { lr: 0.0, beta1: 0.0, beta2: 0.0, eps: 0.0, weight_decay: 0.0, clip: 0.0 };
        let scalars = Scalars {
            inv_labels: 0.0,
            lora_scale: self.lora_scale,
            step: 0,
            seed: 0,
            drop_threshold: 0,
            optimizer,
        };
        self.backend.submit(&self.program, Inputs { dims, index, scalars })?;
        self.backend.wait()?;
        Ok(self.backend.peek(&self.program, self.logits, dims)?)
    }

    fn check_ids(&self, ids: &[u32], what: &str) -> Result<(), EngineError> {
        let vocab = self.params.shape.vocab;
        match ids.iter().find(|&&id| id as usize >= vocab) {
            Some(id) => {
                let message = format!("{what} has the id {id}, the vocabulary ends at {vocab}");
                Err(EngineError::Input(message))
            }
            None => Ok(()),
        }
    }

    fn check_request(&self, n: usize, request: &GenRequest) -> Result<(), EngineError> {
        let what = format!("request {n}");
        self.check_ids(&request.prompt_ids, &what)?;
        if request.prompt_ids.is_empty() {
            return Err(EngineError::Input(format!("{what} has an empty prompt")));
        }
        if request.banned_from == Some(0) {
            return Err(EngineError::Input(format!("{what} bans every token")));
        }
        if let Sampling::Sample { temperature, top_p, .. } = request.sampling
            && !(temperature.is_finite() && temperature >= 0.0 && top_p > 0.0)
        {
            let message = format!("{what}: temperature {temperature} or top_p {top_p} is out of range");
            return Err(EngineError::Input(message));
        }
        let given = room_for(request);
        if given > self.options.max_tokens {
            return Err(EngineError::TooLong { what, given, room: self.options.max_tokens });
        }
        Ok(())
    }
}

/// Rows of the cache that a request needs: its last token is drawn but never fed.
fn room_for(request: &GenRequest) -> usize {
    (request.prompt_ids.len() + request.max_new_tokens.saturating_sub(1)).max(1)
}

/// The first free run of `rows` rows.
fn free_rows(running: &[Running], rows: usize, capacity: usize) -> Option<usize> {
    let mut taken: Vec<(usize, usize)> = running.iter().map(|r| (r.first, r.rows)).collect();
    taken.sort_unstable();
    let mut first = 0;
    for (start, len) in taken {
        if start - first >= rows {
            return Some(first);
        }
        first = start + len;
    }
    (first + rows <= capacity).then_some(first)
}
