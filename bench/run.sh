#!/usr/bin/env bash
# Builds and runs the benchmarks and prints one table:
#   bench/run.sh [--filter REGEX] [--json FILE] [--ggml DIR]
# With --ggml, ggml's attention is measured beside ours; DIR has its source: of ggml, or the folder ggml
# of llama.cpp or of a fork.
# With --errors [--recipes LIST] it prints the error of fast arithmetic beside that of quantization.
# With --error-law it measures the table of include/kvtilt/plan/error_law.hpp.
#
# Rows are repeated in random order and their medians compared: on a shared machine only ratios
# within one run are meaningful. KVTILT_ISA forces an instruction set.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
  echo "usage: bench/run.sh [--filter REGEX] [--json FILE] [--ggml DIR]" >&2
  echo "       bench/run.sh --errors [--recipes LIST]" >&2
  echo "       bench/run.sh --error-law" >&2
  exit 2
}

benches=no  # whether an option asks for the table of benchmarks
filter=.
json=()
ggml=
errors=no
error_law=no
recipes=()
while [ $# -gt 0 ]; do
  case "$1" in
    --filter) benches=yes filter=${2:?a regular expression}; shift 2 ;;
    --json) benches=yes json=("--benchmark_out=${2:?a file}" --benchmark_out_format=json); shift 2 ;;
    --ggml) benches=yes ggml=$(realpath "${2:?a folder}"); shift 2 ;;
    --errors) errors=yes; shift ;;
    --error-law) error_law=yes; shift ;;
    --recipes) recipes=(--recipes "${2:?a list of recipes}"); shift 2 ;;
    *) usage ;;
  esac
done

has() { echo "#include <$1>" | g++ -std=c++20 -I/usr/include/eigen3 -E -x c++ - &>/dev/null; }
needs() {  # a header, the name of its Debian package
  has "$1" || { echo "please install what has <$1> (Debian: $2)" >&2; exit 1; }
}

build_target() {  # the target, then CMake options
  mkdir -p "$build"
  {
    cmake --preset release -B "$build" -DKVTILT_BUILD_TESTS=OFF "${@:2}" &&
      cmake --build "$build" --parallel "$(nproc)" --target "$1"
  } >"$build/build.log" 2>&1 || {
    cat "$build/build.log" >&2
    exit 1
  }
}

if [ $error_law = yes ]; then
  [ $benches = no ] && [ $errors = no ] && [ ${#recipes[@]} = 0 ] || usage
  needs Eigen/Core libeigen3-dev
  build=build/errors
  build_target kvtilt_error_law -DKVTILT_BUILD_EXAMPLES=OFF
  exec "$build/bench/kvtilt_error_law"
fi

if [ $errors = yes ]; then
  [ $benches = no ] || usage
  needs Eigen/Core libeigen3-dev
  needs CLI/CLI.hpp libcli11-dev
  needs nlohmann/json.hpp nlohmann-json3-dev
  build=build/errors
  build_target kvtilt_fast_error
  exec "$build/bench/kvtilt_fast_error" "${recipes[@]}"
fi

[ ${#recipes[@]} = 0 ] || usage
needs benchmark/benchmark.h libbenchmark-dev
[ -z "$ggml" ] || [ -e "$ggml/include/ggml.h" ] || {
  echo "$ggml has no include/ggml.h: it is neither ggml's source nor the folder ggml of a llama.cpp" >&2
  exit 1
}
build=build/bench
build_target kvtilt_bench -DKVTILT_BUILD_EXAMPLES=OFF "-DKVTILT_GGML=$ggml"
date -u +%F
grep -m1 'model name' /proc/cpuinfo || uname -m
[ -z "$ggml" ] || git -C "$ggml" log -1 --format='ggml: %h of %cs' 2>/dev/null || true
"$build/bench/kvtilt_bench" --benchmark_filter="$filter" --benchmark_repetitions=5 \
  --benchmark_enable_random_interleaving=true --benchmark_min_time=0.1 "${json[@]}"
