//! Gradient norm, clipping, Adam and AdamW over flat slabs: `optimizer.cu`.

use super::access::wide;
use super::{Check, bytes};
use crate::cuda::compile::Source;
use crate::cuda::launch::{Args, Grid, Launch};
use crate::cuda::{Cost, CudaError, Dtype, Tensor, Work};

/// The kernels.
pub static SOURCE: Source = Source { name: "optimizer.cu", text: include_str!("../../../optimizer.cu") };

/// Elements of one partial sum of the norm.
const NORM_BLOCK: usize = 4096;
/// Elements that a block updates.
const BLOCK: usize = 2048;
/// Elements that fit the kernels' 32-bit offsets.
const ELEMENTS_MAX: usize = (1 << 31) - 2 * NORM_BLOCK;

/// Bytes of scratch that [`grad_norm`] needs for a slab of `n` elements.
#[must_use]
pub fn partials_bytes(n: usize) -> usize {
    n.div_ceil(NORM_BLOCK) * 8
}

/// `norm` = Euclidean norm of `gradient`, times `inv_labels` of `scalars`: float64 sums of 4,096 elements, added in a fixed order, rounded to float32. Two pieces
/// of work, in this order. `gradient`: `1 x N` float32, `partials`: `1 x` [`partials_bytes`] bytes, `norm`: `1 x 1` float32. A
/// norm that is not finite sets `flag` (`1 x 1` u32) to 1.
///
/// # Errors
/// When shapes or types do not fit.
pub fn grad_norm(
    gradient: &Tensor,
    partials: &Tensor,
    norm: &Tensor,
    scalars: &Tensor,
    flag: Option<&Tensor>,
) -> Result<[Work; 2], CudaError> {
    let check = Check::new("grad_norm");
    slab(&check, "gradient", gradient, gradient.cols())?;
    check.shape("partials", partials, 1, partials_bytes(gradient.cols()))?;
    check.dtype("partials", partials, Dtype::U8)?;
    check.that(partials.is_aligned(8), || "partials do not start at a multiple of 8 bytes".to_owned())?;
    check.column("norm", norm, 1, Dtype::F32)?;
    check.scalars(scalars)?;
    check.flag(flag)?;
    let (gpu, n) = (gradient.memory().gpu(), gradient.cols());
    let blocks = n.div_ceil(NORM_BLOCK);
    let args = Args::new().tensor(gradient).int(n).tensor(partials).int(usize::from(wide(&[gradient])));
    let cost = Cost { flops: 2.0 * n as f64, bytes: bytes(&[gradient, partials]) };
    let first = Launch::prepare(gpu, &SOURCE, "grad_norm_partials", Grid::line(blocks, 256), args, cost)?;
    let args = Args::new().tensor(partials).int(blocks).tensor(norm).tensor(scalars).optional(flag);
    let cost = Cost { flops: blocks as f64, bytes: bytes(&[partials]) };
    let second = Launch::prepare(gpu, &SOURCE, "grad_norm", Grid::line(1, 1024), args, cost)?;
    Ok([first, second])
}

/// Slabs of all trainables, `1 x N` float32 each.
#[derive(Debug, Clone, Copy)]
pub struct Slabs<'a> {
    pub master: &'a Tensor,
    pub gradient: &'a Tensor,
    /// First moments.
    pub m: &'a Tensor,
    /// Second moments.
    pub v: &'a Tensor,
    /// `1 x N` bfloat16: takes the updated master, rounded.
    pub copy: Option<&'a Tensor>,
}

/// When and where an update applies.
#[derive(Debug, Clone, Copy)]
pub struct Conditions<'a> {
    /// `1 x 1` float32, from [`grad_norm`]: clips, and stops the update when it is not finite.
    pub norm: &'a Tensor,
    /// [`StepScalars`](super::StepScalars), `1 x 72` bytes.
    pub scalars: &'a Tensor,
    /// `S x 2` u32: which elements decay. Made by [`segments`].
    pub segments: &'a Tensor,
    /// `1 x 1` u32: stops every update while it is not 0.
    pub flag: Option<&'a Tensor>,
}

/// Rows of [`Conditions::segments`] for parameters of these lengths, in the order of the slabs; neighbours with one rule become
/// one row. `true`: decays.
#[must_use]
pub fn segments(parameters: impl IntoIterator<Item = (usize, bool)>) -> Vec<u32> {
    let mut rows: Vec<u32> = Vec::new();
    let mut start = 0;
    for (len, decays) in parameters {
        if len > 0 && rows.last() != Some(&u32::from(decays)) {
            rows.extend([start as u32, u32::from(decays)]);
        }
        start += len;
    }
    if rows.is_empty() { vec![0, 0] } else { rows }
}

