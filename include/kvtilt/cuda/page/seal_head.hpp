// SPDX-License-Identifier: MIT
/// Seals a kv head: quantizes its full 16-bit block into its part of a page. All threads of a block
/// first fit the groups of keys and values, a warp 16 groups at a time, then encode both.
///
/// Cost   reads the 16-bit values two or three times (from shared memory or L1). Bound by
///        instruction issue; instructions of a warp per 32 elements on sm_90: 5 to fit with MinMax,
///        45 with MinMse, 7 to encode (64 tokens of keys in 4 bits and values in 2, 128 channels)
#pragma once

#include <kvtilt/cuda/page/encode_tiles.hpp>
#include <kvtilt/cuda/page/fit_groups.hpp>
#include <kvtilt/cuda/page/fragment_order.hpp>
#include <kvtilt/cuda/page/tile_map.hpp>
#include <kvtilt/page/layout.hpp>

#include <cstddef>

namespace kvtilt::cuda {

/// One tensor to seal. It is in shared memory, to save registers: threads reload members on use.
struct alignas(16) SealTask {
  HalfTiles half;
  TensorLayout packed;
  TileMap map;
  GroupEncoder* groups;  ///< [band][pitch]: scratch for all of the tensor's groups
  int bands;
  Divisor across;  ///< number of tiles across the groups

