//! SIGINT, SIGTERM and SIGHUP, counted for the whole process.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use record::exit::ExitCode;

use crate::error::RunnerError;

static COUNT: AtomicUsize = AtomicUsize::new(0);
static ATTENDED: AtomicBool = AtomicBool::new(false);
/// How long a command that attends to nothing has to end by itself.
const PATIENCE: Duration = Duration::from_millis(500);

/// Counts the signals: the first asks for an orderly end, the second skips the grace period.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cancellation(());

/// While it lives, somebody asks [`Cancellation::asked`] and ends things in order.
#[derive(Debug)]
pub struct Attention(());

impl Cancellation {
    /// Starts to listen. Where nobody attends, a signal ends the process with 130, once what it was doing has had a
    /// moment to stop.
    ///
    /// # Errors
    /// The system refuses signal handlers.
    pub fn listen() -> Result<Self, RunnerError> {
        use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
        let signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP]);
        let mut signals = signals.map_err(|e| {
            RunnerError::new(ExitCode::Internal, format!("can't listen for signals: {e}"), "")
        })?;
        std::thread::spawn(move || {
            for _ in signals.forever() {
                COUNT.fetch_add(1, Ordering::SeqCst);
                if !ATTENDED.load(Ordering::SeqCst) {
                    std::thread::sleep(PATIENCE);
                    if !ATTENDED.load(Ordering::SeqCst) {
                        std::process::exit(ExitCode::Interrupted as i32);
                    }
                }
            }
        });
        Ok(Self(()))
    }

    pub fn attend(self) -> Attention {
        ATTENDED.store(true, Ordering::SeqCst);
        Attention(())
    }

    pub fn asked(self) -> bool {
        COUNT.load(Ordering::SeqCst) > 0
    }

    pub fn urgent(self) -> bool {
        COUNT.load(Ordering::SeqCst) > 1
    }
}

impl Drop for Attention {
    fn drop(&mut self) {
        ATTENDED.store(false, Ordering::SeqCst);
    }
}

/// Whether long work should stop now: nobody attends to a signal, or it came twice.
pub fn stop() -> bool {
    let count = COUNT.load(Ordering::SeqCst);
    count > 1 || count > 0 && !ATTENDED.load(Ordering::SeqCst)
}

/// # Errors
/// [`stop`] says so.
pub(crate) fn check() -> io::Result<()> {
    if stop() { Err(io::Error::other("interrupted")) } else { Ok(()) }
}
