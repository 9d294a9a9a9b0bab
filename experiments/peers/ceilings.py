"""What the chip can do at most: device copy bandwidth, and bf16 matrix products at this model's own shapes.

Products run inside a CUDA graph, so that launching them costs nothing. `--augment` appends columns to the inner
dimension, as a LoRA folded into its base product does (16 unpadded, 64 padded).
Copy: bytes read plus bytes written over time. Products: 2MNK over time; median of 20 replays of 20 products.

    python ceilings.py --tokens 2048 --tokens 8192
"""

import argparse
import statistics

from common import device_name, emit

LAYERS = 24
HIDDEN, FFN, QKV, VOCABULARY = 896, 4864, 1152, 151_936
# name -> (N, K): forward, then the products that carry the gradient to the input.
LAYER_SHAPES = {
    "qkv": (QKV, HIDDEN),
    "o": (HIDDEN, HIDDEN),
    "gate_up": (2 * FFN, HIDDEN),
    "down": (HIDDEN, FFN),
    "d_qkv": (HIDDEN, QKV),
    "d_o": (HIDDEN, HIDDEN),
    "d_gate_up": (HIDDEN, 2 * FFN),
    "d_down": (FFN, HIDDEN),
}
HEAD_SHAPES = {"head": (VOCABULARY, HIDDEN), "d_head": (HIDDEN, VOCABULARY)}


def seconds_in_graph(work, per_replay, replays=20):
    """Median seconds of one `work` among `per_replay` of them captured together."""
    import torch

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(per_replay):
            work()
    graph.replay()
    torch.cuda.synchronize()
    times = []
    for _ in range(replays):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) * 1e-3 / per_replay)
    return statistics.median(times)


def copy_bandwidth():
    """Terabytes per second of a device-to-device copy of 2 GiB."""
    import torch

    source = torch.randn(2**30, device="cuda", dtype=torch.bfloat16)
    target = torch.empty_like(source)
    seconds = seconds_in_graph(lambda: target.copy_(source), per_replay=5)
    return 2 * source.numel() * source.element_size() / seconds / 1e12


def product(m, n, k, per_replay=20):
    """Seconds of an m x k by k x n product of random bf16 numbers (zeros would flatter: they draw less power)."""
    import torch

    random = lambda *shape: torch.randn(*shape, device="cuda", dtype=torch.bfloat16)
    left, right = random(m, k), random(n, k)
    out = torch.empty(m, n, device="cuda", dtype=torch.bfloat16)
    return seconds_in_graph(lambda: torch.mm(left, right.t(), out=out), per_replay)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", action="append", type=int, help="rows M, may be repeated")
    parser.add_argument("--augment", action="append", type=int, help="columns appended to K, may be repeated")
    args = parser.parse_args()

    import torch

    torch.manual_seed(0)
    emit(device=device_name(), copy_tb_per_s=round(copy_bandwidth(), 2))
    for m in args.tokens or [1024, 2048, 4096, 8192, 16384]:
        total = 0.0
        for name, (n, k) in {**LAYER_SHAPES, **HEAD_SHAPES}.items():
            is_head = name in HEAD_SHAPES
            for extra in [0] if is_head else [0, *(args.augment or [])]:
                seconds = product(m, n, k + extra, per_replay=4 if is_head else 20)
                if extra == 0:
                    total += seconds * (1 if is_head else LAYERS)
                emit(
                    product=name,
                    tokens=m,
                    n=n,
                    k=k + extra,
                    us=round(seconds * 1e6, 1),
                    tflops=round(2 * m * n * (k + extra) / seconds / 1e12),
                )
        emit(tokens=m, products_of_a_step_ms=round(total * 1e3, 2), products_alone_tok_per_s=round(m / total))


if __name__ == "__main__":
    main()
