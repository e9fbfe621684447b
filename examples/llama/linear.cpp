// SPDX-License-Identifier: MIT
#include "linear.hpp"

#include <Eigen/Core>

#include <cmath>
#include <cstddef>

namespace llama {
namespace {

using RowMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using ConstVector = Eigen::Map<const Eigen::VectorXf>;
using Vector = Eigen::Map<Eigen::VectorXf>;
using ConstArray = Eigen::Map<const Eigen::ArrayXf>;
using Array = Eigen::Map<Eigen::ArrayXf>;

}  // namespace

void multiply(const Matrix& weights, std::span<const float> bias, int tokens, const float* in,
              float* out) {
  const Eigen::Map<const RowMajor> matrix(weights.data.data(), weights.rows, weights.cols);
  if (tokens == 1) {  // a matrix-vector product needs no packing and no memory
    Vector(out, weights.rows).noalias() = matrix * ConstVector(in, weights.cols);
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
  Array x(gate, count);
  x = x / (1.0F + (-x).exp()) * ConstArray(up, count);
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
