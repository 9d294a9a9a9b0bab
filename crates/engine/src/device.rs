//! Which device a program computes on: a pure choice from what was asked for, what the machine has and what the build holds.

use crate::EngineError;
use crate::backend::BackendError;
use kernels::LEAST_MAJOR;
use kernels::cuda::{CudaError, Gpu, compile, ops};
use std::fmt;
use std::str::FromStr;

/// What a user may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceRequest {
    /// The first of CUDA, wgpu and CPU that this build and this machine have; the first GPU that is new enough.
    Auto,
    Cuda {
        id: u32,
    },
    Wgpu,
    Cpu,
}

/// Where the work is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ComputeDevice {
    Cuda { id: u32 },
    Wgpu,
    Cpu,
}

impl ComputeDevice {
    /// `cuda`, `wgpu` or `cpu`: the backend's name in results.
    pub fn backend(self) -> &'static str {
        match self {
            Self::Cuda { .. } => "cuda",
            Self::Wgpu => "wgpu",
            Self::Cpu => "cpu",
        }
    }
}

/// What this program was built with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Build {
    /// The feature `cuda`.
    pub cuda: bool,
    /// The feature `cpu-fallback`: `auto` may choose the CPU.
    pub cpu_fallback: bool,
}

/// What a probe of the machine found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GpuProbe {
    /// No NVIDIA driver, one that does not answer, or no library that the GPU's work needs; why.
    NoDriver(String),
    /// The devices, by id; may be none.
    Devices(Vec<FoundGpu>),
}

/// A GPU that the driver shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundGpu {
    pub name: String,
    /// Major and minor.
    pub compute_capability: (u32, u32),
}

impl FoundGpu {
    /// The error of the kernels, where it is too old for them.
    fn too_old(&self) -> Option<CudaError> {
        let (major, minor) = self.compute_capability;
        (major < LEAST_MAJOR).then(|| CudaError::TooOld { name: self.name.clone(), major, minor })
    }
}

/// A device, and what its user should know about the choice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    pub device: ComputeDevice,
    pub warnings: Vec<String>,
}

/// Why there is no device for a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    #[error("there is no device `{0}`")]
    Unknown(String),
    #[error("no NVIDIA GPU can be used: {0}")]
    NoGpu(String),
    #[error("this program was built without the feature cuda")]
    NotBuilt,
    #[error("there is no GPU {id}: this machine has {n}")]
    NoSuchGpu { id: u32, n: usize },
    #[error("GPU {id} can't be used: {why}")]
    TooOld { id: u32, why: CudaError },
    #[error("this build has no wgpu backend")]
    NoWgpuBackend,
    #[error("no device is left to choose: {0}; and this build may not fall back to the CPU by itself")]
    NothingLeft(String),
}

impl DeviceError {
    /// What to do about it.
    pub fn next_step(&self) -> &'static str {
        match self {
            Self::Unknown(_) => "use auto, cuda, cuda:N, wgpu or cpu",
            Self::NotBuilt => {
                "build it with the feature cuda, or compute on the CPU (about 100 times slower): --set device=cpu"
            }
            Self::NoSuchGpu { .. } | Self::TooOld { .. } => {
                "name one that is there, or compute on the CPU: --set device=cpu"
            }
            Self::NoGpu(_) => {
                "install what is missing, or compute on the CPU (about 100 times slower): --set device=cpu"
            }
            Self::NoWgpuBackend => "compute on the CPU: --set device=cpu",
            Self::NothingLeft(_) => {
                "choose the CPU yourself (--set device=cpu), or build with the feature cpu-fallback"
            }
        }
    }
}

impl FromStr for DeviceRequest {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        let unknown = || DeviceError::Unknown(text.to_owned());
        match text {
            "auto" => Ok(Self::Auto),
            "cuda" => Ok(Self::Cuda { id: 0 }),
            "wgpu" => Ok(Self::Wgpu),
            "cpu" => Ok(Self::Cpu),
            _ => {
                let id = text.strip_prefix("cuda:").ok_or_else(unknown)?;
                let digits = !id.is_empty() && id.bytes().all(|b| b.is_ascii_digit());
                let id = if digits { id.parse().map_err(|_| unknown())? } else { return Err(unknown()) };
                Ok(Self::Cuda { id })
            }
        }
    }
}

