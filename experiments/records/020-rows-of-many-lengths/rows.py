"""Rows of random tokens with the lengths of a corpus of tests: python rows.py FOLDER N TOKENIZER_SHA256 (needs pyarrow).

Lengths are log-normal (median 493), 40 to 1,024; 20 to 70 % of a row's tokens, its end, have a label.
"""
import os
import random
import sys

import pyarrow as pa
import pyarrow.parquet as pq


def rows(n, seed):
    draw = random.Random(seed)
    found = []
    for _ in range(n):
        length = min(1024, max(40, int(draw.lognormvariate(6.2, 0.6))))
        ids = [draw.randrange(151643) for _ in range(length)]
        prompt = int(length * draw.uniform(0.3, 0.8))
        found.append((ids, [-100] * prompt + ids[prompt:]))
    return found


folder, n, tokenizer = sys.argv[1], int(sys.argv[2]), sys.argv[3]
os.makedirs(folder, exist_ok=True)
about = {"schema_version": "1", "tokenizer_sha256": tokenizer, "template_sha256": "p", "holdout_sha256": "[]", "content": "chat", "max_length": "1024"}
for name, found in (("train", rows(n, 1)), ("validation", rows(64, 2))):
    lists = pa.list_(pa.int32())
    columns = {
        "id": [f"r{i}" for i in range(len(found))],
        "function_sha256": [f"{i:064x}" for i in range(len(found))],
        "input_ids": pa.array([ids for ids, _ in found], type=lists),
        "labels": pa.array([labels for _, labels in found], type=lists),
    }
    pq.write_table(pa.table(columns).replace_schema_metadata(about), f"{folder}/{name}.parquet")
