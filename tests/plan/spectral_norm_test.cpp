// SPDX-License-Identifier: MIT
#include <kvtilt/plan/spectral_norm.hpp>

#include "support/random.hpp"

#include <Eigen/SVD>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <string>

namespace kvtilt {
namespace {

using testing::HasSubstr;
using RowMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

RowMajor gaussian(test::Random& random, Eigen::Index rows, Eigen::Index columns) {
  RowMajor matrix(rows, columns);
  for (Eigen::Index i = 0; i < matrix.size(); ++i)
    matrix.data()[i] = static_cast<float>(random.normal());
  return matrix;
}

WeightView view_of(const RowMajor& matrix) { return {matrix.data(), matrix.rows(), matrix.cols()}; }

double exact_norm(const RowMajor& matrix) {
  // JacobiSVD, because BDCSVD gives NaN under -ffast-math where singular values tie.
  return Eigen::JacobiSVD<Eigen::MatrixXd>(matrix.cast<double>()).singularValues()[0];
}

SpectralNorm norm_of(const RowMajor& matrix) {
  const auto frobenius = frobenius_norm(view_of(matrix));
  EXPECT_TRUE(frobenius.ok()) << frobenius.message();
  EXPECT_NEAR(*frobenius, matrix.cast<double>().norm(), 1e-12 * *frobenius);
  const auto norm = spectral_norm(view_of(matrix), *frobenius);
  EXPECT_TRUE(norm.ok()) << norm.message();
  return norm.ok() ? *norm : SpectralNorm{};
}

/// Checks the documented bracket, and that the actual error is within `tolerance`, which is
/// smaller.
void expect_norm(const RowMajor& matrix, double tolerance) {
  const double exact = exact_norm(matrix);
  const SpectralNorm norm = norm_of(matrix);
  EXPECT_LE(norm.value, exact * (1 + 2e-6));
  EXPECT_NEAR(norm.value, exact, tolerance * exact) << matrix.rows() << " x " << matrix.cols();
  EXPECT_LE(norm.bracket, spectral_bracket);
}

TEST(SpectralNormAgreement, WithTheExactSvd) {
  test::Random random(41);
  for (const auto& [rows, columns] : {std::pair{1, 1},
                                      {1, 7},
                                      {7, 1},
                                      {2, 2},
                                      {3, 50},
                                      {50, 3},
                                      {33, 32},
                                      {64, 320},
                                      {320, 64},
                                      {128, 128},
                                      {256, 300}})
    expect_norm(gaussian(random, rows, columns), 1e-4);
}

TEST(SpectralNormAgreement, OnManyMatricesOfFewRows) {
  test::Random random(46);
  for (int rows = 1; rows <= 16; ++rows) {
    for (int i = 0; i < 30; ++i) {
      const RowMajor matrix = gaussian(random, rows, i % 3 == 0 ? 2048 : 256);
      const Eigen::MatrixXd wide = matrix.cast<double>();
      const Eigen::ArrayXd values =  // through the Gram matrix, which is fast
          Eigen::JacobiSVD<Eigen::MatrixXd>(wide * wide.transpose())
              .singularValues()
              .array()
              .sqrt();
      const SpectralNorm norm = norm_of(matrix);
      EXPECT_LE(norm.bracket, spectral_bracket);
      EXPECT_LE((values - norm.value).abs().minCoeff(), (norm.bracket + 2e-6) * norm.value)
          << rows << " x " << matrix.cols() << ": no singular value";
      EXPECT_LE(norm.value, values[0] * (1 + 2e-6));
    }
  }
}

TEST(SpectralNormAgreement, OnSpectraOfEveryKind) {
  test::Random random(42);
  const Eigen::Index size = 96;
  const Eigen::MatrixXd left =
      Eigen::HouseholderQR<Eigen::MatrixXd>(gaussian(random, size, size).cast<double>())
          .householderQ();
  const Eigen::MatrixXd right =
      Eigen::HouseholderQR<Eigen::MatrixXd>(gaussian(random, size, size).cast<double>())
          .householderQ();
  Eigen::VectorXd spectrum(size);
  for (int kind = 0; kind < 6; ++kind) {
    for (Eigen::Index i = 0; i < size; ++i) {
      const double x = static_cast<double>(i);
      spectrum[i] = kind == 0   ? 1.0                             // orthogonal
                    : kind == 1 ? std::pow(0.5, x)                // falls fast
                    : kind == 2 ? 1.0 - 1e-4 * x                  // hardly falls
                    : kind == 3 ? (i == 0 ? 100.0 : 1.0)          // one stands out
                    : kind == 4 ? (i < 2 ? 5.0 - 1e-3 * x : 1.0)  // two nearly equal
                                : (i < 3 ? 2.0 : 0.0);            // rank 3
    }
    const RowMajor matrix = (left * spectrum.asDiagonal() * right).cast<float>();
    expect_norm(matrix, 1e-3);
  }
}

TEST(SpectralNorm, ScalesOverTheRangeOfFloats) {
  test::Random random(43);
  const RowMajor matrix = gaussian(random, 20, 30);
  const double norm = norm_of(matrix).value;
  for (const float scale : {1e-30f, 1e-10f, 1e10f, 1e36f}) {
    const RowMajor scaled = matrix * scale;
    EXPECT_NEAR(norm_of(scaled).value, norm * static_cast<double>(scale),
                1e-5 * norm * static_cast<double>(scale));
  }
}

TEST(SpectralNorm, ZeroAndStrides) {
  EXPECT_EQ(norm_of(RowMajor::Zero(4, 5)).value, 0);
  test::Random random(44);
  const RowMajor matrix = gaussian(random, 40, 24);
  WeightView part(matrix.data(), 40, 10);
  part.stride = 24;
  part = part.slice(8, 16);
  const RowMajor copy = matrix.block(8, 0, 16, 10);
  EXPECT_NEAR(*frobenius_norm(part), copy.cast<double>().norm(), 1e-12);
  EXPECT_NEAR(spectral_norm(part, *frobenius_norm(part))->value, exact_norm(copy), 1e-4);
}

TEST(SpectralNorm, IsTheSameEveryTime) {
  test::Random random(45);
  const RowMajor matrix = gaussian(random, 70, 90);
  EXPECT_EQ(norm_of(matrix).value, norm_of(matrix).value);
  EXPECT_LE(norm_of(matrix).steps, 40);
}

TEST(SpectralNormHostile, NamesWhatIsNotANumber) {
  RowMajor matrix = RowMajor::Ones(3, 4);
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    matrix(2, 1) = bad;
    const auto norm = frobenius_norm(view_of(matrix));
    EXPECT_EQ(norm.code(), ErrorCode::InvalidValue);
    EXPECT_THAT(std::string(norm.message()), HasSubstr("row 2, column 1"));
  }
  EXPECT_EQ(frobenius_norm({}).code(), ErrorCode::InvalidArgument);
  EXPECT_FALSE(frobenius_norm({matrix.data(), 0, 4}).ok());
  WeightView overlapping(matrix.data(), 3, 4);
  overlapping.stride = 3;
  EXPECT_THAT(std::string(frobenius_norm(overlapping).message()), HasSubstr("stride 3"));
}

}  // namespace
}  // namespace kvtilt
