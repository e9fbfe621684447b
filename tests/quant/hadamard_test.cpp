// SPDX-License-Identifier: MIT
#include <kvtilt/quant/hadamard.hpp>

#include "support/random.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

namespace kvtilt {
namespace {

using testing::HasSubstr;

constexpr int dims[] = {8, 16, 40, 64, 72, 80, 96, 112, 128, 192, 256, 512, 576};

std::vector<float> random_heads(std::size_t count, std::uint64_t seed) {
  test::Random random(seed);
  std::vector<float> heads(count);
  for (float& x : heads) x = static_cast<float>(random.normal() * (random.chance(16) ? 30.0 : 1.0));
  return heads;
}

/// By definition: entry (i, j) of a block's matrix is +-1 / sqrt(block), negative where i and j have
/// an odd number of set bits in common.
std::vector<double> transformed(const float* head, int dim, int block) {
  std::vector<double> out(static_cast<std::size_t>(dim));
  for (int i = 0; i < dim; ++i) {
    const int first = i / block * block;
    for (int j = 0; j < block; ++j) {
      const auto common = static_cast<unsigned>((i - first) & j);
      const double x = head[first + j];
      out[static_cast<std::size_t>(i)] += std::popcount(common) % 2 == 0 ? x : -x;
    }
    out[static_cast<std::size_t>(i)] /= std::sqrt(static_cast<double>(block));
  }
  return out;
}

double norm(const float* head, int dim) {
  double squares = 0;
  for (int i = 0; i < dim; ++i) squares += double{head[i]} * double{head[i]};
  return std::sqrt(squares);
}

TEST(HadamardProperty, KeepsItsBoundAndIsItsOwnInverse) {
  constexpr int tokens = 7;
  constexpr int heads = 3;
  for (const int dim : dims) {
    const int block = dim & -dim;
    const std::vector<float> before =
        random_heads(std::size_t{tokens} * heads * static_cast<std::size_t>(dim),
                     static_cast<std::uint64_t>(dim));
    std::vector<float> data = before;
    const MutableTensorView view(data.data(), tokens, heads, dim);
    ASSERT_TRUE(hadamard_transform(view).ok());
    const double relative = (std::log2(block) + 2) * 0x1p-24;
    for (int row = 0; row < tokens * heads; ++row) {
      const float* head = before.data() + row * dim;
      const std::vector<double> expected = transformed(head, dim, block);
      double squares = 0;
      for (int i = 0; i < dim; ++i) {
        const double error = double{data[static_cast<std::size_t>(row * dim + i)]} -
                             expected[static_cast<std::size_t>(i)];
        squares += error * error;
      }
      EXPECT_LE(std::sqrt(squares), relative * norm(head, dim)) << "dim " << dim;
    }
    ASSERT_TRUE(hadamard_transform(view).ok());
    for (std::size_t i = 0; i < data.size(); ++i)
      EXPECT_NEAR(data[i], before[i], 2 * relative * norm(before.data() + i / dim * dim, dim));
  }
}

TEST(HadamardProperty, MixesLikeTheValuesItTransforms) {
  constexpr int dim = 128;
  std::vector<float> values = random_heads(2 * dim, 1);
  std::vector<float> mix(dim);
  for (std::size_t i = 0; i < dim; ++i) mix[i] = 0.25f * values[i] + 0.75f * values[dim + i];
  ASSERT_TRUE(hadamard_transform(MutableTensorView(values.data(), 2, 1, dim)).ok());
  std::vector<float> out(dim);
  for (std::size_t i = 0; i < dim; ++i) out[i] = 0.25f * values[i] + 0.75f * values[dim + i];
  ASSERT_TRUE(hadamard_transform(MutableTensorView(out.data(), 1, 1, dim)).ok());
  for (std::size_t i = 0; i < dim; ++i) EXPECT_NEAR(out[i], mix[i], 1e-4f);
}

TEST(Hadamard, SpreadsAnOutlier) {
  std::vector<float> head(128);
  head[77] = 64.0f;
  ASSERT_TRUE(hadamard_transform(MutableTensorView(head.data(), 1, 1, 128)).ok());
  for (const float x : head) EXPECT_NEAR(std::abs(x), 64.0f / std::sqrt(128.0f), 1e-5f);
}

template <class Half>
void expect_rounded_once(Half (*rounded)(float)) {
  constexpr int dim = 80;
  std::vector<Half> halves;
  std::vector<float> floats;
  for (const float x : random_heads(2 * dim, 2)) {
    halves.push_back(rounded(x));
    floats.push_back(to_float(halves.back()));
  }
  ASSERT_TRUE(hadamard_transform(MutableTensorView(halves.data(), 1, 2, dim)).ok());
  ASSERT_TRUE(hadamard_transform(MutableTensorView(floats.data(), 1, 2, dim)).ok());
  for (std::size_t i = 0; i < halves.size(); ++i) EXPECT_EQ(halves[i], rounded(floats[i])) << i;
}

TEST(Hadamard, RoundsSixteenBitsOnce) {
  expect_rounded_once<F16>(to_f16);
  expect_rounded_once<BF16>(to_bf16);
}

TEST(Hadamard, TouchesItsHeadsAlone) {
  constexpr int dim = 16;
  const std::vector<float> before = random_heads(400, 3);  // [heads, tokens, channels], with gaps
  std::vector<float> data = before;
  ASSERT_TRUE(
      hadamard_transform(MutableTensorView(data.data(), 3, 2, dim).with_strides(24, 200)).ok());
  for (int i = 0; i < 400; ++i) {
    const int head = i / 200;
    const int token = i % 200 / 24;
    const int channel = i % 200 % 24;
    const auto index = static_cast<std::size_t>(i);
    if (token >= 3 || channel >= dim) {
      EXPECT_EQ(data[index], before[index]) << i;
      continue;
    }
    const float* row = before.data() + head * 200 + token * 24;
    EXPECT_NEAR(data[index], transformed(row, dim, 16)[static_cast<std::size_t>(channel)], 1e-4);
  }
}

TEST(HadamardHostile, RefusesWhatItCannotTransform) {
  std::vector<float> data(584, 1.0f);
  const auto message = [&](std::int64_t tokens, int heads, int dim) {
    return std::string(
        hadamard_transform(MutableTensorView(data.data(), tokens, heads, dim)).message());
  };
  EXPECT_THAT(message(1, 1, 12),
              HasSubstr("[1, 1, 12]; expected [n, n, a multiple of 8 up to 576]"));
  EXPECT_THAT(message(1, 1, 0), HasSubstr("[1, 1, 0]"));
  EXPECT_THAT(message(1, 1, 584), HasSubstr("[1, 1, 584]"));
  EXPECT_THAT(message(-1, 1, 8), HasSubstr("[-1, 1, 8]"));
  EXPECT_THAT(message(1, -1, 8), HasSubstr("[1, -1, 8]"));
  EXPECT_EQ(message(0, 4, 8), "");
  EXPECT_THAT(
      hadamard_transform(MutableTensorView(static_cast<float*>(nullptr), 1, 1, 8)).message(),
      HasSubstr("null"));
  EXPECT_THAT(
      hadamard_transform(MutableTensorView(data.data(), static_cast<ElementType>(7), 1, 1, 8))
          .message(),
      HasSubstr("heads have element type 7"));
  for (const float x : data) EXPECT_EQ(x, 1.0f);
}

}  // namespace
}  // namespace kvtilt
