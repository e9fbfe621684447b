// SPDX-License-Identifier: MIT
// Builds all kernels from the primitives of one instruction set. Included once per instruction set, in
// its namespace and target region, after its simd/ file.

// In the order of their dependencies.
// clang-format off
#include <kvtilt/cpu/block_reader.inl>
#include <kvtilt/cpu/dot.inl>
#include <kvtilt/cpu/dot_halves.inl>
#include <kvtilt/cpu/contract.inl>
#include <kvtilt/cpu/f16_lines.inl>
#include <kvtilt/cpu/fit.inl>
#include <kvtilt/cpu/pack.inl>
#include <kvtilt/cpu/softmax.inl>
#include <kvtilt/cpu/unpack.inl>
#include <kvtilt/cpu/turn.inl>
#include <kvtilt/cpu/table.inl>
// clang-format on
