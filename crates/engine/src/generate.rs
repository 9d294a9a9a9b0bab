//! Generation: prompts in, tokens out, many sequences at a time.
//!
//! A sequence's logits are the same bits whatever runs beside it: products don't depend on the number of rows, and
//! attention sums over the sequence's own keys in order. So the schedule (who waits, who is admitted) changes only speed.

use crate::EngineError;
use crate::any::{AnyBackend, AnyProgram, Purpose};
use crate::api::{AdamW, Base, Finish, GenEvent, GenRequest, GenResult, GenerateOptions, Sampling};
use crate::backend::{Backend, CacheCopy, Inputs, Scalars};
use crate::cuda::WorkTime;
use crate::place::place;
use crate::plan::{Dims, Input, Mat, ModelParams, generate_plan};
use crate::sample::draw;
use crate::setup;
use kernels::sample::Draw;
use model::adapter::Adapter;
use model::config::Config;
use model::weights::Weights;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// Rows of logits of one forward, which is also the most sequences at a time: from, to.
const STEP_ROWS: [usize; 2] = [64, 256];
/// Tokens of one forward for each row of logits: what decoding leaves is there for prompts.
const TOKENS_PER_ROW: usize = 4;

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
    computed: u64,
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

/// What the next forward is made of.
#[derive(Debug, Default)]
struct Next {
    feed: Feed,
    /// Slots whose logits come back, in order.
    asking: Vec<usize>,
    /// What is copied inside of the cache before it.
    copies: Vec<CacheCopy>,
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
    /// A request that was running when this one started, and how many tokens both begin with.
    like: Option<(usize, usize)>,
    done: bool,
}

