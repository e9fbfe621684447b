// SPDX-License-Identifier: MIT
#include "linear.hpp"

#include <Eigen/Core>

#include <algorithm>
#include <cmath>
#include <cstddef>

namespace llama {
namespace {

using RowMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using ConstVector = Eigen::Map<const Eigen::VectorXf>;
using Vector = Eigen::Map<Eigen::VectorXf>;
using ConstArray = Eigen::Map<const Eigen::ArrayXf>;
using Array = Eigen::Map<Eigen::ArrayXf>;

// Rows of weights in a block: they stay in the L1 cache while all tokens multiply with them.
constexpr int row_block = 32;

}  // namespace

void multiply(const Matrix& weights, std::span<const float> bias, int tokens, const float* in,
              float* out) {
  const Eigen::Map<const RowMajor> matrix(weights.data.data(), weights.rows, weights.cols);
  if (tokens <= same_bits_tokens) {  // a product per token: a matrix product adds in another order
    for (int row = 0; row < weights.rows; row += row_block) {
      const int rows = std::min(row_block, weights.rows - row);
      for (int token = 0; token < tokens; ++token) {
        Vector(out + std::ptrdiff_t{token} * weights.rows + row, rows).noalias() =
            matrix.middleRows(row, rows) *
            ConstVector(in + std::ptrdiff_t{token} * weights.cols, weights.cols);
      }
    }
  } else {
    Eigen::Map<RowMajor>(out, tokens, weights.rows).noalias() =
        Eigen::Map<const RowMajor>(in, tokens, weights.cols) * matrix.transpose();
  }
  if (bias.empty()) return;
  for (int token = 0; token < tokens; ++token) {
    add(weights.rows, out + std::ptrdiff_t{token} * weights.rows, bias.data());
  }
}

void gate_silu(int count, float* gate, const float* up) {
  for (int i = 0; i < count; ++i) gate[i] = gate[i] / (1.0F + std::exp(-gate[i])) * up[i];
}

void rms_norm(int count, const float* in, const float* weight, float eps, float* out) {
  const ConstArray x(in, count);
  const float mean = x.square().sum() / static_cast<float>(count);
  Array(out, count) = x * (1.0F / std::sqrt(mean + eps)) * ConstArray(weight, count);
}

void add(int count, float* sum, const float* addend) {
  Array(sum, count) += ConstArray(addend, count);
}

}  // namespace llama
