// SPDX-License-Identifier: MIT
/// Attention of a tile of query rows that share a kv head: pages go through it one after another.
#pragma once

#include <kvtilt/core/softmax_state.hpp>
#include <kvtilt/core/tensor_view.hpp>
#include <kvtilt/cpu/kernel_table.hpp>
#include <kvtilt/page/layer_view.hpp>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>

namespace kvtilt::detail {

/// Rows of a tile. Codes are decoded once per four rows whatever the tile; a larger one keeps its
/// outputs out of the first-level cache.
inline constexpr int tile_rows = 16;

/// Pages whose outputs are summed before they join the total. Bounds the rounding of long sums to
/// (span_pages + pages / span_pages) additions, and is the unit in which work is split: results do
/// not depend on how many threads there are.
inline constexpr int span_pages = 32;

/// Lines of 16 slots in the largest page: 128 tokens, or 1024 sinks.
inline constexpr int max_blocks = 1024 / line_lanes;

inline constexpr float log2_e = 1.44269504088896341f;

/// Floats in rows of a multiple of 16, carved out of a caller's workspace.
class WorkspaceCarver {
 public:
  /// A null workspace only measures.
  explicit WorkspaceCarver(std::byte* workspace) : base_(workspace) {}

  template <class T>
  T* take(std::size_t count) {
    used_ = round_up(used_, page_alignment);
    T* place = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + used_);
    used_ += count * sizeof(T);
    return place;
  }
  [[nodiscard]] std::size_t used() const { return used_; }

 private:
  std::byte* base_;
  std::size_t used_ = 0;
};

/// What one query row sees, and how its logits are shaped.
struct RowRule {
  std::int64_t first_position;  ///< oldest position inside window and range
  std::int64_t first_sink;      ///< the same for sinks, which may outlive the window
  std::int64_t end_position;    ///< one past the newest
  std::int64_t position;        ///< its own
  std::uint64_t tree;           ///< bit j: sees position tree_start + j
  std::int64_t tree_start;      ///< from here on `tree` decides; beyond every position: no tree
  cpu::LogitRule logit;
  float sink_logit;  ///< base 2
  bool has_sink;

  /// The slots of 16 that the row sees, where slot 0 has position `start`.
  [[nodiscard]] cpu::LaneMask visible(std::int64_t start, bool sinks) const {
    const auto lane = [&](std::int64_t p) {
      return static_cast<int>(std::clamp<std::int64_t>(p - start, 0, line_lanes));
    };
    unsigned mask =
        cpu::lanes_between(lane(sinks ? first_sink : first_position), lane(end_position));
    const int first_tree_lane = lane(tree_start);
    if (first_tree_lane < line_lanes) {
      const std::int64_t shift = start - tree_start;  // bit of the tree that lane 0 stands for
      const std::uint64_t bits = shift >= 64 ? 0 : shift >= 0 ? tree >> shift : tree << -shift;
      mask &= cpu::lanes_between(0, first_tree_lane) | static_cast<unsigned>(bits & 0xffffu);
    }
    return static_cast<cpu::LaneMask>(mask);
  }
};

struct TileRow {
  RowRule rule;
  SoftmaxState span;
  SoftmaxState total;
};

class AttentionTile {
 public:
  AttentionTile(const LayerShape& shape, int max_page_tokens, const cpu::Kernels* kernels,
                WorkspaceCarver& carver)
      : kernels_(kernels),
        key_stride_(padded(shape.key_dim)),
        value_stride_(padded(shape.value_dim)),
        score_stride_(padded(max_page_tokens)),
        value_dim_(shape.value_dim) {
    queries_ = carver.take<float>(tile_rows * key_stride_);
    scores_ = carver.take<float>(tile_rows * score_stride_);
    outputs_ = carver.take<float>(tile_rows * value_stride_);
    totals_ = carver.take<float>(tile_rows * value_stride_);
    scratch_ = carver.take<float>(4 * std::max(key_stride_, score_stride_));
  }

  void clear() { rows_ = 0; }

  /// Adds a row; returns where its query goes (key_dim floats, times the factor of the logits).
  float* add_row(const RowRule& rule) {
    row_[rows_] = {rule, {}, {}};
    std::fill_n(outputs_ + static_cast<std::size_t>(rows_) * value_stride_, value_stride_, 0.0f);
    float* query = queries_ + static_cast<std::size_t>(rows_) * key_stride_;
    std::fill_n(query, key_stride_, 0.0f);
    ++rows_;
    return query;
  }

