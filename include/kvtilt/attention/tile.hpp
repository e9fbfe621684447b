// SPDX-License-Identifier: MIT
/// Attention of a tile of query rows that share a kv head: pages go through it one after another.
#pragma once

#include <kvtilt/attention/options.hpp>
#include <kvtilt/core/softmax_state.hpp>
#include <kvtilt/core/tensor_view.hpp>
#include <kvtilt/cpu/kernel_table.hpp>
#include <kvtilt/page/layer_view.hpp>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>

namespace kvtilt::detail {

/// Rows of a tile. Codes are decoded once per four rows whatever the tile; a larger one keeps its
/// outputs out of the first-level cache.
inline constexpr int tile_rows = 16;

/// Pages whose outputs are summed in float32 before they join the total, which is kept in double:
/// rounding does not grow with the length. Also the unit in which work is split: results do not
/// depend on how many threads there are.
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

class AttentionTile {
 public:
  AttentionTile(const LayerShape& shape, int max_page_tokens, const cpu::Kernels* kernels,
                Arithmetic arithmetic, WorkspaceCarver& carver)
      : kernels_(kernels),
        arithmetic_(arithmetic),
        key_stride_(cpu::padded_extent(shape.key_dim)),
        value_stride_(padded(shape.value_dim)),
        score_stride_(cpu::padded_extent(max_page_tokens)),
        value_dim_(shape.value_dim) {
    queries_ = carver.take<float>(tile_rows * key_stride_);
    scores_ = carver.take<float>(tile_rows * score_stride_);
    outputs_ = carver.take<float>(tile_rows * value_stride_);
    totals_ = carver.take<double>(tile_rows * value_stride_);
    key_scratch_ = carver.take<std::byte>(cpu::contract_scratch_bytes(shape.key_dim));
    value_scratch_ = carver.take<std::byte>(cpu::contract_scratch_bytes(max_page_tokens));
  }

  void clear() {
    rows_ = kernel_rows_ = 0;
    common_ = {};
    shapes_logits_ = false;
    values_are_due_ = false;
  }

  /// Adds a row; returns where its query goes (key_dim floats, times the factor of the logits).
  float* add_row(const RowRule& rule) {
    rules_[rows_] = rule;
    shapes_logits_ = shapes_logits_ || rule.logit.cap > 0.0f || rule.logit.slope != 0.0f;
    common_.first = std::max(common_.first, rule.first_position);
    common_.end = std::min({common_.end, rule.end_position, rule.tree_start});
    total_states_[rows_] = {};
    float* query = clear_row(rows_);
    ++rows_;
    kernel_rows_ = rows_;
    if (rows_ % cpu::row_tile == 3) {  // one by one they take 1.4 times as long as four together
      clear_row(rows_);
      std::fill_n(visible_[rows_], max_blocks, cpu::LaneMask{0});
      ++kernel_rows_;
    }
    return query;
  }

  /// Attends to the slots 0 to tokens-1 of one page, as far as each row sees them.
  void add_page(const HeadLayout& head, const std::byte* block, std::ptrdiff_t next,
                std::int64_t first_position, int tokens, bool sinks) {
    const int slots = static_cast<int>(cpu::padded_extent(tokens));
    const cpu::Range range = find_visible(first_position, tokens, slots, sinks);
    if (range.first >= range.last) return;

    const cpu::Rows<float> scores{scores_, static_cast<std::ptrdiff_t>(score_stride_)};
    kernels_->begin(keys_,
                    {cpu::Role::Keys,
                     &head.key,
                     block,
                     next,
                     range,
                     {0, head.key.matrix.inner},
                     {queries_, static_cast<std::ptrdiff_t>(key_stride_)},
                     kernel_rows_,
                     scores,
                     key_scratch_},
                    sums_of(head.key.format));
    add_due_values();
    kernels_->finish(keys_);

    for (int r = 0; shapes_logits_ && r < rows_; ++r)
      kernels_->shape(scores[r], slots, rules_[r].logit,
                      static_cast<float>(first_position - rules_[r].position));
    const cpu::Rows<float> outputs{outputs_, static_cast<std::ptrdiff_t>(value_stride_)};
    float shrinks[tile_rows];
    if (kernels_->absorb(scores, kernel_rows_, slots,
                         {all_visible_ ? nullptr : visible_[0], max_blocks}, spans_, shrinks))
      for (int r = 0; r < rows_; ++r)
        if (shrinks[r] != 1.0f) kernels_->scale(outputs[r], value_dim_, shrinks[r]);
    kernels_->begin(values_,
                    {cpu::Role::Values,
                     &head.value,
                     block,
                     next,
                     {0, head.value.matrix.outer},
                     range,
                     {scores_, static_cast<std::ptrdiff_t>(score_stride_)},
                     kernel_rows_,
                     outputs,
                     value_scratch_},
                    sums_of(head.value.format));
    values_are_due_ = true;
  }

  /// Adds the span to the total and starts another.
  void end_span() {
    add_due_values();
    for (int r = 0; r < rows_; ++r) {
      float* span = outputs_ + static_cast<std::size_t>(r) * value_stride_;
      double* total = totals_ + static_cast<std::size_t>(r) * value_stride_;
      const SoftmaxState added_state = spans_[r].state();
      if (added_state.empty()) continue;
      const bool first = total_states_[r].empty();
      const MergeWeights weights = merge(total_states_[r], added_state);
      const double old = static_cast<double>(weights.first);
      const double added = static_cast<double>(weights.second);
      total_sums_[r] =
          (first ? 0.0 : total_sums_[r] * old) + static_cast<double>(added_state.sum) * added;
      for (std::size_t channel = 0; channel < value_stride_; ++channel)
        total[channel] =
            (first ? 0.0 : total[channel] * old) + static_cast<double>(span[channel]) * added;
      std::fill_n(span, value_stride_, 0.0f);
      spans_[r] = {};
    }
  }

