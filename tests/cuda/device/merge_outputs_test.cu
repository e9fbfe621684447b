// SPDX-License-Identifier: MIT
#include <kvtilt/cuda/attention/merge_outputs.cuh>

#include "device_array.cuh"
#include "support/caches.hpp"
#include "support/rows.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

namespace kvtilt::test {
namespace {

TEST(DeviceMergeOutputs, PartsOfManyRowsAreFoldedIn) {
  KVTILT_SKIP_WITHOUT_GPU();
  constexpr std::int64_t tokens = 300;
  constexpr int heads = 7;
  constexpr int dim = 80;
  Random random(3);
  const auto part = [&] { return random_rows(random, tokens, heads, dim); };
  const auto sums = [&] {
    std::vector<float> lse;
    for (std::int64_t i = 0; i < tokens * heads; ++i)
      lse.push_back(random.chance(9) ? -std::numeric_limits<float>::infinity()
                                     : static_cast<float>(random.normal()));
    return lse;
  };
  const Rows<float> first = part();
  const Rows<float> second = part();
  const std::vector<float> first_lse = sums();
  const std::vector<float> second_lse = sums();
  const DeviceArray<float> out(first.data), more(second.data), lse(first_lse), other(second_lse);
  KVTILT_EXPECT_OK(cuda::merge({out.data(), tokens, heads, dim}, lse.data(),
                               {more.data(), tokens, heads, dim}, other.data(), nullptr));
  expect_cuda(cudaDeviceSynchronize());
  const std::vector<float> merged = out.get();
  const std::vector<float> merged_lse = lse.get();
  double worst = 0;
  for (std::size_t row = 0; row < first_lse.size(); ++row) {
    const double a = std::exp(static_cast<double>(first_lse[row]));
    const double b = std::exp(static_cast<double>(second_lse[row]));
    if (a + b == 0) continue;
    worst = std::max(worst, std::abs(std::log(a + b) - static_cast<double>(merged_lse[row])));
    for (std::size_t c = 0; c < dim; ++c) {
      const std::size_t at = row * dim + c;
      const double expected =
          (a * static_cast<double>(first.data[at]) + b * static_cast<double>(second.data[at])) /
          (a + b);
      worst = std::max(worst, std::abs(expected - static_cast<double>(merged[at])));
    }
  }
  EXPECT_LT(worst, 1e-5);
  EXPECT_FALSE(cuda::merge({out.data(), 2, heads, dim}, lse.data(), {more.data(), 1, heads, dim},
                           other.data(), nullptr)
                   .ok());
}

}  // namespace
}  // namespace kvtilt::test
