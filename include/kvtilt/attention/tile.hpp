// SPDX-License-Identifier: MIT
/// Attention of a tile, up to 16 query rows that share a kv head, page by page.
#pragma once

#include <kvtilt/core/attend_options.hpp>
#include <kvtilt/core/softmax_state.hpp>
#include <kvtilt/core/tensor_view.hpp>
#include <kvtilt/cpu/kernel_table.hpp>
#include <kvtilt/cpu/layer_view.hpp>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>

namespace kvtilt::detail {

/// The most rows of a tile. Codes are decoded once per four rows for tiles of any size; the outputs
/// of a larger tile would not fit the L1 cache.
inline constexpr int tile_rows = 16;

/// Pages of a span. Its outputs are summed in float32, then added to a total in double, so rounding
/// errors do not grow with the length. Work is split between spans only, so results do not depend on
/// the number of threads.
inline constexpr int span_pages = 32;

/// Lines of 16 slots in the largest block: the sinks' 1024 tokens; pages have at most 128.
inline constexpr int max_blocks = 1024 / line_lanes;

/// The most pages that are joined: share one softmax update and one contraction of values.
inline constexpr int max_joined = cpu::joined_slots / 32;

/// Carves arrays, each aligned to page_alignment, out of a caller's workspace.
class WorkspaceCarver {
 public:
  /// With a null workspace, only used() counts.
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

/// Which positions one query row sees, and how cap and slope change its logits.
struct RowRule {
  std::int64_t first_position;  ///< oldest position inside window and range
  std::int64_t first_sink;      ///< the same for sinks, which may outlive the window
  std::int64_t sink_end;        ///< one past the newest sink that outlives it; 0: none
  std::int64_t end_position;    ///< one past the newest position that it sees
  std::int64_t position;        ///< of the query itself
  std::uint64_t tree;           ///< bit j: sees position tree_start + j
  std::int64_t tree_start;      ///< first position that `tree` decides on; beyond all: no tree
  cpu::LogitRule logit;
  float sink_logit;  ///< base 2
  bool has_sink;

  /// Which of 16 slots the row sees; slot 0 has position `start`.
  [[nodiscard]] cpu::LaneMask visible(std::int64_t start, bool sinks) const {
    const auto lane = [&](std::int64_t p) {
      return static_cast<int>(std::clamp<std::int64_t>(p - start, 0, line_lanes));
    };
    unsigned mask =
        cpu::lanes_between(lane(sinks ? first_sink : first_position), lane(end_position));
    if (start < sink_end)  // sinks-to-be in a prefill chunk, whose blocks are not marked as Sinks
      mask |= cpu::lanes_between(lane(first_sink), lane(std::min(sink_end, end_position)));
    const int first_tree_lane = lane(tree_start);
    if (first_tree_lane < line_lanes) {
      const std::int64_t shift = start - tree_start;  // bit of the tree that lane 0 stands for
      const std::uint64_t bits = shift >= 64 ? 0 : shift >= 0 ? tree >> shift : tree << -shift;
      mask &= cpu::lanes_between(0, first_tree_lane) | static_cast<unsigned>(bits & 0xffffu);
    }
    return static_cast<cpu::LaneMask>(mask);
  }
};

/// Use: clear, add_row for each row, add_page for each page, end_group after each group of joined_pages(),
/// end_span after each span, finish.
class AttentionTile {
 public:
  AttentionTile(const LayerShape& shape, int max_page_tokens, const cpu::Kernels* kernels,
                Arithmetic arithmetic, WorkspaceCarver& carver)
      : kernels_(kernels),
        arithmetic_(arithmetic),
        key_stride_(cpu::padded_extent(shape.key_dim)),
        value_stride_(padded(shape.value_dim)),
        score_stride_(cpu::padded_extent(std::max(max_page_tokens, cpu::joined_slots))),
        value_dim_(shape.value_dim) {
    queries_ = carver.take<float>(tile_rows * key_stride_);
    scores_ = carver.take<float>(tile_rows * score_stride_);
    outputs_ = carver.take<float>(tile_rows * value_stride_);
    totals_ = carver.take<double>(tile_rows * value_stride_);
    for (std::byte*& scratch : key_scratch_)
      scratch = carver.take<std::byte>(cpu::contract_scratch_bytes(shape.key_dim));
    const int most_slots = std::max(max_page_tokens, cpu::joined_slots);
    value_scratch_ = carver.take<std::byte>(cpu::contract_scratch_bytes(most_slots));
    if (shape.values_in_keys)  // room for 16 bits; codes and metadata take up to 12
      turned_ = carver.take<std::byte>(sizeof(F16) * value_stride_ * padded(most_slots));
  }

