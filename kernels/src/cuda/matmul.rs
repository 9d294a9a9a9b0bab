//! Matrix products through cuBLASLt: an algorithm fixed once, so the same bits each run.
//!
//! The library never splits the inner dimension by itself. Where a result has too few tiles to fill the device and the inner
//! dimension is long, [`split`] cuts it into equal parts: one batched product makes a float32 result of each, and
//! `sum_parts.cu` adds them in order.

use super::algorithm::{Algorithm, Question, alignment, offered, preferred};
use super::error::CudaError;
use super::gpu::Gpu;
use super::launch::{Cost, Work};
use super::memory::{Dtype, Memory, Tensor};
use super::ops::sum_parts;
use cudarc::cublaslt::{result as lt, sys};
use cudarc::driver::sys as driver;
use std::ffi::c_void;
use std::fmt;

/// Bytes that matrix products share as their workspace; they run one after another.
pub const WORKSPACE_BYTES: usize = 32 << 20;

/// Layout of the factors; all matrices are row-major.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Form {
    /// `c[m,n] = a[m,k] b[n,k]^T`.
    Nt,
    /// `c[m,n] = a[m,k] b[k,n]`.
    Nn,
    /// `c[m,n] = a[k,m]^T b[k,n]`.
    Tn,
}

/// Side of the tiles that a result is cut into, about.
const TILE: usize = 128;
/// Shortest part of the inner dimension.
const PART: usize = 4096;
/// An inner dimension that is cut even where the tiles would fill the device once.
const VERY_LONG: usize = 16 * PART;
/// Most parts.
const PARTS: usize = 16;

/// In how many parts the inner dimension of `m x n x k` is taken on a device with this many multiprocessors.
fn parts((m, n, k): (usize, usize, usize), multiprocessors: usize) -> usize {
    let tiles = m.div_ceil(TILE) * n.div_ceil(TILE);
    let few = 2 * tiles <= multiprocessors || (tiles <= multiprocessors && k >= VERY_LONG);
    if tiles == 0 || !few {
        return 1;
    }
    let wanted = (4 * multiprocessors).div_ceil(tiles).min(PARTS).min(k / PART);
    // Parts of one length, whose rows stay aligned.
    (2..=wanted).rev().find(|parts| k.is_multiple_of(parts * 8)).unwrap_or(1)
}

/// Rows, columns and inner dimension of a product.
fn sizes(form: Form, a: &Tensor, b: &Tensor) -> (usize, usize, usize) {
    let (m, k) = if form == Form::Tn { (a.cols(), a.rows()) } else { (a.rows(), a.cols()) };
    (m, if form == Form::Nt { b.rows() } else { b.cols() }, k)
}

/// Bytes of scratch memory that [`split`] needs for a product; 0 where it is no faster than a plain one.
#[must_use]
pub fn split_bytes(form: Form, a: &Tensor, b: &Tensor) -> usize {
    let (m, n, k) = sizes(form, a, b);
    match parts((m, n, k), a.memory().gpu().properties().multiprocessors as usize) {
        1 => 0,
        parts => parts * m * n * 4,
    }
}

/// As [`Matmul::new`], with the inner dimension in parts. `scratch` holds [`split_bytes`]. The pieces run in order.
///
/// # Errors
/// As [`Matmul::new`], and when the scratch memory is too small.
pub fn split(
    workspace: &Memory,
    scratch: &Tensor,
    form: Form,
    (a, b, c): (&Tensor, &Tensor, &Tensor),
    accumulate: bool,
) -> Result<[Work; 2], CudaError> {
    let (m, n, k) = sizes(form, a, b);
    let count = parts((m, n, k), workspace.gpu().properties().multiprocessors as usize);
    let part = k / count;
    let all = scratch.memory().tensor(scratch.offset(), (count, m * n), m * n, Dtype::F32)?;
    let first = all.memory().tensor(all.offset(), (m, n), n, Dtype::F32)?;
    let (a_first, a_stride) = match form {
        Form::Tn => (a.row_range(0, part)?, part * a.pitch()),
        _ => (a.columns(0, part)?, part),
    };
    let (b_first, b_stride) = match form {
        Form::Nt => (b.columns(0, part)?, part),
        _ => (b.row_range(0, part)?, part * b.pitch()),
    };
    let batch = Batch { count, strides: [a_stride, b_stride, m * n] };
    let finish = Finish::default();
    let product = Matmul::batched(workspace, form, (&a_first, &b_first, &first), batch, finish, None)?;
    let finish = Finish { addend: accumulate.then_some(c), bias: None };
    Ok([Work::from(product), sum_parts::add(&all, c, finish)?])
}

