#!/usr/bin/env bash
# Builds the examples, writes a story with a 4-bit-key / 2-bit-value cache, and prints what every recipe
# costs in memory and in quality on the two shipped models.
#
# Missing tools and libraries are installed with apt-get where root or sudo allows; nothing is
# downloaded when they are all there.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ $# -gt 0 ]; then
  echo "usage: examples/run.sh" >&2
  exit 2
fi

have() { command -v "$1" >/dev/null; }
compiles() { echo "#include <$1>" | g++ -std=c++20 -I/usr/include/eigen3 -E -x c++ - &>/dev/null; }

# Fills the array missing with the Debian packages of what cannot be found.
find_missing() {
  missing=()
  have g++ || missing+=(g++)
  have cmake || missing+=(cmake)
  have ninja || missing+=(ninja-build)
  compiles Eigen/Core || missing+=(libeigen3-dev)
  compiles CLI/CLI.hpp || missing+=(libcli11-dev)
  compiles nlohmann/json.hpp || missing+=(nlohmann-json3-dev)
}

install_missing() {
  local as_root=()
  if [ "$(id -u)" != 0 ]; then
    have sudo || { echo "please install: ${missing[*]}" >&2; exit 1; }
    as_root=(sudo)
  fi
  have apt-get || { echo "please install (names of Debian packages): ${missing[*]}" >&2; exit 1; }
  "${as_root[@]}" apt-get update -qq
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

show() {  # a command as one could type it, then its output
  local word line='$'
  for word in "$@"; do
    case $word in
      *[!A-Za-z0-9_./,-]*) line+=" '$word'" ;;
      *) line+=" $word" ;;
    esac
  done
  printf '\n%s\n' "$line"
  "$@"
}

find_missing
if [ ${#missing[@]} -gt 0 ]; then
  echo "installing ${missing[*]}"
  install_missing
fi

# A folder of its own: build/release belongs to the tests, which are configured differently.
build=build/examples
log=$build/build.log
mkdir -p "$build"
echo "building (log: $log)"
{
  cmake --preset release -B "$build" -DKVTILT_BUILD_TESTS=OFF -DKVTILT_BUILD_BENCH=OFF &&
    cmake --build "$build" --parallel "$(nproc)" --target example_quickstart example_generate \
      example_evaluate
} >"$log" 2>&1 || {
  cat "$log" >&2
  exit 1
}

data=examples/data
show $build/examples/quickstart
show $build/examples/llama/generate --model $data/models/stories260K \
  --prompt 'Once upon a time' --recipe k4v2 --tokens 300 --page 32 --tail 32 \
  --temperature 0.6 --seed 5
recipes=f16,k16v16,k8v8,k4v4,k4v2,k2v4,k2v2
show $build/examples/llama/evaluate --model $data/models/stories260K \
  --text $data/text/tinystories_317.txt --recipes $recipes --page 32 --tail 32
show $build/examples/llama/evaluate --model $data/models/novels-3M \
  --text $data/text/novels_heldout.txt --recipes $recipes --tokens 16384
echo
echo "done in $SECONDS s"
