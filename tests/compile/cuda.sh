#!/usr/bin/env bash
# Compiles .cu files for every architecture, to <folder>/<name>.o or to <folder>/<name>.sm_<n>.cubin, or
# for one of them, to <folder>/<name>.o without machine code:
#   cuda.sh object|cubin|ptx <folder> <file.cu>... -- <compiler options>...
# Every architecture: with KVTILT_FULL=1 all that are supported, else one of each kind. Without nvcc it exits with
# 77, which ctest reads as skipped; with CI=true that is a failure.
set -euo pipefail

architectures="80 90 120"
[ "${KVTILT_FULL:-0}" = 1 ] && architectures="80 86 89 90 100 120"

nvcc=$(PATH=$PATH:/usr/local/cuda/bin command -v "${CUDACXX:-nvcc}") || {
  echo "nvcc not found in PATH, CUDACXX or /usr/local/cuda: CUDA code is not compiled"
  [ "${CI:-}" = true ] && exit 1
  exit 77
}

product=$1
folder=$2
shift 2
files=()
while [ "$1" != -- ]; do
  files+=("$1")
  shift
done
shift
mkdir -p "$folder"

options=(-std=c++20 -Werror all-warnings -Xcompiler -Wall,-Wextra,-Wconversion,-Werror "$@")
if [ "$product" = ptx ]; then
  architectures=90
  printf '%s\0' "${files[@]}" | xargs -0 -n 1 -P 2 \
    "$nvcc" "${options[@]}" -gencode=arch=compute_90,code=compute_90 -odir "$folder" -c
elif [ "$product" = object ]; then
  targets=()
  for architecture in $architectures; do
    targets+=("-gencode=arch=compute_$architecture,code=sm_$architecture")
  done
  "$nvcc" "${options[@]}" --threads 2 "${targets[@]}" -odir "$folder" -c "${files[@]}"
else
  for file in "${files[@]}"; do
    for architecture in $architectures; do
      "$nvcc" "${options[@]}" -arch="sm_$architecture" -cubin "$file" \
        -o "$folder/$(basename "$file" .cu).sm_$architecture.cubin"
    done
  done
fi
echo "compiled for sm: $architectures"
