// SPDX-License-Identifier: MIT
/// Scale and minimum of the groups of a 16-bit tensor that stands in fragment order. A warp takes
/// one tile across and all tiles of a group along: 16 groups. Nothing is moved: lanes reduce what
/// their fragments hold, and then each other's.
///
///     groups along outer   a lane holds 4 groups, 8 lanes hold each (those of equal lane % 4)
///     groups along inner   a lane holds 2 groups, 4 lanes hold each (those of equal lane / 4)
#pragma once

#include <kvtilt/cuda/half2.hpp>
#include <kvtilt/cuda/page/fragment_order.hpp>
#include <kvtilt/cuda/page/group_math.hpp>
#include <kvtilt/cuda/page/min_mse_search.hpp>
#include <kvtilt/cuda/unroll.hpp>
#include <kvtilt/page/layout.hpp>
#include <kvtilt/quant/centroids.hpp>

#include <cstddef>
#include <cstdint>

namespace kvtilt::cuda {

/// What a lane owns of a tile in 16 bits: R0 to R3.
struct alignas(16) Fragment {
  std::uint32_t r[4];
};

inline constexpr int fragment_tile_bytes = 512;

/// A 16-bit tensor in fragment order.
struct HalfTiles {
  Role role;
  const std::byte* data;
  int outer_tiles;
  int inner_tiles;

  [[nodiscard]] KVTILT_HD int index(int outer, int inner) const {
    return role == Role::Keys ? outer * inner_tiles + inner : inner * outer_tiles + outer;
  }
  [[nodiscard]] KVTILT_HD Fragment load(int tile, int lane) const {
    return reinterpret_cast<const Fragment*>(data + tile * fragment_tile_bytes)[lane];
  }
};

/// What encoding needs of a group.
struct alignas(8) GroupCode {
  float minimum;
  float inverse;  ///< of the scale, in code units
};

/// The 16 groups of a warp. `first` and `count`: tiles along the group. `step`: from one of them to
/// the next in HalfTiles.
struct GroupTiles {
  const HalfTiles& tiles;
  int first;
  int count;
  int step;
  [[nodiscard]] KVTILT_HD Fragment load(int i, int lane) const {
    return tiles.load(first + i * step, lane);
  }
};

/// Eight elements of one group: half of what a tile has of it.
struct GroupShare {
  std::uint32_t pair[4];
};

namespace detail {

/// The half of a word that a lane goes on with.
KVTILT_HD inline F16 pick_half(std::uint32_t pair, int index) {
  return F16{static_cast<std::uint16_t>(index == 0 ? pair : pair >> 16)};
}

/// Over the lanes of a group.
template <class Groups, class Threads>
KVTILT_HD std::int64_t add_over(const Threads& threads, std::int64_t value) {
  for (int mask = Groups::nearest; mask <= Groups::farthest; mask *= 2)
    value += threads.shuffle_xor(value, mask);
  return value;
}

}  // namespace detail

/// Groups along outer. After each step a lane is left with group() alone.
template <class Threads>
struct ColumnGroups {
  static constexpr bool along_outer = true;
  static constexpr int nearest = 4;  ///< lanes of a group differ in these bits of their number
  static constexpr int farthest = 16;
  static constexpr int held = 4;

  /// Which of the lane's groups it finishes: register pair `group / 2`, half `group % 2`.
  KVTILT_HD static int group(int lane) { return lane >> 3; }
  /// Two lanes finish each.
  KVTILT_HD static bool writes(int lane) { return (lane & 4) == 0; }
  KVTILT_HD static bool mine(int held, int reg, int half) {
    return reg / 2 == held / 2 && half == held % 2;
  }

  KVTILT_HD static void find_range(const Threads& threads, const GroupTiles& tiles, F16& low,
                                   F16& high) {
    const int lane = opaque(threads.lane());
    Fragment tile = tiles.load(0, lane);
    std::uint32_t least[2] = {min_halves(tile.r[0], tile.r[1]), min_halves(tile.r[2], tile.r[3])};
    std::uint32_t most[2] = {max_halves(tile.r[0], tile.r[1]), max_halves(tile.r[2], tile.r[3])};
    for (int i = 1; i < tiles.count; ++i) {
      tile = tiles.load(i, lane);
      KVTILT_DEVICE_UNROLL
      for (int p = 0; p < 2; ++p) {
        least[p] = min_halves(least[p], min_halves(tile.r[2 * p], tile.r[2 * p + 1]));
        most[p] = max_halves(most[p], max_halves(tile.r[2 * p], tile.r[2 * p + 1]));
      }
    }
    const bool upper = (lane & 16) != 0;
    std::uint32_t a = min_halves(upper ? least[1] : least[0],
                                 threads.shuffle_xor(upper ? least[0] : least[1], 16));
    std::uint32_t b =
        max_halves(upper ? most[1] : most[0], threads.shuffle_xor(upper ? most[0] : most[1], 16));
    a = min_halves(a, threads.shuffle_xor(a, 8));
    b = max_halves(b, threads.shuffle_xor(b, 8));
    a = min_halves(a, threads.shuffle_xor(a, 4));
    b = max_halves(b, threads.shuffle_xor(b, 4));
    low = detail::pick_half(a, lane >> 3 & 1);
    high = detail::pick_half(b, lane >> 3 & 1);
  }

