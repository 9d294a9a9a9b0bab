//! Sums, biases, conversions and activations: `elementwise.cu`.

use super::access::{Walk, column_grid, group, wide};
use super::{Check, bytes};
use crate::cuda::compile::Source;
use crate::cuda::launch::{Args, Launch};
use crate::cuda::{Cost, CudaError, Dtype, Tensor, Work};

/// The kernels.
pub static SOURCE: Source = Source { name: "elementwise.cu", text: include_str!("../../../elementwise.cu") };

/// Views with their pitches, one after another.
fn views(tensors: &[&Tensor]) -> Args {
    tensors.iter().fold(Args::new(), |args, tensor| args.tensor(tensor).int(tensor.pitch()))
}

/// A kernel over elements of views of one shape; `flops` for each element.
fn elements(check: &Check, name: String, tensors: &[&Tensor], flops: f64) -> Result<Work, CudaError> {
    let walk = Walk::elements(check, tensors)?;
    let first = tensors[0];
    let cost = Cost { flops: flops * (first.rows() * first.cols()) as f64, bytes: bytes(tensors) };
    Launch::prepare(first.memory().gpu(), &SOURCE, name, walk.grid(), walk.args(views(tensors)), cost)
}

/// `out = a + b`; all `T x C` of one type, float32 or bfloat16. `out` may be `a` or `b`.
///
/// # Errors
/// When shapes or types do not fit.
pub fn add(a: &Tensor, b: &Tensor, out: &Tensor) -> Result<Work, CudaError> {
    let check = Check::new("add");
    check.float("a", a)?;
    check.like("b", b, a)?;
    check.like("out", out, a)?;
    elements(&check, format!("add_{}", a.dtype().suffix()), &[a, b, out], 1.0)
}

/// `out = x` in the type of `out`: float32 to bfloat16 (nearest, ties to even) or back; both `T x C`.
///
/// # Errors
/// When shapes do not fit or both have one type.
pub fn cast(x: &Tensor, out: &Tensor) -> Result<Work, CudaError> {
    let check = Check::new("cast");
    check.float("x", x)?;
    check.float("out", out)?;
    check.shape("out", out, x.rows(), x.cols())?;
    check.that(x.dtype() != out.dtype(), || format!("both are {:?}", x.dtype()))?;
    elements(&check, format!("cast_{}_{}", x.dtype().suffix(), out.dtype().suffix()), &[x, out], 0.0)
}

/// `y += bias` on every row; `y`: `T x C`, `bias`: `1 x C` of its type, or float32.
///
/// # Errors
/// When shapes or types do not fit.
pub fn add_bias(y: &Tensor, bias: &Tensor) -> Result<Work, CudaError> {
    let check = Check::new("add_bias");
    check.float("y", y)?;
    check.shape("bias", bias, 1, y.cols())?;
    let pair = bias.dtype() == y.dtype() || bias.dtype() == Dtype::F32;
    check.that(pair, || format!("y is {:?} and bias {:?}", y.dtype(), bias.dtype()))?;
    // the width of a group is that of `y`; a wider bias is read in two pieces
    let walk = Walk::rows(&check, (y.rows(), y.cols()), &[y])?.narrow_unless(wide(&[bias]));
    let args = Args::new().tensor(y).int(y.pitch()).tensor(bias);
    let cost = Cost { flops: (y.rows() * y.cols()) as f64, bytes: bytes(&[y, y, bias]) };
    let name = format!("add_bias_{}_{}", y.dtype().suffix(), bias.dtype().suffix());
    Launch::prepare(y.memory().gpu(), &SOURCE, name, walk.grid(), walk.args(args), cost)
}

/// `d_bias += sum over rows of d_y`, in a fixed order; `d_y`: `T x C`, `d_bias`: `1 x C` float32.
///
/// # Errors
/// When shapes or types do not fit.
pub fn bias_grad(d_y: &Tensor, d_bias: &Tensor) -> Result<Work, CudaError> {
    let check = Check::new("bias_grad");
    check.float("d_y", d_y)?;
    check.cols(d_y.cols())?;
    check.shape("d_bias", d_bias, 1, d_y.cols())?;
    check.dtype("d_bias", d_bias, Dtype::F32)?;
    let args = views(&[d_y]).tensor(d_bias).int(d_y.rows()).int(d_y.cols()).int(usize::from(wide(&[d_y])));
    let cost = Cost { flops: (d_y.rows() * d_y.cols()) as f64, bytes: bytes(&[d_y, d_bias, d_bias]) };
    let name = format!("bias_grad_{}", d_y.dtype().suffix());
    Launch::prepare(d_y.memory().gpu(), &SOURCE, name, column_grid(d_y.cols(), group(&[d_y])), args, cost)
}

