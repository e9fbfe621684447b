// SPDX-License-Identifier: MIT
/// Merges the partial results of an item into its output: of the warps of a block, then of the
/// blocks. Each warp merges whole rows, of which a lane holds four channels at a time, so results
/// stay in registers from the first sum to the output. Sums have a fixed order: results do not
/// depend on which block is last.
#pragma once

#include <kvtilt/core/softmax_state.hpp>
#include <kvtilt/cuda/attention/ring.hpp>
#include <kvtilt/cuda/words.hpp>

#include <cmath>
#include <cstdint>
#include <numbers>

namespace kvtilt::cuda {

/// Four channels: one load.
struct [[gnu::may_alias]] alignas(16) Quad {
  float value[4];
};

/// One lane's channels of a row's weighted sum, and the row's softmax state.
template <int ValueDim>
struct RowPart {
  static constexpr int quads = (ValueDim / 4 + warp_lanes - 1) / warp_lanes;

  Quad sum[quads];
  float maximum;
  float total;

  /// False for lanes beyond the row's end.
  KVTILT_HD static bool holds(int lane, int quad) {
    return ValueDim / 4 % warp_lanes == 0 || quad * warp_lanes + lane < ValueDim / 4;
  }
  KVTILT_HD static int channel(int lane, int quad) { return (quad * warp_lanes + lane) * 4; }

