#!/usr/bin/env bash
# Runs what build_device.sh built, on a machine with a GPU:
#     bench/cuda/run_device.sh [OUT] [--tests] [--benches] [--filter GOOGLETEST_FILTER]
# Tests, then a few of them under compute-sanitizer where there is one, then the benches. Logs and JSON
# go to the folder OUT (default: $OUT, else build/device/out); a short table comes last. Fails if a
# test does.
set -uo pipefail
cd "$(dirname "$0")/../.."

programs=build/device
out=${OUT:-$programs/out}
parts=
filter='*'
while [ $# -gt 0 ]; do
  case $1 in
    --tests) parts+=' tests'; shift ;;
    --benches) parts+=' benches'; shift ;;
    --filter) filter=${2:?a filter}; shift 2 ;;
    -*) echo "usage: run_device.sh [OUT] [--tests] [--benches] [--filter FILTER]" >&2; exit 2 ;;
    *) out=$1; shift ;;
  esac
done
[ -n "$parts" ] || parts='tests benches'
mkdir -p "$out"

rows=()
failed=0
step() {  # <name> <seconds allowed> <command>...
  local name=$1 limit=$2 start=$SECONDS result=ok code
  timeout "$limit" "${@:3}" >"$out/$name.log" 2>&1
  code=$?
  if [ $code != 0 ]; then
    result="FAILED ($code)"
    failed=1
    echo "== $name"
    grep -E 'FAILED|Failure|ERROR|error|differ' "$out/$name.log" | head -n 20
    tail -n 20 "$out/$name.log"
  fi
  rows+=("$(printf '%-24s %-14s %4d s   %s' "$name" "$result" $((SECONDS - start)) \
    "$(grep -E '^\[  (PASSED|SKIPPED|FAILED)|ERROR SUMMARY' "$out/$name.log" | head -n 3 |
      tr -s ' \n' ' ')")")
}

nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem --format=csv,noheader \
  >"$out/gpu.txt" 2>&1
cat "$out/gpu.txt"
if [[ $parts == *tests* ]]; then
  step tests 300 "$programs/tests" --gtest_brief=1 "--gtest_filter=$filter" \
    "--gtest_output=json:$out/tests.json"
  sanitizer=$(PATH=$PATH:/usr/local/cuda/bin command -v compute-sanitizer) &&
    step memcheck 180 "$sanitizer" --tool memcheck --error-exitcode 9 "$programs/tests" \
      --gtest_brief=1 --gtest_filter='*EveryTypeAndStride:*Hostile*:*Ragged*'
fi
if [[ $parts == *benches* ]]; then
  for program in "$programs"/*; do
    name=$(basename "$program")
    [ -f "$program" ] && [ -x "$program" ] && [ "$name" != tests ] || continue
    step "$name" 240 "$program" "$out/$name.json"
  done
fi
printf '%s\n' "${rows[@]}"
exit $failed
