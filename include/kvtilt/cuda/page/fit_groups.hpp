// SPDX-License-Identifier: MIT
/// Fits scale and minimum of the groups of a 16-bit tensor in fragment order. A warp takes 16
/// groups: one tile across them, and all their tiles along. No element moves: lanes reduce their
/// own fragments, then combine the results with shuffles.
///
///     groups along outer   a lane holds 4 groups, 8 lanes hold each (those of equal lane % 4)
///     groups along inner   a lane holds 2 groups, 4 lanes hold each (those of equal lane / 4)
///
/// The MinMse search would take too long for all groups of a lane: for it, a lane reads half of the
/// elements of one group.
#pragma once

#include <kvtilt/cuda/half2.hpp>
#include <kvtilt/cuda/page/fragments.hpp>
#include <kvtilt/cuda/page/group_math.hpp>
#include <kvtilt/cuda/page/min_mse_search.hpp>
#include <kvtilt/cuda/unroll.hpp>
#include <kvtilt/cuda/words.hpp>
#include <kvtilt/page/layout.hpp>
#include <kvtilt/quant/centroids.hpp>

#include <cstddef>
#include <cstdint>

namespace kvtilt::cuda {

/// The tiles of a warp's 16 groups, along the groups.
struct GroupTiles {
  const std::byte* first;
  int count;
  int step;  ///< bytes from one to the next
  [[nodiscard]] KVTILT_HD Fragment load(int i, int lane) const {
    return reinterpret_cast<const Fragment*>(first + i * step)[lane];
  }
};

/// Smallest and largest of a lane's elements, for each half of the words: of two groups, or of one.
struct PairRange {
  std::uint32_t least;
  std::uint32_t most;

  KVTILT_HD void include(std::uint32_t a, std::uint32_t b) {
    least = min_halves(min_halves(least, a), b);
    most = max_halves(max_halves(most, a), b);
  }
  /// Includes the range of the lane whose number differs in the bit `mask`.
  template <class Threads>
  KVTILT_HD void join(const Threads& threads, int mask) {
    least = min_halves(least, threads.shuffle_xor(least, mask));
    most = max_halves(most, threads.shuffle_xor(most, mask));
  }
};

/// Eight elements of one group: half of what a tile has of it.
struct GroupShare {
  std::uint32_t pair[4];
};

namespace detail {

/// Ranges of two pairs of registers, each pair holding elements of the same groups; the registers
/// of a pair are `Apart`. Reads two tiles at a time: of an odd number the last twice.
template <int Apart>
KVTILT_HD void range_of_tiles(const GroupTiles& tiles, int lane, PairRange (&ranges)[2]) {
  constexpr int second = 3 - Apart;  // first register of the other pair
  ranges[0] = ranges[1] = {0x7c007c00u, 0xfc00fc00u};
  const std::byte* at = tiles.first + lane * static_cast<int>(sizeof(Fragment));
  const unsigned step = static_cast<unsigned>(tiles.step);
  KVTILT_DEVICE_LOOP
  for (int left = tiles.count; left > 0; left -= 2) {
    const Fragment a = *reinterpret_cast<const Fragment*>(at);
    const Fragment b = *reinterpret_cast<const Fragment*>(at + (left > 1 ? step : 0));
    ranges[0].include(a.r[0], a.r[Apart]);
    ranges[1].include(a.r[second], a.r[second + Apart]);
    ranges[0].include(b.r[0], b.r[Apart]);
    ranges[1].include(b.r[second], b.r[second + Apart]);
    at += 2 * step;
  }
}

/// The sum over the lanes of a group.
template <class Groups, class Threads>
KVTILT_HD std::int64_t add_over(const Threads& threads, std::int64_t value) {
  for (int mask = Groups::nearest; mask <= Groups::farthest; mask *= 2)
    value += threads.shuffle_xor(value, mask);
  return value;
}

}  // namespace detail

/// Groups along outer: a lane holds four, and finishes one of them, group().
template <class Threads>
struct ColumnGroups {
  static constexpr bool along_outer = true;
  static constexpr int nearest = 4;  ///< lanes of a group differ in these bits of their number
  static constexpr int farthest = 16;
  static constexpr int held = 4;

  /// Which of the lane's groups it finishes: register pair `group / 2`, half `group % 2`.
  KVTILT_HD static int group(int lane) { return lane >> 3; }
  /// Two lanes finish each group; one writes it.
  KVTILT_HD static bool writes(int lane) { return (lane & 4) == 0; }
  /// Whether half `half` of register `reg` is of the lane's group `held`.
  KVTILT_HD static bool mine(int held, int reg, int half) {
    return reg / 2 == held / 2 && half == held % 2;
  }

  KVTILT_HD static void find_range(const Threads& threads, const GroupTiles& tiles, F16& low,
                                   F16& high) {
    const int lane = opaque(threads.lane());
    PairRange ranges[2];
    detail::range_of_tiles<1>(tiles, lane, ranges);
    // A lane keeps one pair of groups, and gets the range that its partner (lane ^ 16) has of them.
    const bool upper = (lane & 16) != 0;
    PairRange range{min_halves(upper ? ranges[1].least : ranges[0].least,
                               threads.shuffle_xor(upper ? ranges[0].least : ranges[1].least, 16)),
                    max_halves(upper ? ranges[1].most : ranges[0].most,
                               threads.shuffle_xor(upper ? ranges[0].most : ranges[1].most, 16))};
    range.join(threads, 8);
    range.join(threads, 4);
    low = detail::half_of(range.least, lane >> 3 & 1);
    high = detail::half_of(range.most, lane >> 3 & 1);
  }

