// SPDX-License-Identifier: MIT
/// What the attention kernels are told: plain data, passed by value.
#pragma once

#include <kvtilt/core/tensor_view.hpp>
#include <kvtilt/cuda/layer_storage.hpp>

#include <cstddef>
#include <cstdint>

namespace kvtilt::cuda {

/// Kernels work with logits of base 2.
inline constexpr float log2_e = 1.44269504088896341f;

/// AttendOptions as kernels need them; all pointers are device memory.
struct AttendRules {
  float scale = 0;     ///< of q.k, with log2(e) in it; under a cap, of tanh's argument
  float soft_cap = 0;  ///< cap * log2(e); 0: none
  int window = 0;      ///< 0: none
  int keep_sinks = 0;
  const float* alibi_slopes = nullptr;       ///< [query_heads]
  const float* sink_logits = nullptr;        ///< [query_heads]
  const std::uint64_t* tree_mask = nullptr;  ///< [queries] of every sequence: [batch][queries]
  std::int64_t first_position = 0;
  std::int64_t end_position = 0;
};

/// Memory of a launch that needs none of its bytes to survive, but starts as zeros once.
struct AttendWorkspace {
  float* partial_outputs = nullptr;   ///< [2 * blocks][8 rows][value_dim]
  float* partial_states = nullptr;    ///< [2 * blocks][8 rows][maximum, sum]
  std::uint32_t* arrivals = nullptr;  ///< [items]; zeros between launches
};

struct AttendArguments {
  LayerStorage layer;
  Batch batch;
  int queries;  ///< newest tokens of each sequence that ask
  int query_heads;
  const void* query = nullptr;  ///< [batch * queries, query_heads, key_dim]
  ElementType query_type = ElementType::F16;
  std::int64_t query_token_stride = 0;
  std::int64_t query_head_stride = 0;
  void* out = nullptr;  ///< [batch * queries, query_heads, value_dim]
  ElementType out_type = ElementType::F16;
  std::int64_t out_token_stride = 0;
  std::int64_t out_head_stride = 0;
  float* lse = nullptr;  ///< [batch * queries, query_heads]; null: not wanted
  AttendRules rules;
  AttendWorkspace workspace;
  int stages;  ///< of each warp's ring

  [[nodiscard]] KVTILT_HD int ratio() const { return query_heads / layer.kv_heads; }
  [[nodiscard]] KVTILT_HD int rows() const { return ratio() * queries; }
};

}  // namespace kvtilt::cuda
