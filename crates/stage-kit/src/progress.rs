//! Progress of long work: an event for the runner, a bar or plain lines for a person.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use record::event::EventKind;

use crate::Context;

const EVENT_INTERVAL: Duration = Duration::from_millis(200);
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// Counts done work; safe to share between threads. Dropped: the last state is sent.
#[derive(Debug)]
pub struct Progress<'c> {
    context: &'c Context,
    unit: String,
    total: Option<u64>,
    done: AtomicU64,
    /// Done before this process began: no part of its rate.
    before: AtomicU64,
    started: Instant,
    last: Mutex<Last>,
    bar: Option<ProgressBar>,
}

#[derive(Debug)]
struct Last {
    event: Option<Instant>,
    line: Instant,
}

impl<'c> Progress<'c> {
    pub(crate) fn new(context: &'c Context, unit: &str, total: Option<u64>) -> Self {
        let bar = context.shows_bar().then(|| bar(unit, total));
        let now = Instant::now();
        let last = Mutex::new(Last { event: None, line: now });
        Self {
            context,
            unit: unit.to_owned(),
            total,
            done: AtomicU64::new(0),
            before: AtomicU64::new(0),
            started: now,
            last,
            bar,
        }
    }

    pub fn inc(&self, n: u64) {
        let done = self.done.fetch_add(n, Ordering::Relaxed) + n;
        self.show(done);
    }

    pub fn set(&self, done: u64) {
        self.done.store(done, Ordering::Relaxed);
        self.show(done);
    }

    /// Starts at what an earlier, interrupted process has done.
    pub fn resume_at(&self, done: u64) {
        self.before.store(done, Ordering::Relaxed);
        if let Some(bar) = &self.bar {
            bar.set_position(done);
            bar.reset_eta();
        }
        self.set(done);
    }

    fn show(&self, done: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(done);
        }
        let Ok(mut last) = self.last.try_lock() else { return };
        let now = Instant::now();
        if last.event.is_none_or(|at| now - at >= EVENT_INTERVAL) {
            last.event = Some(now);
            self.send(done);
        }
        if self.bar.is_none() && self.context.by_hand() && now - last.line >= LINE_INTERVAL {
            last.line = now;
            self.context.say(&self.line(done));
        }
    }

    fn line(&self, done: u64) -> String {
        let seconds = self.started.elapsed().as_secs_f64();
        let own = done.saturating_sub(self.before.load(Ordering::Relaxed));
        let rate = own as f64 / seconds.max(1e-9);
        match self.total {
            Some(total) if own > 0 => {
                let eta = (total.saturating_sub(done)) as f64 / rate;
                format!("{done}/{total} {} ({rate:.1}/s, {eta:.0} s left)", self.unit)
            }
            _ => format!("{done} {} ({rate:.1}/s)", self.unit),
        }
    }

    fn send(&self, done: u64) {
        self.context.event(EventKind::Progress { done, total: self.total, unit: self.unit.clone() });
    }
}

impl Drop for Progress<'_> {
    fn drop(&mut self) {
        self.send(self.done.load(Ordering::Relaxed));
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn bar(unit: &str, total: Option<u64>) -> ProgressBar {
    let template = match total {
        Some(_) => "{bar:30} {pos}/{len} {msg} {per_sec} eta {eta}",
        None => "{spinner} {pos} {msg} {per_sec}",
    };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = total.map_or_else(ProgressBar::new_spinner, ProgressBar::new).with_style(style);
    bar.set_message(unit.to_owned());
    bar
}
