#!/usr/bin/env bash
# Runs a test program: run_program.sh <program>. Exits with 77, which ctest reads as skipped, if the
# program passed but skipped tests for want of a GPU.
set -euo pipefail
output=$("$1" --gtest_brief=1) && failed=0 || failed=$?
echo "$output"
[ "$failed" = 0 ] || exit "$failed"
[[ $output != *"no GPU"* ]] || exit 77
