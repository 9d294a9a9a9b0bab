//! The run loop: what is ready is looked up, what is a miss runs as resources allow, producers before consumers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use record::experiment::NodeState;

use super::node::{Executor, Job, JobEnd};
use super::process::Orphanage;
use super::resources::Grant;
use super::{Cancellation, Guard, Happening, NodeFailure, Pool};
use crate::cache::ActionEntry;
use crate::experiment::Folder;
use crate::resolve::{Outlook, Workspace};

const BEAT: Duration = Duration::from_millis(50);

/// What to run and how.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// Node indices that may execute.
    pub selected: BTreeSet<usize>,
    /// Nodes that only serve their cached outputs to the selected ones.
    pub served: BTreeSet<usize>,
    pub forced: BTreeSet<usize>,
    pub keep_going: bool,
}

/// How a node ended.
#[derive(Debug, Clone)]
pub struct NodeResult {
    pub state: NodeState,
    pub key: Option<String>,
    pub wall_s: Option<f64>,
    pub entry: Option<ActionEntry>,
    pub message: Option<String>,
    pub failure: Option<NodeFailure>,
}

/// By node index.
#[derive(Debug)]
pub struct RunResult {
    pub nodes: BTreeMap<usize, NodeResult>,
    pub interrupted: bool,
}

impl RunResult {
    pub fn failed(&self) -> bool {
        self.nodes.values().any(|n| n.state == NodeState::Failed)
    }
}

struct Running {
    grant: Grant,
    started: Instant,
}

struct Scheduler<'a> {
    workspace: &'a Workspace,
    folder: &'a Folder,
    options: &'a RunOptions,
    cancellation: &'a Cancellation,
    pool: Pool,
    nodes: BTreeMap<usize, NodeResult>,
    waiting: BTreeMap<usize, Job>,
    running: BTreeMap<usize, Running>,
    report: &'a mut dyn FnMut(&Happening),
    /// Told after every change of a node's state, and whether it should be seen at once.
    record: &'a mut dyn FnMut(&BTreeMap<usize, NodeResult>, bool),
}

/// From the threads that execute nodes.
pub(crate) enum Message {
    Happened(Happening),
    Ended(usize, JobEnd),
}

/// Runs the selected nodes. Every selected or served node has a result afterwards.
#[expect(clippy::too_many_arguments, reason = "the seams of the run, each used once")]
pub fn run(
    workspace: &Workspace,
    folder: &Folder,
    options: &RunOptions,
    pool: Pool,
    cancellation: &Cancellation,
    exe: Option<&std::path::Path>,
    report: &mut dyn FnMut(&Happening),
    record: &mut dyn FnMut(&BTreeMap<usize, NodeResult>, bool),
) -> RunResult {
    let pending = NodeResult {
        state: NodeState::Pending,
        key: None,
        wall_s: None,
        entry: None,
        message: None,
        failure: None,
    };
    let nodes = options.selected.union(&options.served).map(|i| (*i, pending.clone())).collect();
    let mut scheduler = Scheduler {
        workspace,
        folder,
        options,
        cancellation,
        pool,
        nodes,
        waiting: BTreeMap::new(),
        running: BTreeMap::new(),
        report,
        record,
    };
    scheduler.run(exe);
    let interrupted = cancellation.asked();
    RunResult { nodes: scheduler.nodes, interrupted }
}

