// SPDX-License-Identifier: MIT
#include <kvtilt/cuda/page/fit_shares.hpp>

#include "support/emulated_threads.hpp"
#include "support/page_data.hpp"
#include "support/random.hpp"

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace kvtilt::test {
namespace {

Affine by_specification(const GroupView& group, const Format& format) {
  if (format.rule == RangeRule::Centroids) return fit_centroids(group);
  return format.rule == RangeRule::MinMse ? fit_min_mse(group, format.bits)
                                          : fit_min_max(group, format.bits);
}

/// Fits the 16 groups of a few tiles, each group by `lanes` lanes of a warp.
void check_groups(Random& random, Role role, bool along_outer, int tiles, int lanes,
                  const Format& format) {
  const CodeMatrix matrix{along_outer ? tiles * 16 : 16, along_outer ? 16 : tiles * 16};
  Block block(static_cast<std::size_t>(tiles * cuda::fragment_tile_bytes), 0xff);
  std::vector<F16> groups[16];
  for (int g = 0; g < 16; ++g) {
    std::vector<std::uint16_t> drawn(static_cast<std::size_t>(16 * tiles));
    fill_group(random, static_cast<Data>(random.below(data_kinds)), drawn,
               largest_magnitude(format));
    groups[g] = to_halves(drawn);
    for (int i = 0; i < 16 * tiles; ++i)
      *reinterpret_cast<F16*>(block.data() + cuda::half_offset(role, matrix, along_outer ? i : g,
                                                               along_outer ? g : i)) =
          groups[g][static_cast<std::size_t>(i)];
  }
  const cuda::SearchGrid grid(format.rule == RangeRule::MinMse ? format.bits : 2);
  for (int first = 0; first < 16; first += 32 / lanes) {
    Affine found[32];
    ASSERT_TRUE(emulate(1, 32, 0, [&](EmulatedThreads& threads) {
      const int g = (first + threads.lane() / lanes) % 16;
      const cuda::FragmentPlace at =
          cuda::fragment_place(role, along_outer ? 0 : g, along_outer ? g : 0);
      const int pair = along_outer ? at.reg / 2 * 8 : at.reg * 4;
      const cuda::ShareRun run{block.data() + at.lane * 16 + pair,
                               cuda::fragment_tile_bytes,
                               along_outer ? 64 : 16,
                               along_outer,
                               at.half != 0,
                               2 * tiles,
                               threads.lane() % lanes,
                               lanes};
      const int mine = run.share < run.shares ? run.share : run.shares - 1;
      found[threads.lane()] =
          cuda::fit_shares(threads, format, grid, run, run.share_of(run.load(mine)));
    }));
    for (int lane = 0; lane < 32; ++lane) {
      const int g = (first + lane / lanes) % 16;
      ASSERT_EQ(found[lane], by_specification(view_of(groups[g]), format))
          << "group " << g << ", lane " << lane;
    }
  }
}

TEST(FitShares, GiveWhatTheSpecificationGives) {
  Random random(1);
  for (int bits = 1; bits <= 8; ++bits)
    for (const RangeRule rule : {RangeRule::MinMax, RangeRule::MinMse, RangeRule::Centroids}) {
      if ((rule == RangeRule::Centroids) != (bits == 1)) continue;
      if (rule == RangeRule::MinMse && bits > 5) continue;
      for (const int tiles : {1, 3, 4, 8})
        for (const int lanes : {1, 2, 8, 32})
          for (const bool along_outer : {true, false})
            for (const Role role : {Role::Keys, Role::Values}) {
              SCOPED_TRACE(std::to_string(bits) + " bits, " + std::to_string(tiles) + " tiles, " +
                           std::to_string(lanes) + " lanes");
              check_groups(random, role, along_outer, tiles, lanes, {bits, {}, 0, rule});
              if (testing::Test::HasFailure()) return;
            }
    }
}

}  // namespace
}  // namespace kvtilt::test