  void clear() {
    rows_ = kernel_rows_ = 0;
    common_ = {};
    transforms_logits_ = false;
    pending_ = nullptr;
    joined_ = {};
  }

  /// Adds a row; returns where to write its query: key_dim floats, multiplied by query_factor().
  float* add_row(const RowRule& rule) {
    rules_[rows_] = rule;
    transforms_logits_ = transforms_logits_ || rule.logit.cap > 0.0f || rule.logit.slope != 0.0f;
    common_.first = std::max(common_.first, rule.first_position);
    common_.end = std::min({common_.end, rule.end_position, rule.tree_start});
    total_states_[rows_] = {};
    total_sums_[rows_] = 0.0;
    std::fill_n(totals_ + static_cast<std::size_t>(rows_) * value_stride_, value_stride_, 0.0);
    float* query = clear_row(rows_);
    ++rows_;
    kernel_rows_ = rows_;
    if (rows_ % cpu::row_tile == 3) {  // three rows alone take 1.4 times as long as four at once
      clear_row(rows_);
      std::fill_n(visible_[rows_], max_blocks, cpu::LaneMask{0});
      ++kernel_rows_;
    }
    return query;
  }

  /// How many pages of this layout are joined. add_page()'s `prefetch_offset` leads as many pages ahead.
  [[nodiscard]] static int joined_pages(const HeadLayout& head) {
    const Format& values = (head.values_in_keys() ? head.key : head.value).format;
    const int slots = head.value.matrix.inner;
    return values.quantized() && slots < cpu::joined_slots ? cpu::joined_slots / slots : 1;
  }

  /// Attends to the slots 0 to tokens - 1 of one page, as far as each row sees them.
  ///
  /// prefetch_offset  bytes from `block` to the block to prefetch; 0: none
  void add_page(const HeadLayout& head, const std::byte* block, std::ptrdiff_t prefetch_offset,
                std::int64_t first_position, int tokens, bool sinks) {
    if (joined_.head != &head) end_group();
    const int slots = static_cast<int>(cpu::padded_extent(tokens));
    const cpu::Range range = find_visible(first_position, tokens, slots, sinks);
    if (range.first >= range.last) return;

    const int page = joined_.pages++;
    if (page == 0) joined_.seen.first = range.first;
    joined_.head = &head;
    joined_.block[page] = {block, prefetch_offset, first_position};
    joined_.seen.last = joined_.slots + range.last;
    cpu::PendingContraction& keys = keys_[page % 2];
    kernels_->begin(
        keys,
        {.role = Role::Keys,
         .tensor = &head.key,
         .pages = &joined_.block[page],
         .outer = range,
         .inner = {0, head.key.matrix.inner},
         .coefficients = {queries_, static_cast<std::ptrdiff_t>(key_stride_)},
         .rows = kernel_rows_,
         .result = {scores_ + joined_.slots, static_cast<std::ptrdiff_t>(score_stride_)},
         .scratch = key_scratch_[page % 2]},
        dot_type(head.key.format));
    finish_pending_and_set(&keys);
    joined_.slots += slots;
    // Unused slots may only come last, as their scales are undefined.
    if (joined_.pages == joined_pages(head) || tokens < head.value.matrix.inner) end_group();
  }

