//! Loss and gradients of one batch, for comparison with other implementations.
//!
//! ```text
//! gradients MODEL ADAPTER BATCH.safetensors OUT.safetensors [cpu|cuda] [float32|bfloat16] [none|nf4]
//! ```
//! `BATCH` holds `input_ids`, `labels` and `attention_mask` (int64, right-padded) as transformers takes them. `OUT` gets
//! `loss` and, by the names of PEFT, the gradient of every adapter tensor.

use engine::{ComputeDevice, MicroBatch, Mode, Precision, SavePolicy, Sequence, TrainOptions, Trainer};
use model::adapter::Adapter;
use model::config::Config;
use model::weights::Weights;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, adapter, batch, out, rest @ ..] = &arguments[..] else {
        return Err("usage: gradients MODEL ADAPTER BATCH.safetensors OUT.safetensors [cpu|cuda] [float32|bfloat16] [none|nf4]".into());
    };
    let has = |word: &str| rest.iter().any(|given| given == word);
    let config = Config::from_dir(Path::new(model))?;
    let weights = Weights::load(Path::new(model), &config)?;
    let adapter = Adapter::load(Path::new(adapter), &config)?;
    let micro = read_batch(Path::new(batch))?;
    let options = TrainOptions {
        mode: if has("nf4") { Mode::Qlora { double_quant: true } } else { Mode::Lora },
        dropout: 0.0,
        precision: if has("bfloat16") { Precision::Bf16Rounded } else { Precision::Float32 },
        threads: std::thread::available_parallelism().map_or(1, |n| n.get()),
        seed: 0,
        save: SavePolicy::All,
        max_tokens: micro.sequences.iter().map(|s| s.input_ids.len()).sum(),
        device: if has("cuda") { ComputeDevice::Cuda { id: 0 } } else { ComputeDevice::Cpu },
        packed_base: false,
    };
    let mut trainer = Trainer::new(&config, &weights, Some(&adapter), options)?;
    let sum = trainer.evaluate(&micro)?;
    let gradients = trainer.gradients(&micro)?;
    write(Path::new(out), sum.sum / sum.label_tokens as f64, &gradients, &adapter)
}

fn read_batch(path: &Path) -> Result<MicroBatch, Box<dyn Error>> {
    let bytes = std::fs::read(path)?;
    let file = SafeTensors::deserialize(&bytes)?;
    let ints = |name: &str| -> Result<(Vec<i64>, usize), Box<dyn Error>> {
        let view = file.tensor(name)?;
        let values = view.data().as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)).collect();
        Ok((values, view.shape()[1]))
    };
    let ((ids, width), (labels, _), (mask, _)) =
        (ints("input_ids")?, ints("labels")?, ints("attention_mask")?);
    let rows = ids.chunks(width).zip(labels.chunks(width)).zip(mask.chunks(width));
    let sequences = rows
        .enumerate()
        .map(|(n, ((ids, labels), mask))| {
            let length = mask.iter().filter(|&&m| m == 1).count();
            Sequence {
                sample_id: n as u64,
                input_ids: ids[..length].iter().map(|&id| id as u32).collect(),
                labels: labels[..length].iter().map(|&label| label as i32).collect(),
            }
        })
        .collect();
    Ok(MicroBatch { sequences })
}

fn write(
    path: &Path,
    loss: f64,
    gradients: &BTreeMap<String, Vec<f32>>,
    adapter: &Adapter,
) -> Result<(), Box<dyn Error>> {
    let bytes = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let mut tensors = vec![("loss".to_owned(), vec![1], bytes(&[loss as f32]))];
    for (name, values) in gradients {
        let shape = adapter.tensors.get(name).map_or(vec![values.len()], |t| t.shape().to_vec());
        tensors.push((name.clone(), shape, bytes(values)));
    }
    let views = tensors
        .iter()
        .map(|(name, shape, data)| Ok((name.clone(), TensorView::new(Dtype::F32, shape.clone(), data)?)))
        .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()?;
    safetensors::serialize_to_file(views, None, path)?;
    Ok(())
}
