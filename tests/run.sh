#!/usr/bin/env bash
# Builds and tests everything: tests/run.sh [--full]
#
# One ctest run over the GCC release build does everything: with KVTILT_TEST_MATRIX its tests
# include the forced instruction sets, the other presets (each configured, built and tested by a
# test named preset/<name>; aarch64 by emulation), the header checks, the consumers, nvcc and a
# short run of the fuzzers. --full: all CUDA architectures, long random tests and a minute per
# fuzzer.
#
# The sanitizers and fuzzers use Clang: libFuzzer is part of it, and its -fsanitize=undefined also
# finds float to integer casts that overflow. One compiler also gives reports of one form.
#
# Missing tools and libraries are installed with apt-get where root or sudo allows. With CI=true
# nothing may be skipped: a missing nvcc is then a failure.
set -euo pipefail
cd "$(dirname "$0")/.."

case "${1:-}" in
  "") ;;
  --full)
    export KVTILT_FULL=1 KVTILT_FUZZ_SECONDS=60
    ;;
  *)
    echo "usage: tests/run.sh [--full]" >&2
    exit 2
    ;;
esac

have() { command -v "$1" >/dev/null; }
compiles() { echo "#include <$1>" | g++ -std=c++20 -I/usr/include/eigen3 -E -x c++ - &>/dev/null; }
fuzzes() {
  echo 'extern "C" int LLVMFuzzerTestOneInput(const unsigned char*, unsigned long) { return 0; }' |
    clang++ -fsanitize=fuzzer,address -x c++ - -o /dev/null &>/dev/null
}
links_libcxx() {
  echo '#include <string>
int main(int, char** argv) { return std::string(*argv).empty(); }' |
    clang++ -stdlib=libc++ -x c++ - -o /dev/null &>/dev/null
}
have_nvcc() { [ "${CI:-}" != true ] || PATH=$PATH:/usr/local/cuda/bin have "${CUDACXX:-nvcc}"; }

# Sets the array `missing` to the Debian packages of everything that is not found.
find_missing() {
  missing=()
  have cmake || missing+=(cmake)
  have ninja || missing+=(ninja-build)
  have pkg-config || missing+=(pkg-config)
  have g++ || missing+=(g++)
  have clang++ || missing+=(clang)
  compiles gtest/gtest.h || missing+=(libgtest-dev)
  compiles gmock/gmock.h || missing+=(libgmock-dev)
  compiles benchmark/benchmark.h || missing+=(libbenchmark-dev)
  compiles Eigen/Core || missing+=(libeigen3-dev)
  compiles nlohmann/json.hpp || missing+=(nlohmann-json3-dev)
  compiles CLI/CLI.hpp || missing+=(libcli11-dev)
  have aarch64-linux-gnu-g++ || missing+=(g++-aarch64-linux-gnu)
  have qemu-aarch64-static || have qemu-aarch64 || missing+=(qemu-user-static)
  [ -e /usr/src/googletest/CMakeLists.txt ] || missing+=(googletest)
  have_nvcc || missing+=(nvidia-cuda-toolkit)
  if have clang++ && ! links_libcxx; then
    missing+=(libc++-dev libc++abi-dev)
  fi
  if have clang++ && ! fuzzes; then
    missing+=("libclang-rt-$(clang++ -dumpversion | cut -d. -f1)-dev")
  fi
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
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null || {
    echo "apt-get could not install: ${missing[*]}" >&2
    echo "nvcc comes with the CUDA toolkit of NVIDIA (12.8 or later), where the distribution has none" >&2
    exit 1
  }
}

step() {  # <name> <command>...
  local name=$1 start=$SECONDS
  shift
  "$@"
  echo "== $name: $((SECONDS - start)) s"
}

for _ in 1 2; do  # what Clang lacks is known only once it is installed
  find_missing
  [ ${#missing[@]} = 0 ] || step "install ${missing[*]}" install_missing
done
cmake --workflow --list-presets &>/dev/null || {
  echo "cmake 3.25 or later is needed, this is $(cmake --version | head -n 1)" >&2
  exit 1
}

jobs=$(nproc)
export CMAKE_BUILD_PARALLEL_LEVEL=$jobs CTEST_PARALLEL_LEVEL=$jobs
step configure cmake --preset release -DKVTILT_TEST_MATRIX=ON -DKVTILT_TEST_TOGETHER=ON
step build cmake --build --preset release
exec ctest --preset release
