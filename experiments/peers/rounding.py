"""Which rounding of a bfloat16 training step costs how much of the LoRA gradients' precision.

    python rounding.py --seeds 7 8 9            # 0.5B shape, on the GPU

The model and batch of parity.py, computed in float32 by a plain Qwen2 of our own, whose values are rounded to bfloat16 where
the training step rounds: everywhere, at one place alone, and everywhere but at one place. Prints a table: greatest deviation
of a gradient's norm from the float32 one, the same for all gradients together, least cosine, and the tensor that is worst.
"""

import argparse

import torch
import torch.nn.functional as F

import parity

FORWARD = ["adapters", "n1", "u", "qkv", "rope", "P", "attention", "x1", "n2", "gate_up", "h", "x2", "normed", "logits"]
BACKWARD = ["d_logits", "d_normed", "d_x", "d_h", "d_gate_up", "d_n2", "d_attention", "delta", "dS", "d_qkv", "d_n1", "d_u"]
PLACES = set()


def rounded(x, place):
    return x.bfloat16().float() if place in PLACES else x


class Round(torch.autograd.Function):
    """Rounds the value at one place and the gradient at another."""

    @staticmethod
    def forward(ctx, x, forward, backward):
        ctx.backward_place = backward
        return rounded(x, forward).clone()

    @staticmethod
    def backward(ctx, d):
        return rounded(d, ctx.backward_place), None, None


class Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, scale):
        scores = q @ k.transpose(-1, -2) * scale
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        p = scores.masked_fill(future, float("-inf")).softmax(-1)
        exact = rounded(p, "P") @ v
        out = rounded(exact, "attention")
        ctx.save_for_backward(q, k, v, p, out if "delta" in PLACES else exact)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx, d_out):
        q, k, v, p, out = ctx.saved_tensors
        d_v = rounded(p, "P").transpose(-1, -2) @ d_out
        delta = (out * d_out).sum(-1, keepdim=True)
        d_s = rounded(p * (d_out @ v.transpose(-1, -2) - delta), "dS") * ctx.scale
        return d_s @ k, d_s.transpose(-1, -2) @ q, d_v, None


class Rotate(torch.autograd.Function):
    """Rounds what it rotates on the way forward; on the way back gradients are rounded after the rotation alone."""

    @staticmethod
    def forward(ctx, x, cos, sin):
        ctx.save_for_backward(cos, sin)
        a, b = x.chunk(2, -1)
        return rounded(torch.cat([a * cos - b * sin, b * cos + a * sin], -1), "rope")

    @staticmethod
    def backward(ctx, d):
        cos, sin = ctx.saved_tensors
        a, b = d.chunk(2, -1)
        return torch.cat([a * cos + b * sin, b * cos - a * sin], -1), None, None


def norm(x, weight):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * weight


