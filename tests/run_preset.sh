#!/usr/bin/env bash
# Configures, builds and tests one preset: run_preset.sh <preset>. Exits with 77, which ctest reads
# as skipped, if the compiler lacks what the preset needs; with CI=true that is a failure.
set -euo pipefail
cd "$(dirname "$0")/.."

require() {  # <what is missing> <command that finds it>...
  local what=$1
  shift
  "$@" >/dev/null 2>&1 && return
  echo "preset $preset: $what"
  [ "${CI:-}" = true ] && exit 1
  exit 77
}

qemu_is_there() { command -v qemu-aarch64-static || command -v qemu-aarch64; }

links_with() {
  echo 'extern "C" int LLVMFuzzerTestOneInput(const unsigned char*, unsigned long) { return 0; }' |
    clang++ "$1" -x c++ - -o /dev/null
}

preset=$1
case $preset in
  clang | clang-ofast | asan* | ubsan | tsan*) require "clang++ is not installed" command -v clang++ ;;
  aarch64)
    require "aarch64-linux-gnu-g++ is not installed" command -v aarch64-linux-gnu-g++
    require "qemu-aarch64 is not installed" qemu_is_there
    ;;
  fuzz)
    require "clang++ is not installed" command -v clang++
    require "clang++ has no libFuzzer" links_with -fsanitize=fuzzer,address,undefined
    ;;
esac
exec cmake --workflow --preset "$preset"
