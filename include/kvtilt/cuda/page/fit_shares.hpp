// SPDX-License-Identifier: MIT
/// Fits scale and minimum of one group of a 16-bit tensor in fragment order by 1 to 32 lanes of a
/// warp. A share is half of what a tile has of the group: eight elements.
#pragma once

#include <kvtilt/cuda/half2.hpp>
#include <kvtilt/cuda/page/fit_groups.hpp>
#include <kvtilt/cuda/page/group_math.hpp>
#include <kvtilt/cuda/page/min_mse_search.hpp>
#include <kvtilt/cuda/unroll.hpp>
#include <kvtilt/cuda/words.hpp>
#include <kvtilt/quant/centroids.hpp>
#include <kvtilt/quant/format.hpp>

#include <cstddef>
#include <cstdint>

namespace kvtilt::cuda {

/// A share as loaded, with the group beside it along outer. Unpacked on use: no load stalls.
struct LoadedShare {
  std::uint32_t word[8];
};

/// A lane's shares of a group: `share`, share + lanes and so on; a tile has two.
struct ShareRun {
  const std::byte* at;  ///< the group's first word (along outer: pair of words)
  int step;             ///< bytes from a tile to the next
  int half_step;        ///< bytes from a tile's first share to its second
  bool along_outer;
  bool upper;  ///< along outer: the group has the high halves of its words
  int shares;  ///< of the group
  int share;   ///< the lane's first
  int lanes;   ///< of the group: neighbours, a power of two

  [[nodiscard]] KVTILT_HD LoadedShare load(int index) const {
    const std::byte* from = at + (index >> 1) * step + (index & 1) * half_step;
    LoadedShare result{};
    if (along_outer) {
      KVTILT_DEVICE_UNROLL
      for (int i = 0; i < 4; ++i) {
        const WordPair two = load_words<2>(from + i * 128);
        result.word[i] = two.word[0];
        result.word[4 + i] = two.word[1];
      }
    } else {
      KVTILT_DEVICE_UNROLL
      for (int i = 0; i < 4; ++i) result.word[i] = load_word(from + i / 2 * 32 + i % 2 * 8);
    }
    return result;
  }
  [[nodiscard]] KVTILT_HD GroupShare share_of(const LoadedShare& loaded) const {
    const std::uint32_t chosen = !along_outer ? 0x3210u : upper ? 0x7632u : 0x5410u;
    GroupShare result;
    KVTILT_DEVICE_UNROLL
    for (int i = 0; i < 4; ++i)
      result.pair[i] = permute_bytes(loaded.word[i], loaded.word[4 + i], chosen);
    return result;
  }
};

namespace detail {

/// Calls visit(share) for each share of a lane.
template <class Visit>
KVTILT_HD void for_each_share(const ShareRun& run, const GroupShare& first, Visit visit) {
  GroupShare share = first;
  KVTILT_DEVICE_LOOP
  for (int i = run.share; i < run.shares;) {
    visit(share);
    i += run.lanes;
    if (i < run.shares) share = run.share_of(run.load(i));
  }
}
/// The same without the lane's first share.
template <class Visit>
KVTILT_HD void for_each_other_share(const ShareRun& run, Visit visit) {
  KVTILT_DEVICE_LOOP
  for (int i = run.share + run.lanes; i < run.shares; i += run.lanes)
    visit(run.share_of(run.load(i)));
}

/// Sum over the lanes of a group.
template <class Threads>
KVTILT_HD std::int64_t add_over_lanes(const Threads& threads, std::int64_t value, int lanes) {
  KVTILT_DEVICE_LOOP
  for (int mask = 1; mask < lanes; mask *= 2) value += threads.shuffle_xor(value, mask);
  return value;
}

/// Scale and minimum of a 1-bit group.
template <class Threads>
KVTILT_HD Affine fit_centroid_shares(const Threads& threads, const ShareRun& run,
                                     const GroupShare& first) {
  const std::int64_t elements = run.shares * 8;
  const auto for_each = [&](auto&& visit) {
    for_each_share(run, first, [&](const GroupShare& share) {
      KVTILT_DEVICE_UNROLL
      for (int i = 0; i < 8; ++i) visit(to_units(half_of(share.pair[i / 2], i % 2)));
    });
  };
  return centroids_of(elements, for_each, [&](std::int64_t value) {
    return add_over_lanes(threads, value, run.lanes);
  });
}

/// The group's minimum (low half) and negated maximum (high half).
template <class Threads>
KVTILT_HD std::uint32_t range_of_shares(const Threads& threads, const ShareRun& run,
                                        const GroupShare& first) {
  PairRange range{first.pair[0], first.pair[0]};
  range.include(first.pair[1], first.pair[2]);
  range.include(first.pair[3], first.pair[3]);
  for_each_other_share(run, [&](const GroupShare& share) {
    range.include(share.pair[0], share.pair[1]);
    range.include(share.pair[2], share.pair[3]);
  });
  std::uint32_t least = min_halves(join_low(range.least, range.most) ^ 0x80000000u,
                                   join_high(range.least, range.most) ^ 0x80000000u);
  KVTILT_DEVICE_LOOP
  for (int mask = 1; mask < run.lanes; mask *= 2)
    least = min_halves(least, threads.shuffle_xor(least, mask));
  return least;
}

/// The MinMse candidate of least error.
template <class Threads>
KVTILT_HD int search_shares(const Threads& threads, const ShareRun& run, const GroupShare& first,
                            int bits, const SearchGrid& grid, float minimum, float inverse) {
  MinMseSearch search(bits, grid, minimum, inverse);
  int count = 0;
  for_each_share(run, first, [&](GroupShare share) {
    KVTILT_DEVICE_LOOP  // unrolled, it would run out of registers
        for (int half = 0; half < 2; ++half) {
      search.add(share.pair[0], share.pair[1]);
      share.pair[0] = share.pair[2];
      share.pair[1] = share.pair[3];
    }
    count += 8;
  });
  std::uint32_t errors[min_mse_candidates];
  KVTILT_DEVICE_UNROLL
  for (int k = 0; k < min_mse_candidates; ++k) errors[k] = search.error(k, count);
  KVTILT_DEVICE_LOOP
  for (int mask = 1; mask < run.lanes; mask *= 2) {
    KVTILT_DEVICE_UNROLL
    for (int k = 0; k < min_mse_candidates; ++k) errors[k] += threads.shuffle_xor(errors[k], mask);
  }
  return least_error(errors);
}

}  // namespace detail

/// Fits the group of `run`, for all of its lanes. The whole warp calls it.
///
/// grid    search_grid() for MinMse, best in shared memory
/// first   the share `run.share`; in a lane that has none, any share of the group
template <class Threads>
KVTILT_HD Affine fit_shares(const Threads& threads, const Format& format, const SearchGrid& grid,
                            const ShareRun& run, const GroupShare& first) {
  const int bits = format.bits;
  const RangeRule rule = format.rule;
  if (rule == RangeRule::Centroids) return detail::fit_centroid_shares(threads, run, first);
  const std::uint32_t range = detail::range_of_shares(threads, run, first);
  const Affine affine =
      fast_range_affine(detail::half_of(range, 0), detail::half_of(range ^ 0x80000000u, 1), bits);
  if (rule != RangeRule::MinMse) return affine;
  const int best = detail::search_shares(threads, run, first, bits, grid, widen(affine.minimum),
                                         inverse_of(affine.scale));
  return fast_apply_min_mse(affine, grid.rises[best], grid.shrinks[best]);
}

}  // namespace kvtilt::cuda
