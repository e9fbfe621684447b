// SPDX-License-Identifier: MIT
/// Partial results of an item become its output: of the warps of a block, then of the blocks. The
/// order of sums is fixed, so results do not depend on who comes last.
#pragma once

#include <kvtilt/cuda/attend_ring.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>

namespace kvtilt::cuda {

/// Four floats: one load.
struct alignas(16) Quad {
  float value[4];
};

/// An item's part in shared memory: [row] outputs, maximum and sum.
struct BlockPart {
  float* outputs;
  float* states;
  int stride;
};

/// All warps' states into one part. Called by all threads; ends with a sync().
template <class Traits, class Threads>
KVTILT_HD BlockPart merge_warps(Threads& threads, const AttendShared& shared,
                                typename Traits::State& state) {
  constexpr int stride = Traits::value_dim + AttendShared::output_padding;
  const int warps = threads.thread_count() / warp_lanes;
  const int lane = threads.lane();
  float* outputs = reinterpret_cast<float*>(threads.shared() + shared.outputs);
  float* states = reinterpret_cast<float*>(threads.shared() + shared.states);
  state.finish(threads);
  if (lane < 4)
    for (int column = 0; column < 2; ++column) {
      float* own = states + (threads.warp() * item_rows + 2 * lane + column) * 2;
      own[0] = state.maximum[column];
      own[1] = state.sum[column];
    }
  threads.sync();
  float factor[2];
  KVTILT_DEVICE_UNROLL
  for (int column = 0; column < 2; ++column) {
    const int row = lane % 4 * 2 + column;
    float most = no_maximum;
    KVTILT_DEVICE_LOOP
    for (int warp = 0; warp < warps; ++warp)
      most = std::fmax(most, states[(warp * item_rows + row) * 2]);
    float sum = 0.0f;
    KVTILT_DEVICE_LOOP
    for (int warp = 0; warp < warps; ++warp) {
      const float* other = states + (warp * item_rows + row) * 2;
      sum += other[1] * exp2_fast(other[0] - most);
    }
    factor[column] = exp2_fast(state.maximum[column] - most);
    if (threads.warp() == 0 && lane < 4) {
      float* all = states + (warps * item_rows + row) * 2;
      all[0] = most;
      all[1] = sum;
    }
  }
  KVTILT_DEVICE_LOOP
  for (int warp = 0; warp < warps; ++warp) {
    if (threads.warp() == warp)
      KVTILT_DEVICE_UNROLL
      for (int tile = 0; tile < Traits::State::tiles; ++tile)
        KVTILT_DEVICE_UNROLL
        for (int e = 0; e < 4; ++e) {
          float& place = outputs[(lane % 4 * 2 + e % 2) * stride + tile * tile_extent +
                                 lane / 4 * 2 + e / 2];
          const float own = state.output[tile][e] * factor[e % 2];
          place = warp == 0 ? own : place + own;
        }
    threads.sync();
  }
  return {outputs, states + warps * item_rows * 2, stride};
}

/// Writes one element of the output tensor.
KVTILT_HD inline void store_output(const AttendArguments& arguments, std::int64_t at, float value) {
  if (arguments.out_type == ElementType::F32) {
    static_cast<float*>(arguments.out)[at] = value;
    return;
  }
  const std::uint16_t bits = arguments.out_type == ElementType::F16
                                 ? static_cast<std::uint16_t>(pack_halves(value, 0.0f))
                                 : to_bf16(value).bits;
  static_cast<std::uint16_t*>(arguments.out)[at] = bits;
}

/// Normalises an item and writes it out, its sink logits joined.
template <class Traits, class Threads>
KVTILT_HD void write_item(Threads& threads, const AttendArguments& arguments, const ItemRows& item,
                          const BlockPart& part) {
  const AttendRules& rules = arguments.rules;
  KVTILT_DEVICE_LOOP
  for (int index = threads.thread(); index < item.rows * Traits::value_dim;
       index += threads.thread_count()) {
    const int row = index / Traits::value_dim;
    const int channel = index % Traits::value_dim;
    const int head = item.query_head(arguments, row);
    const std::int64_t token = item.token_row(arguments, row);
    const float maximum = part.states[row * 2];
    float sum = part.states[row * 2 + 1];
    float most = maximum;
    float factor = 1.0f;
    if (rules.sink_logits != nullptr) {
      most = std::fmax(maximum, rules.sink_logits[head]);
      factor = exp2_fast(maximum - most);
      sum = sum * factor + exp2_fast(rules.sink_logits[head] - most);
    }
    const float value = sum > 0.0f ? part.outputs[row * part.stride + channel] * factor / sum : 0.0f;
    store_output(arguments,
                 token * arguments.out_token_stride + head * arguments.out_head_stride + channel,
                 value);
    if (channel == 0 && arguments.lse != nullptr)
      arguments.lse[token * arguments.query_heads + head] =
          sum > 0.0f ? (most + std::log2(sum)) * 0.693147180559945309f
                     : bit_cast<float>(0xff800000u);
  }
}

/// Leaves a part where the last block of the item will find it.
template <class Traits, class Threads>
KVTILT_HD void store_part(Threads& threads, const AttendWorkspace& workspace, int slot,
                          const BlockPart& part) {
  float* outputs =
      workspace.partial_outputs + slot * item_rows * Traits::value_dim;
  KVTILT_DEVICE_LOOP
  for (int index = threads.thread(); index < item_rows * Traits::value_dim;
       index += threads.thread_count())
    outputs[index] =
        part.outputs[index / Traits::value_dim * part.stride + index % Traits::value_dim];
  float* states = workspace.partial_states + slot * item_rows * 2;
  KVTILT_DEVICE_LOOP
  for (int index = threads.thread(); index < item_rows * 2; index += threads.thread_count())
    states[index] = part.states[index];
}

/// All blocks' parts of an item into `part`, block by block. Loads of many parts
/// are in flight at a time: one after the other they would cost a microsecond each.
template <class Traits, class Threads>
KVTILT_HD void merge_blocks(Threads& threads, const AttendWorkspace& workspace,
                            const ItemParts& parts, float* factors, const BlockPart& part) {
  const int first = parts.first;
  const int last = parts.last;
  const auto state_of = [&](int block, int row) {
    return workspace.partial_states + (parts.slot(block) * item_rows + row) * 2;
  };
  KVTILT_DEVICE_LOOP
  for (int row = threads.warp(); row < item_rows; row += threads.thread_count() / warp_lanes) {
    float most = no_maximum;
    KVTILT_DEVICE_LOOP
    for (int block = first + threads.lane(); block <= last; block += warp_lanes)
      most = std::fmax(most, threads.load_fresh(state_of(block, row)));
    KVTILT_DEVICE_LOOP
    for (int mask = 1; mask < warp_lanes; mask *= 2)
      most = std::fmax(most, threads.shuffle_xor(most, mask));
    float sum = 0.0f;
    KVTILT_DEVICE_LOOP
    for (int block = first + threads.lane(); block <= last; block += warp_lanes)
      sum += threads.load_fresh(state_of(block, row) + 1) *
             exp2_fast(threads.load_fresh(state_of(block, row)) - most);
    KVTILT_DEVICE_LOOP
    for (int mask = 1; mask < warp_lanes; mask *= 2) sum += threads.shuffle_xor(sum, mask);
    if (threads.lane() == 0) {
      part.states[row * 2] = most;
      part.states[row * 2 + 1] = sum;
    }
  }
  threads.sync();

  constexpr int quads = item_rows * Traits::value_dim / 4;
  constexpr int in_flight = 4;
  KVTILT_DEVICE_LOOP
  for (int quad = threads.thread(); quad < quads; quad += threads.thread_count()) {
    const int row = quad * 4 / Traits::value_dim;
    for (int i = 0; i < 4; ++i)
      part.outputs[row * part.stride + quad * 4 % Traits::value_dim + i] = 0.0f;
  }
  KVTILT_DEVICE_LOOP
  for (int begin = first; begin <= last; begin += merged_parts) {
    const int count = last + 1 - begin < merged_parts ? last + 1 - begin : merged_parts;
    threads.sync();
    KVTILT_DEVICE_LOOP
    for (int i = threads.thread(); i < merged_parts * item_rows; i += threads.thread_count()) {
      const int block = begin + i / item_rows;
      const int row = i % item_rows;
      factors[i] = block > last ? 0.0f
                                : exp2_fast(threads.load_fresh(state_of(block, row)) -
                                            part.states[row * 2]);
    }
    threads.sync();
    KVTILT_DEVICE_LOOP
    for (int quad = threads.thread(); quad < quads; quad += threads.thread_count()) {
      const int row = quad * 4 / Traits::value_dim;
      float* output = part.outputs + row * part.stride + quad * 4 % Traits::value_dim;
      float sum[4] = {output[0], output[1], output[2], output[3]};
      KVTILT_DEVICE_LOOP
      for (int i = 0; i < count; i += in_flight) {
        Quad values[in_flight];
        KVTILT_DEVICE_UNROLL
        for (int ahead = 0; ahead < in_flight; ++ahead) {
          const int block = i + ahead < count ? begin + i + ahead : last;
          values[ahead] = threads.load_fresh(reinterpret_cast<const Quad*>(
              workspace.partial_outputs + parts.slot(block) * item_rows * Traits::value_dim +
              quad * 4));
        }
        KVTILT_DEVICE_UNROLL
        for (int ahead = 0; ahead < in_flight; ++ahead) {
          const float factor =
              i + ahead < count ? factors[(i + ahead) * item_rows + row] : 0.0f;
          KVTILT_DEVICE_UNROLL
          for (int c = 0; c < 4; ++c) sum[c] += values[ahead].value[c] * factor;
        }
      }
      for (int c = 0; c < 4; ++c) output[c] = sum[c];
    }
  }
  threads.sync();
}

}  // namespace kvtilt::cuda
