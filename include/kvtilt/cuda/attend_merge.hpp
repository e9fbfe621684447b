// SPDX-License-Identifier: MIT
/// Partial results of an item become its output: of the warps of a block, then of the blocks. The
/// order of sums is fixed, so results do not depend on who comes last.
#pragma once

#include <kvtilt/cuda/attend_ring.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>

namespace kvtilt::cuda {

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
    for (int warp = 0; warp < warps; ++warp)
      most = std::fmax(most, states[(warp * item_rows + row) * 2]);
    float sum = 0.0f;
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
      workspace.partial_outputs + static_cast<std::int64_t>(slot) * item_rows * Traits::value_dim;
  for (int index = threads.thread(); index < item_rows * Traits::value_dim;
       index += threads.thread_count())
    outputs[index] =
        part.outputs[index / Traits::value_dim * part.stride + index % Traits::value_dim];
  float* states = workspace.partial_states + static_cast<std::int64_t>(slot) * item_rows * 2;
  for (int index = threads.thread(); index < item_rows * 2; index += threads.thread_count())
    states[index] = part.states[index];
}

/// The parts of blocks `first` to `last` of an item into `part`, block by block.
template <class Traits, class Threads>
KVTILT_HD void merge_blocks(Threads& threads, const AttendWorkspace& workspace,
                            const WorkLine& line, int first, int last, std::int64_t item_start,
                            const BlockPart& part) {
  const auto state_of = [&](int block, int row) {
    const std::int64_t slot = part_slot(line, block, item_start);
    return workspace.partial_states + (slot * item_rows + row) * 2;
  };
  for (int row = threads.thread(); row < item_rows; row += threads.thread_count()) {
    float most = no_maximum;
    for (int block = first; block <= last; ++block)
      most = std::fmax(most, threads.load_fresh(state_of(block, row)));
    float sum = 0.0f;
    for (int block = first; block <= last; ++block)
      sum += threads.load_fresh(state_of(block, row) + 1) *
             exp2_fast(threads.load_fresh(state_of(block, row)) - most);
    part.states[row * 2] = most;
    part.states[row * 2 + 1] = sum;
  }
  threads.sync();
  for (int index = threads.thread(); index < item_rows * Traits::value_dim;
       index += threads.thread_count()) {
    const int row = index / Traits::value_dim;
    float output = 0.0f;
    for (int block = first; block <= last; ++block) {
      const std::int64_t slot = part_slot(line, block, item_start);
      output += threads.load_fresh(workspace.partial_outputs +
                                   slot * item_rows * Traits::value_dim + index) *
                exp2_fast(threads.load_fresh(state_of(block, row)) - part.states[row * 2]);
    }
    part.outputs[row * part.stride + index % Traits::value_dim] = output;
  }
  threads.sync();
}

}  // namespace kvtilt::cuda
