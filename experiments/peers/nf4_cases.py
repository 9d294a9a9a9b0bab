"""NF4 of awkward numbers by bitsandbytes, to compare with: odd lengths, zeros, ties, thresholds, both ends of float32.

    python nf4_cases.py OUT.safetensors --device cuda

Per case N: `N.input` (float32), `N.codes` (two a byte, the first in the high half), `N.absmax` and `N.back` (float32 on the
way back). `N.double.*` is the same with the magnitudes quantised too: codes, offset, magnitudes of 256, values.
"""

import argparse

import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from safetensors.torch import save_file

BLOCK = 64
# Middles of neighbouring levels, as bitsandbytes' kernels write them.
THRESHOLDS = [
    -0.8480964004993439, -0.6106329262256622, -0.4599952697753906, -0.33967943489551544, -0.23460740596055984,
    -0.13791173323988914, -0.045525018125772476, 0.03979014977812767, 0.1202552504837513, 0.2035212516784668,
    0.2920137718319893, 0.3893125355243683, 0.5016634166240692, 0.6427869200706482, 0.8614784181118011,
]


def cases():
    draw = torch.Generator().manual_seed(7)
    normal = lambda n: torch.randn(n, generator=draw)
    thresholds = torch.tensor(THRESHOLDS, dtype=torch.float64)
    near = torch.cat([thresholds * s for s in (1 - 2**-23, 1.0, 1 + 2**-23)]).float()
    for n in (1, 2, 63, 64, 65, 127, 1003, 4097):
        yield f"length{n}", normal(n)
    yield "zeros", torch.zeros(192)
    yield "zero_block", torch.cat([normal(64), torch.zeros(64), normal(64)])
    yield "negative_zero", torch.cat([torch.full((3,), -0.0), normal(61)])
    yield "constant", torch.full((128,), -0.37)
    yield "tie_of_signs", torch.cat([torch.tensor([2.5, -2.5]), normal(62)])
    yield "one_large", torch.cat([torch.tensor([1e4]), normal(63) * 1e-3])
    yield "thresholds", torch.cat([torch.ones(1), near, torch.zeros(128 - 1 - len(near))])
    for i, scale in enumerate((3.0, 0.1, 7e-3, 1.7e5)):
        yield f"scaled_thresholds{i}", torch.cat([torch.ones(1), near, torch.zeros(128 - 1 - len(near))]) * scale
    yield "largest", torch.cat([torch.tensor([3.4028234e38, -3.4028234e38]), normal(62) * 1e38])
    yield "tiny", normal(128) * 1e-30
    yield "smallest_normal", normal(128).clamp(-1, 1) * 1.1754944e-38 * 4
    yield "subnormal", torch.cat([normal(64) * 1e-39, normal(64) * 2e-38, torch.full((64,), 1e-40)])
    largest = normal(40).abs().repeat_interleave(64).reshape(40, 64)
    largest[:, 1:46] = (largest[:, :1].double() * near.double()).float()
    yield "reciprocals", largest.flatten()
    yield "many_blocks", normal(64 * 300)
    yield "heavy_tail", normal(64 * 30) ** 3 * 0.02


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    kept = {}
    for name, values in cases():
        kept[f"{name}.input"] = values
        for double in (False, True):
            prefix = f"{name}.double." if double else f"{name}."
            codes, state = quantize_4bit(
                values.to(args.device), blocksize=BLOCK, quant_type="nf4", compress_statistics=double
            )
            kept[prefix + "codes"] = codes.flatten().cpu()
            kept[prefix + "absmax"] = state.absmax.cpu()
            if double:
                kept[prefix + "offset"] = state.offset.reshape(1).cpu()
                kept[prefix + "nested"] = state.state2.absmax.cpu()
            kept[prefix + "back"] = dequantize_4bit(codes, state).cpu()
    save_file(kept, args.out)
    print(len(kept), "tensors of", len(list(cases())), "cases on", args.device)


if __name__ == "__main__":
    main()
