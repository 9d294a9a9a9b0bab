"""Generation with Hugging Face transformers on Qwen2.5-Coder-0.5B, bf16.

Work: a prompt of 128 random token ids, then 256 sampled tokens (temperature 0.8, top-p 0.95), no end token.
Counting: new tokens of all sequences over the wall time, prompt included; the best of the runs, the first one pays for
compiling when the cache is static.

    python decode_peers.py --batch 1 --batch 64
"""

import argparse

from common import device_name, emit, model_folder, peak_gib, wall_seconds

PROMPT, NEW = 128, 256
PAD_ID = 151_643
RUNS = {"dynamic": 2, "static": 3}


def generation_config(cache):
    from transformers import GenerationConfig

    return GenerationConfig(
        max_new_tokens=NEW,
        min_new_tokens=NEW,
        do_sample=True,
        temperature=0.8,
        top_p=0.95,
        top_k=0,
        pad_token_id=PAD_ID,
        eos_token_id=None,
        cache_implementation="static" if cache == "static" else None,
    )


def measure(model, cache, batch):
    import torch

    torch.cuda.reset_peak_memory_stats()
    prompt = torch.randint(0, 151_000, (batch, PROMPT), device="cuda")
    mask = torch.ones_like(prompt)
    config = generation_config(cache)

    def generate():
        out = model.generate(input_ids=prompt, attention_mask=mask, generation_config=config)
        if out.shape != (batch, PROMPT + NEW):
            raise RuntimeError(f"generated {tuple(out.shape)}, expected {(batch, PROMPT + NEW)}")

    seconds = min(wall_seconds(generate) for _ in range(RUNS[cache]))
    return {"tok_per_s": round(batch * NEW / seconds, 1), "seconds": round(seconds, 3), "peak_gib": peak_gib()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", action="append", type=int, help="may be repeated [default: 1, 64, 256]")
    parser.add_argument("--cache", action="append", choices=sorted(RUNS), help="may be repeated [default: both]")
    parser.add_argument("--model", default="qwen-0.5b-random", help="folder; made when it does not exist")
    args = parser.parse_args()

    import torch
    from transformers import Qwen2ForCausalLM

    folder = model_folder(args.model)
    model = Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, device_map={"": 0}).eval()
    torch.manual_seed(0)
    for batch in args.batch or [1, 64, 256]:
        for cache in args.cache or ["dynamic", "static"]:
            common = {"peer": f"transformers-{cache}", "device": device_name(), "batch": batch}
            try:
                emit(**common, **measure(model, cache, batch))
            except Exception as error:  # whatever a peer raises is its result for this batch
                emit(**common, error=repr(error)[:300])


if __name__ == "__main__":
    main()
