// SPDX-License-Identifier: MIT
/// Seals a kv head as seal_head() does, by several thread blocks, with the least latency from the
/// first load to the last store. Each takes a slice of the head: a number of units. Every word of a
/// page belongs to one lane of its tiles, so a unit is some lanes of some tiles, with all groups of
/// these lanes:
///
///     groups along outer   a unit is a column of tiles (or as many as fill whole words) and a quad
///                          of channels or tokens: lanes of equal lane % 4, 4 groups of each tile
///                          across
///     groups along inner   a unit is two rows of every tile: lanes of equal lane / 4, 2 groups of
///                          each tile across
///     16 bits              a unit is a tile
///
/// The words of this file:
///
///     slice   the units of both tensors that one block seals; neighbours, about equal work
///     share   eight elements: half of what a tile has of a group. As many lanes as are available,
///             a power of two, fit a group, each a share at a time. In slices of 1024 elements a
///             lane has one share, which stays in registers throughout the fit
///     round   one pass of a block's threads over the groups of a tensor to fit them: each thread
///             has one group at most. Those of the keys come first
///     run     tiles that fill whole words together, tiles_of_words(): what a lane encodes at a
///             time. A ShareRun is a lane's shares of a group
///     part    which of the units that share the same tiles; in encode_slice(), which of a unit's
///             lanes
///
/// Cost   instructions of a thread with eight elements, in total, on sm_90: 165 to fit with MinMax,
///        690 with MinMse, 150 to encode (4 bits)
#pragma once

#include <kvtilt/cuda/page/encode_tiles.hpp>
#include <kvtilt/cuda/page/fit_shares.hpp>
#include <kvtilt/cuda/page/fragment_order.hpp>
#include <kvtilt/cuda/page/tile_map.hpp>
#include <kvtilt/cuda/unroll.hpp>
#include <kvtilt/cuda/words.hpp>
#include <kvtilt/page/layout.hpp>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace kvtilt::cuda {

/// A tensor of a head, and the part of it that one block seals.
struct alignas(16) SliceTensor {
  HalfTiles half;  ///< without data: the pointer is set later
  TensorLayout packed;
  TileMap map;
  SearchGrid grid;  ///< for MinMse
  int scratch;      ///< index of the tensor's first GroupEncoder in the scratch

  /// A unit has 2^group_bits groups of each tile across; 2^unit_bits units share the same tiles.
  int group_bits;
  int unit_bits;
  int unit_bytes;    ///< from a unit to the next in a tile
  int share_bytes;   ///< from the first share of a group to the second in a tile
  int columns;       ///< tiles of a unit side by side, across the groups
  int swaps_middle;  ///< whether metadata swaps the middle groups of each 4: values along outer
  int along_tiles;   ///< of the tensor, along groups
  int along_step;    ///< from a tile to the next, in tiles of HalfTiles
  int across_step;
  int units;
  Divisor weight;  ///< work of a unit: its Fragments / 8
  Divisor bands;
  Divisor across;  ///< tiles of a unit across the groups
  Divisor runs;    ///< of tiles that fill whole words, in a unit

  int first_unit;
  int own_units;
  int own_groups;  ///< to fit
  int lane_bits;   ///< 2^lane_bits lanes fit a group
  int rounds;      ///< that all threads need to fit them

  KVTILT_HD SliceTensor(Role role, const TensorLayout& layout, int scratch_)
      : half{role, nullptr, tiles_along(layout.matrix.outer), tiles_along(layout.matrix.inner)},
        packed(layout),
        map(half, layout),
        grid(layout.format.rule == RangeRule::MinMse ? layout.format.bits : 2),
        scratch(scratch_),
        group_bits(map.along_outer ? 2 : 1),
        unit_bits(map.along_outer ? 2 : 3),
        unit_bytes(map.along_outer ? 16 : 64),
        share_bytes(map.along_outer ? 64 : 16),
        columns(1),
        swaps_middle(map.along_outer && role == Role::Values ? 1 : 0),
        along_tiles(map.along_outer ? half.outer_tiles : half.inner_tiles),
        along_step(map.along_outer ? map.outer_step : map.inner_step),
        across_step(map.along_outer ? map.inner_step : map.outer_step),
        units(map.total),
        weight(4),
        bands(1),
        across(1),
        runs(1),
        first_unit(0),
        own_units(0),
        own_groups(0),
        lane_bits(0),
        rounds(0) {
    if (!layout.format.quantized()) return;
    const int together = tiles_of_words(layout.format.bits);
    bands = Divisor(layout.bands());
    if (map.along_outer) {
      while (columns * half.outer_tiles % together != 0) columns *= 2;
      units = half.inner_tiles / columns * 4;
      weight = Divisor(columns * half.outer_tiles);
      across = Divisor(columns);
      runs = Divisor(weight.value / together);
    } else {
      units = 8;
      weight = Divisor(map.total / 2);
      across = Divisor(half.outer_tiles);
      runs = Divisor(map.total / together);
    }
  }