  /// Floats a span's result takes.
  [[nodiscard]] static std::size_t span_floats(int value_dim, int rows) {
    return static_cast<std::size_t>(rows) * (padded(value_dim) + 2);
  }

  /// Stores the span's result instead of adding it; take_span on another tile goes on from there.
  void give_span(float* storage) {
    add_due_values();
    for (int r = 0; r < rows_; ++r, storage += value_stride_ + 2) {
      std::copy_n(outputs_ + static_cast<std::size_t>(r) * value_stride_, value_stride_, storage);
      const SoftmaxState state = spans_[r].state();
      storage[value_stride_] = state.maximum;
      storage[value_stride_ + 1] = state.sum;
    }
  }

  void take_span(const float* storage) {
    for (int r = 0; r < rows_; ++r, storage += value_stride_ + 2) {
      std::copy_n(storage, value_stride_, outputs_ + static_cast<std::size_t>(r) * value_stride_);
      spans_[r] = cpu::RunningSoftmax({storage[value_stride_], storage[value_stride_ + 1]});
    }
  }

  /// Normalises row r of the total into `out` (value_dim floats; zeros if it saw nothing) and returns
  /// its lse.
  float finish(int r, float* out) {
    SoftmaxState& state = total_states_[r];
    const double* total = totals_ + static_cast<std::size_t>(r) * value_stride_;
    const bool nothing = state.empty();
    if (!nothing) state.sum = static_cast<float>(total_sums_[r]);
    float weight = 1.0f;
    if (rules_[r].has_sink) weight = merge(state, {rules_[r].sink_logit, 1.0f}).first;
    const double norm =
        nothing ? 0.0 : static_cast<double>(weight) / static_cast<double>(state.sum);
    for (int channel = 0; channel < value_dim_; ++channel)
      out[channel] = nothing ? 0.0f : static_cast<float>(total[channel] * norm);
    return state.lse();
  }

 private:
  static std::size_t padded(int count) {
    return round_up(static_cast<std::size_t>(count), line_lanes);
  }

  /// Returns where its query goes.
  float* clear_row(int r) {
    spans_[r] = {};
    std::fill_n(outputs_ + static_cast<std::size_t>(r) * value_stride_, value_stride_, 0.0f);
    float* query = queries_ + static_cast<std::size_t>(r) * key_stride_;
    std::fill_n(query, key_stride_, 0.0f);
    return query;
  }

  /// Adds what the last page gives to the outputs: put off, so that its dot products hide how long
  /// the weights of the next page's keys take.
  void add_due_values() {
    if (values_are_due_) kernels_->finish(values_);
    values_are_due_ = false;
  }

  [[nodiscard]] cpu::Sums sums_of(const Format& format) const {
    const int slot = cpu::width_slot(format.bits);
    if (arithmetic_ == Arithmetic::Exact || kernels_->integer_dot[slot] == nullptr)
      return cpu::Sums::Float;
    return cpu::Sums::Integer;
  }

  /// Fills visible_ for `slots` slots, unless all are visible; returns those that some row sees.
  cpu::Range find_visible(std::int64_t first_position, int tokens, int slots, bool sinks) {
    all_visible_ = first_position >= common_.first && first_position + tokens <= common_.end &&
                   tokens == slots && !sinks;
    if (all_visible_) return {0, tokens};
    cpu::Range range{tokens, 0};
    for (int r = 0; r < rows_; ++r)
      for (int slot = 0; slot < slots; slot += line_lanes) {
        const cpu::LaneMask mask = static_cast<cpu::LaneMask>(
            rules_[r].visible(first_position + slot, sinks) & cpu::lanes_between(0, tokens - slot));
        visible_[r][slot / line_lanes] = mask;
        if (mask == 0) continue;
        range.first = std::min(range.first, slot + std::countr_zero(mask));
        range.last = std::max(range.last, slot + line_lanes - std::countl_zero(mask));
      }
    return range;
  }

  const cpu::Kernels* kernels_;
  Arithmetic arithmetic_;
  std::size_t key_stride_;
  std::size_t value_stride_;
  std::size_t score_stride_;
  int value_dim_;
  float* queries_;  ///< [rows][key_stride]
  float* scores_;   ///< [rows][score_stride], then probabilities
  float* outputs_;  ///< [rows][value_stride], unnormalised, of the running span
  double* totals_;  ///< [rows][value_stride], of all spans before
  std::byte* key_scratch_;
  std::byte* value_scratch_;
  cpu::Contracting keys_;
  cpu::Contracting values_;
  bool values_are_due_ = false;
  RowRule rules_[tile_rows];
  cpu::RunningSoftmax spans_[tile_rows];  ///< of the running span
  SoftmaxState total_states_[tile_rows];  ///< of all spans before
  double total_sums_[tile_rows];          ///< its sums, in double
  /// Positions that every row sees, sinks apart.
  struct {
    std::int64_t first = 0;
    std::int64_t end = std::numeric_limits<std::int64_t>::max();
  } common_;
  cpu::LaneMask visible_[tile_rows][max_blocks];  ///< of the current page
  bool all_visible_ = false;                      ///< then they say nothing
  bool shapes_logits_ = false;                    ///< for some row
  int rows_ = 0;
  int kernel_rows_ = 0;  ///< with a row of zeros where three are left over
};

}  // namespace kvtilt::detail
