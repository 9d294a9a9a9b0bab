"""What the peer scripts share: the model's shape, timing on the GPU, output as JSON lines."""

import json
import os
import statistics
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# Qwen2.5-Coder-0.5B: 494,032,768 parameters with the tied head.
ARCHITECTURE = {
    "vocab_size": 151936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "rope_theta": 1e6,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
}
N_PARAMETERS = 494_032_768
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
RANK, ALPHA = 16, 32
# 24 layers x (q, o: 28,672; k, v: 16,384; gate, up, down: 92,160)
N_TRAINABLE = 8_798_208


def emit(**fields):
    """Prints one result as a JSON line, at once, so that a run cut short keeps what it measured."""
    print(json.dumps(fields), flush=True)


def model_folder(path):
    """A folder with random bf16 weights of the architecture, made with seed 0 on first use.

    Speed and memory do not depend on the weights' values, so no download is needed.
    """
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    folder = Path(path)
    if not (folder / "config.json").exists():
        torch.manual_seed(0)
        model = Qwen2ForCausalLM(Qwen2Config(**ARCHITECTURE)).to(torch.bfloat16)
        n = sum(p.numel() for p in model.parameters())
        if n != N_PARAMETERS:
            raise SystemExit(f"the model has {n} parameters, expected {N_PARAMETERS}")
        model.save_pretrained(folder)
    return str(folder)


def wall_seconds(work):
    """Seconds of one call of `work`, up to the moment when the device is done."""
    import torch

    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def median_step(work, warmup, repeats):
    """Median of `repeats` wall times after `warmup` calls that do not count."""
    for _ in range(warmup):
        work()
    return statistics.median(wall_seconds(work) for _ in range(repeats))


def peak_gib():
    """Highest memory that torch's allocator held, in GiB: without the CUDA context, which costs about 0.5 more."""
    import torch

    return round(torch.cuda.max_memory_allocated() / 2**30, 2)


def device_name():
    import torch

    return torch.cuda.get_device_name(0)