/// Number of rows for which the library chooses how products with few rows are computed, however many they have.
const FEW: usize = 64;
/// Shortest part of their inner dimension, and the most parts.
const FEW_PART: usize = 512;
const FEW_PARTS: usize = 8;

/// In how many parts the inner dimension of a product with few rows is taken: by the weight's shape alone.
fn few_parts(n: usize, k: usize) -> usize {
    let wanted = (2 * TILE / n.div_ceil(FEW).max(1)).min(FEW_PARTS).min(k / FEW_PART);
    (2..=wanted).rev().find(|parts| k.is_multiple_of(parts * 8)).unwrap_or(1)
}

/// Bytes of scratch memory that [`few_rows`] needs.
#[must_use]
pub fn few_rows_bytes(a: &Tensor, b: &Tensor) -> usize {
    match few_parts(b.rows(), b.cols()) {
        1 => 0,
        parts => parts * a.rows() * b.rows() * 4,
    }
}

/// `c = a b^T + addend + bias`, rounded as in [`Matmul::finished`], where a row's bits do not depend on how many rows there are: every number of
/// rows is computed by the same algorithm and in the same parts. `scratch` holds [`few_rows_bytes`].
///
/// # Errors
/// As [`Matmul::new`], and when the scratch memory is too small.
pub fn few_rows(
    workspace: &Memory,
    scratch: &Tensor,
    (a, b, c): (&Tensor, &Tensor, &Tensor),
    finish: Finish<'_>,
) -> Result<Vec<Work>, CudaError> {
    let (m, n, k) = sizes(Form::Nt, a, b);
    let count = few_parts(n, k);
    if count == 1 {
        let product = Matmul::batched(workspace, Form::Nt, (a, b, c), ONE, finish, Some(FEW))?;
        return Ok(vec![Work::from(product)]);
    }
    let part = k / count;
    let all = scratch.memory().tensor(scratch.offset(), (count, m * n), m * n, Dtype::F32)?;
    let first = all.memory().tensor(all.offset(), (m, n), n, Dtype::F32)?;
    let factors = (&a.columns(0, part)?, &b.columns(0, part)?, &first);
    let batch = Batch { count, strides: [part, part, m * n] };
    let product = Matmul::batched(workspace, Form::Nt, factors, batch, Finish::default(), Some(FEW))?;
    Ok(vec![Work::from(product), sum_parts::add(&all, c, finish)?])
}

/// Products of one shape at equal distances, in elements, in all three matrices. They lie inside what the caller checked.
#[derive(Debug, Clone, Copy)]
struct Batch {
    count: usize,
    strides: [usize; 3],
}

const ONE: Batch = Batch { count: 1, strides: [0; 3] };

/// What a product is finished with, before its one rounding.
#[derive(Debug, Clone, Copy, Default)]
pub struct Finish<'a> {
    /// `m x n`, of the type of the result; the result itself accumulates.
    pub addend: Option<&'a Tensor>,
    /// `1 x n`, of the type of the result, added to every row.
    pub bias: Option<&'a Tensor>,
}

/// Descriptors of the library, given back on drop.
struct Plan {
    desc: sys::cublasLtMatmulDesc_t,
    /// Of the factors, the addend and the result.
    layouts: [sys::cublasLtMatrixLayout_t; 4],
    algo: sys::cublasLtMatmulAlgo_t,
}

/// One product, ready to run.
pub struct Matmul {
    gpu: Gpu,
    name: String,
    plan: Plan,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    addend: Option<Tensor>,
    /// Held: the library has its address.
    _bias: Option<Tensor>,
    workspace: Memory,
    cost: Cost,
}

