// SPDX-License-Identifier: MIT
/// Merges two attention results over disjoint sets of keys, each a normalised output with its lse:
/// attention/merge.hpp for device memory. Each warp merges one row at a time.
#pragma once

#include <kvtilt/core/row_check.hpp>
#include <kvtilt/core/softmax_state.hpp>
#include <kvtilt/core/status.hpp>
#include <kvtilt/core/tensor_view.hpp>
#include <kvtilt/cuda/half2.hpp>
#include <kvtilt/cuda/page/fragment_order.hpp>
#include <kvtilt/cuda/page/input_tiles.hpp>
#include <kvtilt/cuda/unroll.hpp>

#include <cmath>
#include <cstdint>

namespace kvtilt::cuda {

/// All pointers are device memory.
struct MergeArguments {
  MutableTensorView into;  ///< [rows, query_heads, value_dim], channels contiguous
  float* into_lse;         ///< [rows, query_heads]
  TensorView part;         ///< likewise
  const float* part_lse;
};

inline Status check_merge(const MergeArguments& arguments) {
  const MutableTensorView& into = arguments.into;
  const TensorView& part = arguments.part;
  if (into.tokens != part.tokens || into.heads != part.heads || into.dim != part.dim)
    return Status::error(ErrorCode::InvalidArgument,
                         "cannot merge [%lld, %d, %d] into [%lld, %d, %d]",
                         static_cast<long long>(part.tokens), part.heads, part.dim,
                         static_cast<long long>(into.tokens), into.heads, into.dim);
  if (into.tokens < 0 || into.heads < 0 || into.dim < 0)
    return Status::error(ErrorCode::InvalidArgument, "outputs are [%lld, %d, %d]",
                         static_cast<long long>(into.tokens), into.heads, into.dim);
  const bool some = into.tokens > 0 && into.heads > 0;
  if (some && (into.data == nullptr || part.data == nullptr || arguments.into_lse == nullptr ||
               arguments.part_lse == nullptr))
    return Status::error(ErrorCode::InvalidArgument, "both parts must carry their output and lse");
  KVTILT_RETURN_IF_ERROR(kvtilt::detail::check_type(into.type, "outputs", unnumbered_layer));
  return kvtilt::detail::check_type(part.type, "outputs", unnumbered_layer);
}

namespace detail {

KVTILT_HD inline void write_element(const MutableTensorView& rows, std::int64_t index, float x) {
  void* data = const_cast<void*>(rows.data);  // MutableTensorView says that it may be written
  if (rows.type == ElementType::F32)
    static_cast<float*>(data)[index] = x;
  else
    static_cast<std::uint16_t*>(data)[index] = static_cast<std::uint16_t>(
        rows.type == ElementType::F16 ? pack_halves(x, 0.0f) : pack_bf16(x, 0.0f));
}

}  // namespace detail

template <class Threads>
KVTILT_HD void merge_outputs(Threads& threads, const MergeArguments& arguments) {
  const MutableTensorView& into = arguments.into;
  const TensorView& part = arguments.part;
  const int warps = threads.thread_count() / warp_lanes;
  const std::int64_t rows = into.tokens * into.heads;
  KVTILT_DEVICE_LOOP
  for (std::int64_t row = static_cast<std::int64_t>(threads.block()) * warps + threads.warp();
       row < rows; row += static_cast<std::int64_t>(threads.block_count()) * warps) {
    const std::int64_t token = row / into.heads;
    const int head = static_cast<int>(row - token * into.heads);
    const float own = arguments.into_lse[row];
    const float other = arguments.part_lse[row];
    if (is_minus_infinity(other)) continue;
    const bool empty = is_minus_infinity(own);  // then its output may be anything: not read
    const float largest = empty || other > own ? other : own;
    const float weight = empty ? 0.0f : exp2_fast((own - largest) * log2_e);
    const float other_weight = exp2_fast((other - largest) * log2_e);
    const float sum = weight + other_weight;
    const std::int64_t to = token * into.token_stride + head * into.head_stride;
    const std::int64_t from = token * part.token_stride + head * part.head_stride;
    KVTILT_DEVICE_LOOP
    for (int channel = threads.lane(); channel < into.dim; channel += warp_lanes) {
      float x = detail::read_element(part, from + channel);
      if (!empty) x = (detail::read_element(into, to + channel) * weight + x * other_weight) / sum;
      detail::write_element(into, to + channel, x);
    }
    threads.sync_warp();  // all lanes have read the lse
    if (threads.lane() == 0) arguments.into_lse[row] = largest + std::log2(sum) / log2_e;
  }
}

}  // namespace kvtilt::cuda