  /// The weight of all units.
  [[nodiscard]] KVTILT_HD int total() const { return 4 * map.total; }

  /// Takes the units between two weights, summed from the tensor's first unit on, for a block of
  /// `threads` threads.
  KVTILT_HD void take(int begin, int end, int threads) {
    first_unit = unit_at(begin);
    own_units = unit_at(end) - first_unit;
    own_groups =
        packed.format.quantized() ? own_units * across.value * bands.value << group_bits : 0;
    const int shares = 2 * map.group_tiles.value;
    const int most = shares < warp_lanes ? shares : warp_lanes;
    int bits = 0;
    while (1 << bits < most && own_groups << bits < threads) ++bits;
    lane_bits = bits;
    int all = 0;
    for (int left = own_groups << bits; left > 0; left -= threads) ++all;
    rounds = all;
  }

 private:
  [[nodiscard]] KVTILT_HD int unit_at(int place) const {
    const int unit = weight.quotient(place + weight.value / 2);
    return place <= 0 ? 0 : place >= total() ? units : unit;
  }
};

/// Both tensors of a head. Computed when a cache is created, as its divisions would delay a kernel.
struct alignas(16) HeadSlices {
  SliceTensor tensors[2];
  std::uint64_t offset;  ///< of the head's block, from the start of the page

  KVTILT_HD explicit HeadSlices(const HeadLayout& packed)
      : tensors{{Role::Keys, packed.key, 0},
                {Role::Values, packed.value, packed.key.bands() * packed.key.pitch()}},
        offset(packed.offset) {}
};
static_assert(std::is_trivially_copyable_v<HeadSlices>);

/// Bytes of shared memory that seal_slice() needs, a multiple of 16.
KVTILT_HD constexpr std::size_t slice_shared_bytes(const HeadLayout& head) {
  return sizeof(HeadSlices) +
         (group_count(head.key) + group_count(head.value)) * sizeof(GroupEncoder);
}

/// log2 of a power of two.
KVTILT_HD inline int bits_below(int power) {
#if defined(__CUDA_ARCH__)
  return 31 - __clz(power);
#else
  return std::countr_zero(static_cast<unsigned>(power));
#endif
}

/// Selects slice `slice` of `slices`, a power of two up to 32. The first two threads of a warp or a
/// block call it, each for one tensor; no other thread uses `shared` meanwhile.
KVTILT_HD inline void take_slice(int thread, std::byte* shared, int slice, int slices,
                                 int threads) {
  SliceTensor* const tensors = reinterpret_cast<HeadSlices*>(shared)->tensors;
  const int all = tensors[0].total() + tensors[1].total();
  const int before = thread == 0 ? 0 : tensors[0].total();
  const int shift = bits_below(slices);
  tensors[thread].take((all * slice >> shift) - before, (all * (slice + 1) >> shift) - before,
                       threads);
}

/// Puts what begin_slice() needs into shared memory. One warp calls it; a sync() must follow.
template <class Threads>
KVTILT_HD void prepare_slice(const Threads& threads, const HeadSlices& head, std::byte* shared,
                             int slice, int slices) {
  constexpr int chunks = static_cast<int>(sizeof(HeadSlices) / sizeof(Words));
  for (int i = threads.lane(); i < chunks; i += warp_lanes)
    reinterpret_cast<Words*>(shared)[i] = reinterpret_cast<const Words*>(&head)[i];
  threads.sync_warp();
  if (threads.lane() < 2) take_slice(threads.lane(), shared, slice, slices, threads.thread_count());
}

