"""Loss and LoRA gradients of one batch: ours against transformers and PEFT on the same machine.

    python parity.py --program target/release/examples/gradients                    # 0.5B shape, bfloat16, on the GPU
    python parity.py --program ... --layers 2 --precision float32 --device cpu

Makes a Qwen2 model with random weights, biases and norms, an adapter whose B is not zero, and a batch of sequences of
different lengths; computes the reference in float32 and, for comparison, in the reference's own bfloat16. Prints one JSON
line: relative error of the loss; least cosine and greatest deviation of the norm over all gradients.
"""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import Qwen2Config, Qwen2ForCausalLM

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def arguments(given=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", required=True)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--vocab", type=int, default=151_936)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--lengths", type=int, nargs="+", default=[200, 512, 33, 301])
    return parser.parse_args(given)


def random_model(args):
    config = Qwen2Config(
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=args.layers,
        num_attention_heads=14,
        num_key_value_heads=2,
        vocab_size=args.vocab,
        max_position_embeddings=32_768,
        tie_word_embeddings=True,
        rms_norm_eps=1e-6,
        rope_theta=1_000_000.0,
    )
    torch.manual_seed(args.seed)
    model = Qwen2ForCausalLM(config)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "norm" in name:
                tensor.copy_(1 + 0.1 * torch.randn_like(tensor))
            elif "bias" in name:
                tensor.copy_(0.1 * torch.randn_like(tensor))
            elif "embed" in name:
                tensor.normal_(0, 0.02)
            else:
                tensor.normal_(0, 0.7 / tensor.shape[1] ** 0.5)
            # Both sides start from weights that bfloat16 holds exactly.
            tensor.copy_(tensor.bfloat16().float())
    return model


def adapted(model, seed):
    torch.manual_seed(seed + 1)
    config = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules=PROJECTIONS, task_type="CAUSAL_LM")
    model = get_peft_model(model, config)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "lora_B" in name:
                tensor.normal_(0, 0.02)
    return model


def batch(args):
    torch.manual_seed(args.seed + 2)
    width = max(args.lengths)
    ids = torch.randint(0, args.vocab, (len(args.lengths), width))
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, -100)
    for row, length in enumerate(args.lengths):
        mask[row, :length] = 1
        labels[row, length // 3 : length] = ids[row, length // 3 : length]
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


def reference(model, data, device, dtype):
    model = model.to(device)
    for parameter in model.parameters():
        if not parameter.requires_grad or dtype == torch.float32:
            parameter.data = parameter.data.to(dtype)
    model.zero_grad()
    with torch.autocast(device, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        loss = model(**{name: tensor.to(device) for name, tensor in data.items()}).loss
    loss.backward()
    name = lambda n: n.replace(".default", "")
    grads = {name(n): p.grad.float().cpu() for n, p in model.named_parameters() if p.grad is not None}
    return float(loss.detach()), grads


def compare(loss, grads, want_loss, want):
    dot = lambda a, b: float((a.double() * b.double()).sum())
    cosine, stretch, worst, squares = 1.0, 0.0, 0.0, [0.0, 0.0, 0.0]
    for name, reference_grad in want.items():
        got = grads[name].reshape(reference_grad.shape)
        a, b = dot(got, got) ** 0.5, dot(reference_grad, reference_grad) ** 0.5
        cosine = min(cosine, dot(got, reference_grad) / (a * b))
        stretch = max(stretch, abs(a / b - 1))
        worst = max(worst, dot(got - reference_grad, got - reference_grad) ** 0.5 / b)
        squares = [squares[0] + a * a, squares[1] + b * b, squares[2] + dot(got, reference_grad)]
    return {
        "loss_relative_error": abs(loss - want_loss) / want_loss,
        "least_cosine": cosine,
        "greatest_norm_deviation": stretch,
        "greatest_relative_error": worst,
        "cosine_of_all": squares[2] / (squares[0] * squares[1]) ** 0.5,
        "norm_ratio_of_all": (squares[0] / squares[1]) ** 0.5,
    }


def main():
    args = arguments()
    torch.backends.cuda.matmul.allow_tf32 = False
    folder = Path(tempfile.mkdtemp())
    model = random_model(args)
    model.save_pretrained(folder / "model")
    model = adapted(model, args.seed)
    model.save_pretrained(folder / "adapter")
    data = batch(args)
    save_file(data, folder / "batch.safetensors")
    command = [args.program, "model", "adapter", "batch.safetensors", "out.safetensors", args.device, args.precision]
    subprocess.run([str(Path(args.program).resolve()), *command[1:]], cwd=folder, check=True)
    ours = load_file(folder / "out.safetensors")
    loss = float(ours.pop("loss"))
    want_loss, want = reference(model, data, args.device, torch.float32)
    result = {"ours against float32": compare(loss, ours, want_loss, want)}
    if args.precision == "bfloat16":
        their_loss, theirs = reference(model, data, args.device, torch.bfloat16)
        result["the reference's bfloat16 against float32"] = compare(their_loss, theirs, want_loss, want)
    print(json.dumps({"layers": args.layers, "lengths": args.lengths, "loss": loss, **result}))


if __name__ == "__main__":
    main()