  /// For the search a lane has but one group, and of that every other pair of neighbours.
  static constexpr int partner = 4;
  KVTILT_HD static int share(int lane) { return (lane & 7) * 16 + (lane >> 4) * 8; }
  KVTILT_HD static GroupShare load_share(const std::byte* share, int lane) {
    struct alignas(8) Two {
      std::uint32_t word[2];
    };
    const std::uint32_t half = (lane & 8) != 0 ? 0x7632u : 0x5410u;
    GroupShare result;
    KVTILT_DEVICE_UNROLL
    for (int i = 0; i < 4; ++i) {
      const Two two = *reinterpret_cast<const Two*>(share + i * 128);
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
    Fragment tile = tiles.load(0, lane);
    std::uint32_t least[2] = {min_halves(tile.r[0], tile.r[2]), min_halves(tile.r[1], tile.r[3])};
    std::uint32_t most[2] = {max_halves(tile.r[0], tile.r[2]), max_halves(tile.r[1], tile.r[3])};
    for (int i = 1; i < tiles.count; ++i) {
      tile = tiles.load(i, lane);
      KVTILT_DEVICE_UNROLL
      for (int row = 0; row < 2; ++row) {
        least[row] = min_halves(least[row], min_halves(tile.r[row], tile.r[row + 2]));
        most[row] = max_halves(most[row], max_halves(tile.r[row], tile.r[row + 2]));
      }
    }
    std::uint32_t a = min_halves(join_low(least[0], least[1]), join_high(least[0], least[1]));
    std::uint32_t b = max_halves(join_low(most[0], most[1]), join_high(most[0], most[1]));
    a = min_halves(a, threads.shuffle_xor(a, 1));
    b = max_halves(b, threads.shuffle_xor(b, 1));
    a = min_halves(a, threads.shuffle_xor(a, 2));
    b = max_halves(b, threads.shuffle_xor(b, 2));
    low = detail::pick_half(a, lane & 1);
    high = detail::pick_half(b, lane & 1);
  }

  static constexpr int partner = 2;
  KVTILT_HD static int share(int lane) {
    return ((lane & ~3) + (lane >> 1 & 1)) * 16 + (lane & 1) * 4;
  }
  KVTILT_HD static GroupShare load_share(const std::byte* share, int) {
    GroupShare result;
    KVTILT_DEVICE_UNROLL
    for (int i = 0; i < 4; ++i)
      result.pair[i] = *reinterpret_cast<const std::uint32_t*>(share + i / 2 * 32 + i % 2 * 8);
    return result;
  }
};

/// Candidate of least error of the group that a lane finishes.
template <class Groups, class Threads>
KVTILT_HD int search_groups(const Threads& threads, const GroupTiles& tiles, int bits,
                            float minimum, float inverse) {
  const int lane = opaque(threads.lane());
  MinMseSearch search(bits, minimum, inverse);
  const std::byte* share =
      tiles.tiles.data + tiles.first * fragment_tile_bytes + Groups::share(lane);
  KVTILT_DEVICE_LOOP
  for (int i = 0; i < tiles.count; ++i) {
    const GroupShare elements = Groups::load_share(share, lane);
    search.add(elements.pair[0], elements.pair[1]);
    search.add(elements.pair[2], elements.pair[3]);
    share += tiles.step * fragment_tile_bytes;
  }
  std::uint32_t errors[min_mse_candidates];
  KVTILT_DEVICE_UNROLL
  for (int k = 0; k < min_mse_candidates; ++k) {
    errors[k] = search.error(k, tiles.count * (tile_extent / 2));
    errors[k] += threads.shuffle_xor(errors[k], Groups::partner);
  }
  return least_error(errors);
}

/// One bit. Rare: exact 64-bit sums, group by group.
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
            visit(to_units(detail::pick_half(tile.r[element / 2], element % 2)));
      }
    };
    std::int64_t total = 0;
    for_each([&](std::int64_t value) { total += value; });
    total = detail::add_over<Groups>(threads, total);
    std::int64_t high = 0;
    std::int64_t count = 0;
    for_each([&](std::int64_t value) {
      if (value * elements <= total) return;
      high += value;
      ++count;
    });
    high = detail::add_over<Groups>(threads, high);
    count = detail::add_over<Groups>(threads, count);
    if (held == Groups::group(lane))
      result = centroids({total - high, elements - count, high, count});
  }
  return result;
}

}  // namespace kvtilt::cuda