  /// Updates the softmax with the scores of the joined pages, then begins to add their values. Pages that
  /// no row sees are not joined: unless groups end at fixed pages, what the other rows of a tile see
  /// decides which pages share the rounding of their probabilities.
  void end_group() {
    if (joined_.pages == 0) return;
    finish_pending_and_set(nullptr);
    const cpu::Rows<float> scores{scores_, static_cast<std::ptrdiff_t>(score_stride_)};
    if (transforms_logits_) transform_logits(scores);
    const cpu::Rows<float> outputs{outputs_, static_cast<std::ptrdiff_t>(value_stride_)};
    float shrinks[tile_rows];
    if (kernels_->update_softmax(scores, kernel_rows_, joined_.slots,
                                 {joined_.all_visible ? nullptr : visible_[0], max_blocks}, spans_,
                                 shrinks))
      for (int r = 0; r < rows_; ++r)
        if (shrinks[r] != 1.0f) kernels_->scale(outputs[r], value_dim_, shrinks[r]);
    const HeadLayout& head = *joined_.head;
    std::copy_n(joined_.block, joined_.pages, value_blocks_);
    const TensorLayout* values = head.values_in_keys() ? turn_values(head.key) : &head.value;
    kernels_->begin(values_,
                    {.role = Role::Values,
                     .tensor = values,
                     .pages = value_blocks_,
                     .outer = {0, values->matrix.outer},
                     .inner = joined_.seen,
                     .coefficients = {scores_, static_cast<std::ptrdiff_t>(score_stride_)},
                     .rows = kernel_rows_,
                     .result = outputs,
                     .scratch = value_scratch_},
                    dot_type(values->format));
    finish_pending_and_set(&values_);
    joined_ = {};
  }

  /// Adds the current span to the total and starts another.
  void end_span() {
    end_group();
    finish_pending_and_set(nullptr);
    for (int r = 0; r < rows_; ++r) {
      float* span = outputs_ + static_cast<std::size_t>(r) * value_stride_;
      const SoftmaxState state = spans_[r].state();
      if (state.empty()) continue;
      add_to_total(r, state, span);
      std::fill_n(span, value_stride_, 0.0f);
      spans_[r] = {};
    }
  }

  /// Floats that one row of a span's result takes.
  [[nodiscard]] static std::size_t span_floats(int value_dim) { return padded(value_dim) + 2; }

  /// Stores the span's result, row by row, instead of adding it: for add_span of another tile.
  void store_span(float* storage) {
    end_group();
    finish_pending_and_set(nullptr);
    for (int r = 0; r < rows_; ++r, storage += value_stride_ + 2) {
      std::copy_n(outputs_ + static_cast<std::size_t>(r) * value_stride_, value_stride_, storage);
      const SoftmaxState state = spans_[r].state();
      storage[value_stride_] = state.maximum;
      storage[value_stride_ + 1] = state.sum;
    }
  }

