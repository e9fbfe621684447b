// SPDX-License-Identifier: MIT
/// Frobenius norm and largest singular value of a weight matrix.
#pragma once

#include <kvtilt/core/status.hpp>
#include <kvtilt/plan/losses.hpp>

#include <Eigen/Core>
#include <Eigen/Eigenvalues>

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace kvtilt {

/// A row-major float matrix whose rows start `stride` elements apart.
struct WeightView {
  const float* data = nullptr;
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  std::int64_t stride = 0;

  constexpr WeightView() = default;
  constexpr WeightView(const float* data_, std::int64_t rows_, std::int64_t columns_)
      : data(data_), rows(rows_), columns(columns_), stride(columns_) {}

  /// Rows first to first + count - 1.
  [[nodiscard]] constexpr WeightView slice(std::int64_t first, std::int64_t count) const {
    WeightView view = *this;
    view.data += first * stride;
    view.rows = count;
    return view;
  }
};

/// Frobenius norm, summed in double. Fails with InvalidArgument for a matrix without elements or a
/// stride below its columns, with InvalidValue naming the first element that is NaN or infinite.
inline Result<double> frobenius_norm(const WeightView& weights) {
  if (weights.data == nullptr || weights.rows <= 0 || weights.columns <= 0 ||
      weights.stride < weights.columns)
    return Status::error(
        ErrorCode::InvalidArgument, "a matrix of %lld rows and %lld columns, stride %lld",
        static_cast<long long>(weights.rows), static_cast<long long>(weights.columns),
        static_cast<long long>(weights.stride));
  double sum = 0;
  for (std::int64_t row = 0; row < weights.rows; ++row) {
    const float* elements = weights.data + row * weights.stride;
    sum +=
        Eigen::Map<const Eigen::VectorXf>(elements, weights.columns).cast<double>().squaredNorm();
    if (detail::is_finite(sum)) continue;
    for (std::int64_t column = 0; column < weights.columns; ++column)
      if (!detail::is_finite(static_cast<double>(elements[column])))
        return Status::error(ErrorCode::InvalidValue, "row %lld, column %lld is not finite",
                             static_cast<long long>(row), static_cast<long long>(column));
  }
  return std::sqrt(sum);
}

/// Result of a Lanczos iteration.
struct SpectralNorm {
  double value = 0;    ///< a lower bound of the norm, up to rounding in float32
  double bracket = 0;  ///< some singular value lies within value * (1 +- bracket)
  int steps = 0;       ///< passes over the matrix
};

/// The iteration ends when the bracket is this narrow. If the largest singular value is well
/// separated from the others, the error of the value is of the order of the bracket squared.
inline constexpr double spectral_bracket = 1e-3;
inline constexpr int most_spectral_steps = 200;

namespace detail {

/// z = W' W x / f^2 for a matrix W of Frobenius norm f, so that the eigenvalues lie in 0 to 1. The
/// factor 1 / f^2 is applied in four parts, so that no intermediate vector overflows float32 or
/// comes near its subnormals, which some compiler flags flush to zero. One pass over W: a block of
/// rows stays in the CPU's cache for both products.
class GramOperator {
 public:
  GramOperator(const WeightView& weights, double frobenius)
      : weights_(weights), root_(static_cast<float>(1.0 / std::sqrt(frobenius))) {}

  void apply(const Eigen::VectorXf& x, Eigen::VectorXf& z) const {
    using Block =
        Eigen::Map<const Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>, 0,
                   Eigen::OuterStride<>>;
    constexpr std::int64_t block_rows = 32;
    const Eigen::VectorXf scaled = x * root_;
    z.setZero(x.size());
    Eigen::VectorXf y;
    for (std::int64_t row = 0; row < weights_.rows; row += block_rows) {
      const Block block(weights_.data + row * weights_.stride,
                        std::min(block_rows, weights_.rows - row), weights_.columns,
                        Eigen::OuterStride<>(weights_.stride));
      y.noalias() = block * scaled;
      y *= root_;
      y *= root_;
      z.noalias() += block.transpose() * y;
    }
    z *= root_;
  }

 private:
  WeightView weights_;
  float root_;  ///< 1 / sqrt(f)
};

/// A pseudo-random unit vector, the same for every matrix of a size.
inline Eigen::VectorXf start_vector(Eigen::Index size) {
  Eigen::VectorXf x(size);
  std::uint64_t state = 1;
  for (Eigen::Index i = 0; i < size; ++i) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    x[i] = static_cast<float>(static_cast<std::int32_t>(state >> 32)) * 0x1p-31f;
  }
  return x.normalized();
}

}  // namespace detail

/// Largest singular value by Lanczos iteration on W'W from a fixed pseudo-random start, fully
/// reorthogonalized. Float32 products limit the accuracy to about 1e-6.
///
/// frobenius  the matrix's norm, from frobenius_norm
/// Fails      Unsupported if spectral_bracket is not reached in most_spectral_steps passes
/// Cost       some 20 to 60 passes over the matrix; a pass reads each element once and takes 4
///            operations on it: 10 ms for 4096 x 4096
/// Source     Golub and Van Loan, "Matrix Computations", 4th edition, section 10.1
inline Result<SpectralNorm> spectral_norm(const WeightView& weights, double frobenius) {
  SpectralNorm norm;
  if (frobenius == 0.0) return norm;
  const detail::GramOperator gram(weights, frobenius);
  const Eigen::Index size = weights.columns;
  // Exact arithmetic needs at most rank + 1 steps (the last for the part of the start vector in W's
  // null space); the 7 further ones make up for rounding.
  const int most = static_cast<int>(
      std::min({std::int64_t{most_spectral_steps}, weights.rows + 8, weights.columns}));
  Eigen::MatrixXf basis(size, most + 1);
  basis.col(0) = detail::start_vector(size);
  Eigen::VectorXd diagonal(most);
  Eigen::VectorXd off_diagonal(most);
  Eigen::VectorXf next(size);
  Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> ritz;
  while (norm.steps < most) {
    const int step = norm.steps++;
    gram.apply(basis.col(step), next);
    diagonal[step] = static_cast<double>(basis.col(step).dot(next));
    // Orthogonalized twice: one pass is not enough in float32.
    for (int pass = 0; pass < 2; ++pass)
      next -= basis.leftCols(step + 1) * (basis.leftCols(step + 1).transpose() * next).eval();
    off_diagonal[step] = static_cast<double>(next.norm());
    const bool exhausted = off_diagonal[step] < 1e-7;
    if (norm.steps % 4 == 0 || norm.steps == most || exhausted) {
      ritz.computeFromTridiagonal(diagonal.head(norm.steps), off_diagonal.head(step),
                                  Eigen::ComputeEigenvectors);
      const double largest = ritz.eigenvalues()[step];
      norm.value = frobenius * std::sqrt(std::max(largest, 0.0));
      norm.bracket = off_diagonal[step] * std::abs(ritz.eigenvectors()(step, step)) / (2 * largest);
      if (norm.bracket <= spectral_bracket || exhausted) return norm;
    }
    basis.col(step + 1) = next / static_cast<float>(off_diagonal[step]);
  }
  return Status::error(ErrorCode::Unsupported,
                       "the largest singular value of a matrix of %lld x %lld is %g within %.1e "
                       "after %d steps, not within %.1e",
                       static_cast<long long>(weights.rows),
                       static_cast<long long>(weights.columns), norm.value, norm.bracket,
                       norm.steps, spectral_bracket);
}

}  // namespace kvtilt