impl fmt::Display for ComputeDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cuda { id } => write!(f, "cuda:{id}"),
            Self::Wgpu => f.write_str("wgpu"),
            Self::Cpu => f.write_str("cpu"),
        }
    }
}

/// The least CUDA version of a driver: graphs are instantiated by a call that came with it.
const LEAST_DRIVER: (u32, u32) = (11, 4);

/// Why a driver that offers this version of CUDA, `12.8`, is of no use.
fn too_old_driver(version: &str) -> Option<String> {
    let (major, minor) = version.split_once('.')?;
    let (least_major, least_minor) = LEAST_DRIVER;
    ((major.parse().ok()?, minor.parse().ok()?) < LEAST_DRIVER).then(|| {
        format!("the NVIDIA driver is one for CUDA {version}; {least_major}.{least_minor} is the least (driver 470)")
    })
}

/// Asks the machine's driver.
pub fn probe() -> GpuProbe {
    let found = kernels::probe();
    if let Some(why) = found.driver.as_deref().and_then(too_old_driver) {
        return GpuProbe::NoDriver(why);
    }
    let lacks = [
        (found.driver.is_none(), CudaError::NoDriver),
        (!found.devices.is_empty() && !found.nvrtc, CudaError::NoNvrtc),
        (!found.devices.is_empty() && !found.cublaslt, CudaError::NoCublasLt),
    ];
    match lacks.into_iter().find(|(is_absent, _)| *is_absent) {
        Some((_, why)) => GpuProbe::NoDriver(why.to_string()),
        None => GpuProbe::Devices(
            found
                .devices
                .into_iter()
                .map(|d| FoundGpu { name: d.name, compute_capability: d.compute_capability })
                .collect(),
        ),
    }
}

/// Compiles every kernel for GPU `id` that the cache of kernels lacks, on `threads` threads. What fails here fails again, and
/// is said, when the kernel is needed.
pub fn compile_kernels(id: u32, threads: usize) {
    let Some(device) = kernels::probe().devices.into_iter().nth(id as usize) else { return };
    let arch = device.arch();
    model::parallel::map(ops::SOURCES, threads, |source| compile::cubin(source, &arch).is_ok());
}

/// The name by which other libraries know GPU `id` of this process, as in `GPU-8f...`; `None` where the driver does not answer.
pub fn uuid(id: u32) -> Option<String> {
    kernels::probe().devices.into_iter().nth(id as usize)?.uuid
}

/// Bytes of a GPU's memory that nobody holds, the context of this process taken off; `None` for other devices.
///
/// # Errors
/// When the device can't be opened: no trainer and no generator could be made either.
pub fn free_bytes(device: ComputeDevice) -> Result<Option<u64>, EngineError> {
    let ComputeDevice::Cuda { id } = device else { return Ok(None) };
    let memory = Gpu::open(id).and_then(|gpu| gpu.memory()).map_err(BackendError::from)?;
    Ok(Some(memory.0))
}

/// Whether what ran out of memory would do so on this device if nobody else used it, too. Ask when this process has given back
/// all that it had there.
pub fn is_too_small(device: ComputeDevice, error: &BackendError) -> bool {
    let BackendError::Cuda(CudaError::OutOfMemory { needed, free, total, .. }) = error else { return false };
    let given_back = free_bytes(device).ok().flatten().unwrap_or(0).saturating_sub(*free);
    needed.saturating_add(given_back) > *total
}