  /// Adds a stored result to the total, as end_span does with the tile's own.
  void add_span(const float* storage) {
    for (int r = 0; r < rows_; ++r, storage += value_stride_ + 2) {
      const SoftmaxState state{storage[value_stride_], storage[value_stride_ + 1]};
      if (!state.empty()) add_to_total(r, state, storage);
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
    for (int start = 0; start < value_dim_; start += 8)  // as in add_to_total()
      for (int channel = start; channel < start + 8; ++channel)
        out[channel] = static_cast<float>(total[channel] * norm);
    return state.lse();
  }

 private:
  static std::size_t padded(int count) {
    return round_up(static_cast<std::size_t>(count), line_lanes);
  }

  /// Makes value_blocks_, the joined pages' keys so far, blocks of values; returns their layout.
  const TensorLayout* turn_values(const TensorLayout& keys) {
    turned_layout_ = cpu::turned_layout(keys, value_dim_);
    const cpu::TurnFn turn = kernels_->turn[cpu::width_slot(keys.format.bits)];
    std::byte* turned = turned_;
    for (int page = 0; page < joined_.pages; ++page) {
      cpu::PageBlock& block = value_blocks_[page];
      turn(keys, block.data, turned_layout_, turned);
      block = {turned, 0, block.position};
      turned += round_up(turned_layout_.end(), page_alignment);
    }
    return &turned_layout_;
  }

  /// Adds row r of a span that is not empty, value_stride_ floats, to the total.
  void add_to_total(int r, const SoftmaxState& state, const float* span) {
    double* total = totals_ + static_cast<std::size_t>(r) * value_stride_;
    const MergeWeights weights = merge(total_states_[r], state);
    const double old = static_cast<double>(weights.first);
    const double added = static_cast<double>(weights.second);
    total_sums_[r] = total_sums_[r] * old + static_cast<double>(state.sum) * added;
    // Line by line: at -O2, g++ vectorises only loops of a fixed length.
    for (std::size_t start = 0; start < value_stride_; start += line_lanes)
      for (std::size_t channel = start; channel < start + line_lanes; ++channel)
        total[channel] = total[channel] * old + static_cast<double>(span[channel]) * added;
  }

  /// Zeroes row r; returns where its query goes.
  float* clear_row(int r) {
    spans_[r] = {};
    std::fill_n(outputs_ + static_cast<std::size_t>(r) * value_stride_, value_stride_, 0.0f);
    float* query = queries_ + static_cast<std::size_t>(r) * key_stride_;
    std::fill_n(query, key_stride_, 0.0f);
    return query;
  }

  /// Finishes the contraction that is pending, and makes `begun` the pending one. The latency of
  /// making its weights hides behind the dot products of the other.
  void finish_pending_and_set(cpu::PendingContraction* begun) {
    if (pending_ != nullptr) kernels_->finish(*pending_);
    pending_ = begun;
  }

  void transform_logits(cpu::Rows<float> scores) {
    const int page_slots = joined_.head->value.matrix.inner;
    for (int page = 0; page < joined_.pages; ++page) {
      const int start = page * page_slots;
      const int slots = std::min(page_slots, joined_.slots - start);
      for (int r = 0; r < rows_; ++r)
        kernels_->transform_logits(
            scores[r] + start, slots, rules_[r].logit,
            static_cast<float>(joined_.block[page].position - rules_[r].position));
    }
  }

  [[nodiscard]] cpu::DotType dot_type(const Format& format) const {
    const int slot = cpu::width_slot(format.bits);
    if (arithmetic_ == Arithmetic::Exact || kernels_->integer_dot[slot] == nullptr)
      return cpu::DotType::Float;
    return cpu::DotType::Integer;
  }

  /// Fills visible_ for a page that is to be joined, unless all slots are visible; returns the range of
  /// its slots that some row sees.
  cpu::Range find_visible(std::int64_t first_position, int tokens, int slots, bool sinks) {
    const bool all = first_position >= common_.first && first_position + tokens <= common_.end &&
                     tokens == slots && !sinks;
    const int start = joined_.slots / line_lanes;
    if (all && joined_.all_visible) return {0, tokens};
    for (int r = 0; joined_.all_visible && r < rows_; ++r)
      std::fill_n(visible_[r], start, cpu::LaneMask{0xffff});
    joined_.all_visible = false;
    cpu::Range range{tokens, 0};
    for (int r = 0; r < rows_; ++r)
      for (int slot = 0; slot < slots; slot += line_lanes) {
        const cpu::LaneMask mask = static_cast<cpu::LaneMask>(
            rules_[r].visible(first_position + slot, sinks) & cpu::lanes_between(0, tokens - slot));
        visible_[r][start + slot / line_lanes] = mask;
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
  float* scores_;   ///< [rows][score_stride], logits, then probabilities
  float* outputs_;  ///< [rows][value_stride], unnormalised, of the current span
  double* totals_;  ///< [rows][value_stride], of all spans before
  std::byte* key_scratch_[2];
  std::byte* value_scratch_;
  std::byte* turned_ = nullptr;      ///< values that are in the keys, turned, of the joined pages
  TensorLayout turned_layout_;       ///< of each of these blocks
  cpu::PendingContraction keys_[2];  ///< of a page and the one before
  cpu::PendingContraction values_;
  cpu::PageBlock value_blocks_[max_joined];
  cpu::PendingContraction* pending_ = nullptr;  ///< begun, but not finished
  /// The joined pages; their scores stand side by side.
  struct {
    const HeadLayout* head = nullptr;
    int pages = 0;
    int slots = 0;
    bool all_visible = true;  ///< to every row; visible_ is not filled in then
    cpu::Range seen{0, 0};    ///< contains all slots that some row sees
    cpu::PageBlock block[max_joined];
  } joined_;
  RowRule rules_[tile_rows];
  cpu::RunningSoftmax spans_[tile_rows];  ///< of the current span
  SoftmaxState total_states_[tile_rows];  ///< of all spans before
  double total_sums_[tile_rows];          ///< their sums, in double
  /// Positions that every row sees, sinks apart.
  struct {
    std::int64_t first = 0;
    std::int64_t end = std::numeric_limits<std::int64_t>::max();
  } common_;
  cpu::LaneMask visible_[tile_rows][max_blocks];  ///< of the joined pages
  bool transforms_logits_ = false;                ///< some row has a cap or a slope
  int rows_ = 0;
  int kernel_rows_ = 0;  ///< rows_, plus a row of zeros if it is 3 modulo 4
};

}  // namespace kvtilt::detail
