//! Every kernel against plain loops in float64, on fresh random inputs. Needs a GPU, and fails without one.
//!
//! The seed of the inputs is printed; `TESTFORGE_TEST_SEED` sets it. All tests share one stream, from which one of them
//! captures graphs: they run one at a time (`--test-threads=1`).

#![cfg(feature = "gpu-tests")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stdout, reason = "errors and times are for people")]

mod attention;
mod attention_paged;
mod bench_elementwise;
mod bench_lora;
#[path = "../compare/mod.rs"]
mod compare;
mod cross_entropy;
mod differences;
mod differences_products;
mod elementwise;
mod embed;
mod layer_norm;
mod lora;
mod lora_fused;
mod matmul;
mod nf4;
mod optimizer;
mod philox;
mod rms_norm;
mod rope;
mod rows;
mod sample;
mod schedule;
mod softmax;
mod support;
