// SPDX-License-Identifier: MIT
// All kernels over the primitives of one instruction set: included once in each one's namespace and
// target region, after its simd/ file.

// In the order of their dependencies.
// clang-format off
#include <kvtilt/cpu/block_reader.inl>
#include <kvtilt/cpu/dot.inl>
#include <kvtilt/cpu/contract.inl>
#include <kvtilt/cpu/half_lines.inl>
#include <kvtilt/cpu/fit.inl>
#include <kvtilt/cpu/pack.inl>
#include <kvtilt/cpu/softmax.inl>
#include <kvtilt/cpu/unpack.inl>
#include <kvtilt/cpu/table.inl>
// clang-format on
