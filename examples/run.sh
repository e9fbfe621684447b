#!/usr/bin/env bash
# Builds the examples, writes a story with a 4-bit-key / 2-bit-value cache, prints what every recipe
# costs in memory and in quality on the two shipped models, and plans the bits of the smaller one.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ $# -gt 0 ]; then
  echo "usage: examples/run.sh" >&2
  exit 2
fi
. examples/common.sh
find_missing
install_missing
build_programs example_quickstart example_generate example_evaluate example_plan

data=examples/data
show $build/examples/quickstart
show $programs/generate --model $data/models/stories260K \
  --prompt 'Once upon a time' --recipe k4v2 --tokens 300 --page 32 --tail 32 \
  --temperature 0.6 --seed 5
recipes=f16,k16v16,k8v8,k4v4,k4v2,k2v4,k2v2
show $programs/evaluate --model $data/models/stories260K \
  --text $data/text/tinystories_317.txt --recipes $recipes --page 32 --tail 32
show $programs/evaluate --model $data/models/novels-3M \
  --text $data/text/novels_heldout.txt --recipes $recipes --tokens 16384
show $programs/evaluate --model $data/models/novels-3M --hadamard-values \
  --text $data/text/novels_heldout.txt --recipes k4v4,k4v2,k2v2 --tokens 16384
show $programs/plan --model $data/models/stories260K \
  --text $data/text/tinystories_317.txt --budget 5 --per-head --tokens 4096 --out $build/plan.json
show $programs/evaluate --model $data/models/stories260K \
  --text $data/text/tinystories_317.txt --skip 0.25 --tokens 8192 --tail 0 --sinks 0 \
  --recipes k5v4c,k4v4c,k6v3c --plan $build/plan.json
echo
echo "done in $SECONDS s"
