// SPDX-License-Identifier: MIT
/// Arguments of the attention kernels: plain data, passed by value.
#pragma once

#include <kvtilt/core/softmax_state.hpp>
#include <kvtilt/core/tensor_view.hpp>
#include <kvtilt/core/tree_window.hpp>
#include <kvtilt/cuda/cache/layer_view.hpp>

#include <cstddef>
#include <cstdint>
#include <limits>

namespace kvtilt::cuda {

/// AttendOptions with arrays in device memory, whose contents are not checked: bits of a tree mask that
/// AttendOptions would refuse are ignored. Under a tree mask, windows count a row's path; ALiBi uses
/// positions in the order of appending.
struct DeviceAttendOptions {
  float scale = 0.0f;                        ///< 0: 1 / sqrt(key_dim)
  float soft_cap = 0.0f;                     ///< 0: none
  int window = 0;                            ///< 0: the layer's own
  const float* alibi_slopes = nullptr;       ///< [query_heads]
  const float* sink_logits = nullptr;        ///< [query_heads]; -infinity: that head has none
  const std::uint64_t* tree_mask = nullptr;  ///< [rows]; see AttendRules::seen_rows()
  /// [sequences] tokens of each tree, its rows being the newest: see AttendOptions. Numbers below those
  /// of rows count as these, above 64 as 64. Null: as many as rows.
  const std::int32_t* tree_tokens = nullptr;
  std::int64_t first_position = 0;
  std::int64_t end_position = std::numeric_limits<std::int64_t>::max();
  bool causal = true;  ///< see AttendOptions
};

/// Which of its sequence's rows a row sees: those up to itself, all, or those in the tree mask.
enum class SeenRows : int { Causal, All, Tree };

/// AttendOptions as kernels need them; all pointers are device memory.
struct AttendRules {
  float scale = 0;     ///< times q.k: base-2 logit, or under a cap tanh's argument
  float soft_cap = 0;  ///< cap * log2(e); 0: none
  int window = 0;      ///< 0: none
  int keep_sinks = 0;
  const float* alibi_slopes = nullptr;        ///< [query_heads]
  const float* sink_logits = nullptr;         ///< [query_heads]
  const std::uint64_t* tree_mask = nullptr;   ///< [rows]
  const std::int32_t* tree_tokens = nullptr;  ///< [sequences]
  std::int64_t first_position = 0;
  std::int64_t end_position = 0;
  int causal = 1;

  /// A sequence with more rows than a mask has bits is causal: a prompt's chunk in a batch with trees.
  [[nodiscard]] KVTILT_HD SeenRows seen_rows(int rows) const {
    if (causal == 0) return SeenRows::All;
    return tree_mask != nullptr && rows <= most_tree_tokens ? SeenRows::Tree : SeenRows::Causal;
  }
  /// The sequence's newest tokens that seen_rows() decides on: its rows, or a tree of which they are the
  /// newest.
  [[nodiscard]] KVTILT_HD int new_tokens(int sequence, int rows) const {
    if (tree_tokens == nullptr || rows == 0 || seen_rows(rows) != SeenRows::Tree) return rows;
    const int tokens = tree_tokens[sequence];
    return tokens < rows ? rows : tokens < most_tree_tokens ? tokens : most_tree_tokens;
  }
};

/// Most blocks of a launch; a workspace has one counter for each.
inline constexpr int most_attend_blocks = 4096;

/// Scratch memory of a launch: nothing in it outlives the launch, but counters must start as zeros.
/// Where several blocks share an item (8 query rows in decode, a row tile in prefill), each leaves its
/// part of the result here.
struct AttendWorkspace {
  /// [most_attend_blocks], zeros between launches. Counter b counts the parts left so far of the item
  /// whose first part is block b's. They lie at the start of the workspace in every launch, so that
  /// launches over different layers can share it.
  std::uint32_t* arrivals = nullptr;
  float* partial_outputs = nullptr;  ///< [2 * blocks][rows][value_dim]
  float* partial_states = nullptr;   ///< [2 * blocks][rows][maximum, sum]
};

/// An AttendWorkspace laid out in the caller's memory; with null only its size.
struct LaidOutWorkspace {
  AttendWorkspace parts;
  std::size_t bytes;

