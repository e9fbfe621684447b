#!/usr/bin/env bash
# Compiles .cu files to <folder>/<name>.o (object: machine code, ptx: PTX alone) or to
# <folder>/<name>.sm_<n>.cubin (cubin):
#   cuda.sh object|ptx|cubin <folder> <file.cu>... -- <compiler options>...
# Architectures: one of each kind (ptx: sm_90 alone); with KVTILT_FULL=1 all that are supported.
# Without nvcc it exits with 77, which ctest reads as skipped; with CI=true that is a failure.
set -euo pipefail

product=$1
folder=$2
shift 2

architectures="80 90 120"
[ "$product" = ptx ] && architectures=90
[ "${KVTILT_FULL:-0}" = 1 ] && architectures="80 86 89 90 100 120"

nvcc=$(PATH=$PATH:/usr/local/cuda/bin command -v "${CUDACXX:-nvcc}") || {
  echo "nvcc not found in PATH, CUDACXX or /usr/local/cuda: CUDA code is not compiled"
  [ "${CI:-}" = true ] && exit 1
  exit 77
}

files=()
while [ "$1" != -- ]; do
  files+=("$1")
  shift
done
shift
mkdir -p "$folder"

options=(-std=c++20 -Werror all-warnings -Xcompiler -Wall,-Wextra,-Wconversion,-Werror "$@")
code=sm
[ "$product" = ptx ] && code=compute
targets=()
for architecture in $architectures; do
  targets+=("-gencode=arch=compute_$architecture,code=${code}_$architecture")
done
if [ "$product" = ptx ]; then
  printf '%s\0' "${files[@]}" | xargs -0 -n 1 -P 2 \
    "$nvcc" "${options[@]}" "${targets[@]}" -odir "$folder" -c
elif [ "$product" = object ]; then
  "$nvcc" "${options[@]}" --threads 2 "${targets[@]}" -odir "$folder" -c "${files[@]}"
else
  for file in "${files[@]}"; do
    for architecture in $architectures; do
      "$nvcc" "${options[@]}" -arch="sm_$architecture" -cubin "$file" \
        -o "$folder/$(basename "$file" .cu).sm_$architecture.cubin"
    done
  done
fi
echo "compiled for $code: $architectures"