  /// Work items of warps: sets of 16 groups to fit, then runs of tiles to encode or copy.
  [[nodiscard]] KVTILT_HD int fits() const { return bands * across.value; }
  [[nodiscard]] KVTILT_HD int runs() const {
    return (map.total + encoded_tiles - 1) / encoded_tiles;
  }
};

/// Bytes of shared memory that seal_head() needs, a multiple of 16.
KVTILT_HD constexpr std::size_t seal_shared_bytes(const HeadLayout& head) {
  return 2 * sizeof(SealTask) +
         (group_count(head.key) + group_count(head.value)) * sizeof(GroupEncoder);
}

/// The range rules that a kernel can fit. Without MinMse's search it needs few enough registers for six
/// blocks on a multiprocessor instead of four, which hide more of each other's latency.
enum class FitRules { All, MinMax };

namespace detail {

/// Fits the 16 groups of band `band` and tile `across`.
template <FitRules Rules, class Groups, class Threads>
KVTILT_HD void fit_tile(const Threads& threads, const SealTask& task, std::byte* const& block,
                        int band, int across) {
  const Format& format = task.packed.format;
  const TileMap& map = task.map;
  constexpr bool outer = Groups::along_outer;
  const int group_tiles = map.group_tiles.value;
  const int along = band * group_tiles;
  const int left = (outer ? task.half.outer_tiles : task.half.inner_tiles) - along;
  const int step = outer ? map.outer_step : map.inner_step;
  const int first_tile = along * step + across * (outer ? map.inner_step : map.outer_step);
  const GroupTiles tiles{task.half.data + first_tile * fragment_tile_bytes,
                         left < group_tiles ? left : group_tiles, step * fragment_tile_bytes};
  Affine affine;
  if (Rules == FitRules::All && format.rule == RangeRule::Centroids) {
    affine = fit_centroid_groups<Groups>(threads, tiles, tiles.count * tile_extent);
  } else {
    F16 low;
    F16 high;
    Groups::find_range(threads, tiles, low, high);
    affine = fast_range_affine(low, high, format.bits);
    if (Rules == FitRules::All && format.rule == RangeRule::MinMse) {
      const int best = search_groups<Groups>(threads, tiles, format.bits, widen(affine.minimum),
                                             inverse_of(affine.scale));
      const SearchGrid& grid = search_grid(format.bits);
      affine = fast_apply_min_mse(affine, grid.rises[best], grid.shrinks[best]);
    }
  }
  const int lane = opaque(threads.lane());
  if (!Groups::writes(lane)) return;
  const int group = Groups::group(lane);
  const int first = across * tile_extent;
  int entry = first + (lane >> 2) * 2 + group;  // in the metadata; groups along inner
  int place = entry;                            // in the scratch, which has the registers' order
  if (outer) {
    place = first + (lane & 3) * 4 + group;
    entry = task.half.role == Role::Keys ? place
                                         : first + (lane & 3) * 4 + (group >> 1) + (group & 1) * 2;
  }
  F16* const scales =
      reinterpret_cast<F16*>(block + task.packed.metadata) + band * 2 * map.pitch + entry;
  scales[0] = affine.scale;
  scales[map.pitch] = affine.minimum;
  task.groups[band * map.pitch + place] = GroupEncoder(affine);
}

template <FitRules Rules, class Threads>
KVTILT_HD void fit_task(const Threads& threads, const SealTask& task, std::byte* const& block,
                        int index) {
  const int band = task.across.quotient(index);
  const int across = index - band * task.across.value;
  if (task.map.along_outer)
    fit_tile<Rules, ColumnGroups<Threads>>(threads, task, block, band, across);
  else
    fit_tile<Rules, RowGroups<Threads>>(threads, task, block, band, across);
}

template <class Threads>
KVTILT_HD void encode_task(const Threads& threads, const SealTask& task, std::byte* const& block,
                           int run) {
  std::byte* codes = block + task.packed.codes;
  const int lane = opaque(threads.lane());
  const int first = run * encoded_tiles;
  if (!task.packed.format.quantized()) {
    const int end = task.half.outer_tiles * task.half.inner_tiles;
    // Loads all before it stores the first; beyond the last tile, the last once more.
    const Fragment* from = reinterpret_cast<const Fragment*>(task.half.data) + lane;
    Fragment* to = reinterpret_cast<Fragment*>(codes) + lane;
    Fragment tiles[encoded_tiles];
    int at[encoded_tiles];
    KVTILT_DEVICE_UNROLL
    for (int i = 0; i < encoded_tiles; ++i) {
      at[i] = (first + i < end ? first + i : end - 1) * warp_lanes;
      tiles[i] = from[at[i]];
    }
    KVTILT_DEVICE_UNROLL
    for (int i = 0; i < encoded_tiles; ++i) to[at[i]] = tiles[i];
    return;
  }
  EncodedTiles pairs;
  const int bits = task.packed.format.bits;
  if (task.map.four_tiles_share_groups)
    encode_tiles<true, 4>(task.half, task.map, bits, task.groups, first, lane, pairs);
  else if (task.map.along_outer)
    encode_tiles<true, 1>(task.half, task.map, bits, task.groups, first, lane, pairs);
  else
    encode_tiles<false, 1>(task.half, task.map, bits, task.groups, first, lane, pairs);
  store_codes(pairs, bits, codes, task.packed.matrix, first, lane);
}

}  // namespace detail

/// Seals one head. All threads of the block call it.
///
/// keys, values  16-bit codes of the head in the order of a block, 16-byte aligned
/// packed        layout of the head in the page
/// block         where the head begins in the page; a thread may write it, and the codes, just
///               before its call, as a sync() follows
/// shared        seal_shared_bytes(packed), 16-byte aligned; free again after the next sync()
template <FitRules Rules, class Threads>
KVTILT_HD void seal_head(const Threads& threads, const std::byte* keys, const std::byte* values,
                         const HeadLayout& packed, std::byte* const& block, std::byte* shared) {
  SealTask* const tasks = reinterpret_cast<SealTask*>(shared);
  if (threads.thread() < 2) {
    const bool first = threads.thread() == 0;
    const TensorLayout& layout = first ? packed.key : packed.value;
    GroupEncoder* const groups = reinterpret_cast<GroupEncoder*>(tasks + 2);
    const HalfTiles half{first ? Role::Keys : Role::Values, first ? keys : values,
                         tiles_along(layout.matrix.outer), tiles_along(layout.matrix.inner)};
    tasks[threads.thread()] = {
        half,
        layout,
        TileMap(half, layout),
        first ? groups : groups + group_count(packed.key),
        layout.bands(),
        Divisor(layout.group_along_outer ? half.inner_tiles : half.outer_tiles)};
  }
  threads.sync();
  // One loop over keys and values: inlining the long code twice would bloat the kernel.
  const int warps = threads.thread_count() / warp_lanes;
  const int key_fits = tasks[0].fits();
  const int fits = key_fits + tasks[1].fits();
  KVTILT_DEVICE_LOOP
  for (int i = threads.warp(); i < fits; i += warps) {
    const int tensor = i < key_fits ? 0 : 1;
    detail::fit_task<Rules>(threads, tasks[tensor], block, i - tensor * key_fits);
  }
  threads.sync();
  const int key_runs = tasks[0].runs();
  const int runs = key_runs + tasks[1].runs();
  KVTILT_DEVICE_LOOP
  for (int i = threads.warp(); i < runs; i += warps) {
    const int tensor = i < key_runs ? 0 : 1;
    detail::encode_task(threads, tasks[tensor], block, i - tensor * key_runs);
  }
}

}  // namespace kvtilt::cuda
