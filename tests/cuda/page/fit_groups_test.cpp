// SPDX-License-Identifier: MIT
#include <kvtilt/cuda/page/fit_groups.hpp>

#include "support/emulated_threads.hpp"
#include "support/page_data.hpp"
#include "support/random.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace kvtilt::test {
namespace {

struct Fitted {
  Affine range;  ///< at one bit, the centroids
  Affine least;  ///< after the search
};

/// Fits 16 groups inside a tensor whose other elements are NaN.
template <class Groups>
void check_groups(Random& random, Role role, int bits) {
  constexpr bool outer = Groups::along_outer;
  const int along = random.between(1, 10);
  const int across = random.between(1, 3);
  const int count = random.between(1, std::min(along, max_group / cuda::tile_extent));
  const int first = random.below(along - count + 1);
  const int column = random.below(across);
  const int outer_tiles = outer ? along : across;
  const int inner_tiles = outer ? across : along;
  Block block(static_cast<std::size_t>(along * across * cuda::fragment_tile_bytes), 0xff);
  std::vector<F16> groups[cuda::tile_extent];
  for (int g = 0; g < cuda::tile_extent; ++g) {
    std::vector<std::uint16_t> drawn(static_cast<std::size_t>(cuda::tile_extent * count));
    fill_group(random, static_cast<Data>(random.below(data_kinds)), drawn,
               largest_magnitude({bits, {}, 0, {}}));
    groups[g] = to_halves(drawn);
    for (int i = 0; i < cuda::tile_extent * count; ++i) {
      const int a = first * cuda::tile_extent + i;
      const int b = column * cuda::tile_extent + g;
      *reinterpret_cast<F16*>(block.data() + cuda::half_offset(role,
                                                               {outer_tiles * cuda::tile_extent,
                                                                inner_tiles * cuda::tile_extent},
                                                               outer ? a : b, outer ? b : a)) =
          groups[g][static_cast<std::size_t>(i)];
    }
  }

  const cuda::HalfTiles half{role, block.data(), outer_tiles, inner_tiles};
  const auto index = [&](int tile) {
    return outer ? half.index(tile, column) : half.index(column, tile);
  };
  const cuda::GroupTiles tiles{block.data() + index(first) * cuda::fragment_tile_bytes, count,
                               (index(first + 1) - index(first)) * cuda::fragment_tile_bytes};
  Fitted found[cuda::warp_lanes];
  ASSERT_TRUE(emulate(1, cuda::warp_lanes, 0, [&](EmulatedThreads& threads) {
    Fitted& mine = found[threads.lane()];
    if (bits == 1) {
      mine.range = cuda::fit_centroid_groups<Groups>(threads, tiles, cuda::tile_extent * count);
      return;
    }
    F16 low;
    F16 high;
    Groups::find_range(threads, tiles, low, high);
    mine.range = range_affine(low, high, bits);
    const int best = cuda::search_groups<Groups>(threads, tiles, bits, to_float(mine.range.minimum),
                                                 reciprocal(mine.range.scale));
    mine.least = apply_min_mse(mine.range, min_mse_candidate(bits, best));
  }));

  for (int g = 0; g < cuda::tile_extent; ++g) {
    const cuda::FragmentPlace place = cuda::fragment_place(role, outer ? 0 : g, outer ? g : 0);
    int writers = 0;
    for (int lane = 0; lane < cuda::warp_lanes; ++lane) {
      const bool holds = outer ? lane % 4 == place.lane % 4 : lane / 4 == place.lane / 4;
      if (!holds || !Groups::mine(Groups::group(lane), place.reg, place.half)) continue;
      writers += Groups::writes(lane) ? 1 : 0;
      const GroupView group = view_of(groups[g]);
      ASSERT_EQ(found[lane].range, bits == 1 ? fit_centroids(group) : fit_min_max(group, bits))
          << "group " << g << ", lane " << lane;
      if (bits > 1) {
        ASSERT_EQ(found[lane].least, fit_min_mse(group, bits))
            << "group " << g << ", lane " << lane;
      }
    }
    ASSERT_EQ(writers, 1) << "group " << g;
  }
}

TEST(FitGroupsAgreement, GiveWhatTheSpecificationGives) {
  Random random(1);
  for (int bits = 1; bits <= 5; ++bits)
    for (const Role role : {Role::Keys, Role::Values})
      for (int round = 0; round < 100; ++round) {
        SCOPED_TRACE(std::to_string(bits) + " bits, round " + std::to_string(round));
        check_groups<cuda::ColumnGroups<EmulatedThreads>>(random, role, bits);
        check_groups<cuda::RowGroups<EmulatedThreads>>(random, role, bits);
        if (testing::Test::HasFailure()) return;
      }
}

}  // namespace
}  // namespace kvtilt::test