impl Scheduler<'_> {
    fn run(&mut self, exe: Option<&std::path::Path>) {
        let (send, receive) = channel::<Message>();
        // A run of hits alone pays for neither.
        let guard_slot: OnceLock<(Guard, Orphanage)> = OnceLock::new();
        let (workspace, folder, cancellation) = (self.workspace, self.folder, self.cancellation);
        std::thread::scope(|scope| {
            loop {
                self.skip_or_ready();
                if !self.cancellation.asked() {
                    for (node, job) in self.startable() {
                        let (guard, _) = guard_slot
                            .get_or_init(|| (exe.map(Guard::start).unwrap_or_default(), Orphanage::open()));
                        let entries = self.entries_for(node);
                        let send = send.clone();
                        scope.spawn(move || {
                            execute(workspace, folder, cancellation, guard, entries, &job, &send)
                        });
                    }
                }
                if self.running.is_empty() {
                    break;
                }
                match receive.recv_timeout(BEAT) {
                    Ok(Message::Happened(happening)) => (self.report)(&happening),
                    Ok(Message::Ended(node, end)) => self.ended(node, end),
                    Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                        (self.record)(&self.nodes, false);
                    }
                }
            }
        });
        if let Some((_guard, orphanage)) = guard_slot.into_inner() {
            orphanage.close();
        }
        self.close();
    }

    /// Looks up every node whose producers are finished; hits may make further nodes ready.
    fn skip_or_ready(&mut self) {
        let order: Vec<usize> = self.nodes.keys().copied().collect();
        for i in order {
            let untouched = self.nodes[&i].state == NodeState::Pending && !self.waiting.contains_key(&i);
            if !untouched || self.cancellation.asked() {
                continue;
            }
            let producers = &self.workspace.graph.nodes[i].producers;
            if let Some(bad) = producers.iter().find(|p| self.is_lost(**p)) {
                let because = self.workspace.graph.nodes[*bad].name.clone();
                self.set(i, NodeState::Skipped, |n| n.message = Some(format!("needs {because}")));
                let node = self.workspace.graph.nodes[i].name.clone();
                (self.report)(&Happening::Skipped { node, because });
                continue;
            }
            if producers.iter().all(|p| self.nodes.get(p).is_some_and(|n| n.entry.is_some())) {
                self.look_up(i);
            }
        }
    }

    fn is_lost(&self, producer: usize) -> bool {
        let lost = |s| matches!(s, NodeState::Failed | NodeState::Skipped | NodeState::Interrupted);
        self.nodes.get(&producer).is_none_or(|n| lost(n.state))
    }

    fn look_up(&mut self, i: usize) {
        let node = &self.workspace.graph.nodes[i];
        let known = |p: usize| self.nodes.get(&p).and_then(|n| n.entry.as_ref());
        let Ok(inputs) = self.workspace.input_digests(i, &known) else { return };
        let components = self.workspace.components(node, inputs);
        let forced = self.options.forced.contains(&i);
        let outlook = if forced {
            Outlook::Miss { key: components.key(), reasons: vec!["forced".to_owned()] }
        } else {
            self.workspace.look_up(&node.name, &components)
        };
        for text in self.workspace.store.take_quarantined() {
            (self.report)(&Happening::Warning { node: Some(node.name.clone()), text });
        }
        match outlook {
            Outlook::Hit(entry) => self.hit(i, *entry),
            Outlook::Miss { reasons, .. } if !self.options.selected.contains(&i) => {
                let message = format!("not selected, and its result is not cached ({})", reasons.join("; "));
                self.fail(i, message, format!("run it first: --until {}", node.name));
            }
            Outlook::Miss { key, reasons } => {
                let stage = &self.workspace.pipeline.stages[&node.stage];
                if !self.pool.has_gpus(stage.resources.gpus) {
                    self.no_gpu(i, stage.resources.gpus);
                    return;
                }
                self.set(i, NodeState::Pending, |n| {
                    n.key = Some(key.clone());
                    n.message = Some(reasons.join("; "));
                });
                self.waiting.insert(i, Job { node: i, components, key, forced, gpus: Vec::new() });
            }
            Outlook::Waits { .. } | Outlook::NotBuilt { .. } => {}
        }
    }

    fn no_gpu(&mut self, i: usize, wanted: u32) {
        let message = format!("asks for {wanted} GPU(s), and this machine has fewer");
        let next = "run on a machine with one (`runner doctor` tells what is missing), use a profile that needs none \
                    (--profile embedded), or lower resources.gpus";
        self.fail(i, message, next.to_owned());
    }

    fn hit(&mut self, i: usize, entry: ActionEntry) {
        let name = &self.workspace.graph.nodes[i].name;
        if let Err(e) = self.folder.place_hit(&self.workspace.store, name, &entry) {
            let (message, next) = e.messages().into_iter().next().unwrap_or_default();
            self.fail(i, message, next.unwrap_or_default());
            return;
        }
        self.workspace.store.note_history(name, &entry.key);
        (self.report)(&Happening::Hit { node: name.clone(), key: entry.key.clone(), saved_s: entry.wall_s });
        self.set(i, NodeState::Hit, |n| {
            n.key = Some(entry.key.clone());
            n.message = None;
            n.entry = Some(entry);
        });
    }

    fn fail(&mut self, i: usize, message: String, next: String) {
        let failure = NodeFailure { message, log: None, tail: Vec::new(), next };
        self.failed(i, failure);
    }

    fn failed(&mut self, i: usize, failure: NodeFailure) {
        let node = self.workspace.graph.nodes[i].name.clone();
        (self.report)(&Happening::Failed { node, failure: failure.clone() });
        self.set(i, NodeState::Failed, |n| {
            n.message = Some(failure.message.clone());
            n.failure = Some(failure);
        });
    }

    fn set(&mut self, i: usize, state: NodeState, change: impl FnOnce(&mut NodeResult)) {
        if let Some(node) = self.nodes.get_mut(&i) {
            node.state = state;
            change(node);
        }
        (self.record)(
            &self.nodes,
            !matches!(state, NodeState::Pending | NodeState::Hit | NodeState::Skipped),
        );
    }

    /// Takes from the waiting what fits now, in order.
    fn startable(&mut self) -> Vec<(usize, Job)> {
        let mut started = Vec::new();
        if !self.options.keep_going && self.nodes.values().any(|n| n.state == NodeState::Failed) {
            return started;
        }
        let order: Vec<usize> = self.waiting.keys().copied().collect();
        for i in order {
            let node = &self.workspace.graph.nodes[i];
            let resources = self.workspace.pipeline.stages[&node.stage].resources;
            let Some(grant) = self.pool.take(&resources) else { continue };
            let Some(mut job) = self.waiting.remove(&i) else { continue };
            job.gpus = grant.gpus.clone();
            let reasons = self.nodes[&i].message.clone().into_iter().collect();
            (self.report)(&Happening::Start { node: node.name.clone(), key: job.key.clone(), reasons });
            self.set(i, NodeState::Running, |_| {});
            self.running.insert(i, Running { grant, started: Instant::now() });
            started.push((i, job));
        }
        started
    }

    fn entries_for(&self, node: usize) -> BTreeMap<usize, ActionEntry> {
        let producers = self.workspace.graph.nodes[node].producers.iter();
        producers.filter_map(|p| Some((*p, self.nodes.get(p)?.entry.clone()?))).collect()
    }

    fn ended(&mut self, i: usize, end: JobEnd) {
        let Some(running) = self.running.remove(&i) else { return };
        self.pool.give_back(running.grant);
        let wall_s = running.started.elapsed().as_secs_f64();
        let node = self.workspace.graph.nodes[i].name.clone();
        for text in self.workspace.store.take_quarantined() {
            (self.report)(&Happening::Warning { node: Some(node.clone()), text });
        }
        match end {
            JobEnd::Hit(entry) => self.hit(i, *entry),
            JobEnd::Done(entry) => {
                (self.report)(&Happening::Done { node, wall_s });
                self.set(i, NodeState::Done, |n| {
                    n.wall_s = Some(wall_s);
                    n.entry = Some(*entry);
                });
            }
            JobEnd::Failed(failure) => {
                self.set(i, NodeState::Running, |n| n.wall_s = Some(wall_s));
                self.failed(i, failure);
            }
            JobEnd::Interrupted => {
                (self.report)(&Happening::Interrupted { node });
                self.set(i, NodeState::Interrupted, |n| n.wall_s = Some(wall_s));
            }
        }
    }

    /// What never started is skipped or interrupted.
    fn close(&mut self) {
        let state = if self.cancellation.asked() { NodeState::Interrupted } else { NodeState::Skipped };
        for node in self.nodes.values_mut().filter(|n| n.state == NodeState::Pending) {
            node.state = state;
        }
        (self.record)(&self.nodes, true);
    }
}

fn execute(
    workspace: &Workspace,
    folder: &Folder,
    cancellation: &Cancellation,
    guard: &Guard,
    entries: BTreeMap<usize, ActionEntry>,
    job: &Job,
    send: &Sender<Message>,
) {
    let executor = Executor { workspace, folder, cancellation, guard, entries, send: send.clone() };
    // A fault of this program must not leave the run waiting for a thread that is gone.
    let end = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| executor.run(job)));
    let end = end.unwrap_or_else(|_| {
        let message = "a fault of the runner itself while it executed this stage".to_owned();
        let next = "please report it with the command and the text above".to_owned();
        JobEnd::Failed(NodeFailure { message, log: None, tail: Vec::new(), next })
    });
    let _ = send.send(Message::Ended(job.node, end));
}
