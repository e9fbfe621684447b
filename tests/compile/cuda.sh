#!/usr/bin/env bash
# Compiles one .cu file for every architecture: cuda.sh <file.cu> <compiler options>... With
# KVTILT_FULL=1 for all that are supported, else for one of each kind. Without nvcc it exits with 77,
# which ctest reads as skipped; with CI=true that is a failure.
set -euo pipefail

architectures="80 90 120"
[ "${KVTILT_FULL:-0}" = 1 ] && architectures="80 86 89 90 100 120"

nvcc=$(PATH=$PATH:/usr/local/cuda/bin command -v "${CUDACXX:-nvcc}") || {
  echo "nvcc not found in PATH, CUDACXX or /usr/local/cuda: CUDA code is not compiled"
  [ "${CI:-}" = true ] && exit 1
  exit 77
}

targets=()
for architecture in $architectures; do
  targets+=("-gencode=arch=compute_$architecture,code=sm_$architecture")
done
"$nvcc" -std=c++20 --threads 2 "${targets[@]}" -Werror all-warnings \
  -Xcompiler -Wall,-Wextra,-Wconversion,-Werror "${@:2}" -c "$1" -o "$1.o"
echo "compiled for sm: $architectures"