#[expect(unsafe_code, reason = "library handles may be used from any thread")]
// SAFETY: descriptors are read-only after they were made.
unsafe impl Send for Matmul {}
#[expect(unsafe_code, reason = "library handles may be used from any thread")]
// SAFETY: as above, and the library takes products from any thread.
unsafe impl Sync for Matmul {}

impl fmt::Debug for Matmul {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl Matmul {
    /// Prepares `c = a b` in the layout of `form`, or `c += a b`. Factors of one type, float32 or bfloat16; sums in float32;
    /// `c` of either type. `workspace` holds [`WORKSPACE_BYTES`].
    ///
    /// # Errors
    /// When shapes or types do not fit, or the library knows no way to do it.
    pub fn new(
        workspace: &Memory,
        form: Form,
        (a, b, c): (&Tensor, &Tensor, &Tensor),
        accumulate: bool,
    ) -> Result<Self, CudaError> {
        let finish = Finish { addend: accumulate.then_some(c), bias: None };
        Self::batched(workspace, form, (a, b, c), ONE, finish, None)
    }

    /// Prepares `c = a b + addend + bias`, rounded once; but in bfloat16, with columns that are no multiple of 8, the library was
    /// seen to round before it adds the bias, too.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn finished(
        workspace: &Memory,
        form: Form,
        (a, b, c): (&Tensor, &Tensor, &Tensor),
        finish: Finish<'_>,
    ) -> Result<Self, CudaError> {
        Self::batched(workspace, form, (a, b, c), ONE, finish, None)
    }

