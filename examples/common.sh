# Shared by the scripts of this folder, which source it in the repository's root.
#
# Missing tools and libraries are installed with apt-get where root or sudo allows; nothing is
# downloaded when they are all there.

# Its own folder: the tests configure build/release differently.
build=build/examples
programs=$build/examples/llama

have() { command -v "$1" >/dev/null; }
compiles() { echo "#include <$1>" | g++ -std=c++20 -I/usr/include/eigen3 -E -x c++ - &>/dev/null; }

# Sets the array `missing` to the Debian packages of everything that is not found.
find_missing() {
  missing=()
  have g++ || missing+=(g++)
  have cmake || missing+=(cmake)
  have ninja || missing+=(ninja-build)
  compiles Eigen/Core || missing+=(libeigen3-dev)
  compiles CLI/CLI.hpp || missing+=(libcli11-dev)
  compiles nlohmann/json.hpp || missing+=(nlohmann-json3-dev)
}

install_missing() {  # the packages in missing
  [ ${#missing[@]} -gt 0 ] || return 0
  echo "installing ${missing[*]}"
  local as_root=()
  if [ "$(id -u)" != 0 ]; then
    have sudo || { echo "please install: ${missing[*]}" >&2; exit 1; }
    as_root=(sudo)
  fi
  have apt-get || { echo "please install (names of Debian packages): ${missing[*]}" >&2; exit 1; }
  "${as_root[@]}" apt-get update -qq
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

build_programs() {  # targets
  local log=$build/build.log
  mkdir -p "$build"
  echo "building (log: $log)"
  {
    cmake --preset release -B "$build" -DKVTILT_BUILD_TESTS=OFF -DKVTILT_BUILD_BENCH=OFF &&
      cmake --build "$build" --parallel "$(nproc)" --target "$@"
  } >"$log" 2>&1 || {
    cat "$log" >&2
    exit 1
  }
}

show() {  # a command as one could type it, then its output
  local word line='$'
  for word in "$@"; do
    case $word in
      *[!A-Za-z0-9_./,:-]*) line+=" '$word'" ;;
      *) line+=" $word" ;;
    esac
  done
  printf '\n%s\n' "$line"
  "$@"
}
