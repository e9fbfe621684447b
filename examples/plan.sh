#!/usr/bin/env bash
# Plans the bits of the shipped models, evaluates the plans beside recipes that treat all layers
# alike, and draws README's pictures. For a quick look, pass fewer predictions than the default:
# 4096 take a tenth of the time.
set -euo pipefail
cd "$(dirname "$0")/.."

tokens=${1:-65536}
case $tokens in
  *[!0-9]* | ? | ?? | ???)
    echo "usage: examples/plan.sh [predictions to judge a recipe by: 65536, or 1000 and more]" >&2
    exit 2
    ;;
esac
. examples/common.sh
find_missing
python=python3
draws() { $python -c 'import matplotlib' 2>/dev/null; }
draws || python=/usr/bin/python3  # where apt-get installs it
draws || missing+=(python3-matplotlib)
install_missing
build_programs example_evaluate example_plan

out=$build/plans
pictures=examples/pictures
[ "$tokens" -ge 65536 ] || pictures=$out  # a quick look must not replace README's figures
mkdir -p "$out" "$pictures"
novels="--model examples/data/models/novels-3M --text examples/data/text/novels_heldout.txt"
stories="--model examples/data/models/stories260K --text examples/data/text/tinystories_317.txt"
# Every prediction must read codes, and none may be of the text that the plans were made from.
rest="--skip 0.25 --tail 0 --sinks 0 --chunk 64"

plans() {  # name, budgets: options for evaluate
  local budget
  for budget in "${@:2}"; do printf -- '--plan %s/%s_%s.json ' "$out" "$1" "$budget"; done
}
grid=
for keys in 1 2 3 4 5 6 7 8; do
  for values in 1 2 3 4 5 6 7 8; do grid+=,k${keys}v$values; done
done
# Recipes of the same sizes with other groups, granularities and range rules, for comparison.
others=k2v2,k2v2c,k2tv2c,2c:min-max/2c:min-max,2c:min-max/2t
others+=,k3v2,k3v2c,k3tv2,3c:min-max/2c:min-max,3c:min-max/2t
others+=,k3v3,k3v3c,k3tv3,k3v2:g32,32,3c:min-max/3t,3c:min-max/3c:min-max
others+=,k4v3,k4v3c,k4tv3,k3v3:g32,32,4c:min-max/3t,4c:min-max/3c:min-max
others+=,k5v4,k5v4c,k4v4:g32,32,5c:min-max/4t,5c:min-max/4c

show $programs/plan $novels --budget 2.5,3,3.5,4,5 --per-head --tokens $((tokens / 8)) \
  --out "$out/novels_{}.json" --json $out/novels.json
show $programs/evaluate $novels $rest --tokens $((tokens / 4)) --recipes "${grid#,}" \
  --json $out/novels_grid.json
show $programs/evaluate $novels $rest --tokens "$tokens" --recipes "$others" \
  $(plans novels 2.5 3 3.5 4 5) --json $out/novels_rows.json

show $programs/plan $stories --budget 4.5,5,6 --per-head --tokens $((tokens / 8)) \
  --out "$out/stories_{}.json" --json $out/stories.json
show $programs/evaluate $stories $rest --tokens "$tokens" \
  --recipes k4v4c,k5v3c,k3v5c,k5v4c,k4v5c,k6v3c,k6v5c,k5v6c,k7v4c,5c:min-max/3c,5c:min-max/4c \
  $(plans stories 4.5 5 6) \
  --json $out/stories_rows.json

draw() { $python examples/plot.py "$@"; }
draw curves $out/novels_grid.json $out/novels_rows.json --out $pictures/divergence.svg \
  --title "novels-3M, on text that no plan has seen"
draw heatmap $out/novels_grid.json --out $pictures/widths.svg \
  --title "novels-3M: mean KL divergence of k1v1 to k8v8"
draw layers $out/novels.json --out $pictures/layers.svg --title "novels-3M"
echo
echo "done in $SECONDS s; pictures in $pictures"