    /// With `rows`, the algorithm is the one for so many rows.
    fn batched(
        workspace: &Memory,
        form: Form,
        (a, b, c): (&Tensor, &Tensor, &Tensor),
        batch: Batch,
        finish: Finish<'_>,
        rows: Option<usize>,
    ) -> Result<Self, CudaError> {
        let gpu = workspace.gpu().clone();
        let (m, n, k) = sizes(form, a, b);
        let k2 = if form == Form::Nt { b.cols() } else { b.rows() };
        let times = if batch.count > 1 { format!("{} x ", batch.count) } else { String::new() };
        let more = [finish.addend.map(|_| " + addend"), finish.bias.map(|_| " + bias")];
        let more: String = more.into_iter().flatten().collect();
        let what = format!("{times}{form:?} {m}x{n}x{k} {}>{}{more}", a.dtype().suffix(), c.dtype().suffix());
        if k != k2 || c.rows() != m || c.cols() != n {
            let message = format!("{what}: factors meet in {k} and {k2}, result {} x {}", c.rows(), c.cols());
            return Err(CudaError::shape("matmul", message));
        }
        if a.dtype() != b.dtype() || [a, c].iter().any(|t| !matches!(t.dtype(), Dtype::F32 | Dtype::Bf16)) {
            return Err(CudaError::shape("matmul", format!("{what}: types can't be multiplied")));
        }
        finish.check(&what, c)?;
        gpu.bind()?;
        let plan = Plan::new(&gpu, form, (a, b, c), batch, finish, rows)
            .map_err(|error| CudaError::of_library(&what, format!("{:?}", error.0)))?;
        let elements = |t: &Tensor| (t.rows() * t.cols() * t.dtype().bytes()) as f64;
        let again = finish.addend.map_or(0.0, elements);
        let count = batch.count as f64;
        let cost = Cost {
            flops: count * 2.0 * m as f64 * n as f64 * k as f64,
            bytes: count * (elements(a) + elements(b) + elements(c) + again),
        };
        Ok(Matmul {
            gpu,
            name: format!("matmul {what}"),
            plan,
            a: a.clone(),
            b: b.clone(),
            c: c.clone(),
            addend: finish.addend.cloned(),
            _bias: finish.bias.cloned(),
            workspace: workspace.clone(),
            cost,
        })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn cost(&self) -> Cost {
        self.cost
    }

    pub(crate) fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    #[expect(unsafe_code, reason = "starts a product")]
    pub(crate) fn run(&self, stream: driver::CUstream) -> Result<(), CudaError> {
        if self.c.rows() == 0 || self.c.cols() == 0 {
            return Ok(());
        }
        let (alpha, beta) = (1.0f32, if self.addend.is_some() { 1.0f32 } else { 0.0 });
        let pointer = |t: &Tensor| t.pointer() as *const c_void;
        let workspace = self.workspace.dense(1, WORKSPACE_BYTES, Dtype::U8)?;
        let [x, y, added, z] = self.plan.layouts;
        // SAFETY: views were checked against their memories and are held by `self`; the library is column-major, so the
        // product is computed transposed: factors swap places.
        let status = unsafe {
            lt::matmul(
                self.gpu.inner.handle,
                self.plan.desc,
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                pointer(&self.b),
                x,
                pointer(&self.a),
                y,
                pointer(self.addend.as_ref().unwrap_or(&self.c)),
                added,
                self.c.pointer() as *mut c_void,
                z,
                &raw const self.plan.algo,
                workspace.pointer() as *mut c_void,
                WORKSPACE_BYTES,
                stream.cast(),
            )
        };
        status.map_err(|error| CudaError::of_library(&self.name, format!("{:?}", error.0)))
    }
}

fn data_type(dtype: Dtype) -> sys::cudaDataType {
    match dtype {
        Dtype::Bf16 => sys::cudaDataType_t::CUDA_R_16BF,
        _ => sys::cudaDataType_t::CUDA_R_32F,
    }
}

impl Plan {
    #[expect(unsafe_code, reason = "describes a product to the library")]
    fn new(
        gpu: &Gpu,
        form: Form,
        (a, b, c): (&Tensor, &Tensor, &Tensor),
        batch: Batch,
        finish: Finish<'_>,
        rows: Option<usize>,
    ) -> Result<Self, lt::CublasError> {
        let (m, n, k) = sizes(form, a, b);
        let (few, like) = (rows.is_some(), rows.unwrap_or(m));
        let addend = finish.addend.unwrap_or(c);
        let mut parts = Parts::default();
        let float = sys::cudaDataType_t::CUDA_R_32F;
        let desc = lt::create_matmul_desc(sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, float)?;
        parts.desc = Some(desc);
        // Row-major `rows x cols` is column-major `cols x rows`: the library's first factor is `b`.
        let transposed = [form == Form::Nt, form == Form::Tn];
        let attributes = [
            sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA,
            sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSB,
        ];
        for (attribute, transposed) in attributes.into_iter().zip(transposed) {
            let value = i32::from(transposed);
            // SAFETY: the descriptor is alive; the attribute is an int.
            unsafe {
                lt::set_matmul_desc_attribute(desc, attribute, (&raw const value).cast(), size_of::<i32>())?;
            }
        }
        if let Some(bias) = finish.bias {
            set_bias(desc, bias)?;
        }
        let mut layout = |t: &Tensor, (rows, cols): (usize, usize), stride: usize| {
            let made =
                lt::create_matrix_layout(data_type(t.dtype()), rows as u64, cols as u64, t.pitch() as i64)?;
            parts.layouts.push(made);
            set_batch(made, batch.count, stride)?;
            Ok::<_, lt::CublasError>(made)
        };
        let [a_stride, b_stride, c_stride] = batch.strides;
        let x = layout(b, if transposed[0] { (k, n) } else { (n, k) }, b_stride)?;
        let mut of_rows = |rows: usize| {
            let c_stride = c_stride / m.max(1) * rows;
            let y = layout(a, if transposed[1] { (rows, k) } else { (k, rows) }, a_stride)?;
            let (added, z) = (layout(addend, (n, rows), c_stride)?, layout(c, (n, rows), c_stride)?);
            Ok::<_, lt::CublasError>([x, y, added, z])
        };
        let layouts = of_rows(m)?;
        let question = Question {
            form,
            sizes: (m, n, k),
            rows,
            batch: (batch.count, batch.strides),
            views: [a, b, addend, c].map(|t| (t.dtype(), t.pitch(), alignment(t))),
            bias: finish.bias.map(|t| (t.dtype(), alignment(t))),
        };
        let algo = gpu.inner.algorithms.of(question, || {
            let asked = if like == m { layouts } else { of_rows(like)? };
            let algo = choose(gpu, desc, asked, (form, [a, b, addend, c]), batch.count == 1 && !few)?;
            if like != m {
                takes(gpu, desc, layouts, &algo)?;
            }
            Ok(algo)
        })?;
        parts.desc = None;
        parts.layouts.retain(|made| !layouts.contains(made));
        Ok(Plan { desc, layouts, algo })
    }
}

impl Finish<'_> {
    /// Addend and bias fit the result `c` of the product `what`.
    fn check(&self, what: &str, c: &Tensor) -> Result<(), CudaError> {
        let like = |t: &Tensor, rows| t.rows() == rows && t.cols() == c.cols() && t.dtype() == c.dtype();
        if self.addend.is_none_or(|t| like(t, c.rows())) && self.bias.is_none_or(|t| like(t, 1)) {
            return Ok(());
        }
        let message = format!("{what}: addend or bias is not of the result's width, rows and type");
        Err(CudaError::shape("matmul", message))
    }
}