class Model:
    def __init__(self, peft, layers):
        self.layers = layers
        self.at = {n.replace("base_model.model.model.", "").replace(".base_layer", ""): p.data for n, p in peft.named_parameters()}
        self.names = {n: n.replace(".default", "") for n, p in peft.named_parameters() if "lora_" in n}
        self.peft = {n.replace("base_model.model.model.", ""): n for n in self.names}

    def project(self, layer, name, x, part="self_attn"):
        path = f"layers.{layer}.{part}.{name}"
        a, b = (self.leaves[f"{path}.lora_{side}.default.weight"] for side in "AB")
        u = Round.apply(x @ Round.apply(a, "adapters", None).T, "u", "d_u")
        y = x @ self.at[f"{path}.weight"].T + u @ Round.apply(2 * b, "adapters", None).T
        return y if f"{path}.bias" not in self.at else y + self.at[f"{path}.bias"]

    def loss(self, ids, labels):
        self.leaves = {n: self.at[n].clone().requires_grad_() for n in self.peft}
        batch, length = ids.shape
        angle = torch.arange(length, device=ids.device)[:, None] * 1e6 ** (-torch.arange(0, 64, 2, device=ids.device) / 64)
        cos, sin = angle.cos(), angle.sin()
        heads = lambda t: t.view(batch, length, -1, 64).transpose(1, 2)
        x = F.embedding(ids, self.at["embed_tokens.weight"])
        for layer in range(self.layers):
            weight = lambda name: self.at[f"layers.{layer}.{name}.weight"]
            x = Round.apply(x, None, "d_x")
            n1 = Round.apply(norm(x, weight("input_layernorm")), "n1", "d_n1")
            q, k, v = (Round.apply(self.project(layer, f"{i}_proj", n1), "qkv", "d_qkv") for i in "qkv")
            q, k = Rotate.apply(heads(q), cos, sin), Rotate.apply(heads(k), cos, sin)
            k, v = (t.repeat_interleave(7, 1) for t in (k, heads(v)))
            out = Attention.apply(q, k, v, 0.125).transpose(1, 2).reshape(batch, length, 896)
            out = Round.apply(out, None, "d_attention")
            x = Round.apply(x + self.project(layer, "o_proj", out), "x1", "d_x")
            n2 = Round.apply(norm(x, weight("post_attention_layernorm")), "n2", "d_n2")
            gate, up = (Round.apply(self.project(layer, f"{i}_proj", n2, "mlp"), "gate_up", "d_gate_up") for i in ("gate", "up"))
            h = Round.apply(F.silu(gate) * up, "h", "d_h")
            x = Round.apply(x + self.project(layer, "down_proj", h, "mlp"), "x2", None)
        x = Round.apply(x, None, "d_x")
        wanted = F.pad(labels[:, 1:], (0, 1), value=-100)
        rows = Round.apply(norm(x, self.at["norm.weight"])[wanted >= 0], "normed", "d_normed")
        logits = Round.apply(rows @ self.at["embed_tokens.weight"].T, "logits", "d_logits")
        return F.cross_entropy(logits, wanted[wanted >= 0])

    def gradients(self, ids, labels, places):
        PLACES.clear()
        PLACES.update(places)
        loss = self.loss(ids, labels)
        loss.backward()
        return float(loss.detach()), {self.names[self.peft[n]]: leaf.grad.cpu() for n, leaf in self.leaves.items()}


def worst(got, want):
    stretch = {n: float(got[n].double().norm() / w.double().norm() - 1) for n, w in want.items()}
    return max(stretch.items(), key=lambda item: abs(item[1]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[7])
    parser.add_argument("--layers", default="24")
    parser.add_argument("--vocab", default="151936")
    parser.add_argument("--device", default="cuda")
    chosen = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = False
    for seed in chosen.seeds:
        args = parity.arguments(["--program", "none", "--layers", chosen.layers, "--vocab", chosen.vocab])
        args.seed = seed
        peft = parity.adapted(parity.random_model(args), seed).to(chosen.device)
        data = {name: tensor.to(chosen.device) for name, tensor in parity.batch(args).items()}
        model = Model(peft, args.layers)
        everywhere = FORWARD + BACKWARD
        want_loss, want = model.gradients(data["input_ids"], data["labels"], [])
        if seed == chosen.seeds[0]:
            check = parity.reference(peft, data, chosen.device, torch.float32)
            print("this model against transformers and PEFT, float32:", parity.compare(want_loss, want, *check), flush=True)
        cases = {"everywhere": everywhere, "forward": FORWARD, "backward": BACKWARD}
        cases |= {f"only {p}": [p] for p in everywhere} | {f"but {p}": [q for q in everywhere if q != p] for p in everywhere}
        for name, places in cases.items():
            loss, got = model.gradients(data["input_ids"], data["labels"], places)
            found = parity.compare(loss, got, want_loss, want)
            tensor, stretch = worst(got, want)
            print(
                f"seed {seed} {name:18} norm {stretch:+.4%} of all {found['norm_ratio_of_all'] - 1:+.4%} "
                f"least cosine {found['least_cosine']:.6f} {tensor.replace('base_model.model.model.', '')}",
                flush=True,
            )


if __name__ == "__main__":
    main()