namespace detail {

/// Rounds in which the block's threads fit the groups of both tensors.
KVTILT_HD inline int fit_rounds(const SliceTensor* tensors) {
  return tensors[0].rounds + tensors[1].rounds;
}

/// What a thread keeps of a round: its first share of a group. All else about the group is in
/// shared memory, as registers are scarce during its life.
struct SliceFit {
  int band;
  int entry;  ///< of the group, in its band
  const std::byte* at;
  LoadedShare first;

  /// The tensor that a round is for; `round` becomes its number there.
  KVTILT_HD static int tensor_of(const SliceTensor* tensors, int& round) {
    if (round < tensors[0].rounds) return 0;
    round -= tensors[0].rounds;
    return 1;
  }

  /// Finds the thread's group of a round and starts to load its first share.
  template <class Threads>
  KVTILT_HD void begin(const Threads& threads, const SliceTensor* tensors, const std::byte* keys,
                       const std::byte* values, int round) {
    const int tensor = tensor_of(tensors, round);
    const SliceTensor& task = tensors[tensor];
    const int wanted = (round * threads.thread_count() + threads.thread()) >> task.lane_bits;
    const int index = wanted < task.own_groups ? wanted : task.own_groups - 1;
    const int rest = index >> task.group_bits;
    const int group = index - (rest << task.group_bits);
    const int row = task.bands.quotient(rest);
    band = rest - row * task.bands.value;
    const int own_unit = task.across.quotient(row);
    const int unit = task.first_unit + own_unit;
    const int place = unit >> task.unit_bits;
    const int part = unit - (place << task.unit_bits);
    const int across = row - own_unit * task.across.value + place * task.columns;
    entry = across * tile_extent + (part << task.group_bits) + group;
    const int tile =
        band * task.map.group_tiles.value * task.along_step + across * task.across_step;
    at = (tensor == 0 ? keys : values) + tile * fragment_tile_bytes + part * task.unit_bytes +
         (task.map.along_outer ? group & 2 : group) * 4;
    const ShareRun run = run_of(threads, task);
    first = run.load(run.share < run.shares ? run.share : run.shares - 1);
  }

  template <class Threads>
  [[nodiscard]] KVTILT_HD ShareRun run_of(const Threads& threads, const SliceTensor& task) const {
    const int left = task.along_tiles - band * task.map.group_tiles.value;
    const int lanes = 1 << task.lane_bits;
    return {at,
            task.along_step * fragment_tile_bytes,
            task.share_bytes,
            task.map.along_outer,
            (entry & 1) != 0,
            2 * (left < task.map.group_tiles.value ? left : task.map.group_tiles.value),
            threads.thread() & (lanes - 1),
            lanes};
  }

