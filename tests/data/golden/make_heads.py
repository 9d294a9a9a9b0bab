"""Makes `qwen2-heads/`: heads wider than hidden / heads, a head of its own, odd sizes, some of the projections adapted.

Needs torch 2.11, transformers 5.17, peft 0.21; runs on the CPU in float32: `python make_heads.py qwen2-heads`.
The weights are random and nobody's. The layout is that of the other cases beside it.
"""
import json, math, os, sys

os.environ["HF_HUB_OFFLINE"] = "1"
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import Qwen2Config, Qwen2ForCausalLM

SHAPE = dict(hidden_size=28, num_attention_heads=4, num_key_value_heads=2, head_dim=10, intermediate_size=46,
             num_hidden_layers=2, vocab_size=97, max_position_embeddings=64, rms_norm_eps=1e-5,
             tie_word_embeddings=False, rope_parameters=dict(rope_type="default", rope_theta=5e4))
LORA = dict(r=3, lora_alpha=5, lora_dropout=0.0, target_modules=["q_proj", "v_proj", "o_proj", "down_proj"], task_type="CAUSAL_LM")
LENGTHS, PROMPTS = [21, 9, 2], [7, 3, 1]
STEPS, LR, FLOOR = 10, 2e-4, 0.1


def randomize(model, g):
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=g)
        if "norm" in name: p.copy_(1 + 0.2 * noise)
        elif name.endswith("bias"): p.copy_(0.3 * noise)
        else: p.copy_(noise * 0.6 / math.sqrt(p.shape[1]))


def batch(g):
    n, width = len(LENGTHS), max(LENGTHS)
    ids = torch.zeros(n, width, dtype=torch.long)
    labels, mask = torch.full((n, width), -100), torch.zeros(n, width, dtype=torch.long)
    for i, (length, prompt) in enumerate(zip(LENGTHS, PROMPTS)):
        row = torch.randint(1, SHAPE["vocab_size"], (length,), generator=g)
        ids[i, :length], mask[i, :length], labels[i, prompt:length] = row, 1, row[prompt:]
    return ids, labels, mask


def rate(step):
    if step < 1: return LR
    t = (step - 1) / (STEPS - 1)
    return LR * (FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * t)))


def greedy(model, which, ids, out):
    for i, n in enumerate(PROMPTS):
        prompt = ids[i:i + 1, :n]
        whole = model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=24, do_sample=False, pad_token_id=0, eos_token_id=None)
        out.append(dict(which=which, prompt=prompt[0].tolist(), completion=whole[0, n:].tolist()))


def train(model, g, ref):
    params = [p for p in model.parameters() if p.requires_grad]
    adamw = torch.optim.AdamW(params, lr=LR, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
    micro, log = [batch(g) for _ in range(2 * STEPS)], []
    for i, (ids, labels, mask) in enumerate(micro):
        ref[f"micro.{i}.input_ids"], ref[f"micro.{i}.labels"], ref[f"micro.{i}.attention_mask"] = ids, labels, mask
    for step in range(STEPS):
        adamw.param_groups[0]["lr"] = rate(step)
        adamw.zero_grad()
        pair, total = micro[2 * step:2 * step + 2], 0.0
        n = sum(int((labels[:, 1:] != -100).sum()) for _, labels, _ in pair)
        for ids, labels, mask in pair:
            logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
            loss = torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels[:, 1:].reshape(-1), ignore_index=-100, reduction="sum") / n
            loss.backward()
            total += float(loss.detach())
        norm = float(torch.nn.utils.clip_grad_norm_(params, 1.0))
        adamw.step()
        log.append(dict(step=step + 1, loss=total, grad_norm=norm, lr=rate(step), label_tokens=n))
    return log


def main(path):
    g, ref, completions = torch.Generator().manual_seed(31), {}, []
    base = Qwen2ForCausalLM(Qwen2Config(**SHAPE, attn_implementation="eager")).float().eval()
    with torch.no_grad(): randomize(base, g)
    base.save_pretrained(path + "/model")
    ref["input_ids"], ref["labels"], ref["attention_mask"] = ids, labels, mask = batch(g)
    out = base(input_ids=ids, attention_mask=mask, labels=labels)
    ref["base.logits"], ref["base.loss"] = out.logits.detach(), out.loss.detach()
    greedy(base, "base", ids, completions)
    model = get_peft_model(base, LoraConfig(**LORA)).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_A" in name: p.copy_(torch.randn(p.shape, generator=g) / math.sqrt(p.shape[1]))
            if "lora_B" in name: p.copy_(torch.randn(p.shape, generator=g) * 0.02)
    model.save_pretrained(path + "/adapter_start")
    out = model(input_ids=ids, attention_mask=mask, labels=labels)
    out.loss.backward()
    ref["lora.logits"], ref["lora.loss"] = out.logits.detach(), out.loss.detach()
    for name, p in model.named_parameters():
        if p.requires_grad: ref["grad." + name.replace(".default", "")] = p.grad.clone()
    greedy(model, "lora", ids, completions)
    log = train(model.train(), g, ref)
    model.save_pretrained(path + "/adapter_after_10_steps")
    save_file({name: tensor.contiguous() for name, tensor in ref.items()}, path + "/reference.safetensors")
    json.dump(dict(train=log, generation=completions, torch=torch.__version__), open(path + "/reference.json", "w"), indent=1)


main(sys.argv[1])