/// One update of AdamW (I. Loshchilov, F. Hutter, 2019) with gradients clipped by the norm, each operation rounded by itself:
///
/// ```text
/// g *= inv_labels       g *= min(1, clip / (norm + 1e-6))       p *= shrink  where it decays
/// m += (g - m) keep1        v = v beta2 + keep2 g g        p -= step_size (m / (sqrt(v) / correction + eps))
/// ```
///
/// # Errors
/// When shapes or types do not fit.
pub fn adamw(slabs: Slabs<'_>, conditions: Conditions<'_>) -> Result<Work, CudaError> {
    let check = Check::new("adamw");
    let args = operands(&check, slabs, conditions)?;
    update("adamw", slabs, args)
}

/// One update of Adam (D. Kingma, J. Ba, 2015): as [`adamw`], but instead of shrinking `p`, `decay p` is added to the clipped
/// gradient where it decays.
///
/// # Errors
/// When shapes or types do not fit.
pub fn adam(slabs: Slabs<'_>, conditions: Conditions<'_>, decay: f32) -> Result<Work, CudaError> {
    let check = Check::new("adam");
    let args = operands(&check, slabs, conditions)?;
    update("adam", slabs, args.float(decay))
}

fn update(name: &str, slabs: Slabs<'_>, args: Args) -> Result<Work, CudaError> {
    let Slabs { master, gradient, m, v, copy } = slabs;
    let mut all = vec![master, gradient, m, v];
    all.extend(copy);
    let args = args.int(usize::from(wide(&all)));
    let n = master.cols();
    all.extend([master, m, v]);
    let cost = Cost { flops: 15.0 * n as f64, bytes: bytes(&all) };
    Launch::prepare(master.memory().gpu(), &SOURCE, name, Grid::line(n.div_ceil(BLOCK), 256), args, cost)
}

fn operands(check: &Check, slabs: Slabs<'_>, conditions: Conditions<'_>) -> Result<Args, CudaError> {
    let Slabs { master, gradient, m, v, copy } = slabs;
    let Conditions { norm, scalars, segments, flag } = conditions;
    let n = master.cols();
    for (what, tensor) in [("master", master), ("gradient", gradient), ("m", m), ("v", v)] {
        slab(check, what, tensor, n)?;
    }
    if let Some(copy) = copy {
        check.shape("copy", copy, 1, n)?;
        check.dtype("copy", copy, Dtype::Bf16)?;
    }
    check.column("norm", norm, 1, Dtype::F32)?;
    check.scalars(scalars)?;
    check.shape("segments", segments, segments.rows(), 2)?;
    check.dtype("segments", segments, Dtype::U32)?;
    check.dense("segments", segments)?;
    let usable = segments.rows() > 0 && segments.is_aligned(8);
    check.that(usable, || "segments need a row, and start at a multiple of 8 bytes".to_owned())?;
    check.flag(flag)?;
    Ok(Args::new()
        .tensor(master)
        .tensor(gradient)
        .tensor(m)
        .tensor(v)
        .optional(copy)
        .int(n)
        .tensor(norm)
        .tensor(scalars)
        .tensor(segments)
        .int(segments.rows())
        .optional(flag))
}

/// `gradient *= min(1, clip / (norm + 1e-6))`, in place; nothing when the norm is not finite or nothing is to be clipped.
///
/// # Errors
/// When shapes or types do not fit.
pub fn clip(gradient: &Tensor, norm: &Tensor, scalars: &Tensor) -> Result<Work, CudaError> {
    let check = Check::new("clip");
    let n = gradient.cols();
    slab(&check, "gradient", gradient, n)?;
    check.column("norm", norm, 1, Dtype::F32)?;
    check.scalars(scalars)?;
    let args =
        Args::new().tensor(gradient).int(n).tensor(norm).tensor(scalars).int(usize::from(wide(&[gradient])));
    let cost = Cost { flops: n as f64, bytes: bytes(&[gradient, gradient]) };
    let grid = Grid::line(n.div_ceil(BLOCK), 256);
    Launch::prepare(gradient.memory().gpu(), &SOURCE, "clip", grid, args, cost)
}

fn slab(check: &Check, what: &str, tensor: &Tensor, n: usize) -> Result<(), CudaError> {
    check.shape(what, tensor, 1, n)?;
    check.dtype(what, tensor, Dtype::F32)?;
    check.that(n <= ELEMENTS_MAX, || format!("{what} has {n} elements; at most {ELEMENTS_MAX}"))
}

#[cfg(test)]
mod tests {
    use super::segments;

    #[test]
    fn neighbours_with_one_rule_share_a_segment() {
        assert_eq!(
            segments([(4, true), (3, true), (2, false), (0, true), (5, false), (1, true)]),
            [0, 1, 7, 0, 14, 1]
        );
        assert_eq!(segments([]), [0, 0]);
        assert_eq!(segments([(8, false)]), [0, 0]);
    }
}