  /// Fits the group and writes scale and minimum to the scratch and to the page.
  template <class Threads>
  KVTILT_HD void finish(const Threads& threads, const SliceTensor* tensors, GroupEncoder* groups,
                        std::byte* block, int round) const {
    const SliceTensor& task = tensors[tensor_of(tensors, round)];
    const ShareRun run = run_of(threads, task);
    const int group = (round * threads.thread_count() + threads.thread()) >> task.lane_bits;
    const bool writes = group < task.own_groups && run.share == 0;
    // Loaded here, where its latency hides behind the fit; after the first store it would stall.
    const int pitch = task.map.pitch;
    const int swaps_middle = task.swaps_middle;
    GroupEncoder* const encoder = groups + task.scratch + band * pitch + entry;
    std::byte* const metadata = block + task.packed.metadata;
    const Affine affine =
        fit_shares(threads, task.packed.format, task.grid, run, run.share_of(first));
    const GroupEncoder found(affine);
    if (!writes) return;
    *encoder = found;
    const int swapped = (entry & ~3) + (entry >> 1 & 1) + (entry & 1) * 2;
    F16* const scales =
        reinterpret_cast<F16*>(metadata) + band * 2 * pitch + (swaps_middle != 0 ? swapped : entry);
    scales[0] = affine.scale;
    scales[pitch] = affine.minimum;
  }
};

/// Encodes and stores a lane's fragments of `Tiles` tiles.
template <int Tiles>
KVTILT_HD void encode_lane(const SliceTensor& task, const HalfTiles& half,
                           const GroupEncoder* groups, std::byte* codes, int first_tile, int lane) {
  TileCodes<Tiles> tiles;
  const int bits = task.packed.format.bits;
  if (task.map.along_outer)
    encode_tiles<true, 1>(half, task.map, bits, groups, first_tile, lane, tiles);
  else
    encode_tiles<false, 1>(half, task.map, bits, groups, first_tile, lane, tiles);
  store_codes(tiles, bits, codes, task.packed.matrix, first_tile, lane);
}

/// Encodes, or in 16 bits copies, the block's units of a tensor.
template <class Threads>
KVTILT_HD void encode_slice(const Threads& threads, const SliceTensor& task, const std::byte* data,
                            const GroupEncoder* groups, std::byte* codes) {
  const int bits = task.packed.format.bits;
  const int count = threads.thread_count();
  const int thread = opaque(threads.thread());  // else values of it fill registers in the search
  if (!task.packed.format.quantized()) {
    constexpr int together = 4;  // loads in flight
    const int end = (task.first_unit + task.own_units) * warp_lanes;
    const Fragment* from = reinterpret_cast<const Fragment*>(data);
    Fragment* to = reinterpret_cast<Fragment*>(codes);
    KVTILT_DEVICE_LOOP
    for (int at = task.first_unit * warp_lanes + thread; at < end; at += together * count) {
      Fragment fragments[together];
      KVTILT_DEVICE_UNROLL
      for (int i = 0; i < together; ++i)
        if (at + i * count < end) fragments[i] = from[at + i * count];
      KVTILT_DEVICE_UNROLL
      for (int i = 0; i < together; ++i)
        if (at + i * count < end) to[at + i * count] = fragments[i];
    }
    return;
  }
  HalfTiles half = task.half;
  half.data = data;
  const int together = tiles_of_words(bits);
  const int lane_bits = 5 - task.unit_bits;  // of a unit
  const int items = task.own_units * task.runs.value << lane_bits;
  KVTILT_DEVICE_LOOP
  for (int item = thread; item < items; item += count) {
    const int rest = item >> lane_bits;
    const int part = item - (rest << lane_bits);
    const int own_unit = task.runs.quotient(rest);
    const int unit = task.first_unit + own_unit;
    int tile = (rest - own_unit * task.runs.value) * together;
    int lane = unit * 4 + part;
    if (task.map.along_outer) {
      tile += (unit >> 2) * task.weight.value;
      lane = part * 4 + (unit & 3);
    }
    if (together == 1)
      encode_lane<1>(task, half, groups, codes, tile, lane);
    else if (together == 2)
      encode_lane<2>(task, half, groups, codes, tile, lane);
    else
      encode_lane<4>(task, half, groups, codes, tile, lane);
  }
}

}  // namespace detail

/// Issues the first loads of a block's slice. All threads call it.
///
/// keys, values  16-bit codes of the head in the order of a block, 16-byte aligned
/// shared        slice_shared_bytes(), filled by prepare_slice(), 16-byte aligned
template <class Threads>
KVTILT_HD void begin_slice(const Threads& threads, const std::byte* keys, const std::byte* values,
                           const std::byte* shared, detail::SliceFit& fit) {
  const SliceTensor* const tensors = reinterpret_cast<const HeadSlices*>(shared)->tensors;
  if (detail::fit_rounds(tensors) > 0) fit.begin(threads, tensors, keys, values, 0);
}

/// Seals the slice that begin_slice() began. All threads call it. It takes pointers by reference:
/// those in shared memory occupy no registers.
///
/// block  where the head begins in the page
template <class Threads>
KVTILT_HD void seal_slice(const Threads& threads, const std::byte* const& keys,
                          const std::byte* const& values, std::byte* const& block,
                          std::byte* shared, detail::SliceFit& fit) {
  const SliceTensor* const tensors = reinterpret_cast<const HeadSlices*>(shared)->tensors;
  GroupEncoder* const groups = reinterpret_cast<GroupEncoder*>(shared + sizeof(HeadSlices));
  const int rounds = detail::fit_rounds(tensors);
  KVTILT_DEVICE_LOOP
  for (int round = 0; round < rounds;) {
    fit.finish(threads, tensors, groups, block, round);
    if (++round < rounds) fit.begin(threads, tensors, keys, values, round);
  }
  if (rounds > 0) threads.sync();
  KVTILT_DEVICE_LOOP
  for (int tensor = 0; tensor < 2; ++tensor) {
    const SliceTensor& task = tensors[tensor];
    if (task.own_units == 0) continue;
    detail::encode_slice(threads, task, tensor == 0 ? keys : values, groups + task.scratch,
                         block + task.packed.codes);
  }
}

}  // namespace kvtilt::cuda
