"""Whether an adapter that train-cuda wrote means the same to PEFT.

    python adapter_in_peft.py --programs target/release --model MODEL --tokens TOKENS --prompts 1,2,3 4,5 --device cuda \
        --set batch=2 --set lr=1e-3

Trains in float32 (mode lora), loads base and adapter in transformers and PEFT, and compares: the loss over the validation
rows with the last one that train-cuda wrote, and greedy completions with those of generate. Prints one JSON line.
"""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import pyarrow.parquet as parquet
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--tokens", type=Path, required=True)
    parser.add_argument("--prompts", nargs="+", required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--set", action="append", default=[])
    return parser.parse_args()


def run(args, program, words):
    words += ["--set", f"device={args.device}", "--set", "precision=float32"]
    subprocess.run([args.programs / program, *words], check=True, stdout=subprocess.DEVNULL)


def train(args, folder):
    words = ["--input", f"model={args.model}", "--input", f"tokens={args.tokens}"]
    for output in ["adapter", "checkpoints", "log"]:
        words += ["--output", f"{output}={folder / output}"]
    for setting in [*args.set, "mode=lora", "select=last"]:
        words += ["--set", setting]
    run(args, "train-cuda", words)
    last = (folder / "checkpoints" / "validation.jsonl").read_text().splitlines()[-1]
    return json.loads(last)["loss"]


def generate(args, folder):
    prompts = [[int(i) for i in prompt.split(",")] for prompt in args.prompts]
    tasks = [json.dumps({"id": str(n), "prompt_ids": ids}) + "\n" for n, ids in enumerate(prompts)]
    (folder / "tasks.jsonl").write_text("".join(tasks))
    words = ["--input", f"model={args.model}", "--input", f"adapter={folder / 'adapter'}"]
    words += ["--input", f"tasks={folder / 'tasks.jsonl'}", "--output", f"samples={folder / 'samples'}"]
    words += ["--set", "return_ids=true", "--set", f"max_new_tokens={args.new_tokens}"]
    run(args, "generate", words)
    lines = (folder / "samples" / "samples.jsonl").read_text().splitlines()
    return prompts, [json.loads(line)["completion_ids"] for line in lines]


def main():
    args = arguments()
    folder = Path(tempfile.mkdtemp())
    loss = train(args, folder)
    prompts, completions = generate(args, folder)
    base = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, folder / "adapter").eval()
    total, count, same = 0.0, 0, 0
    with torch.no_grad():
        for row in parquet.read_table(args.tokens / "validation.parquet").to_pylist():
            ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"][1:])
            logits = model(input_ids=ids).logits[0, :-1]
            total += float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
            count += int((labels != -100).sum())
        for prompt, ours in zip(prompts, completions):
            ids = list(prompt)
            for _ in ours:
                ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
            same += ids[len(prompt) :] == ours
    theirs = total / count
    print(json.dumps({
        "loss_of_train_cuda": loss,
        "loss_in_peft": theirs,
        "relative_difference": abs(loss - theirs) / theirs,
        "label_tokens": count,
        "completions": len(completions),
        "completed_tokens": sum(len(ids) for ids in completions),
        "same_completions": same,
    }))


if __name__ == "__main__":
    main()
