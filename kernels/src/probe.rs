//! What CUDA this machine has: never panics, never fails, says what is missing by leaving it out.

use cudarc::driver::{result, sys};

/// Major part of the least compute capability that the kernels run on.
pub const LEAST_MAJOR: u32 = 8;

/// A CUDA device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    pub name: String,
    pub total_bytes: u64,
    /// Major and minor: `(9, 0)` for `sm_90`.
    pub compute_capability: (u32, u32),
    /// `GPU-` and 32 hexadecimal digits in five groups, as NVML writes it.
    pub uuid: Option<String>,
}

impl Device {
    /// `sm_90a`: what kernels are compiled for.
    #[must_use]
    pub fn arch(&self) -> String {
        let (major, minor) = self.compute_capability;
        let suffix = if major == 9 { "a" } else { "" };
        format!("sm_{major}{minor}{suffix}")
    }
}

/// What was found. All empty on a machine without a driver.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Probe {
    /// Version of the CUDA interface that the driver offers: `12.8`.
    pub driver: Option<String>,
    pub devices: Vec<Device>,
    /// The run-time compiler's library is present.
    pub nvrtc: bool,
    /// The matrix library is present.
    pub cublaslt: bool,
}

/// Looks for driver, devices and libraries.
#[must_use]
pub fn probe() -> Probe {
    // cudarc panics at the first call of a library that is absent, so each one is asked for first.
    let mut found = Probe { nvrtc: nvrtc_present(), cublaslt: cublaslt_present(), ..Probe::default() };
    if !driver_present() || result::init().is_err() {
        return found;
    }
    found.driver = driver_version();
    let count = result::device::get_count().unwrap_or(0);
    found.devices = (0..count).filter_map(describe).collect();
    found
}

#[expect(unsafe_code, reason = "loading a library runs its initialisers; this one is the driver")]
fn driver_present() -> bool {
    // SAFETY: opens the driver library and closes it again; no symbol of it is used.
    unsafe { sys::is_culib_present() }
}

#[expect(unsafe_code, reason = "loading a library runs its initialisers")]
pub(crate) fn nvrtc_present() -> bool {
    // SAFETY: opens the library and closes it again; no symbol of it is used.
    unsafe { cudarc::nvrtc::sys::is_culib_present() }
}

#[expect(unsafe_code, reason = "loading a library runs its initialisers")]
fn cublaslt_present() -> bool {
    // SAFETY: opens the library and closes it again; no symbol of it is used.
    unsafe { cudarc::cublaslt::sys::is_culib_present() }
}

#[expect(unsafe_code, reason = "a plain query of the driver")]
fn driver_version() -> Option<String> {
    let mut version = 0;
    // SAFETY: the driver is present and initialised; it writes one int.
    let status = unsafe { sys::cuDriverGetVersion(&raw mut version) };
    (status == sys::CUresult::CUDA_SUCCESS).then(|| format!("{}.{}", version / 1000, version % 1000 / 10))
}

#[expect(unsafe_code, reason = "plain queries of the driver")]
fn describe(ordinal: i32) -> Option<Device> {
    use sys::CUdevice_attribute as Attribute;
    let device = result::device::get(ordinal).ok()?;
    let name = result::device::get_name(device).ok()?;
    // SAFETY: `device` came from the driver just now.
    let total = unsafe { result::device::total_mem(device) }.ok()?;
    let attribute = |which| {
        // SAFETY: as above.
        let value = unsafe { result::device::get_attribute(device, which) }.ok()?;
        u32::try_from(value).ok()
    };
    let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    let uuid = result::device::get_uuid(device).ok().map(|uuid| hyphenated(uuid.bytes.map(|b| b as u8)));
    Some(Device { name, total_bytes: total as u64, compute_capability: (major, minor), uuid })
}

fn hyphenated(bytes: [u8; 16]) -> String {
    let mut text = String::from("GPU");
    let mut rest = &bytes[..];
    for n in [4, 2, 2, 2, 6] {
        let (group, tail) = rest.split_at(n);
        text.push('-');
        group.iter().for_each(|byte| text.push_str(&format!("{byte:02x}")));
        rest = tail;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_is_written_as_nvml_writes_it() {
        let bytes = std::array::from_fn(|i| i as u8 * 0x11);
        assert_eq!(hyphenated(bytes), "GPU-00112233-4455-6677-8899-aabbccddeeff");
    }

    #[test]
    fn probing_never_panics_and_devices_need_a_driver() {
        let found = probe();
        assert!(found.driver.is_some() || found.devices.is_empty());
        assert_eq!(found, probe());
    }
}
