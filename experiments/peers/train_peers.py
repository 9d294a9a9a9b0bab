"""One training step of LoRA on Qwen2.5-Coder-0.5B, as others do it.

Work: forward, backward, clipping at norm 1, AdamW, on batches of random token ids without padding.
Counting: tokens = batch x sequence; median of 20 steps after 6; peak of torch's allocator.

    python train_peers.py bf16 --shape 4x512 --shape 16x512
    python train_peers.py unsloth --dropout 0

Prints one JSON line per shape. A shape that fails (out of memory, say) prints its error and the next one runs.
"""

import argparse

from common import ALPHA, N_TRAINABLE, PROJECTIONS, RANK, device_name, emit, median_step, model_folder, peak_gib

PEERS = ["bf16", "bf16-liger", "bf16-compile", "nf4", "nf4-liger", "unsloth"]
LEARNING_RATE = 2e-4
WARMUP, REPEATS = 6, 20
# Ids above it are unused rows of the embedding.
VOCABULARY = 151_643


def load_unsloth(folder, dropout):
    # Must come before transformers: it patches the classes that it finds.
    from unsloth import FastLanguageModel
    import torch

    model, _ = FastLanguageModel.from_pretrained(
        folder, max_seq_length=2048, load_in_4bit=True, dtype=torch.bfloat16
    )
    return FastLanguageModel.get_peft_model(
        model,
        r=RANK,
        lora_alpha=ALPHA,
        lora_dropout=dropout,
        target_modules=PROJECTIONS,
        use_gradient_checkpointing=False,
    )


def load_peft(peer, folder, dropout):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import BitsAndBytesConfig, Qwen2ForCausalLM

    if peer.endswith("liger"):
        from liger_kernel.transformers import apply_liger_kernel_to_qwen2

        apply_liger_kernel_to_qwen2()
    options = {}
    if peer.startswith("nf4"):
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    model = Qwen2ForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, attn_implementation="sdpa", device_map={"": 0}, **options
    )
    lora = LoraConfig(
        r=RANK, lora_alpha=ALPHA, lora_dropout=dropout, target_modules=PROJECTIONS, task_type="CAUSAL_LM"
    )
    return get_peft_model(model, lora)


def measure(forward, trainable, optimizer, batch, sequence):
    """Fields of one shape's result."""
    import torch

    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    inputs = [torch.randint(0, VOCABULARY, (batch, sequence), device="cuda") for _ in range(4)]
    calls = 0
    loss = None

    def step():
        nonlocal calls, loss
        ids = inputs[calls % len(inputs)]
        calls += 1
        with torch.autocast("cuda", torch.bfloat16):
            loss = forward(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    seconds = median_step(step, WARMUP, REPEATS)
    return {
        "step_ms": round(seconds * 1e3, 2),
        "tok_per_s": round(batch * sequence / seconds),
        "peak_gib": peak_gib(),
        "loss": round(float(loss.detach()), 3),
    }


def parse_shape(text):
    batch, _, sequence = text.partition("x")
    return int(batch), int(sequence)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("--shape", action="append", type=parse_shape, help="BATCHxSEQUENCE, may be repeated")
    parser.add_argument("--dropout", type=float, default=0.05, help="of the adapters; Unsloth fuses them only at 0")
    parser.add_argument("--model", default="qwen-0.5b-random", help="folder; made when it does not exist")
    args = parser.parse_args()

    folder = model_folder(args.model)
    load = load_unsloth if args.peer == "unsloth" else lambda f, d: load_peft(args.peer, f, d)
    model = load(folder, args.dropout)

    import torch

    torch.manual_seed(0)
    model.train()
    trainable = [p for p in model.parameters() if p.requires_grad]
    n_trainable = sum(p.numel() for p in trainable)
    if n_trainable != N_TRAINABLE:
        raise SystemExit(f"{n_trainable} parameters are trainable, expected {N_TRAINABLE}: not the same work")
    optimizer = torch.optim.AdamW(trainable, lr=LEARNING_RATE, fused=True)
    forward = torch.compile(model) if args.peer == "bf16-compile" else model
    for batch, sequence in args.shape or [(4, 512), (16, 512), (8, 2048)]:
        common = {
            "peer": args.peer,
            "device": device_name(),
            "dropout": args.dropout,
            "batch": batch,
            "sequence": sequence,
        }
        try:
            emit(**common, **measure(forward, trainable, optimizer, batch, sequence))
        except Exception as error:  # whatever a peer raises is its result for this shape
            optimizer.zero_grad(set_to_none=True)
            emit(**common, error=repr(error)[:300])


if __name__ == "__main__":
    main()