impl Running {
    /// Adds a token that was drawn, unless it stops the sequence; says how it ended when it did.
    fn take(&mut self, id: u32, request: &GenRequest) -> Option<Finish> {
        let stop = request.stop_ids.contains(&id);
        if !stop {
            self.ids.push(id);
        }
        let full = self.ids.len() - request.prompt_ids.len() == request.max_new_tokens;
        self.done = stop || full;
        self.done.then_some(if stop { Finish::Stop } else { Finish::Length })
    }
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
        if options.max_tokens == 0 || options.max_length == 0 {
            return Err(EngineError::Mismatch("generation needs room for at least one token".to_owned()));
        }
        if config.vocab_size > kernels::sample::MOST_LOGITS {
            let most = kernels::sample::MOST_LOGITS;
            let message = format!("a vocabulary of {} tokens: at most {most}", config.vocab_size);
            return Err(EngineError::Mismatch(message));
        }
        setup::check_rank(options.device, adapter)?;
        let lora = adapter.map(|adapter| setup::lora_shape(&adapter.config));
        let params = ModelParams::new(setup::shape(config), lora, false, false, options.max_length);
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
        let step_rows = options.max_sequences.clamp(STEP_ROWS[0], STEP_ROWS[1]);
        let step_tokens = (TOKENS_PER_ROW * step_rows).min(options.max_tokens);
        let step_rows = step_rows.min(options.max_tokens);
        let plan = generate_plan(&params, options.max_tokens, step_tokens, step_rows);
        let placement = place(&plan.plan, backend.layout(&plan.plan), &backend.caps().claims);
        let program = backend.compile(plan.plan, placement)?;
        let lora_scale = adapter.map_or(0.0, |adapter| adapter.config.scaling());
        let logits = plan.logits;
        Ok(Generator {
            options,
            params,
            lora_scale,
            backend,
            program,
            logits,
            step_tokens,
            step_rows,
            computed: 0,
        })
    }

    /// Logits of every token, `T x vocab`, row-major.
    ///
    /// # Errors
    /// When an id is outside the vocabulary, or the sequence does not fit.
    pub fn logits(&mut self, ids: &[u32]) -> Result<Vec<f32>, EngineError> {
        self.check_ids(ids, "the sequence")?;
        if ids.len() > self.room() {
            let what = "the sequence".to_owned();
            return Err(EngineError::TooLong { what, given: ids.len(), room: self.room() });
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

    /// Tokens that went through the model so far. What a prompt shares with a running sequence does not.
    #[must_use]
    pub fn computed_tokens(&self) -> u64 {
        self.computed
    }

    /// Tokens that a sequence may have in the cache.
    fn room(&self) -> usize {
        self.options.max_tokens.min(self.options.max_length)
    }

    /// Completes every request. Calls `on_token(request, tokens so far)` after each token.
    ///
    /// # Errors
    /// As [`Self::generate_each`].
    pub fn generate(
        &mut self,
        requests: &[GenRequest],
        on_token: &mut dyn FnMut(usize, usize) -> bool,
    ) -> Result<Vec<GenResult>, EngineError> {
        let mut results: Vec<Option<GenResult>> = requests.iter().map(|_| None).collect();
        self.generate_each(requests, &mut |request, event| match event {
            GenEvent::Started => true,
            GenEvent::Token(done) => on_token(request, done),
            GenEvent::Finished(result) => {
                results[request] = Some(result);
                true
            }
        })?;
        Ok(results.into_iter().flatten().collect())
    }

    /// Completes every request, so many at a time as fit; the next in order starts where one ends. Says what happens as it
    /// does, with the request's number; `false` ends it all.
    ///
    /// # Errors
    /// When an id is outside the vocabulary, a request does not fit, logits are not numbers, or `on_event` said `false`.
    pub fn generate_each(
        &mut self,
        requests: &[GenRequest],
        on_event: &mut dyn FnMut(usize, GenEvent) -> bool,
    ) -> Result<(), EngineError> {
        for (n, request) in requests.iter().enumerate() {
            self.check_request(n, request)?;
        }
        let mut say = |request, event| on_event(request, event).then_some(()).ok_or(EngineError::Cancelled);
        let (mut waiting, none) =
            (0..requests.len()).partition::<VecDeque<usize>, _>(|&n| requests[n].max_new_tokens > 0);
        for n in none {
            say(n, GenEvent::Finished(GenResult { ids: Vec::new(), finish: Finish::Length }))?;
        }
        let mut running: Vec<Running> = Vec::new();
        while !(waiting.is_empty() && running.is_empty()) {
            for started in self.admit(requests, &mut waiting, &mut running) {
                say(started, GenEvent::Started)?;
            }
            let Next { feed, asking, copies } = self.feed(&mut running);
            self.backend.copy_cache(&copies)?;
            let ids = self.step(requests, &running, feed, &asking)?;
            for (id, &slot) in ids.into_iter().zip(&asking) {
                let sequence = &mut running[slot];
                let (n, position) = (sequence.request, sequence.ids.len() as u64);
                let id = id.ok_or(EngineError::Logits { request: n, position })?;
                let done = sequence.take(id, &requests[n]);
                say(n, GenEvent::Token(sequence.ids.len() - requests[n].prompt_ids.len()))?;
                if let Some(finish) = done {
                    let ids = sequence.ids.split_off(requests[n].prompt_ids.len());
                    say(n, GenEvent::Finished(GenResult { ids, finish }))?;
                }
            }
            running.retain(|sequence| !sequence.done);
        }
        Ok(())
    }

    /// One forward, and the tokens of the slots that ask for one.
    fn step(
        &mut self,
        requests: &[GenRequest],
        running: &[Running],
        feed: Feed,
        asking: &[usize],
    ) -> Result<Vec<Option<u32>>, EngineError> {
        let vocab = self.params.shape.vocab as u32;
        let draws: Vec<Draw> = asking
            .iter()
            .map(|&slot| {
                let sequence = &running[slot];
                let request = &requests[sequence.request];
                let allowed = request.banned_from.map_or(vocab, |id| id.min(vocab));
                draw(&request.sampling, request.sequence_id, sequence.ids.len() as u64, allowed)
            })
            .collect();
        let inputs = self.inputs(feed);
        self.computed += inputs.dims.tokens as u64;
        self.backend.submit(&self.program, inputs)?;
        Ok(self.backend.choose(&self.program, self.logits, &draws)?)
    }

    /// Gives waiting requests, in order, a part of the cache while there is one. Returns which got one.
    fn admit(
        &self,
        requests: &[GenRequest],
        waiting: &mut VecDeque<usize>,
        running: &mut Vec<Running>,
    ) -> Vec<usize> {
        let mut started = Vec::new();
        while running.len() < self.options.max_sequences.clamp(1, self.step_rows) {
            let Some(&request) = waiting.front() else { break };
            let rows = room_for(&requests[request]);
            let Some(first) = free_rows(running, rows, self.options.max_tokens) else { break };
            waiting.pop_front();
            let ids = requests[request].prompt_ids.clone();
            let like = most_alike(running, &ids);
            running.push(Running { request, first, rows, ids, fed: 0, like, done: false });
            started.push(request);
        }
        started
    }

    /// The next forward: one token of every sequence that is past its prompt, then prompts while there is room. What a
    /// prompt shares with a running sequence is not computed but copied, once it is there.
    fn feed(&self, running: &mut [Running]) -> Next {
        let mut next = Next::default();
        let known: BTreeMap<usize, (usize, usize)> =
            running.iter().map(|sequence| (sequence.request, (sequence.first, sequence.fed))).collect();
        for wants_decode in [true, false] {
            for (slot, sequence) in running.iter_mut().enumerate() {
                if (sequence.ids.len() - sequence.fed == 1) != wants_decode {
                    continue;
                }
                let shared =
                    sequence.like.and_then(|(request, common)| Some((*known.get(&request)?, common)));
                if let Some(((from, fed), common)) = shared.filter(|&(_, common)| common > sequence.fed) {
                    if fed < common {
                        continue;
                    }
                    let (done, rows) = (sequence.fed, common - sequence.fed);
                    next.copies.push(CacheCopy { from: from + done, to: sequence.first + done, rows });
                    sequence.fed = common;
                }
                next.add(slot, sequence, self.step_tokens);
            }
        }
        next
    }

    fn inputs(&self, feed: Feed) -> Inputs {
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
        Inputs { dims, index: Arc::new(index), scalars }
    }

    fn forward(&mut self, feed: Feed) -> Result<Vec<f32>, EngineError> {
        let inputs = self.inputs(feed);
        let dims = inputs.dims;
        self.backend.submit(&self.program, inputs)?;
        self.backend.wait()?;
        Ok(self.backend.peek(&self.program, self.logits, dims)?)
    }

    /// Device time by kind of work in a forward of `sequences` sequences that each feed one token and have seen `seen`; empty
    /// on the CPU. What the cache holds is lost.
    ///
    /// # Errors
    /// When they do not fit, or the device fails.
    pub fn profile(&mut self, sequences: usize, seen: usize) -> Result<Vec<WorkTime>, EngineError> {
        let room = self.step_rows.min(self.options.max_tokens / (seen + 1));
        if sequences > room {
            let what = "the number of sequences".to_owned();
            return Err(EngineError::TooLong { what, given: sequences, room });
        }
        let mut feed = Feed::default();
        for sequence in 0..sequences {
            feed.push(0, seen, sequence * (seen + 1), true);
        }
        let inputs = self.inputs(feed);
        Ok(self.backend.profile(&self.program, &inputs)?)
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
        if given > self.room() {
            return Err(EngineError::TooLong { what, given, room: self.room() });
        }
        Ok(())
    }
}

impl Next {
    /// Adds what is left of a sequence, while there is room.
    fn add(&mut self, slot: usize, sequence: &mut Running, room: usize) {
        let left = sequence.ids.len() - sequence.fed;
        let count = left.min(room - self.feed.tokens);
        for position in sequence.fed..sequence.fed + count {
            let last = position + 1 == sequence.ids.len();
            self.feed.push(sequence.ids[position], position, sequence.first, last);
            if last {
                self.asking.push(slot);
            }
        }
        sequence.fed += count;
    }
}

/// Fewest tokens that are worth a copy.
const LEAST_SHARED: usize = 16;

/// The running request whose sequence begins like these ids for longest, and for how long: at most all but the last, which
/// is fed for its logits.
fn most_alike(running: &[Running], ids: &[u32]) -> Option<(usize, usize)> {
    let ids = &ids[..ids.len() - 1];
    let common = |other: &Running| other.ids.iter().zip(ids).take_while(|(a, b)| a == b).count();
    let all = running.iter().map(|other| (common(other), std::cmp::Reverse(other.request)));
    all.max().filter(|&(common, _)| common >= LEAST_SHARED).map(|(common, request)| (request.0, common))
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
