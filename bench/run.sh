#!/usr/bin/env bash
# Builds and runs the benchmarks and prints one table: bench/run.sh [--filter REGEX] [--json FILE]
#
# Rows are repeated in random order and their medians compared: on a shared machine only ratios
# inside one run mean anything. KVTILT_ISA forces an instruction set.
set -euo pipefail
cd "$(dirname "$0")/.."

filter=.
json=()
while [ $# -gt 0 ]; do
  case "$1" in
    --filter) filter=${2:?a regular expression}; shift 2 ;;
    --json) json=("--benchmark_out=${2:?a file}" --benchmark_out_format=json); shift 2 ;;
    *)
      echo "usage: bench/run.sh [--filter REGEX] [--json FILE]" >&2
      exit 2
      ;;
  esac
done

echo '#include <benchmark/benchmark.h>' | g++ -E -x c++ - &>/dev/null || {
  echo "please install Google Benchmark (Debian: libbenchmark-dev)" >&2
  exit 1
}
build=build/bench
mkdir -p "$build"
{
  cmake --preset release -B "$build" -DKVTILT_BUILD_TESTS=OFF -DKVTILT_BUILD_EXAMPLES=OFF &&
    cmake --build "$build" --parallel "$(nproc)"
} >"$build/build.log" 2>&1 || {
  cat "$build/build.log" >&2
  exit 1
}
date -u +%F
grep -m1 'model name' /proc/cpuinfo || uname -m
"$build/bench/kvtilt_bench" --benchmark_filter="$filter" --benchmark_repetitions=5 \
  --benchmark_enable_random_interleaving=true --benchmark_min_time=0.1 "${json[@]}"