  /// Attends to the slots 0 to tokens-1 of one page, as far as each row sees them.
  void add_page(const HeadLayout& head, const std::byte* block, std::int64_t first_position,
                int tokens, bool sinks) {
    const cpu::Range range = find_visible(first_position, tokens, sinks);
    if (range.first >= range.last) return;

    const int slots = static_cast<int>(padded(tokens));
    const cpu::Rows<float> scores{scores_, static_cast<std::ptrdiff_t>(score_stride_)};
    for (int r = 0; r < rows_; ++r) std::fill_n(scores[r], slots, 0.0f);
    kernels_->contract[cpu::width_slot(head.key.format.bits)](
        head.key, block, {queries_, static_cast<std::ptrdiff_t>(key_stride_)}, rows_, range,
        {0, head.key.matrix.inner}, scores, scratch_);

    const cpu::Rows<float> outputs{outputs_, static_cast<std::ptrdiff_t>(value_stride_)};
    for (int r = 0; r < rows_; ++r) {
      TileRow& row = row_[r];
      const cpu::LogitRule& logit = row.rule.logit;
      if (logit.cap > 0.0f || logit.slope != 0.0f)
        kernels_->shape(scores[r], slots, logit,
                        static_cast<float>(first_position - row.rule.position));
      const float shrink = kernels_->absorb(scores[r], slots, visible_[r], row.span);
      if (shrink != 1.0f) kernels_->scale(outputs[r], value_dim_, shrink);
    }
    kernels_->contract[cpu::width_slot(head.value.format.bits)](
        head.value, block, {scores_, static_cast<std::ptrdiff_t>(score_stride_)}, rows_,
        {0, head.value.matrix.outer}, range, outputs, scratch_);
  }

  /// Adds the span to the total and starts another.
  void end_span() {
    for (int r = 0; r < rows_; ++r) {
      TileRow& row = row_[r];
      float* span = outputs_ + static_cast<std::size_t>(r) * value_stride_;
      float* total = totals_ + static_cast<std::size_t>(r) * value_stride_;
      if (row.span.empty()) continue;
      const bool first = row.total.empty();
      const MergeWeights weights = merge(row.total, row.span);
      for (std::size_t channel = 0; channel < value_stride_; ++channel)
        total[channel] =
            (first ? 0.0f : total[channel] * weights.first) + span[channel] * weights.second;
      std::fill_n(span, value_stride_, 0.0f);
      row.span = {};
    }
  }

  /// Floats a span's result takes.
  [[nodiscard]] static std::size_t span_floats(int value_dim, int rows) {
    return static_cast<std::size_t>(rows) * (padded(value_dim) + 2);
  }

  /// Stores the span's result instead of adding it; take_span on another tile goes on from there.
  void give_span(float* storage) const {
    for (int r = 0; r < rows_; ++r, storage += value_stride_ + 2) {
      std::copy_n(outputs_ + static_cast<std::size_t>(r) * value_stride_, value_stride_, storage);
      storage[value_stride_] = row_[r].span.maximum;
      storage[value_stride_ + 1] = row_[r].span.sum;
    }
  }

  void take_span(const float* storage) {
    for (int r = 0; r < rows_; ++r, storage += value_stride_ + 2) {
      std::copy_n(storage, value_stride_, outputs_ + static_cast<std::size_t>(r) * value_stride_);
      row_[r].span = {storage[value_stride_], storage[value_stride_ + 1]};
    }
  }

  /// Normalises row r of the total into `out` (value_dim floats; zeros if it saw nothing) and returns
  /// its lse.
  float finish(int r, float* out) {
    SoftmaxState& state = row_[r].total;
    const float* total = totals_ + static_cast<std::size_t>(r) * value_stride_;
    const bool nothing = state.empty();
    float weight = 1.0f;
    if (row_[r].rule.has_sink) weight = merge(state, {row_[r].rule.sink_logit, 1.0f}).first;
    const float norm = nothing ? 0.0f : weight / state.sum;
    for (int channel = 0; channel < value_dim_; ++channel)
      out[channel] = nothing ? 0.0f : total[channel] * norm;
    return state.lse();
  }

 private:
  static std::size_t padded(int count) {
    return round_up(static_cast<std::size_t>(count), line_lanes);
  }

  /// Fills visible_; returns the slots that some row sees.
  cpu::Range find_visible(std::int64_t first_position, int tokens, bool sinks) {
    cpu::Range range{tokens, 0};
    for (int r = 0; r < rows_; ++r)
      for (int slot = 0; slot < tokens; slot += line_lanes) {
        const cpu::LaneMask mask =
            static_cast<cpu::LaneMask>(row_[r].rule.visible(first_position + slot, sinks) &
                                       cpu::lanes_between(0, tokens - slot));
        visible_[r][slot / line_lanes] = mask;
        if (mask == 0) continue;
        range.first = std::min(range.first, slot + std::countr_zero(mask));
        range.last = std::max(range.last, slot + line_lanes - std::countl_zero(mask));
      }
    return range;
  }

  const cpu::Kernels* kernels_;
  std::size_t key_stride_;
  std::size_t value_stride_;
  std::size_t score_stride_;
  int value_dim_;
  float* queries_;  ///< [rows][key_stride]
  float* scores_;   ///< [rows][score_stride], then probabilities
  float* outputs_;  ///< [rows][value_stride], unnormalised, of the running span
  float* totals_;   ///< [rows][value_stride], of all spans before
  float* scratch_;
  TileRow row_[tile_rows];
  cpu::LaneMask visible_[tile_rows][max_blocks];
  int rows_ = 0;
};

}  // namespace kvtilt::detail