/// Chooses a device. `probe` is called only when a GPU matters.
///
/// # Errors
/// [`DeviceError`] when the one asked for can't be used, or `auto` finds none.
pub fn choose(
    request: DeviceRequest,
    build: Build,
    probe: impl FnOnce() -> GpuProbe,
) -> Result<Choice, DeviceError> {
    match request {
        DeviceRequest::Cpu => Ok(Choice { device: ComputeDevice::Cpu, warnings: Vec::new() }),
        DeviceRequest::Wgpu => Err(DeviceError::NoWgpuBackend),
        DeviceRequest::Cuda { id } => {
            let devices = gpus(build, probe)?;
            let n = devices.len();
            let found = devices.get(id as usize).ok_or(DeviceError::NoSuchGpu { id, n })?;
            match found.too_old() {
                Some(why) => Err(DeviceError::TooOld { id, why }),
                None => Ok(Choice { device: ComputeDevice::Cuda { id }, warnings: Vec::new() }),
            }
        }
        DeviceRequest::Auto => {
            let why = match gpus(build, probe).and_then(first_that_can) {
                Ok(choice) => return Ok(choice),
                Err(why) => why,
            };
            if !build.cpu_fallback {
                return Err(DeviceError::NothingLeft(why.to_string()));
            }
            let warnings = vec![
                format!("no GPU is used: {why}"),
                DeviceError::NoWgpuBackend.to_string(),
                "the work goes to the CPU: expect it to take about 100 times as long as on a GPU".to_owned(),
            ];
            Ok(Choice { device: ComputeDevice::Cpu, warnings })
        }
    }
}

/// The GPUs that the driver shows, at least one, or why none can be used.
fn gpus(build: Build, probe: impl FnOnce() -> GpuProbe) -> Result<Vec<FoundGpu>, DeviceError> {
    if !build.cuda {
        return Err(DeviceError::NotBuilt);
    }
    match probe() {
        GpuProbe::NoDriver(why) => Err(DeviceError::NoGpu(why)),
        GpuProbe::Devices(found) if found.is_empty() => {
            Err(DeviceError::NoGpu("the driver sees no device".to_owned()))
        }
        GpuProbe::Devices(found) => Ok(found),
    }
}