  KVTILT_HD void clear() {
    KVTILT_DEVICE_UNROLL
    for (int quad = 0; quad < quads; ++quad) sum[quad] = Quad{};
  }
  KVTILT_HD void add(const Quad& more, int quad, float factor) {
    KVTILT_DEVICE_UNROLL
    for (int i = 0; i < 4; ++i) sum[quad].value[i] += more.value[i] * factor;
  }
};

/// Stores a warp's outputs and softmax states in shared memory, the outputs at offset `to`.
template <class Traits, class Threads>
KVTILT_HD void store_warp(Threads& threads, const AttendShared& shared, std::uint32_t to,
                          typename Traits::State& state) {
  constexpr int stride = output_stride(Traits::value_dim);
  const int lane = threads.lane();
  float* outputs = reinterpret_cast<float*>(threads.shared() + to);
  float* states = reinterpret_cast<float*>(threads.shared() + shared.states);
  state.finish(threads);
  if (lane == 0)
    reinterpret_cast<std::uint32_t*>(threads.shared() + shared.outputs)[threads.warp()] = to;
  if (lane < 4)
    KVTILT_DEVICE_UNROLL
    for (int column = 0; column < 2; ++column) {
      float* own = states + (threads.warp() * item_rows + 2 * lane + column) * 2;
      own[0] = state.maximum[column];
      own[1] = state.sum[column];
    }
  KVTILT_DEVICE_UNROLL
  for (int tile = 0; tile < Traits::State::tiles; ++tile)
    KVTILT_DEVICE_UNROLL
    for (int e = 0; e < 4; ++e)
      outputs[(lane % 4 * 2 + e % 2) * stride + tile * tile_extent + lane / 4 * 2 + e / 2] =
          state.output[tile][e];
}

/// Merges one row of all warps' outputs, after a sync(). Loads those of four warps at a time.
template <class Traits, class Threads>
KVTILT_HD RowPart<Traits::value_dim> merge_warps(Threads& threads, const AttendShared& shared,
                                                 int row) {
  using Part = RowPart<Traits::value_dim>;
  constexpr int in_flight = 4;
  const int warps = threads.thread_count() / warp_lanes;
  const std::uint32_t* outputs =
      reinterpret_cast<const std::uint32_t*>(threads.shared() + shared.outputs);
  const float* states = reinterpret_cast<const float*>(threads.shared() + shared.states) + row * 2;
  const auto warp_at = [&](int warp) { return warp < warps ? warp : warps - 1; };
  Part part;
  part.clear();
  part.maximum = no_maximum;
  part.total = 0.0f;
  KVTILT_DEVICE_LOOP
  for (int first = 0; first < warps; first += in_flight)
    KVTILT_DEVICE_UNROLL
    for (int i = 0; i < in_flight; ++i)
      part.maximum = std::fmax(part.maximum, states[warp_at(first + i) * item_rows * 2]);
  KVTILT_DEVICE_LOOP
  for (int first = 0; first < warps; first += in_flight) {
    float factor[in_flight];
    float total[in_flight];
    Quad more[in_flight][Part::quads];
    KVTILT_DEVICE_UNROLL
    for (int i = 0; i < in_flight; ++i) {
      const int warp = warp_at(first + i);
      factor[i] = exp2_fast(states[warp * item_rows * 2] - part.maximum);
      total[i] = states[warp * item_rows * 2 + 1];
      const float* own = reinterpret_cast<const float*>(threads.shared() + outputs[warp]) +
                         row * output_stride(Traits::value_dim);
      KVTILT_DEVICE_UNROLL
      for (int quad = 0; quad < Part::quads; ++quad)
        more[i][quad] =
            Part::holds(threads.lane(), quad)
                ? *reinterpret_cast<const Quad*>(own + Part::channel(threads.lane(), quad))
                : Quad{};
    }
    KVTILT_DEVICE_UNROLL
    for (int i = 0; i < in_flight; ++i) {
      if (first + i >= warps) continue;
      part.total += total[i] * factor[i];
      KVTILT_DEVICE_UNROLL
      for (int quad = 0; quad < Part::quads; ++quad) part.add(more[i][quad], quad, factor[i]);
    }
  }
  return part;
}

/// Stores a block's part of a row in the workspace, where the last block of the item reads it.
///
/// row  of the workspace
template <int ValueDim, class Threads>
KVTILT_HD void store_part(Threads& threads, const AttendWorkspace& workspace, std::int64_t row,
                          const RowPart<ValueDim>& part) {
  float* outputs = workspace.partial_outputs + row * ValueDim;
  KVTILT_DEVICE_UNROLL
  for (int quad = 0; quad < RowPart<ValueDim>::quads; ++quad)
    if (part.holds(threads.lane(), quad))
      *reinterpret_cast<Quad*>(outputs + part.channel(threads.lane(), quad)) = part.sum[quad];
  float* states = workspace.partial_states + row * 2;
  if (threads.lane() == 0) {
    states[0] = part.maximum;
    states[1] = part.total;
  }
}

/// Whether this block is the last of an item's to store its part. All threads call it; `flag` is in
/// shared memory.
template <class Threads>
KVTILT_HD bool last_to_arrive(Threads& threads, const AttendWorkspace& workspace,
                              const ItemParts& parts, std::uint32_t* flag) {
  threads.sync();
  if (threads.thread() == 0) {
    // Acquires and releases for the whole block: it stores before one sync, loads after the other.
    std::uint32_t* const arrivals = workspace.arrivals + parts.first;
    const bool last = threads.atomic_add_acquire_release(arrivals, 1) ==
                      static_cast<std::uint32_t>(parts.last - parts.first);
    if (last) *arrivals = 0;
    *flag = last ? 1 : 0;
  }
  threads.sync();
  return *flag != 0;
}

/// Merges one row of all blocks' parts, in the order of blocks. Loads several parts at a time.
///
/// rows  per part
template <int ValueDim, class Threads>
KVTILT_HD RowPart<ValueDim> merge_blocks(Threads& threads, const AttendWorkspace& workspace,
                                         const ItemParts& parts, int rows, int row) {
  using Part = RowPart<ValueDim>;
  constexpr int in_flight = Part::quads > 2 ? 3 : 12 / Part::quads;
  const int lane = threads.lane();
  const auto place = [&](int block) {
    return static_cast<std::int64_t>(parts.slot(block)) * rows + row;
  };
  Part part;
  part.clear();
  part.maximum = no_maximum;
  part.total = 0.0f;
  KVTILT_DEVICE_LOOP
  for (int begin = parts.first; begin <= parts.last; begin += warp_lanes) {
    const int count = parts.last + 1 - begin < warp_lanes ? parts.last + 1 - begin : warp_lanes;
    Quad more[in_flight][Part::quads];
    const auto load = [&](int i) {
      KVTILT_DEVICE_UNROLL
      for (int ahead = 0; ahead < in_flight; ++ahead) {
        const int block = i + ahead < count ? begin + i + ahead : parts.last;
        const float* from = workspace.partial_outputs + place(block) * ValueDim;
        KVTILT_DEVICE_UNROLL
        for (int quad = 0; quad < Part::quads; ++quad)
          more[ahead][quad] = Part::holds(lane, quad)
                                  ? threads.load_fresh(reinterpret_cast<const Quad*>(
                                        from + Part::channel(lane, quad)))
                                  : Quad{};
      }
    };
    load(0);
    // The softmax states of up to 32 parts, one per lane.
    const int own = begin + lane;
    float maximum = no_maximum;
    float total = 0.0f;
    if (own <= parts.last) {
      maximum = threads.load_fresh(workspace.partial_states + place(own) * 2);
      total = threads.load_fresh(workspace.partial_states + place(own) * 2 + 1);
    }
    float most = std::fmax(maximum, part.maximum);
    KVTILT_DEVICE_UNROLL
    for (int mask = 1; mask < warp_lanes; mask *= 2)
      most = std::fmax(most, threads.shuffle_xor(most, mask));
    const float before = exp2_fast(part.maximum - most);
    const float factor = exp2_fast(maximum - most);
    float sum = total * factor;
    KVTILT_DEVICE_UNROLL
    for (int mask = 1; mask < warp_lanes; mask *= 2) sum += threads.shuffle_xor(sum, mask);
    part.maximum = most;
    part.total = part.total * before + sum;
    KVTILT_DEVICE_UNROLL
    for (int quad = 0; quad < Part::quads; ++quad)
      KVTILT_DEVICE_UNROLL
      for (int i = 0; i < 4; ++i) part.sum[quad].value[i] *= before;

    KVTILT_DEVICE_LOOP
    for (int i = 0; i < count; i += in_flight) {
      if (i > 0) load(i);
      KVTILT_DEVICE_UNROLL
      for (int ahead = 0; ahead < in_flight; ++ahead) {
        const float own_factor = threads.shuffle(factor, (i + ahead) % warp_lanes);
        KVTILT_DEVICE_UNROLL
        for (int quad = 0; quad < Part::quads; ++quad)
          part.add(more[ahead][quad], quad, i + ahead < count ? own_factor : 0.0f);
      }
    }
  }
  return part;
}

/// Stores four channels of the output tensor; 16-bit ones in one store where they are aligned.
KVTILT_HD inline void store_output(const AttendArguments& arguments, std::int64_t at,
                                   const Quad& values) {
  if (arguments.out_type == ElementType::F32) {
    float* to = static_cast<float*>(arguments.out) + at;
    KVTILT_DEVICE_UNROLL
    for (int i = 0; i < 4; ++i) to[i] = values.value[i];
    return;
  }
  std::uint16_t bits[4];
  KVTILT_DEVICE_UNROLL
  for (int i = 0; i < 4; ++i)
    bits[i] = arguments.out_type == ElementType::F16
                  ? static_cast<std::uint16_t>(pack_halves(values.value[i], 0.0f))
                  : to_bf16(values.value[i]).bits;
  std::uint16_t* to = static_cast<std::uint16_t*>(arguments.out) + at;
  if (reinterpret_cast<std::uintptr_t>(to) % 8 == 0) {
    std::uint64_t all = 0;
    KVTILT_DEVICE_UNROLL
    for (int i = 0; i < 4; ++i) all |= std::uint64_t{bits[i]} << (16 * i);
    *reinterpret_cast<DoubleWord*>(to) = all;
    return;
  }
  KVTILT_DEVICE_UNROLL
  for (int i = 0; i < 4; ++i) to[i] = bits[i];
}

/// A row's softmax over all tokens and its head's sink logit.
struct RowEnd {
  float factor;  ///< to multiply the row's sums by
  float lse;

