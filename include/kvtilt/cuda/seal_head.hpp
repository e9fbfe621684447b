// SPDX-License-Identifier: MIT
/// Quantizes one kv head of a full 16-bit block into its part of a page. All threads of a block work
/// on it: first they fit all groups of keys and values, a warp 16 groups at a time, then they encode.
///
/// Cost   the 16-bit values are read two or three times (from shared memory, or where L1 has them);
///        instructions: see bench/cuda
#pragma once

#include <kvtilt/cuda/encode_tiles.hpp>
#include <kvtilt/cuda/fit_groups.hpp>
#include <kvtilt/cuda/fragment_order.hpp>
#include <kvtilt/page/layout.hpp>

#include <cstddef>
#include <cstdint>

namespace kvtilt::cuda {

/// One tensor to seal.
struct SealTask {
  HalfTiles half;
  TensorLayout packed;
  std::byte* block;   ///< of the head, in the page
  GroupCode* groups;  ///< scratch for all of the tensor's groups

  [[nodiscard]] KVTILT_HD int along_tiles() const {
    return packed.group_along_outer ? half.outer_tiles : half.inner_tiles;
  }
  [[nodiscard]] KVTILT_HD int across_tiles() const {
    return packed.group_along_outer ? half.inner_tiles : half.outer_tiles;
  }
};

KVTILT_HD constexpr std::size_t group_count(const TensorLayout& packed) {
  return static_cast<std::size_t>(packed.bands()) * static_cast<std::size_t>(packed.pitch());
}

/// Bytes of shared memory that sealing a head takes, a multiple of 16.
KVTILT_HD constexpr std::size_t seal_shared_bytes(const HeadLayout& head) {
  return (group_count(head.key) + group_count(head.value)) * sizeof(GroupCode);
}

namespace detail {

/// Fits the groups of one band in one tile across.
template <class Groups, class Threads>
KVTILT_HD void fit_tile(const Threads& threads, const SealTask& task, int band, int across) {
  const Format& format = task.packed.format;
  const int along = band * tiles_along(format.group);
  const int end = along + tiles_along(format.group) < task.along_tiles()
                      ? along + tiles_along(format.group)
                      : task.along_tiles();
  const HalfTiles& half = task.half;
  const bool outer = Groups::along_outer;
  const bool keys = half.role == Role::Keys;
  const GroupTiles tiles{half, outer ? half.index(along, across) : half.index(across, along),
                         end - along,
                         outer ? (keys ? half.inner_tiles : 1) : (keys ? 1 : half.outer_tiles)};
  Affine affine;
  if (format.rule == RangeRule::Centroids) {
    affine = fit_centroid_groups<Groups>(threads, tiles, tiles.count * tile_extent);
  } else {
    F16 low;
    F16 high;
    Groups::find_range(threads, tiles, low, high);
    affine = fast_range_affine(low, high, format.bits);
    if (format.rule == RangeRule::MinMse) {
      const int best = Groups::search(threads, tiles, format.bits, widen(affine.minimum),
                                      inverse_of(affine.scale));
      const SearchGrid& grid = search_grid(format.bits);
      affine = fast_apply_min_mse(affine, grid.rises[best], grid.shrinks[best]);
    }
  }
  const int lane = threads.lane();
  if (!Groups::writes(lane)) return;
  const int group = Groups::group(lane);
  const int first = across * tile_extent;
  int entry = first + lane / 4 * 2 + group;  // along inner
  int place = entry;
  if (outer) {
    place = first + lane % 4 * 4 + group;
    entry = keys ? place : first + lane % 4 * 4 + group / 2 + group % 2 * 2;
  }
  F16* scales = task.packed.scales(task.block, band);
  scales[entry] = affine.scale;
  scales[task.packed.pitch() + entry] = affine.minimum;
  task.groups[band * task.packed.pitch() + place] = {widen(affine.minimum),
                                                     inverse_of(affine.scale)};
}

/// Warps `warp`, warp + warps, ... of the tensor's tiles; returns what is left of `warp` for the
/// next tensor.
template <class Threads>
KVTILT_HD int fit_tensor(const Threads& threads, const SealTask& task, int turn, int warps) {
  if (!task.packed.format.quantized()) return turn;
  const int across = task.across_tiles();
  const int tiles = across * task.packed.bands();
  int tile = turn;
  for (; tile < tiles; tile += warps) {
    const int band = tile / across;
    if (task.packed.group_along_outer)
      fit_tile<ColumnGroups<Threads>>(threads, task, band, tile - band * across);
    else
      fit_tile<RowGroups<Threads>>(threads, task, band, tile - band * across);
  }
  return tile - tiles;
}

template <class Threads>
KVTILT_HD int encode_tensor(const Threads& threads, const SealTask& task, int turn, int warps) {
  std::byte* codes = task.block + task.packed.codes;
  const int chunks = (tile_count(task.packed.matrix) + encoded_tiles - 1) / encoded_tiles;
  int chunk = turn;
  KVTILT_DEVICE_LOOP
  for (; chunk < chunks; chunk += warps) {
    if (task.packed.group_along_outer)
      encode_tiles<true>(task.half, task.packed, task.groups, codes, chunk * encoded_tiles,
                         threads.lane());
    else
      encode_tiles<false>(task.half, task.packed, task.groups, codes, chunk * encoded_tiles,
                          threads.lane());
  }
  return chunk - chunks;
}

template <class Threads>
KVTILT_HD int copy_tensor(const Threads& threads, const SealTask& task, int turn, int warps) {
  const int runs = static_cast<int>(code_bytes(task.packed.matrix, half_bits)) / 512;
  int run = turn;
  for (; run < runs; run += warps)
    reinterpret_cast<Words*>(task.block + task.packed.codes)[run * warp_lanes + threads.lane()] =
        reinterpret_cast<const Words*>(task.half.data)[run * warp_lanes + threads.lane()];
  return run - runs;
}

template <class Threads>
KVTILT_HD int fill_tensor(const Threads& threads, const SealTask& task, int turn, int warps) {
  return task.packed.format.quantized() ? encode_tensor(threads, task, turn, warps)
                                        : copy_tensor(threads, task, turn, warps);
}

}  // namespace detail

/// keys, values  16-bit codes of the head in a block's order, 16-byte aligned
/// packed        the head in the page, and `block`, where it begins
/// shared        seal_shared_bytes(packed), 16-byte aligned; free again after the next sync()
template <class Threads>
KVTILT_HD void seal_head(const Threads& threads, const std::byte* keys, const std::byte* values,
                         const HeadLayout& packed, std::byte* block, std::byte* shared) {
  const int warps = threads.thread_count() / warp_lanes;
  GroupCode* const groups = reinterpret_cast<GroupCode*>(shared);
  const auto task = [&](int tensor) {
    const bool first = tensor == 0;
    const TensorLayout& layout = first ? packed.key : packed.value;
    return SealTask{{first ? Role::Keys : Role::Values, first ? keys : values,
                     tiles_along(layout.matrix.outer), tiles_along(layout.matrix.inner)},
                    layout,
                    block,
                    first ? groups : groups + group_count(packed.key)};
  };
  // Loops: the code for keys and for values is the same, and long.
  int turn = threads.warp();
  KVTILT_DEVICE_LOOP
  for (int tensor = 0; tensor < 2; ++tensor)
    turn = detail::fit_tensor(threads, task(tensor), turn, warps);
  threads.sync();
  turn = threads.warp();
  KVTILT_DEVICE_LOOP
  for (int tensor = 0; tensor < 2; ++tensor)
    turn = detail::fill_tensor(threads, task(tensor), turn, warps);
}

}  // namespace kvtilt::cuda
