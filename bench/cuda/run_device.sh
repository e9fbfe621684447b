#!/usr/bin/env bash
# Runs what build_device.sh built, on a machine with a GPU:
#     bench/cuda/run_device.sh [OUT] [--tests] [--benches] [--tuning] [--filter GOOGLETEST_FILTER]
#                              [--seconds N]
# Runs probes, tests, the example engine, benches, PyTorch's attention if PyTorch is installed, a
# few tests under compute-sanitizer, then the grid of batches and lengths while time is left: N
# seconds in all (default: 560). JSON, named as in bench/results, and logs.tgz go to the folder OUT
# (default: $OUT, else build/device/out). Unpacks build/device.tgz if there is no build/device.
# However it ends, it prints a table of the targets and one of the steps last. Fails if anything is
# missing, wrong or cut short, except for the grid; not if a target is missed.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit

programs=build/device
out=${OUT:-$programs/out}
parts=
tuning=
filter='*'
seconds=560
while [ $# -gt 0 ]; do
  case $1 in
    --tests) parts+=' tests'; shift ;;
    --benches) parts+=' benches'; shift ;;
    --tuning) tuning=yes; shift ;;
    --filter) filter=${2:?a filter}; shift 2 ;;
    --seconds) seconds=${2:?seconds}; shift 2 ;;
    -*) sed -n '2,4s/^# *//p' "$0" >&2; exit 2 ;;
    *) out=$1; shift ;;
  esac
done
[ -n "$parts" ] || parts='tests benches'
logs=$programs/logs
[ -d $programs ] || tar -xzf $programs.tgz -C build || exit
mkdir -p "$out" $logs

rows=()
failed=0
child=
row() {  # <name> <result> <seconds> <remark>
  rows+=("$(printf '%-10s %-22s %4d s   %s' "$@")")
  case $2 in ok*) ;; *) [ -n "${optional:-}" ] || failed=1 ;; esac
}

# Runs one command within its limit and the time left; with $optional set it may be cut short.
step() {  # <name> <most seconds> <command>...
  local name=$1 limit=$2 log=$logs/$1.log start=$SECONDS left=$((seconds - SECONDS)) code result=ok
  [ "$limit" -le "$left" ] || limit=$left
  if [ "$limit" -lt 5 ]; then
    row "$name" 'NOT RUN, no time left' 0 ''
    return
  fi
  timeout -k 5 "$limit" "${@:3}" >"$log" 2>&1 &
  child=$!
  wait "$child"
  code=$?
  child=
  case $code in
    0) ! grep -qE 'no GPU|no CUDA device|  PASSED  \] 0 tests' "$log" || result='FAILED, skipped' ;;
    124 | 137) result="CUT SHORT after $limit s" ;;
    *) result="FAILED ($code)"; optional= ;;
  esac
  if [ "$result" != ok ]; then
    echo "== $name: $result"
    grep -E 'FAILED|Failure|ERROR|error:|differ|no GPU|no CUDA device' "$log" | head -n 20
    tail -n 10 "$log"
  fi
  row "$name" "$result" $((SECONDS - start)) "$(grep -E \
    '^\[  (PASSED|SKIPPED|FAILED).* tests?|ERROR SUMMARY|FAILED:|left out:|not available:' "$log" | head -n 4 |
    cut -c 1-120 | tr -s ' \n' ' ')"
}
program() {  # <name> <most seconds> <program> <arguments>...
  if [ -x "$3" ]; then step "$@"; else row "$1" "MISSING: $3" 0 ''; fi
}
bench() {  # <name> <most seconds> <program> <arguments>...: JSON by that name
  local json=$out/$card-$1.json
  rm -f "$json"
  program "$1" "$2" "$3" "$json" "${@:4}"
}

finish() {
  local code=$?
  trap - EXIT TERM INT HUP
  [ -z "$child" ] || kill "$child" 2>/dev/null
  [ $code = 0 ] || row 'all' "ENDED BY FORCE ($code)" $SECONDS "during the step after these"
  [[ $parts != *benches* ]] || awk -f bench/cuda/targets.awk "$out/$card"-*.json /dev/null
  printf '\n'
  printf '%s\n' "${rows[@]}"
  tar -C $programs -czf "$out/logs.tgz" logs
  exit $failed
}
trap finish EXIT
trap 'exit 143' TERM INT HUP

card=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null |
  awk 'NR == 1 { print tolower($2) }')
card=${card:-gpu}
nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem --format=csv,noheader \
  >$logs/gpu.txt 2>&1
cat $logs/gpu.txt
built=$(cat $programs/commit 2>/dev/null)
tree=$(bench/cuda/build_device.sh --commit 2>/dev/null)
export KVTILT_COMMIT=${built:-unknown}
echo "programs of commit $KVTILT_COMMIT"
[ "$built" = "$tree" ] || echo "  THE TREE IS ${tree:-of an unknown one}"

if [[ $parts == *benches* ]]; then bench probes 60 $programs/probes; fi
if [[ $parts == *tests* ]]; then
  program tests 150 $programs/tests "--gtest_filter=$filter" "--gtest_output=json:$logs/tests.json"
  program gpu_engine 30 $programs/gpu_engine
fi
if [[ $parts == *benches* ]]; then
  bench attend 120 $programs/attend_bench
  bench cache 60 $programs/cache_bench
  bench prefill 60 $programs/prefill_bench
  if python3 -c 'import importlib.util as u; exit(u.find_spec("torch") is None)' 2>/dev/null; then
    bench sdpa 90 bench/cuda/sdpa.py
  else
    optional=yes row sdpa 'not measured, no torch' 0 ''
  fi
fi
if [[ $parts == *tests* && -x $programs/tests ]]; then
  # One test of each kind of kernel: append, unpack, page tables, decode, prefill.
  small='*EveryTypeAndStride:*Hostile*:*Ragged*:DeviceCacheAttend.AfterForksAndTruncations'
  small+=':DeviceCacheAttend.PromptsInChunks:DeviceAttend.OptionsAndTypes'
  if sanitizer=$(PATH=$PATH:/usr/local/cuda/bin command -v compute-sanitizer); then
    step memcheck 90 "$sanitizer" --tool memcheck --error-exitcode 9 $programs/tests \
      "--gtest_filter=$small"
  else
    optional=yes row memcheck 'NOT RUN' 0 'there is no compute-sanitizer'
  fi
fi
if [[ $parts == *benches* ]]; then
  optional=yes bench grid 600 $programs/attend_bench grid
  [ -z "$tuning" ] || optional=yes bench tuning 600 $programs/attend_bench tuning
fi