/// The first GPU that is new enough, with a warning about each one before it.
fn first_that_can(found: Vec<FoundGpu>) -> Result<Choice, DeviceError> {
    let mut passed_over = Vec::new();
    for (id, gpu) in (0..).zip(&found) {
        match gpu.too_old() {
            Some(why) => passed_over.push(DeviceError::TooOld { id, why }),
            None => {
                let warnings = passed_over.iter().map(DeviceError::to_string).collect();
                return Ok(Choice { device: ComputeDevice::Cuda { id }, warnings });
            }
        }
    }
    let all: Vec<String> = passed_over.iter().map(DeviceError::to_string).collect();
    Err(DeviceError::NoGpu(all.join("; ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Build = Build { cuda: true, cpu_fallback: true };
    const NO_FALLBACK: Build = Build { cuda: true, cpu_fallback: false };

    fn gpu(name: &str, compute_capability: (u32, u32)) -> FoundGpu {
        FoundGpu { name: name.to_owned(), compute_capability }
    }

    fn one_gpu() -> GpuProbe {
        GpuProbe::Devices(vec![gpu("GPU", (8, 0))])
    }

    fn old_gpu() -> GpuProbe {
        GpuProbe::Devices(vec![gpu("Old", (7, 5))])
    }

    fn old_and_new_gpu() -> GpuProbe {
        GpuProbe::Devices(vec![gpu("Old", (7, 5)), gpu("New", (9, 0))])
    }

    fn no_driver() -> GpuProbe {
        GpuProbe::NoDriver("libcuda is absent".to_owned())
    }

    #[test]
    fn drivers_are_new_enough_from_a_version_on() {
        for old in ["11.3", "10.2", "9.9"] {
            assert!(too_old_driver(old).unwrap().contains(&format!("CUDA {old}; 11.4")), "{old}");
        }
        assert!(["11.4", "11.10", "12.0", "13.0", "?"].iter().all(|new| too_old_driver(new).is_none()));
    }

    #[test]
    fn requests_are_read() {
        let cases = [
            ("auto", Some(DeviceRequest::Auto)),
            ("cuda", Some(DeviceRequest::Cuda { id: 0 })),
            ("cuda:3", Some(DeviceRequest::Cuda { id: 3 })),
            ("wgpu", Some(DeviceRequest::Wgpu)),
            ("cpu", Some(DeviceRequest::Cpu)),
            ("cuda:", None),
            ("cuda:+1", None),
            ("cuda:99999999999", None),
            ("CPU", None),
            ("gpu", None),
        ];
        for (text, wanted) in cases {
            assert_eq!(text.parse::<DeviceRequest>().ok(), wanted, "{text}");
        }
    }

    #[test]
    fn the_cpu_is_taken_without_a_probe() {
        let choice = choose(DeviceRequest::Cpu, NO_FALLBACK, || panic!("probed")).unwrap();
        assert_eq!(choice, Choice { device: ComputeDevice::Cpu, warnings: vec![] });
    }

    #[test]
    fn auto_reaches_the_cpu_only_where_the_build_allows_it_and_says_so() {
        let choice = choose(DeviceRequest::Auto, ALL, no_driver).unwrap();
        assert_eq!(choice.device, ComputeDevice::Cpu);
        let text = choice.warnings.join("\n");
        assert!(text.contains("libcuda is absent") && text.contains("100 times"), "{text}");
        let error = choose(DeviceRequest::Auto, NO_FALLBACK, no_driver).unwrap_err();
        assert!(
            error.to_string().contains("libcuda is absent") && error.next_step().contains("device=cpu"),
            "{error}"
        );
    }

    #[test]
    fn a_gpu_that_is_too_old_is_as_good_as_none() {
        let choice = choose(DeviceRequest::Auto, ALL, old_gpu).unwrap();
        assert_eq!(choice.device, ComputeDevice::Cpu);
        assert!(
            choice.warnings[0].contains("GPU 0 can't be used: Old has compute capability 7.5"),
            "{choice:?}"
        );
        let error = choose(DeviceRequest::Auto, NO_FALLBACK, old_gpu).unwrap_err();
        assert!(matches!(error, DeviceError::NothingLeft(_)) && error.to_string().contains("7.5"), "{error}");
        for build in [ALL, NO_FALLBACK] {
            let choice = choose(DeviceRequest::Auto, build, old_and_new_gpu).unwrap();
            assert_eq!(choice.device, ComputeDevice::Cuda { id: 1 });
            assert!(matches!(&choice.warnings[..], [one] if one.contains("GPU 0")), "{choice:?}");
        }
    }

    #[test]
    fn an_old_gpu_that_was_asked_for_is_refused_by_name() {
        let ask = |id| choose(DeviceRequest::Cuda { id }, ALL, old_and_new_gpu);
        let error = ask(0).unwrap_err();
        assert!(matches!(error, DeviceError::TooOld { id: 0, .. }), "{error}");
        assert!(error.to_string().contains("Old has compute capability 7.5; 8.0 is the least"), "{error}");
        assert_eq!(ask(1).unwrap().device, ComputeDevice::Cuda { id: 1 });
        assert!(matches!(ask(2).unwrap_err(), DeviceError::NoSuchGpu { id: 2, n: 2 }));
    }

    #[test]
    fn a_gpu_that_was_asked_for_is_never_replaced_in_silence() {
        let ask = |id, build, probe: fn() -> GpuProbe| {
            choose(DeviceRequest::Cuda { id }, build, probe).unwrap_err()
        };
        assert!(matches!(ask(0, ALL, no_driver), DeviceError::NoGpu(_)));
        assert!(matches!(ask(0, ALL, || GpuProbe::Devices(vec![])), DeviceError::NoGpu(_)));
        assert!(matches!(ask(1, ALL, one_gpu), DeviceError::NoSuchGpu { id: 1, n: 1 }));
        let choice = choose(DeviceRequest::Cuda { id: 0 }, ALL, one_gpu).unwrap();
        assert_eq!(choice, Choice { device: ComputeDevice::Cuda { id: 0 }, warnings: vec![] });
        let auto = choose(DeviceRequest::Auto, ALL, one_gpu).unwrap();
        assert_eq!(auto.device, ComputeDevice::Cuda { id: 0 });
        let without = Build { cuda: false, cpu_fallback: true };
        assert!(ask(0, without, one_gpu).to_string().contains("feature cuda"));
        assert_eq!(choose(DeviceRequest::Wgpu, ALL, one_gpu).unwrap_err(), DeviceError::NoWgpuBackend);
    }
}
