//! What the GPU says of itself while a run goes on: read on a thread of its own, once a second and whenever it is asked.
//!
//! What was not read is absent. Nothing here decides a number of the training; the trainer may stop for what it sees.

use std::sync::mpsc::{self, RecvTimeoutError, SyncSender, TrySendError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use engine::ComputeDevice;
use record::training::GpuState;

/// Time between two readings.
pub(crate) const INTERVAL: Duration = Duration::from_secs(1);

/// One reading of a GPU; `None`: the driver does not tell.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Reading {
    pub(crate) name: String,
    pub(crate) uuid: String,
    pub(crate) busy_percent: Option<f64>,
    /// Of the whole device, whoever holds it.
    pub(crate) used_bytes: Option<u64>,
    pub(crate) total_bytes: Option<u64>,
    /// What is neither used nor kept back by the driver.
    pub(crate) free_bytes: Option<u64>,
    /// Of this process alone. A container hides it: there the driver counts processes by other numbers.
    pub(crate) own_bytes: Option<u64>,
    pub(crate) celsius: Option<f64>,
    /// The temperature at which the GPU slows itself down.
    pub(crate) slowdown_celsius: Option<f64>,
    pub(crate) watts: Option<f64>,
    pub(crate) limit_watts: Option<f64>,
}

impl Reading {
    pub(crate) fn state(&self) -> GpuState {
        let gb = |bytes: Option<u64>| bytes.map(|b| b as f64 / 1e9);
        GpuState {
            device_name: self.name.clone(),
            uuid: (!self.uuid.is_empty()).then(|| self.uuid.clone()),
            utilization_percent: self.busy_percent,
            vram_used_gb: gb(self.used_bytes),
            vram_total_gb: gb(self.total_bytes),
            vram_own_gb: gb(self.own_bytes),
            temperature_celsius: self.celsius,
            power_watts: self.watts,
            power_limit_watts: self.limit_watts,
            processes: Vec::new(),
        }
    }
}

/// Something that can be read. A reading that fails is `None` and is tried again.
pub(crate) trait Source: Send {
    fn read(&mut self) -> Option<Reading>;
}

/// What all readings come to.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Summary {
    pub(crate) last: Option<Reading>,
    pub(crate) n_readings: u64,
    peak_used: Option<u64>,
    peak_own: Option<u64>,
    pub(crate) hottest_celsius: Option<f64>,
    busy_sum: f64,
    n_busy: u64,
    watts_sum: f64,
    n_watts: u64,
}

/// Whose memory a peak counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    Process,
    Device,
}

impl Scope {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Device => "device",
        }
    }
}

impl Summary {
    fn add(&mut self, reading: Reading, is_steady: bool) {
        let larger = |old: Option<u64>, new: Option<u64>| new.max(old);
        self.n_readings += 1;
        self.peak_used = larger(self.peak_used, reading.used_bytes);
        self.peak_own = larger(self.peak_own, reading.own_bytes);
        if let Some(celsius) = reading.celsius {
            self.hottest_celsius = Some(self.hottest_celsius.map_or(celsius, |h| h.max(celsius)));
        }
        if is_steady {
            for (value, sum, n) in [
                (reading.busy_percent, &mut self.busy_sum, &mut self.n_busy),
                (reading.watts, &mut self.watts_sum, &mut self.n_watts),
            ] {
                if let Some(value) = value {
                    *sum += value;
                    *n += 1;
                }
            }
        }
        self.last = Some(reading);
    }

    /// The most memory that was seen in use: this process's where the driver tells it, else the device's.
    pub(crate) fn peak(&self) -> Option<(u64, Scope)> {
        let own = self.peak_own.map(|bytes| (bytes, Scope::Process));
        own.or(self.peak_used.map(|bytes| (bytes, Scope::Device)))
    }

    /// Mean share of time in which the GPU had work, in percent, over the once-a-second readings between steps; and how many.
    pub(crate) fn busy(&self) -> Option<(f64, u64)> {
        (self.n_busy > 0).then(|| (self.busy_sum / self.n_busy as f64, self.n_busy))
    }

    pub(crate) fn mean_watts(&self) -> Option<f64> {
        (self.n_watts > 0).then(|| self.watts_sum / self.n_watts as f64)
    }
}

#[derive(Debug, Default)]
struct Shared {
    summary: Summary,
    is_steady: bool,
}

