// SPDX-License-Identifier: MIT
/// Attention of a tile of query rows that share a kv head: pages go through it one after another.
#pragma once

#include <kvtilt/core/softmax_state.hpp>
#include <kvtilt/core/tensor_view.hpp>
#include <kvtilt/cpu/kernel_table.hpp>
#include <kvtilt/page/layer_view.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

namespace kvtilt::detail {

/// Rows of a tile. Codes are decoded once per four rows whatever the tile; a larger one keeps its
/// outputs out of the first-level cache.
inline constexpr int tile_rows = 16;

/// Pages whose outputs are summed before they join the total. Bounds the rounding of long sums to
/// (span_pages + pages / span_pages) additions, and is the unit in which work can be split without
/// changing a bit.
inline constexpr int span_pages = 64;

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

/// One query row: which positions it sees.
struct TileRow {
  std::int64_t first_position;  ///< oldest position inside the window
  std::int64_t last_position;   ///< its own: later ones are masked
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

  /// Adds a row at `position`; returns where its query goes (key_dim floats, times the logit scale
  /// and log2(e)).
  float* add_row(std::int64_t position, int window) {
    TileRow& row = row_[rows_];
    row = {window > 0 ? std::max<std::int64_t>(0, position - window + 1) : 0, position, {}, {}};
    std::fill_n(outputs_ + static_cast<std::size_t>(rows_) * value_stride_, value_stride_, 0.0f);
    float* query = queries_ + static_cast<std::size_t>(rows_) * key_stride_;
    std::fill_n(query, key_stride_, 0.0f);
    ++rows_;
    return query;
  }

  /// Attends to the slots 0 to tokens-1 of one page, as far as each row sees them.
  void add_page(const HeadLayout& head, const std::byte* block, std::int64_t first_position,
                int tokens) {
    cpu::Range visible{tokens, 0};
    cpu::Range seen[tile_rows];
    for (int r = 0; r < rows_; ++r) {
      const std::int64_t first = row_[r].first_position - first_position;
      const std::int64_t last = row_[r].last_position + 1 - first_position;
      seen[r] = {static_cast<int>(std::clamp<std::int64_t>(first, 0, tokens)),
                 static_cast<int>(std::clamp<std::int64_t>(last, 0, tokens))};
      if (seen[r].first >= seen[r].last) continue;
      visible = {std::min(visible.first, seen[r].first), std::max(visible.last, seen[r].last)};
    }
    if (visible.first >= visible.last) return;

    const int slots = static_cast<int>(padded(tokens));
    const cpu::Rows<float> scores{scores_, static_cast<std::ptrdiff_t>(score_stride_)};
    for (int r = 0; r < rows_; ++r) std::fill_n(scores[r], slots, 0.0f);
    kernels_->contract[cpu::width_slot(head.key.format.bits)](
        head.key, block, {queries_, static_cast<std::ptrdiff_t>(key_stride_)}, rows_, visible,
        {0, head.key.matrix.inner}, scores, scratch_);

    const cpu::Rows<float> outputs{outputs_, static_cast<std::ptrdiff_t>(value_stride_)};
    for (int r = 0; r < rows_; ++r) {
      SoftmaxState& state = row_[r].span;
      const float shrink = kernels_->absorb(scores[r], slots, seen[r], state.maximum, state.sum);
      if (shrink != 1.0f) kernels_->scale(outputs[r], value_dim_, shrink);
    }
    kernels_->contract[cpu::width_slot(head.value.format.bits)](
        head.value, block, {scores_, static_cast<std::ptrdiff_t>(score_stride_)}, rows_,
        {0, head.value.matrix.outer}, visible, outputs, scratch_);
    if (++pages_in_span_ == span_pages) end_span();
  }

  /// Normalises row r into `out` (value_dim floats; zeros if it saw nothing) and returns its lse.
  float finish(int r, float* out) {
    end_span();
    const SoftmaxState& state = row_[r].total;
    const float* total = totals_ + static_cast<std::size_t>(r) * value_stride_;
    const float norm = state.empty() ? 0.0f : 1.0f / state.sum;
    for (int channel = 0; channel < value_dim_; ++channel)
      out[channel] = state.empty() ? 0.0f : total[channel] * norm;
    return state.lse();
  }

 private:
  static std::size_t padded(int count) {
    return round_up(static_cast<std::size_t>(count), line_lanes);
  }

  void end_span() {
    if (pages_in_span_ == 0) return;
    pages_in_span_ = 0;
    for (int r = 0; r < rows_; ++r) {
      float* span = outputs_ + static_cast<std::size_t>(r) * value_stride_;
      float* total = totals_ + static_cast<std::size_t>(r) * value_stride_;
      const bool first = row_[r].total.empty();
      const MergeWeights weights = merge(row_[r].total, row_[r].span);
      for (std::size_t channel = 0; channel < value_stride_; ++channel)
        total[channel] =
            (first ? 0.0f : total[channel] * weights.first) + span[channel] * weights.second;
      std::fill_n(span, value_stride_, 0.0f);
      row_[r].span = {};
    }
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
  int rows_ = 0;
  int pages_in_span_ = 0;
};

}  // namespace kvtilt::detail
