//! Readings by NVML, the driver's management library, which is loaded when it is first asked for.

use nvml_wrapper::enum_wrappers::device::{TemperatureSensor, TemperatureThreshold};
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;

use crate::telemetry::{Reading, Source};

/// One GPU.
#[derive(Debug)]
pub(crate) struct Nvml {
    library: nvml_wrapper::Nvml,
    /// NVML counts the machine's GPUs, CUDA those that this process may see: only the UUID names the same one in both.
    index: u32,
    fixed: Reading,
    counts_processes_as_we_do: bool,
}

/// The process numbers of the machine itself, and not of a container: the kernel gives the first namespace this number.
fn is_in_first_pid_namespace() -> bool {
    std::fs::read_link("/proc/self/ns/pid").is_ok_and(|link| link.as_os_str() == "pid:[4026531836]")
}

impl Nvml {
    /// # Errors
    /// Why this GPU can't be read.
    pub(crate) fn open(uuid: &str) -> Result<Self, String> {
        let library = nvml_wrapper::Nvml::init().map_err(|e| format!("NVML does not start: {e}"))?;
        let n = library.device_count().map_err(|e| format!("NVML counts no devices: {e}"))?;
        let is_it = |&index: &u32| {
            library.device_by_index(index).and_then(|device| device.uuid()).is_ok_and(|found| found == uuid)
        };
        let index =
            (0..n).find(is_it).ok_or_else(|| format!("NVML does not know the GPU {uuid} among its {n}"))?;
        let device = library.device_by_index(index).map_err(|e| format!("NVML does not open {uuid}: {e}"))?;
        let fixed = Reading {
            name: device.name().map_err(|e| format!("NVML does not name {uuid}: {e}"))?,
            uuid: uuid.to_owned(),
            slowdown_celsius: device
                .temperature_threshold(TemperatureThreshold::Slowdown)
                .ok()
                .map(f64::from),
            ..Reading::default()
        };
        Ok(Self { library, index, fixed, counts_processes_as_we_do: is_in_first_pid_namespace() })
    }
}

impl Source for Nvml {
    fn read(&mut self) -> Option<Reading> {
        let device = self.library.device_by_index(self.index).ok()?;
        let watts = |milliwatts: Result<u32, NvmlError>| milliwatts.ok().map(|mw| f64::from(mw) / 1e3);
        let memory = device.memory_info().ok();
        let own = || {
            if !self.counts_processes_as_we_do {
                return None;
            }
            let processes = device.running_compute_processes().ok()?;
            let own = processes.into_iter().find(|process| process.pid == std::process::id())?;
            match own.used_gpu_memory {
                UsedGpuMemory::Used(bytes) => Some(bytes),
                UsedGpuMemory::Unavailable => None,
            }
        };
        Some(Reading {
            busy_percent: device.utilization_rates().ok().map(|rates| f64::from(rates.gpu)),
            used_bytes: memory.as_ref().map(|m| m.used),
            total_bytes: memory.as_ref().map(|m| m.total),
            free_bytes: memory.as_ref().map(|m| m.free),
            own_bytes: own(),
            celsius: device.temperature(TemperatureSensor::Gpu).ok().map(f64::from),
            watts: watts(device.power_usage()),
            limit_watts: watts(device.enforced_power_limit()),
            ..self.fixed.clone()
        })
    }
}