/// The thread that reads. It ends with this value.
#[derive(Debug)]
pub(crate) struct Telemetry {
    shared: Arc<Mutex<Shared>>,
    ask: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Telemetry {
    /// Reads at once, and from then on.
    pub(crate) fn start(mut source: Box<dyn Source>, interval: Duration) -> Self {
        let shared = Arc::new(Mutex::new(Shared::default()));
        let (ask, asked) = mpsc::sync_channel::<()>(1);
        let theirs = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            let mut due = Instant::now();
            loop {
                let is_regular = Instant::now() >= due;
                if is_regular {
                    due = Instant::now() + interval;
                }
                if let Some(reading) = source.read() {
                    let mut shared = lock(&theirs);
                    // Readings that were asked for come when steps end: they would weigh these too much.
                    let is_steady = shared.is_steady && is_regular;
                    shared.summary.add(reading, is_steady);
                }
                match asked.recv_timeout(due.saturating_duration_since(Instant::now())) {
                    Ok(()) | Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
        });
        Self { shared, ask: Some(ask), thread: Some(thread) }
    }

    /// No thread, no reading.
    pub(crate) fn none() -> Self {
        Self { shared: Arc::default(), ask: None, thread: None }
    }

    /// Of the device of a run; without a warning when it is no GPU.
    pub(crate) fn of(device: ComputeDevice, interval: Duration) -> (Self, Option<String>) {
        match open(device) {
            Ok(None) => (Self::none(), None),
            Ok(Some(source)) => (Self::start(source, interval), None),
            Err(why) => (Self::none(), Some(format!("no telemetry of the GPU: {why}"))),
        }
    }

    /// Whether there is anything to read.
    pub(crate) fn is_on(&self) -> bool {
        self.thread.is_some()
    }

    /// Asks for a reading soon; does not wait for it.
    pub(crate) fn poke(&self) {
        if let Some(ask) = &self.ask {
            match ask.try_send(()) {
                Ok(()) | Err(TrySendError::Full(()) | TrySendError::Disconnected(())) => {}
            }
        }
    }

    /// Whether steps are under way: the mean counts these times alone.
    pub(crate) fn steady(&self, is_steady: bool) {
        lock(&self.shared).is_steady = is_steady;
    }

    pub(crate) fn summary(&self) -> Summary {
        lock(&self.shared).summary.clone()
    }

    pub(crate) fn state(&self) -> Option<GpuState> {
        lock(&self.shared).summary.last.as_ref().map(Reading::state)
    }
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        self.ask = None;
        if let Some(thread) = self.thread.take() {
            // A reading that panicked has shown that on its own thread.
            let _ = thread.join();
        }
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Bytes of a GPU's memory that nobody holds, by NVML; `None` where it does not tell.
pub(crate) fn free_bytes(device: ComputeDevice) -> Option<u64> {
    open(device).ok()??.read()?.free_bytes
}

fn open(device: ComputeDevice) -> Result<Option<Box<dyn Source>>, String> {
    let ComputeDevice::Cuda { id } = device else { return Ok(None) };
    #[cfg(feature = "nvml")]
    {
        let uuid = engine::device::uuid(id).ok_or("the driver does not name the GPU")?;
        Ok(Some(Box::new(crate::nvml::Nvml::open(&uuid)?)))
    }
    #[cfg(not(feature = "nvml"))]
    {
        let _ = id;
        Err("this program was built without the feature nvml".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A GPU that says what a test tells it, one reading after another.
    struct Told(Vec<Option<Reading>>);

    impl Source for Told {
        fn read(&mut self) -> Option<Reading> {
            if self.0.len() > 1 { self.0.remove(0) } else { self.0[0].clone() }
        }
    }

    fn reading(used: u64, busy: f64) -> Reading {
        Reading { used_bytes: Some(used), busy_percent: Some(busy), ..Reading::default() }
    }

    #[test]
    fn peaks_and_means_come_from_readings_alone() {
        let mut summary = Summary::default();
        assert_eq!((summary.peak(), summary.busy(), summary.mean_watts()), (None, None, None));
        summary.add(reading(5, 100.0), false);
        assert_eq!(summary.busy(), None, "what is read before the first step does not count");
        summary.add(reading(3, 90.0), true);
        summary.add(Reading { celsius: Some(60.0), ..reading(4, 80.0) }, true);
        summary.add(Reading { celsius: Some(50.0), ..Reading::default() }, true);
        assert_eq!(summary.peak(), Some((5, Scope::Device)));
        assert_eq!(summary.busy(), Some((85.0, 2)));
        assert_eq!(summary.hottest_celsius, Some(60.0));
        summary.add(Reading { own_bytes: Some(2), ..reading(9, 0.0) }, false);
        assert_eq!(summary.peak(), Some((2, Scope::Process)), "this process's own is the better number");
    }

    #[test]
    fn what_was_not_read_is_not_in_the_state() {
        let state = Reading { name: "GPU".to_owned(), ..reading(2_000_000_000, 7.0) }.state();
        let json = serde_json::to_value(&state).unwrap();
        let expected = serde_json::json!({
            "device_name": "GPU", "utilization_percent": 7.0, "vram_used_gb": 2.0, "processes": [],
        });
        assert_eq!(json, expected);
    }

    #[test]
    fn a_thread_reads_at_once_when_asked_and_in_between() {
        let source = Told(vec![Some(reading(1, 10.0)), None, Some(reading(7, 20.0)), Some(reading(2, 30.0))]);
        let telemetry = Telemetry::start(Box::new(source), Duration::from_millis(5));
        telemetry.steady(true);
        let begun = Instant::now();
        while telemetry.summary().n_readings < 4 {
            telemetry.poke();
            assert!(begun.elapsed() < Duration::from_secs(20), "nothing is read");
            std::thread::sleep(Duration::from_millis(2));
        }
        assert_eq!(telemetry.summary().peak(), Some((7, Scope::Device)));
        assert_eq!(telemetry.state().unwrap().utilization_percent, Some(30.0));
    }

    #[test]
    fn no_gpu_has_no_telemetry_and_no_warning() {
        let (telemetry, warning) = Telemetry::of(ComputeDevice::Cpu, INTERVAL);
        assert_eq!((telemetry.state(), warning), (None, None));
        assert_eq!(telemetry.summary(), Summary::default());
    }
}
