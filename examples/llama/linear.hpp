// SPDX-License-Identifier: MIT
// Matrix products. Only its .cpp file uses Eigen in the model: Eigen's inline functions depend on
// the compiler flags of each file that includes it, so it must stay out of headers.
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

/// Up to this many tokens, multiply() gives each token the same bits as a call for it alone: it
/// runs one matrix-vector product per token, but reads the weights from memory only once.
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