/// The algorithm for a product of these views; `wide`: one for many rows, whose tiles are chosen here.
#[expect(unsafe_code, reason = "asks the library")]
fn choose(
    gpu: &Gpu,
    desc: sys::cublasLtMatmulDesc_t,
    asked: [sys::cublasLtMatrixLayout_t; 4],
    (form, [a, b, addend, c]): (Form, [&Tensor; 4]),
    wide: bool,
) -> Result<Algorithm, lt::CublasError> {
    let pref = lt::create_matmul_pref()?;
    // SAFETY: all descriptors are alive; the preference is given back here.
    let found = unsafe {
        let set = preferences(pref, (a, b, addend, c));
        let found = set.and_then(|()| offered(gpu, desc, asked, pref));
        let _ = lt::destroy_matmul_pref(pref);
        found?
    };
    let half = [a, b, c].iter().all(|t| t.dtype() == Dtype::Bf16);
    let which = if half && wide {
        let waves: Vec<f32> = found.iter().map(|result| result.wavesCount).collect();
        preferred(&waves, form, sizes(form, a, b), gpu.properties().multiprocessors)
    } else {
        0
    };
    Ok(found[which].algo)
}

/// Whether an algorithm that was chosen for other sizes computes these, in the workspace that there is.
#[expect(unsafe_code, reason = "asks the library")]
fn takes(
    gpu: &Gpu,
    desc: sys::cublasLtMatmulDesc_t,
    [x, y, added, z]: [sys::cublasLtMatrixLayout_t; 4],
    algo: &sys::cublasLtMatmulAlgo_t,
) -> Result<(), lt::CublasError> {
    let mut found = std::mem::MaybeUninit::<sys::cublasLtMatmulHeuristicResult_t>::zeroed();
    // SAFETY: all descriptors are alive; the library writes one result, of plain numbers, for which zeros are a value.
    let found = unsafe {
        sys::cublasLtMatmulAlgoCheck(gpu.inner.handle, desc, x, y, added, z, algo, found.as_mut_ptr())
            .result()?;
        found.assume_init()
    };
    match found.workspaceSize <= WORKSPACE_BYTES {
        true => Ok(()),
        false => Err(lt::CublasError(sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED)),
    }
}

#[expect(unsafe_code, reason = "describes a bias to the library")]
fn set_bias(desc: sys::cublasLtMatmulDesc_t, bias: &Tensor) -> Result<(), lt::CublasError> {
    use sys::cublasLtMatmulDescAttributes_t as Attribute;
    let epilogue = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS as u32;
    let (pointer, kind) = (bias.pointer(), data_type(bias.dtype()) as i32);
    // SAFETY: the descriptor is alive; the attributes are a 32-bit number, a device address and a 32-bit number.
    unsafe {
        let put = |attribute, value: *const c_void, size| {
            lt::set_matmul_desc_attribute(desc, attribute, value, size)
        };
        put(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, (&raw const epilogue).cast(), size_of::<u32>())?;
        put(Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, (&raw const pointer).cast(), size_of::<u64>())?;
        put(Attribute::CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, (&raw const kind).cast(), size_of::<i32>())
    }
}