/// A function of one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `max(x, 0)`; its derivative at 0 is 0.
    Relu,
    /// `x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`.
    GeluTanh,
    /// `x/2 (1 + erf(x / sqrt 2))`.
    GeluErf,
    /// `x / (1 + exp(-x))`.
    Silu,
}

impl Activation {
    fn kernel(self) -> &'static str {
        match self {
            Activation::Relu => "relu",
            Activation::GeluTanh => "gelu_tanh",
            Activation::GeluErf => "gelu_erf",
            Activation::Silu => "silu",
        }
    }
}

/// `out = f(x)`; both `T x C` of one type, float32 or bfloat16. `out` may be `x`.
///
/// # Errors
/// When shapes or types do not fit.
pub fn activation(f: Activation, x: &Tensor, out: &Tensor) -> Result<Work, CudaError> {
    let check = Check::new(f.kernel());
    check.float("x", x)?;
    check.like("out", out, x)?;
    elements(&check, format!("{}_{}", f.kernel(), x.dtype().suffix()), &[x, out], 10.0)
}

/// `d_x = d_out f'(x)`; all `T x C` of one type. `d_x` may be `d_out` or `x`.
///
/// # Errors
/// When shapes or types do not fit.
pub fn activation_grad(f: Activation, x: &Tensor, d_out: &Tensor, d_x: &Tensor) -> Result<Work, CudaError> {
    let check = Check::new(f.kernel());
    check.float("x", x)?;
    check.like("d_out", d_out, x)?;
    check.like("d_x", d_x, x)?;
    elements(&check, format!("{}_grad_{}", f.kernel(), x.dtype().suffix()), &[x, d_out, d_x], 15.0)
}

/// The walk over `T x F` of [`swiglu`]; the second half of each row of `pairs` (`T x 2F`) must be as aligned as the first.
fn halves(check: &Check, pairs: &[(&'static str, &Tensor)], single: &[&Tensor]) -> Result<Walk, CudaError> {
    let model = single[0];
    let mut all = single.to_vec();
    let mut aligned = true;
    for (what, pair) in pairs {
        check.dtype(what, pair, model.dtype())?;
        check.shape(what, pair, model.rows(), 2 * model.cols())?;
        all.push(pair);
        aligned &= pair.columns(model.cols(), model.cols())?.is_aligned(16);
    }
    Ok(Walk::rows(check, (model.rows(), model.cols()), &all)?.narrow_unless(aligned))
}

/// `out = silu(gate) up`; `gate_up`: `T x 2F`, gate first, `out`: `T x F` of the same type.
///
/// # Errors
/// When shapes or types do not fit.
pub fn swiglu(gate_up: &Tensor, out: &Tensor) -> Result<Work, CudaError> {
    let check = Check::new("swiglu");
    check.float("out", out)?;
    let walk = halves(&check, &[("gate_up", gate_up)], &[out])?;
    let cost = Cost { flops: 6.0 * (out.rows() * out.cols()) as f64, bytes: bytes(&[gate_up, out]) };
    let name = format!("swiglu_{}", out.dtype().suffix());
    let args = walk.args(views(&[gate_up, out]));
    Launch::prepare(out.memory().gpu(), &SOURCE, name, walk.grid(), args, cost)
}

/// Gradient of [`swiglu`]: `d_gate = d_out up s (1 + gate (1 - s))` with `s = 1 / (1 + exp(-gate))`, `d_up = d_out silu(gate)`;
/// `d_gate_up`: `T x 2F`, may be `gate_up`. With `h` (`T x F`), also the output of the forward once more.
///
/// # Errors
/// When shapes or types do not fit.
pub fn swiglu_grad(
    gate_up: &Tensor,
    d_out: &Tensor,
    d_gate_up: &Tensor,
    h: Option<&Tensor>,
) -> Result<Work, CudaError> {
    let check = Check::new("swiglu_grad");
    check.float("d_out", d_out)?;
    let mut single = vec![d_out];
    if let Some(h) = h {
        check.like("h", h, d_out)?;
        single.push(h);
    }
    let walk = halves(&check, &[("gate_up", gate_up), ("d_gate_up", d_gate_up)], &single)?;
    let mut touched = vec![gate_up, d_gate_up];
    touched.extend(&single);
    let cost = Cost { flops: 12.0 * (d_out.rows() * d_out.cols()) as f64, bytes: bytes(&touched) };
    let args = views(&[gate_up, d_out, d_gate_up]).optional(h).int(h.map_or(0, Tensor::pitch));
    let name = format!("swiglu_grad_{}", d_out.dtype().suffix());
    Launch::prepare(d_out.memory().gpu(), &SOURCE, name, walk.grid(), walk.args(args), cost)
}
