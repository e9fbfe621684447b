#!/usr/bin/env bash
# Compiles the kernels of one .cu file and checks the machine code against its .budget file:
# kernels.sh <check_cubin> <folder> <file.cu> -- <compiler options>...
set -euo pipefail

check=$1
folder=$2
file=$3
shift 3
rm -f "$folder/$(basename "$file" .cu)".sm_*.cubin
"$(dirname "$0")/cuda.sh" cubin "$folder" "$file" "$@"
"$check" "${file%.cu}.budget" "$folder/$(basename "$file" .cu)".sm_*.cubin
