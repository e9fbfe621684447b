#!/usr/bin/env bash
# Reports to ctest that tests are skipped because something is missing: not_built.sh <what>. With
# CI=true that is a failure.
echo "tests/cuda/device is not built: no $1"
[ "${CI:-}" = true ] && exit 1
exit 77
