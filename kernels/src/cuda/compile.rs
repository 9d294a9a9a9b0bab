//! From a `.cu` file to functions on the device: NVRTC, and a cache of what it made.
//!
//! The cache is a folder of cubins named by the hash of source, headers, options, architecture and NVRTC version:
//! `$TESTFORGE_KERNEL_CACHE`, else `testforge/kernels` under `$XDG_CACHE_HOME` or `~/.cache`. A file that does not carry
//! its own hash is compiled again; a folder that can't be written costs time, nothing else.

use super::error::CudaError;
use super::gpu::check;
use cudarc::driver::sys;
use cudarc::nvrtc::{result as nvrtc, sys as nvrtc_sys};
use std::collections::BTreeMap;
use std::env;
use std::ffi::{CStr, CString};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// A `.cu` file, compiled as a whole.
#[derive(Debug, PartialEq, Eq)]
pub struct Source {
    /// File name.
    pub name: &'static str,
    pub text: &'static str,
}

/// What every source may include.
const HEADERS: &[(&str, &str)] = &[
    ("common.cuh", include_str!("../../common.cuh")),
    ("philox.cuh", include_str!("../../philox.cuh")),
    ("mma.cuh", include_str!("../../mma.cuh")),
    ("attention.cuh", include_str!("../../attention.cuh")),
    ("attention_wgmma.cuh", include_str!("../../attention_wgmma.cuh")),
    ("groups.cuh", include_str!("../../groups.cuh")),
    ("lora.cuh", include_str!("../../lora.cuh")),
    ("lora_inner.cuh", include_str!("../../lora_inner.cuh")),
    ("running.cuh", include_str!("../../running.cuh")),
    ("wgmma.cuh", include_str!("../../wgmma.cuh")),
];

const OPTIONS: &[&str] = &["--std=c++17", "--device-as-default-execution-space"];

/// Compiles a source for an architecture (`sm_90a`); needs NVRTC, but no GPU.
///
/// # Errors
/// When NVRTC is missing or the source is wrong; the error holds the compiler's log.
pub fn cubin(source: &Source, arch: &str) -> Result<Vec<u8>, CudaError> {
    let version = version()?;
    let path = cache_folder().map(|folder| folder.join(file_name(source, arch, version)));
    if let Some(found) = path.as_deref().and_then(read_cached) {
        return Ok(found);
    }
    let made = compile(source, arch)?;
    if let Some(path) = path {
        write_cached(&path, &made);
    }
    Ok(made)
}

/// Major and minor version of NVRTC.
///
/// # Errors
/// When it is missing.
#[expect(unsafe_code, reason = "a plain query of the compiler")]
pub fn version() -> Result<(i32, i32), CudaError> {
    if !crate::probe::nvrtc_present() {
        return Err(CudaError::NoNvrtc);
    }
    let (mut major, mut minor) = (0, 0);
    // SAFETY: the library is present; it writes two numbers.
    let status = unsafe { nvrtc_sys::nvrtcVersion(&raw mut major, &raw mut minor) };
    status.result().map_err(|_| CudaError::NoNvrtc)?;
    Ok((major, minor))
}

fn file_name(source: &Source, arch: &str, (major, minor): (i32, i32)) -> String {
    let mut hasher = blake3::Hasher::new();
    let mut put = |text: &str| {
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    };
    put(source.text);
    HEADERS.iter().for_each(|(name, text)| {
        put(name);
        put(text);
    });
    OPTIONS.iter().for_each(|option| put(option));
    put(arch);
    put(&format!("{major}.{minor}"));
    format!("{}-{arch}-{}.cubin", source.name.trim_end_matches(".cu"), &hasher.finalize().to_hex()[..32])
}

fn cache_folder() -> Option<PathBuf> {
    let named = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(folder) = named("TESTFORGE_KERNEL_CACHE") {
        return Some(folder);
    }
    let base = named("XDG_CACHE_HOME").or_else(|| named("HOME").map(|home| home.join(".cache")))?;
    Some(base.join("testforge").join("kernels"))
}

/// A cached file: the hash of the rest, then the cubin.
fn read_cached(path: &Path) -> Option<Vec<u8>> {
    let bytes = fs::read(path).ok()?;
    let (hash, cubin) = bytes.split_at_checked(blake3::OUT_LEN)?;
    (blake3::hash(cubin).as_bytes()[..] == *hash).then(|| cubin.to_vec())
}

fn write_cached(path: &Path, cubin: &[u8]) {
    let mut bytes = blake3::hash(cubin).as_bytes().to_vec();
    bytes.extend_from_slice(cubin);
    let Some(folder) = path.parent() else { return };
    let part = path.with_extension(format!("{}.part", std::process::id()));
    let written = fs::create_dir_all(folder).and_then(|()| fs::write(&part, &bytes));
    if written.and_then(|()| fs::rename(&part, path)).is_err() {
        let _ = fs::remove_file(&part);
    }
}