#[expect(unsafe_code, reason = "describes a batch to the library")]
fn set_batch(
    layout: sys::cublasLtMatrixLayout_t,
    count: usize,
    stride: usize,
) -> Result<(), lt::CublasError> {
    use sys::cublasLtMatrixLayoutAttribute_t as Attribute;
    if count <= 1 {
        return Ok(());
    }
    let (count, stride) = (count as i32, stride as i64);
    let (at_count, at_stride) = (
        Attribute::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT,
        Attribute::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
    );
    // SAFETY: the layout is alive; the attributes are an int and a 64-bit int.
    unsafe {
        lt::set_matrix_layout_attribute(layout, at_count, (&raw const count).cast(), size_of::<i32>())?;
        lt::set_matrix_layout_attribute(layout, at_stride, (&raw const stride).cast(), size_of::<i64>())
    }
}

/// # Safety
/// `pref` is alive.
#[expect(unsafe_code, reason = "tells the library what an algorithm may do")]
unsafe fn preferences(
    pref: sys::cublasLtMatmulPreference_t,
    (a, b, addend, c): (&Tensor, &Tensor, &Tensor, &Tensor),
) -> Result<(), lt::CublasError> {
    use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
    let workspace = WORKSPACE_BYTES as u64;
    let reduction = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_NONE as u32;
    // SAFETY: by the contract of this function; each attribute has the type that the library expects.
    unsafe {
        let put = |attribute, value: *const c_void, size| {
            lt::set_matmul_pref_attribute(pref, attribute, value, size)
        };
        let bytes = (&raw const workspace).cast();
        put(Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, bytes, size_of::<u64>())?;
        let mask = (&raw const reduction).cast();
        put(Attribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, mask, size_of::<u32>())?;
        for (attribute, tensor) in [
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, b),
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, a),
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, addend),
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, c),
        ] {
            let value = alignment(tensor);
            put(attribute, (&raw const value).cast(), size_of::<u32>())?;
        }
    }
    Ok(())
}

/// Half-made descriptors, given back when making the rest fails.
#[derive(Default)]
struct Parts {
    desc: Option<sys::cublasLtMatmulDesc_t>,
    layouts: Vec<sys::cublasLtMatrixLayout_t>,
}

impl Drop for Parts {
    #[expect(unsafe_code, reason = "gives descriptors back")]
    fn drop(&mut self) {
        for layout in self.layouts.drain(..) {
            // SAFETY: made here and given to nobody.
            let _ = unsafe { lt::destroy_matrix_layout(layout) };
        }
        if let Some(desc) = self.desc.take() {
            // SAFETY: as above.
            let _ = unsafe { lt::destroy_matmul_desc(desc) };
        }
    }
}

impl Drop for Plan {
    #[expect(unsafe_code, reason = "gives descriptors back")]
    fn drop(&mut self) {
        for layout in self.layouts {
            // SAFETY: made by `Plan::new`, given back once.
            let _ = unsafe { lt::destroy_matrix_layout(layout) };
        }
        // SAFETY: as above.
        let _ = unsafe { lt::destroy_matmul_desc(self.desc) };
    }
}

#[cfg(test)]
mod tests {
    use super::{few_parts, parts};

    #[test]
    fn only_long_products_with_few_tiles_are_split() {
        assert_eq!(parts((1024, 896, 151_936), 132), 8);
        assert_eq!(parts((2048, 896, 151_936), 132), 4);
        assert_eq!(parts((8192, 896, 151_936), 132), 1);
        assert_eq!(parts((1024, 896, 4864), 132), 1);
        assert_eq!(parts((1024, 896, 151_937), 132), 1);
        assert_eq!(parts((2048, 960, 9728), 132), 1);
        assert_eq!(parts((0, 896, 151_936), 132), 1);
        assert_eq!(parts((64, 64, 1 << 20), 132), 16);
    }

    #[test]
    fn products_with_few_rows_are_split_by_the_weight_s_shape() {
        assert_eq!(few_parts(896, 4864), 8);
        assert_eq!(few_parts(896, 4928), 8);
        assert_eq!(few_parts(896, 896), 1);
        assert_eq!(few_parts(9728, 896), 1);
        assert_eq!(few_parts(151_936, 4096), 1);
        assert_eq!(few_parts(0, 4096), 8);
    }
}
