// SPDX-License-Identifier: MIT
#include <kvtilt/cuda/page/min_mse_search.hpp>

#include "support/group_data.hpp"
#include "support/random.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

namespace kvtilt::test {
namespace {

/// The errors differ from the specification's by a constant.
TEST(MinMseSearchAgreement, ChoosesWhatTheSpecificationChooses) {
  Random random(1);
  for (int bits = 2; bits <= 5; ++bits)
    for (int round = 0; round < 4000; ++round) {
      std::vector<std::uint16_t> drawn(static_cast<std::size_t>(random.between(1, 32)) * 4);
      fill_group(random, static_cast<Data>(round % data_kinds), drawn, f16_max);
      std::vector<F16> group;
      for (const std::uint16_t element : drawn) group.push_back(F16{element});
      const GroupView view{group.data(), static_cast<int>(group.size()), 1};
      const Affine range = fit_min_max(view, bits);
      cuda::MinMseSearch search(bits, to_float(range.minimum), reciprocal(range.scale));
      for (int i = 0; i < view.count; i += 4)
        search.add(
            group[static_cast<std::size_t>(i)].bits |
                static_cast<std::uint32_t>(group[static_cast<std::size_t>(i) + 1].bits) << 16,
            group[static_cast<std::size_t>(i) + 2].bits |
                static_cast<std::uint32_t>(group[static_cast<std::size_t>(i) + 3].bits) << 16);
      std::uint32_t errors[min_mse_candidates];
      for (int k = 0; k < min_mse_candidates; ++k) errors[k] = search.error(k, view.count);
      const cuda::SearchGrid& grid = cuda::search_grid(bits);
      const int best = cuda::least_error(errors);
      EXPECT_EQ(cuda::fast_apply_min_mse(range, grid.rises[best], grid.shrinks[best]),
                fit_min_mse({group.data(), view.count, 1}, bits));
    }
}

}  // namespace
}  // namespace kvtilt::test