  KVTILT_HD static RowEnd of(const AttendRules& rules, int head, float maximum, float total) {
    float most = maximum;
    float factor = 1.0f;
    if (rules.sink_logits != nullptr) {
      const float sink = rules.sink_logits[head] * log2_e;
      most = std::fmax(maximum, sink);
      factor = exp2_fast(maximum - most);
      total = total * factor + exp2_fast(sink - most);
    }
    return {total > 0.0f ? factor / total : 0.0f,
            total > 0.0f ? (most + std::log2(total)) * std::numbers::ln2_v<float>
                         : bit_cast<float>(minus_infinity_bits)};
  }
  /// Called by one lane per row.
  KVTILT_HD void store_lse(const AttendArguments& arguments, const RowPlace& place) const {
    if (arguments.lse != nullptr)
      arguments.lse[place.row * arguments.query_heads + place.head] = lse;
  }
};

/// Normalises a row and writes it to the output tensors.
template <int ValueDim, class Threads>
KVTILT_HD void write_row(Threads& threads, const AttendArguments& arguments, const RowPlace& place,
                         const RowPart<ValueDim>& part) {
  const RowEnd end = RowEnd::of(arguments.rules, place.head, part.maximum, part.total);
  const std::int64_t at = arguments.output_offset(place);
  KVTILT_DEVICE_UNROLL
  for (int quad = 0; quad < RowPart<ValueDim>::quads; ++quad) {
    if (!part.holds(threads.lane(), quad)) continue;
    Quad values;
    KVTILT_DEVICE_UNROLL
    for (int i = 0; i < 4; ++i) values.value[i] = part.sum[quad].value[i] * end.factor;
    store_output(arguments, at + part.channel(threads.lane(), quad), values);
  }
  if (threads.lane() == 0) end.store_lse(arguments, place);
}

/// Writes row `row` of an item, if the item has that many rows.
template <int ValueDim, class Threads>
KVTILT_HD void write_item_row(Threads& threads, const AttendArguments& arguments,
                              const ItemRows& item, int row, const RowPart<ValueDim>& part) {
  if (row < item.rows) write_row(threads, arguments, item.place(arguments, row), part);
}

}  // namespace kvtilt::cuda
