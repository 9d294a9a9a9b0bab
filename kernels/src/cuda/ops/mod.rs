//! Launchers, one module a family: shapes, types and bounds are checked here, so that a [`Work`](super::Work) is safe to run.

mod access;
pub mod attention;
pub mod attention_paged;
pub mod cross_entropy;
pub mod elementwise;
pub mod embed;
pub mod layer_norm;
pub mod lora;
pub mod nf4;
pub mod optimizer;
pub mod rms_norm;
pub mod rope;
pub mod rows;
pub mod sample;
pub mod softmax;
pub mod sum_parts;

use super::compile::Source;
use super::error::CudaError;
use super::memory::{Dtype, Tensor};

/// Every file of kernels, by name.
pub static SOURCES: &[&Source] = &[
    &attention::FLASH,
    &attention::FLASH_GRAD,
    &attention::SOURCE,
    &attention::WGMMA,
    &attention::WGMMA_KV,
    &attention_paged::SOURCE,
    &cross_entropy::SOURCE,
    &elementwise::SOURCE,
    &embed::SOURCE,
    &layer_norm::SOURCE,
    &lora::FUSED_SOURCE,
    &lora::GRAD_SOURCE,
    &lora::INPUT_SOURCE,
    &lora::PLAIN_SOURCE,
    &lora::SOURCE,
    &lora::SUM_SOURCE,
    &lora::SWIGLU_SOURCE,
    &nf4::SOURCE,
    &optimizer::SOURCE,
    &rms_norm::SOURCE,
    &rope::SOURCE,
    &rows::SOURCE,
    &sample::SOURCE,
    &softmax::SOURCE,
    &sum_parts::SOURCE,
];

/// Numbers that change from one submission to the next; the struct of the same name in `common.cuh`.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct StepScalars {
    /// `1 / label tokens of the optimizer step`: what the gradient of the summed losses is multiplied by.
    pub inv_labels: f32,
    /// `alpha / r`.
    pub lora_scale: f32,
    /// Optimizer steps done; keys dropout.
    pub step: u32,
    /// Drop probability in 1/65536.
    pub drop_threshold: u32,
    pub seed: u64,
    /// Sequences of the micro-batch.
    pub seqs: u32,
    /// Rows with a loss.
    pub loss_rows: u32,
    /// Greatest gradient norm; 0: no clipping.
    pub clip: f64,
    /// `lr / (1 - beta1^t)`.
    pub step_size: f32,
    /// `sqrt(1 - beta2^t)`.
    pub correction: f32,
    /// `1 - beta1`.
    pub keep1: f32,
    pub beta2: f32,
    /// `1 - beta2`.
    pub keep2: f32,
    pub eps: f32,
    /// `1 - lr decay`.
    pub shrink: f32,
}

impl StepScalars {
    /// Size on the device.
    pub const BYTES: usize = 72;

    /// As the device reads it.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let words: [u32; 18] = [
            self.inv_labels.to_bits(),
            self.lora_scale.to_bits(),
            self.step,
            self.drop_threshold,
            self.seed as u32,
            (self.seed >> 32) as u32,
            self.seqs,
            self.loss_rows,
            self.clip.to_bits() as u32,
            (self.clip.to_bits() >> 32) as u32,
            self.step_size.to_bits(),
            self.correction.to_bits(),
            self.keep1.to_bits(),
            self.beta2.to_bits(),
            self.keep2.to_bits(),
            self.eps.to_bits(),
            self.shrink.to_bits(),
            0,
        ];
        let mut bytes = [0; Self::BYTES];
        for (target, word) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(words) {
            *target = word.to_le_bytes();
        }
        bytes
    }
}

/// Checks one launch's operands; every message names the kernel.
struct Check {
    kernel: &'static str,
}

impl Check {
    fn new(kernel: &'static str) -> Self {
        Check { kernel }
    }

    /// `what` has this shape.
    fn shape(&self, what: &str, tensor: &Tensor, rows: usize, cols: usize) -> Result<(), CudaError> {
        if tensor.rows() == rows && tensor.cols() == cols {
            return Ok(());
        }
        let message = format!("{what} is {} x {}, not {rows} x {cols}", tensor.rows(), tensor.cols());
        Err(CudaError::shape(self.kernel, message))
    }

    /// `what` has this type.
    fn dtype(&self, what: &str, tensor: &Tensor, dtype: Dtype) -> Result<(), CudaError> {
        self.that(tensor.dtype() == dtype, || format!("{what} is {:?}, not {dtype:?}", tensor.dtype()))
    }

    /// `what` is float32 or bfloat16.
    fn float(&self, what: &str, tensor: &Tensor) -> Result<(), CudaError> {
        let float = matches!(tensor.dtype(), Dtype::F32 | Dtype::Bf16);
        self.that(float, || format!("{what} is {:?}", tensor.dtype()))
    }

    /// Rows of `what` follow each other without gaps.
    fn dense(&self, what: &str, tensor: &Tensor) -> Result<(), CudaError> {
        self.that(tensor.is_dense(), || format!("{what} has gaps between its rows"))
    }

    fn that(&self, holds: bool, message: impl FnOnce() -> String) -> Result<(), CudaError> {
        if holds { Ok(()) } else { Err(CudaError::shape(self.kernel, message())) }
    }
}

/// Bytes of the elements of views, for costs.
fn bytes(tensors: &[&Tensor]) -> f64 {
    tensors.iter().map(|t| (t.rows() * t.cols() * t.dtype().bytes()) as f64).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scalars_lie_where_the_device_reads_them() {
        let scalars = StepScalars { step: 7, clip: 1.5, shrink: 0.25, ..StepScalars::default() };
        let bytes = scalars.to_bytes();
        assert_eq!(bytes[8..12], 7u32.to_le_bytes());
        assert_eq!(bytes[32..40], 1.5f64.to_le_bytes());
        assert_eq!(bytes[64..68], 0.25f32.to_le_bytes());
    }
}
