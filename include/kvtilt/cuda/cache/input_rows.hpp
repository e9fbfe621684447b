// SPDX-License-Identifier: MIT
/// Writes rows of an engine's tensors into 16-bit tensors in fragment order: the only way numbers
/// enter a device cache. A kernel can refuse nothing, so it changes what a recipe cannot hold: NaN
/// becomes 0, magnitudes that are too large the largest; the record names the first.
#pragma once

#include <kvtilt/core/half.hpp>
#include <kvtilt/core/status.hpp>
#include <kvtilt/core/tensor_view.hpp>
#include <kvtilt/cuda/cache/device_record.hpp>
#include <kvtilt/cuda/cache/layer_view.hpp>
#include <kvtilt/cuda/page/fragment_order.hpp>
#include <kvtilt/cuda/page/group_math.hpp>
#include <kvtilt/cuda/page/input_task.hpp>
#include <kvtilt/cuda/page/input_tiles.hpp>
#include <kvtilt/cuda/unroll.hpp>
#include <kvtilt/page/layout.hpp>

#include <cstdint>

namespace kvtilt::cuda {

namespace detail {

/// What is stored for x: NaN as 0, magnitudes above `limit` as `limit`.
KVTILT_HD inline float storable(float x, float limit) {
  const std::uint32_t bits = bit_cast<std::uint32_t>(x);
  // Magnitudes order as their bits; NaN is largest.
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude <= bit_cast<std::uint32_t>(limit)) return x;
  return magnitude > 0x7f800000u
             ? 0.0f
             : bit_cast<float>(bit_cast<std::uint32_t>(limit) | (bits & 0x80000000u));
}

KVTILT_HD inline bool is_storable(float x, float limit) {
  return (bit_cast<std::uint32_t>(x) & 0x7fffffffu) <= bit_cast<std::uint32_t>(limit);
}

/// Changes an element that is not storable, and records it.
template <class Threads>
KVTILT_HD void repair_element(const Threads& threads, const LayerView& layer, const InputTask& task,
                              int token, int channel) {
  const float x = read_element(task.rows, task.row(token) + channel);
  if (is_storable(x, task.limit)) return;
  const InputPlace& place = task.place;
  record_error(threads, layer.records,
               {DeviceFault::ElementRepaired, 1, layer.layer, place.sequence,
                place.position + token, place.head, place.channel + channel, x});
  *task.half(token, channel) = nearest_half(storable(x, task.limit));
}

/// Writes all tokens but `first` to last - 1 element by element: for decoding, for rows at any
/// address, and for what fills no tile.
template <class Threads>
KVTILT_HD void write_elements(const Threads& threads, const LayerView& layer, const InputTask& task,
                              int first, int last) {
  constexpr int together = 4;  // loads in flight
  const int dim = task.dim();
  const int thread = threads.thread();
  const int threads_all = threads.thread_count();
  const int elements = (task.count - (last - first)) * dim;
  KVTILT_DEVICE_LOOP
  for (int base = thread; base < elements; base += together * threads_all) {
    float x[together];
    int token[together];
    int channel[together];
    KVTILT_DEVICE_UNROLL
    for (int i = 0; i < together; ++i) {
      const int element = base + i * threads_all;
      token[i] = element / dim;
      channel[i] = element - token[i] * dim;
      if (token[i] >= first) token[i] += last - first;
      if (element < elements) x[i] = read_element(task.rows, task.row(token[i]) + channel[i]);
    }
    bool bad = false;
    KVTILT_DEVICE_UNROLL
    for (int i = 0; i < together; ++i) {
      if (base + i * threads_all >= elements) break;
      bad = bad || !is_storable(x[i], task.limit);
      *task.half(token[i], channel[i]) = nearest_half(x[i]);
    }
    if (!bad) continue;
    KVTILT_DEVICE_LOOP
    for (int i = 0; i < together; ++i) {
      const int element = base + i * threads_all;
      const int row = element / dim;
      if (element < elements)
        repair_element(threads, layer, task, row >= first ? row + last - first : row,
                       element - row * dim);
    }
  }
}

/// Checks the elements that write_tiles() gave this thread once more, and repairs them.
template <class Threads>
KVTILT_HD void repair_tiles(const Threads& threads, const LayerView& layer, const InputTask& task,
                            int first, int tokens) {
  const int lane = threads.lane();
  const bool keys = task.role == Role::Keys;
  const int across = keys ? 4 : 2;  // channels that a lane holds of a tile
  const int token = first + (keys ? lane / 4 * 2 : lane % 4 * 4);
  const int channel = keys ? lane % 4 * 4 : lane / 4 * 2;
  TileRuns run(tokens, task.dim(), threads.warp(), threads.thread_count() / warp_lanes);
  KVTILT_DEVICE_LOOP
  for (; run.find(); run.next()) {
    KVTILT_DEVICE_LOOP
    for (int i = 0; i < run.length() * 8; ++i)
      repair_element(threads, layer, task, token + run.token_tile * tile_extent + i % 8 / across,
                     channel + (run.channel_tile + i / 8) * tile_extent + i % 8 % across);
  }
}

}  // namespace detail

/// Writes the rows of a task to their slots, by all threads of a block. Fast for whole tiles of
/// 16-bit elements whose rows start at multiples of 8 bytes.
template <class Threads>
KVTILT_HD void write_input(const Threads& threads, const LayerView& layer, const InputTask& task) {
  const std::int64_t address =
      static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(task.rows.data)) + 2 * task.row(0);
  int first = -task.slot & (tile_extent - 1);  // first token in a full tile
  int last = task.count - ((task.slot + task.count) & (tile_extent - 1));
  if (task.rows.type == ElementType::F32 || address % 8 != 0 || task.rows.token_stride % 4 != 0 ||
      last <= first)
    first = last = task.count;
  detail::write_elements(threads, layer, task, first, last);
  if (last <= first) return;
  const bool bad = task.role == Role::Keys
                       ? detail::write_tiles<Role::Keys>(threads, task, first, last - first)
                       : detail::write_tiles<Role::Values>(threads, task, first, last - first);
  if (bad) detail::repair_tiles(threads, layer, task, first, last - first);
}

}  // namespace kvtilt::cuda