#[expect(unsafe_code, reason = "runs the compiler")]
fn compile(source: &Source, arch: &str) -> Result<Vec<u8>, CudaError> {
    let failed =
        |log: String| CudaError::Compile { source_name: source.name.to_owned(), arch: arch.to_owned(), log };
    let text = |text: &str| CString::new(text).map_err(|_| failed("the text holds a zero byte".to_owned()));
    let (code, name) = (text(source.text)?, text(source.name)?);
    let headers: Vec<(CString, CString)> =
        HEADERS.iter().map(|(name, body)| Ok((text(name)?, text(body)?))).collect::<Result<_, _>>()?;
    let names: Vec<_> = headers.iter().map(|(name, _)| name.as_ptr()).collect();
    let bodies: Vec<_> = headers.iter().map(|(_, body)| body.as_ptr()).collect();
    let mut program = std::ptr::null_mut();
    // SAFETY: all strings end in zero and outlive the call.
    let status = unsafe {
        nvrtc_sys::nvrtcCreateProgram(
            &raw mut program,
            code.as_ptr(),
            name.as_ptr(),
            headers.len() as i32,
            bodies.as_ptr(),
            names.as_ptr(),
        )
    };
    status.result().map_err(|error| failed(format!("{error:?}")))?;
    let mut options: Vec<String> = OPTIONS.iter().map(|&option| option.to_owned()).collect();
    options.push(format!("--gpu-architecture={arch}"));
    // SAFETY: the program was created above and is destroyed below, once.
    let made = unsafe {
        match nvrtc::compile_program(program, &options) {
            Ok(()) => take_cubin(program).map_err(|error| failed(format!("{error:?}"))),
            Err(error) => Err(failed(log(program).unwrap_or_else(|| format!("{error:?}")))),
        }
    };
    // SAFETY: as above.
    let _ = unsafe { nvrtc::destroy_program(program) };
    made
}

/// # Safety
/// `program` was compiled and is not destroyed.
#[expect(unsafe_code, reason = "reads the compiler's result")]
unsafe fn take_cubin(program: nvrtc_sys::nvrtcProgram) -> Result<Vec<u8>, nvrtc::NvrtcError> {
    let mut size = 0;
    // SAFETY: by the contract of this function; the buffer has the size that the compiler asked for.
    unsafe {
        nvrtc_sys::nvrtcGetCUBINSize(program, &raw mut size).result()?;
        let mut cubin = vec![0u8; size];
        nvrtc_sys::nvrtcGetCUBIN(program, cubin.as_mut_ptr().cast()).result()?;
        Ok(cubin)
    }
}

/// # Safety
/// `program` is not destroyed.
#[expect(unsafe_code, reason = "reads the compiler's log")]
unsafe fn log(program: nvrtc_sys::nvrtcProgram) -> Option<String> {
    // SAFETY: by the contract of this function.
    let bytes = unsafe { nvrtc::get_program_log(program) }.ok()?;
    let bytes: Vec<u8> = bytes.into_iter().map(|c| c as u8).collect();
    let text = CStr::from_bytes_until_nul(&bytes).ok()?;
    Some(text.to_string_lossy().into_owned())
}

/// A source on the device.
#[derive(Debug)]
pub(crate) struct Module {
    handle: sys::CUmodule,
    /// Most dynamic shared memory that a function was allowed: the limit belongs to the function, not to a launch.
    limits: Mutex<BTreeMap<String, u32>>,
}

#[expect(unsafe_code, reason = "driver handles may be used from any thread")]
// SAFETY: modules are read-only after loading.
unsafe impl Send for Module {}
#[expect(unsafe_code, reason = "driver handles may be used from any thread")]
// SAFETY: as above.
unsafe impl Sync for Module {}

impl Module {
    /// Compiles and loads; the context is bound.
    #[expect(unsafe_code, reason = "loads code onto the device")]
    pub(crate) fn load(source: &'static Source, arch: &str) -> Result<Self, CudaError> {
        let image = cubin(source, arch)?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: the image is a cubin in memory, which the driver copies.
        check("cuModuleLoadData", unsafe { sys::cuModuleLoadData(&raw mut handle, image.as_ptr().cast()) })?;
        Ok(Module { handle, limits: Mutex::new(BTreeMap::new()) })
    }

    /// A function, allowed to use `shared` bytes of dynamic shared memory on top of what it declares.
    #[expect(unsafe_code, reason = "looks a function up")]
    pub(crate) fn function(&self, name: &str, shared: u32) -> Result<sys::CUfunction, CudaError> {
        let c_name =
            CString::new(name).map_err(|_| CudaError::shape(name, "the name of a kernel has a zero byte"))?;
        let mut function = std::ptr::null_mut();
        // SAFETY: the module is loaded; the driver writes a handle that lives as long as it.
        check("cuModuleGetFunction", unsafe {
            sys::cuModuleGetFunction(&raw mut function, self.handle, c_name.as_ptr())
        })?;
        let mut limits = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        let limit = limits.entry(name.to_owned()).or_insert(0);
        if shared > *limit {
            *limit = shared;
            let which = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the handle is valid.
            check("cuFuncSetAttribute", unsafe { sys::cuFuncSetAttribute(function, which, shared as i32) })?;
        }
        Ok(function)
    }
}

impl Drop for Module {
    #[expect(unsafe_code, reason = "takes code off the device")]
    fn drop(&mut self) {
        // SAFETY: loaded once, unloaded once.
        let _ = unsafe { sys::cuModuleUnload(self.handle) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_cache_file_is_not_used() {
        let folder = env::temp_dir().join(format!("testforge-kernel-cache-{}", std::process::id()));
        let path = folder.join("x.cubin");
        write_cached(&path, b"code");
        assert_eq!(read_cached(&path).as_deref(), Some(&b"code"[..]));
        let mut bytes = fs::read(&path).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        fs::write(&path, &bytes).unwrap();
        assert_eq!(read_cached(&path), None);
        fs::write(&path, b"short").unwrap();
        assert_eq!(read_cached(&path), None);
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn the_file_name_depends_on_everything_that_the_code_depends_on() {
        let source = Source { name: "a.cu", text: "x" };
        let base = file_name(&source, "sm_90a", (13, 0));
        assert!(base.starts_with("a-sm_90a-"));
        assert_ne!(base, file_name(&Source { name: "a.cu", text: "y" }, "sm_90a", (13, 0)));
        assert_ne!(base, file_name(&source, "sm_80", (13, 0)));
        assert_ne!(base, file_name(&source, "sm_90a", (13, 1)));
    }
}
