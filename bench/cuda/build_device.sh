#!/usr/bin/env bash
# Builds all programs for a machine with a GPU, which then needs only a driver:
#     bench/cuda/build_device.sh [SM]...        (default: 90)
#     bench/cuda/build_device.sh --commit       prints what would be built
# Writes the programs and their commit to build/device, packs that folder as build/device.tgz for
# another machine, and keeps objects in build/device-objects. tests/cuda/device/*.cu and *.cpp
# become one GoogleTest program; each of bench/cuda/*.cu and examples/*.cu becomes a program.
# Compiles what changed since the last build, or everything if the SMs or flags changed.
set -euo pipefail
cd "$(dirname "$0")/../.."

commit=$(git describe --always --abbrev=12 --exclude='*' --dirty 2>/dev/null) || commit=unknown
if [ "${1:-}" = --commit ]; then
  echo "$commit"
  exit
fi
nvcc=$(PATH=$PATH:/usr/local/cuda/bin command -v "${CUDACXX:-nvcc}") || {
  echo "nvcc not found in PATH, CUDACXX or /usr/local/cuda" >&2
  exit 1
}
out=build/device
objects_folder=build/device-objects
mkdir -p "$out" "$objects_folder"

targets=()
for sm in "${@:-90}"; do targets+=("-gencode=arch=compute_$sm,code=sm_$sm"); done
warnings='-Wall,-Wextra,-Wno-unknown-pragmas'
flags=(-std=c++20 -O3 "${targets[@]}" -Iinclude -Itests -Itests/cuda/device -lineinfo
  -diag-suppress '128,1675' -Xcompiler "$warnings")
links=(-cudart static -Xcompiler '-static-libstdc++,-static-libgcc')

stamp=$("$nvcc" --version | tail -n 1)" ${flags[*]} ${links[*]}"
if [ "$stamp" != "$(cat "$objects_folder/flags" 2>/dev/null)" ]; then
  rm -f "$objects_folder"/*.o
  echo "$stamp" >"$objects_folder/flags"
fi

# Whether an object is older than one of its sources, which the .d file beside it lists.
stale() {  # <object>
  local -a sources
  [ -e "$1" ] && [ -e "${1%.o}.d" ] || return 0
  read -ra sources -d '' < <(sed 's/^[^:]*: //; s/\\$//' "${1%.o}.d") || true
  # A deleted header also makes an object stale.
  ! ls "${sources[@]}" >/dev/null 2>&1 || [ -n "$(find "${sources[@]}" -newer "$1" -print -quit)" ]
}

# Starts a command in the background once fewer than `cores` are running.
cores=$(nproc)
started=()
start() {
  while [ "$(jobs -rp | wc -l)" -ge "$cores" ]; do sleep 0.2; done
  "$@" &
  started+=($!)
}

object_of() { echo "$objects_folder/$(echo "${1%.*}" | tr / _).o"; }
make_object() {  # <source> <object> <flags>...: leaves no object if it fails
  "$nvcc" "${flags[@]}" "${@:3}" -MD -MF "${2%.o}.d" -c "$1" -o "$2.begun"
  mv "$2.begun" "$2"
}
compile() {  # <source> <flags>...
  local object
  object=$(object_of "$1")
  if stale "$object"; then
    echo "compiling $1"
    rm -f "$object"
    start make_object "$1" "$object" "${@:2}"
  fi
}
test_objects=()
for source in tests/cuda/device/*.cu tests/cuda/device/*.cpp tests/support/all_formats.cpp; do
  [ -e "$source" ] || continue
  test_objects+=("$(object_of "$source")")
  compile "$source" -include support/all_formats.hpp
done
for source in bench/cuda/*.cu examples/*.cu; do compile "$source"; done
for process in "${started[@]}"; do wait "$process"; done  # stops at the first failure

link() {  # <program> <objects and libraries>...
  "$nvcc" "${targets[@]}" "${@:2}" "${links[@]}" -o "$out/$1"
}
link tests "${test_objects[@]}" -lgmock -lgtest -lgtest_main
for source in bench/cuda/*.cu examples/*.cu; do
  link "$(basename "${source%.cu}")" "$(object_of "$source")"
done
echo "$commit" >"$out/commit"
tar -C build -czf build/device.tgz device
ls -l "$out" | awk 'NR > 1 && $1 !~ /^d/ { print $9, $5 }'
