#!/bin/bash
# What this record holds, in one go, in a folder with the release programs `train-cuda` and `fetch-model` and with `tokens/`
# (an output of tokenize-to-parquet with the embedded model's tokenizer). About four minutes on an H100; writes ./check/.
set -u
P=$PWD; HERE=$(cd "$(dirname "$0")" && pwd); mkdir -p check; cd check
say() { printf '\n== %s (%.0f s)\n' "$*" $SECONDS; }
train() { # NAME SETS...
  local n=$1; shift; local s=(); for x in "$@"; do s+=(--set "$x"); done
  exec "$P/train-cuda" --input model=m --input tokens="$P/tokens" --output adapter="$n/adapter" --output checkpoints="$n/checkpoints" \
    --output log="$n/log" --checkpoint-dir "$n/ck" --live-dir "$n/live" --set device=cuda "${s[@]}"
}
run() { say "$1"; shift; ( "$@" ); echo "exit $?"; }
sums() { ( cd "$1" && find adapter checkpoints -type f | sort | xargs sha256sum | sha256sum ); }

say 'a model'; "$P/fetch-model" --source random:qwen2.5-coder-0.5b --out m
run 'first run' train A epochs=2
run 'second run' train B epochs=2
say 'interrupted'; ( train C epochs=2 checkpoint_every=4 ) & pid=$!
until [ "$(grep -c '"step":{' C/live/events.jsonl 2>/dev/null)" -ge 12 ] 2>/dev/null; do sleep 0.05; kill -0 $pid 2>/dev/null || break; done
kill -TERM $pid; wait $pid; echo "exit $?"
run 'resumed' train C epochs=2 checkpoint_every=4
# `checkpoint_every` is a parameter and stands in the manifest: C is compared without it.
rm -f {A,B,C}/adapter/manifest.json
for r in A B C; do echo "$r $(sums $r)"; done
[ "$(for r in A B C; do sums $r; done | sort -u | wc -l)" = 1 ] && echo 'the same bytes' || echo 'OTHER BYTES'

run budget train budget preset=budget epochs=1
run saturate train saturate preset=saturate epochs=6
run 'no GPU' env CUDA_VISIBLE_DEVICES= bash -c "$(declare -f train); P='$P' train none max_steps=1"
run 'a loss that is not finite' train nan lr=1e30 clip=0 warmup_ratio=0 epochs=9 select=last
run 'little memory allowed' train little vram_limit_mb=2200 max_steps=2 select=last
run 'too little' train too-little vram_limit_mb=900 max_steps=2 select=last
gcc -O2 -shared -fPIC "$HERE/lost.c" -o lost.so -ldl
run 'a GPU that is lost' env LOST_AFTER=20 LD_PRELOAD="$PWD/lost.so" bash -c "$(declare -f train); P='$P' train lost checkpoint_every=3 select=last epochs=2"
run 'the same command afterwards' train lost checkpoint_every=3 select=last epochs=2
say bench; "$P/train-cuda" --bench --shape 4x512 --shape 8x512 --shape 16x512
