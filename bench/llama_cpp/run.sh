#!/usr/bin/env bash
# Measures kvtilt inside llama.cpp with llama.cpp's own llama-perplexity: the KL divergence of cache
# types from its 16-bit cache, and the time, one token at a time on one thread.
#
#     bench/llama_cpp/run.sh [source folder of llama.cpp]   (without: that of llama-cpp-python 0.3.9)
#
# The source is copied to build/llama_cpp/source once; remove that folder to measure another.
#
# About 7 minutes on 2 cores. Needs python3 with venv, cmake, ninja, and PyPI.
set -euo pipefail
cd "$(dirname "$0")/../.."

root=$PWD
here=bench/llama_cpp
build=build/llama_cpp
mkdir -p $build
[ -x $build/python/bin/python ] || {
  python3 -m venv $build/python
  $build/python/bin/pip -q install gguf
}
if [ -e $build/source ]; then
  [ $# = 0 ] || { echo "$build/source exists: remove it to measure $1" >&2; exit 2; }
else
  source=${1:-}
  [ -n "$source" ] || {
    $build/python/bin/pip -q download --no-deps --no-binary llama-cpp-python -d $build \
      llama-cpp-python==0.3.9
    tar -xzf $build/llama_cpp_python-0.3.9.tar.gz -C $build
    source=$build/llama_cpp_python-0.3.9/vendor/llama.cpp
  }
  rm -rf $build/copying
  cp -r "$source" $build/copying
  mv $build/copying $build/source
fi
python3 $here/patch.py $build/source "$root"
{
  cmake -S $build/source -B $build/out -G Ninja -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF \
    -DLLAMA_CURL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF &&
    cmake --build $build/out --target llama-perplexity
} >$build/build.log 2>&1 || { cat $build/build.log >&2; exit 1; }
model=examples/data/models/novels-3M
$build/python/bin/python $here/convert.py $model $build/plain.gguf
$build/python/bin/python $here/convert.py $model $build/transformed.gguf --hadamard-values

perplexity() {  # the model, then options
  local gguf=$1
  shift
  $build/out/bin/llama-perplexity -m $build/"$gguf".gguf -f examples/data/text/novels_heldout.txt \
    -c 1024 -b 1024 -ub 1 -t 1 -fa --chunks 16 --kl-divergence-base $build/base "$@" 2>&1
}
row() {  # what it is, its page bits, KVTILT, KVTILT_TAIL, KVTILT_SINKS, the model, options
  local name=$1 bits=$2
  {
    if [ -n "$3" ]; then export KVTILT=$3 KVTILT_TAIL=$4 KVTILT_SINKS=$5; fi
    perplexity "${@:6}" --kl-divergence || true
  } | awk -v name="$name" -v bits="$bits" '
    /^Mean +KLD/ { mean = $3; error = $5 }
    /^Maximum KLD/ { most = $3 }
    /^Same top p/ { top = $4; top_error = $6 }
    /total time/ { seconds = $5 / 1000 }
    { last = $0 }
    END {
      if (mean == "") { print last; exit 1 }
      printf "%-34s %5s  %9s +- %s  %s  %7.3f +- %s %%  %6.1f\n",
        name, bits, mean, error, most, top, top_error, seconds
    }'
}
date -u +%F
grep -m1 'model name' /proc/cpuinfo || uname -m
perplexity plain >$build/base.log || { cat $build/base.log >&2; exit 1; }
printf '%-34s %5s  %-21s  %-8s  %-18s  %s\n' cache bits 'mean KLD' worst 'same top' seconds
row f16 16 '' '' '' plain
row k16v16 16 k16v16 128 4 plain
row 'k16v16, in chunks of 512' 16 k16v16 128 4 plain -ub 512
row q8_0 8.5 '' '' '' plain -ctk q8_0 -ctv q8_0
row q4_0 4.5 '' '' '' plain -ctk q4_0 -ctv q4_0
row 'q4_0, values transformed' 4.5 '' '' '' transformed -ctk q4_0 -ctv q4_0
row 'k8v8, no tail' 8.5 k8v8 0 0 plain
row 'k4v4, no tail' 4.5 k4v4 0 0 plain
row 'k4v2, no tail' 3.5 k4v2 0 0 plain
row 'k4v2, no tail, values transformed' 3.5 k4v2 0 0 transformed
row k8v8 8.5 k8v8 128 4 plain
row k4v4 4.5 k4v4 128 4 plain
row k4v2 3.5 k4v2 128 4 plain
row 'k4v2, values transformed' 3.5 k4v2 128 4 transformed