  /// rows  of a part; a block leaves at most two parts
  LaidOutWorkspace(void* memory, int blocks, int rows, int value_dim) {
    const std::size_t all = 2 * static_cast<std::size_t>(blocks) * static_cast<std::size_t>(rows);
    const std::size_t outputs = all * static_cast<std::size_t>(value_dim);
    bytes = (most_attend_blocks + outputs + 2 * all) * 4;
    if (memory == nullptr) return;
    parts.arrivals = static_cast<std::uint32_t*>(memory);
    parts.partial_outputs = reinterpret_cast<float*>(parts.arrivals + most_attend_blocks);
    parts.partial_states = parts.partial_outputs + outputs;
  }
};

/// One row of queries and of the output.
struct RowPlace {
  std::int64_t row;  ///< of the tensors
  int head;          ///< query head
};

struct AttendArguments {
  LayerView layer;
  Batch batch;
  BatchRows rows;              ///< which rows of the tensors are each sequence's query tokens
  std::int64_t row_count = 0;  ///< of the tensors
  int query_heads;
  int gqa_ratio;                ///< query heads per kv head
  const void* query = nullptr;  ///< [rows, query_heads, key_dim]
  ElementType query_type = ElementType::F16;
  std::int64_t query_token_stride = 0;
  std::int64_t query_head_stride = 0;
  void* out = nullptr;  ///< [rows, query_heads, value_dim]
  ElementType out_type = ElementType::F16;
  std::int64_t out_token_stride = 0;
  std::int64_t out_head_stride = 0;
  float* lse = nullptr;  ///< [rows, query_heads]; null: not wanted
  AttendRules rules;
  AttendWorkspace workspace;
  int stages;  ///< of each warp's ring

  /// Element offset of an output row.
  [[nodiscard]] KVTILT_HD std::int64_t output_offset(const RowPlace& place) const {
    return place.row * out_token_stride + place.head * out_head_stride;
  }
  /// Query tokens of a sequence.
  [[nodiscard]] KVTILT_HD int queries(int sequence) const {
    return static_cast<int>(rows.count(sequence));
  }
  [[nodiscard]] KVTILT_HD int new_tokens(int sequence) const {
    return rules.new_tokens(sequence, queries(sequence));
  }
};

/// Fills in all but the workspace and the stages, which depend on the launch.
inline AttendArguments make_arguments(const LayerView& layer, const Batch& batch,
                                      const BatchRows& rows, const TensorView& queries,
                                      const MutableTensorView& out, float* lse,
                                      const DeviceAttendOptions& options) {
  AttendArguments arguments{};
  arguments.layer = layer;
  arguments.batch = batch;
  arguments.rows = rows;
  arguments.row_count = queries.tokens;
  arguments.query_heads = queries.heads;
  arguments.gqa_ratio = queries.heads / layer.kv_heads;
  arguments.query = queries.data;
  arguments.query_type = queries.type;
  arguments.query_token_stride = queries.token_stride;
  arguments.query_head_stride = queries.head_stride;
  arguments.out = out.address(0, 0);
  arguments.out_type = out.type;
  arguments.out_token_stride = out.token_stride;
  arguments.out_head_stride = out.head_stride;
  arguments.lse = lse;
  AttendRules& rules = arguments.rules;
  const float scale = options.scale > 0 ? options.scale : implied_scale(layer.key_dim);
  rules.scale = options.soft_cap > 0 ? scale / options.soft_cap : scale * log2_e;
  rules.soft_cap = options.soft_cap * log2_e;
  rules.window = options.window > 0 ? options.window : layer.window;
  rules.keep_sinks = layer.keep_sinks;
  rules.alibi_slopes = options.alibi_slopes;
  rules.sink_logits = options.sink_logits;
  rules.tree_mask = options.tree_mask;
  rules.tree_tokens = options.tree_tokens;
  rules.first_position = options.first_position;
  rules.end_position = options.end_position;
  rules.causal = options.causal ? 1 : 0;
  return arguments;
}

}  // namespace kvtilt::cuda
