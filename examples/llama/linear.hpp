// SPDX-License-Identifier: MIT
// Matrix products. The only file of the model that uses Eigen, whose inline functions depend on the
// compiler flags of each file that includes it: keep it out of headers.
#pragma once

#include "floats.hpp"

#include <span>

namespace llama {

/// A weight matrix, row-major: each row makes one output.
struct Matrix {
  int rows = 0;
  int cols = 0;
  Floats data;  // [rows, cols]
};

/// Up to this many tokens, multiply() gives every token the bits that it would give it alone: as
/// many matrix-vector products, except that they read the weights from memory once.
inline constexpr int same_bits_tokens = 16;

/// out [tokens, rows] = in [tokens, cols] * weights^T, plus bias [rows] unless it is empty.
void multiply(const Matrix& weights, std::span<const float> bias, int tokens, const float* in,
              float* out);

/// gate [count] = silu(gate) * up [count]
void gate_silu(int count, float* gate, const float* up);

/// out [count] = in [count] / rms(in) * weight [count]; `in` and `out` may be the same.
void rms_norm(int count, const float* in, const float* weight, float eps, float* out);

/// sum [count] += addend [count]
void add(int count, float* sum, const float* addend);

}  // namespace llama