  /// Which half of its group a lane searches: bytes from the start of a tile to its first pair
  /// there. Lane ^ partner searches the other half.
  static constexpr int partner = 4;
  KVTILT_HD static int share(int lane) { return (lane & 7) * 16 + (lane >> 4) * 8; }
  KVTILT_HD static GroupShare load_share(const std::byte* share, int lane) {
    const std::uint32_t half = (lane & 8) != 0 ? 0x7632u : 0x5410u;
    GroupShare result;
    KVTILT_DEVICE_UNROLL
    for (int i = 0; i < 4; ++i) {
      const WordPair two = load_words<2>(share + i * 128);
      result.pair[i] = permute_bytes(two.word[0], two.word[1], half);
    }
    return result;
  }
};

/// Groups along inner: a lane holds two, one in its even and one in its odd registers.
template <class Threads>
struct RowGroups {
  static constexpr bool along_outer = false;
  static constexpr int nearest = 1;
  static constexpr int farthest = 2;
  static constexpr int held = 2;

  KVTILT_HD static int group(int lane) { return lane & 1; }
  KVTILT_HD static bool writes(int lane) { return (lane & 2) == 0; }
  KVTILT_HD static bool mine(int held, int reg, int) { return reg % 2 == held; }

  KVTILT_HD static void find_range(const Threads& threads, const GroupTiles& tiles, F16& low,
                                   F16& high) {
    const int lane = opaque(threads.lane());
    PairRange ranges[2];
    detail::range_of_tiles<2>(tiles, lane, ranges);
    PairRange range{min_halves(join_low(ranges[0].least, ranges[1].least),
                               join_high(ranges[0].least, ranges[1].least)),
                    max_halves(join_low(ranges[0].most, ranges[1].most),
                               join_high(ranges[0].most, ranges[1].most))};
    range.join(threads, 1);
    range.join(threads, 2);
    low = detail::half_of(range.least, lane & 1);
    high = detail::half_of(range.most, lane & 1);
  }

  static constexpr int partner = 2;
  KVTILT_HD static int share(int lane) {
    return ((lane & ~3) + (lane >> 1 & 1)) * 16 + (lane & 1) * 4;
  }
  KVTILT_HD static GroupShare load_share(const std::byte* share, int) {
    GroupShare result;
    KVTILT_DEVICE_UNROLL
    for (int i = 0; i < 4; ++i) result.pair[i] = load_word(share + i / 2 * 32 + i % 2 * 8);
    return result;
  }
};

/// MinMse candidate of least error of the group that a lane finishes.
template <class Groups, class Threads>
KVTILT_HD int search_groups(const Threads& threads, const GroupTiles& tiles, int bits,
                            float minimum, float inverse) {
  const int lane = opaque(threads.lane());
  MinMseSearch search(bits, minimum, inverse);
  const std::byte* share = tiles.first + Groups::share(lane);
  KVTILT_DEVICE_LOOP
  for (int i = 0; i < tiles.count; ++i) {
    const GroupShare elements = Groups::load_share(share, lane);
    search.add(elements.pair[0], elements.pair[1]);
    search.add(elements.pair[2], elements.pair[3]);
    share += tiles.step;
  }
  std::uint32_t errors[min_mse_candidates];
  KVTILT_DEVICE_UNROLL
  for (int k = 0; k < min_mse_candidates; ++k) {
    errors[k] = search.error(k, tiles.count * (tile_extent / 2));
    errors[k] += threads.shuffle_xor(errors[k], Groups::partner);
  }
  return least_error(errors);
}

/// Scale and minimum of a 1-bit group by exact 64-bit sums: slow, but rare.
///
/// for_each(visit)  visits this lane's elements of the group
/// add(value)       sums over all lanes that have elements of it
template <class ForEach, class Add>
KVTILT_HD Affine centroids_of(std::int64_t elements, const ForEach& for_each, const Add& add) {
  std::int64_t total = 0;
  for_each([&](std::int64_t value) { total += value; });
  total = add(total);
  std::int64_t high = 0;
  std::int64_t count = 0;
  for_each([&](std::int64_t value) {
    if (value * elements <= total) return;
    high += value;
    ++count;
  });
  high = add(high);
  count = add(count);
  return centroids({total - high, elements - count, high, count});
}

/// Fits a warp's 1-bit groups, a lane's one after the other; returns that of group(lane).
template <class Groups, class Threads>
KVTILT_HD Affine fit_centroid_groups(const Threads& threads, const GroupTiles& tiles,
                                     int elements) {
  const int lane = opaque(threads.lane());
  Affine result{};
  for (int held = 0; held < Groups::held; ++held) {
    const auto for_each = [&](auto&& visit) {
      for (int i = 0; i < tiles.count; ++i) {
        const Fragment tile = tiles.load(i, lane);
        KVTILT_DEVICE_UNROLL
        for (int element = 0; element < 8; ++element)
          if (Groups::mine(held, element / 2, element % 2))
            visit(to_units(detail::half_of(tile.r[element / 2], element % 2)));
      }
    };
    const Affine own = centroids_of(elements, for_each, [&](std::int64_t value) {
      return detail::add_over<Groups>(threads, value);
    });
    if (held == Groups::group(lane)) result = own;
  }
  return result;
}

}  // namespace kvtilt::cuda
