#!/usr/bin/env bash
# Builds all that a machine with a GPU runs, without needing more there than a driver:
#     bench/cuda/build_device.sh [SM]...        (default: 90)
# Programs end up in build/device. Sources: tests/cuda/device/*.cu and *.cpp are one program with
# GoogleTest, bench/cuda/*.cu programs of their own.
set -euo pipefail
cd "$(dirname "$0")/../.."

nvcc=$(PATH=$PATH:/usr/local/cuda/bin command -v "${CUDACXX:-nvcc}") || {
  echo "nvcc not found in PATH, CUDACXX or /usr/local/cuda" >&2
  exit 1
}
out=build/device
mkdir -p "$out/objects"

targets=()
for sm in "${@:-90}"; do targets+=("-gencode=arch=compute_$sm,code=sm_$sm"); done
flags=(-std=c++20 -O3 "${targets[@]}" -Iinclude -Itests -Itests/cuda/device -lineinfo
  -diag-suppress 128,1675 -Xcompiler -Wall,-Wextra,-Wno-unknown-pragmas)
links=(-cudart static -Xcompiler -static-libstdc++,-static-libgcc)

# newer <object> <source>: whether the object must be made again. Headers are not followed one by one.
stale() { [ ! -e "$1" ] || [ -n "$(find "$2" include tests/support tests/cuda/device -newer "$1" \
  -type f -print -quit)" ]; }

# Starts a command once a processor is free.
cores=$(nproc)
started=()
start() {
  while [ "$(jobs -rp | wc -l)" -ge "$cores" ]; do sleep 0.2; done
  "$@" &
  started+=($!)
}

objects=()
compile() {  # <source> <flags>...
  local source=$1 object
  object=$out/objects/$(echo "${source%.*}" | tr / _).o
  objects+=("$object")
  if stale "$object" "$source"; then
    echo "compiling $source"
    start "$nvcc" "${flags[@]}" "${@:2}" -c "$source" -o "$object"
  fi
}
for source in tests/cuda/device/*.cu tests/cuda/device/*.cpp; do
  [ -e "$source" ] || continue
  compile "$source" -include support/all_formats.hpp
done
compile tests/support/all_formats.cpp
for source in bench/cuda/*.cu; do
  [ -e "$source" ] || continue
  program=$out/$(basename "${source%.cu}")
  if stale "$program" "$source"; then
    echo "compiling $source"
    start "$nvcc" "${flags[@]}" "$source" "${links[@]}" -o "$program"
  fi
done
for process in "${started[@]}"; do wait "$process"; done  # ends with the first that failed
"$nvcc" "${targets[@]}" "${objects[@]}" "${links[@]}" -lgmock -lgtest -lgtest_main -o "$out/tests"
ls -l "$out" | awk 'NR > 1 && $1 !~ /^d/ { print $9, $5 }'
