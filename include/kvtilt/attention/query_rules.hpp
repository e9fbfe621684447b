// SPDX-License-Identifier: MIT
/// Checks the arguments of attention, and turns its options into the rule of each query row.
#pragma once

#include <kvtilt/attention/tile.hpp>
#include <kvtilt/core/attend_options.hpp>
#include <kvtilt/core/row_check.hpp>
#include <kvtilt/core/softmax_state.hpp>
#include <kvtilt/core/status.hpp>
#include <kvtilt/core/tensor_view.hpp>
#include <kvtilt/core/tree_window.hpp>
#include <kvtilt/cpu/layer_view.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>

namespace kvtilt::detail {

inline Status check_attention(const LayerView& view, const TensorView& queries,
                              const OutputView& out, const AttendOptions& options) {
  const LayerShape& shape = view.shape;
  if (view.kernels == nullptr || shape.kv_heads == 0)
    return Status::error(ErrorCode::InvalidArgument, "the view is empty: it comes from no cache");
  KVTILT_RETURN_IF_ERROR(check_queries(shape, queries, out.tokens, out.heads, out.dim, out.data));
  return check_attend_options(options, shape, queries.tokens, queries.heads);
}

inline int effective_window(const LayerView& view, const AttendOptions& options) {
  return options.window > 0 ? options.window : view.shape.window;
}

/// Position of the first token that a tree mask decides on: of the oldest query, or of a tree that
/// began before the queries.
///
/// first, end  positions of the oldest query and behind the newest
inline std::int64_t first_new_token(const AttendOptions& options, std::int64_t first,
                                    std::int64_t end) {
  return options.tree_tokens > 0 ? end - options.tree_tokens : first;
}

/// The oldest position that some query sees, sinks apart, as far as the options decide; a tree's nodes
/// may see less. `first` and `end` are as for first_new_token().
inline std::int64_t oldest_seen(const LayerView& view, const AttendOptions& options,
                                std::int64_t first, std::int64_t end) {
  const int window = effective_window(view, options);
  const std::int64_t position = first_new_token(options, first, end);
  return std::max(options.first_position, window > 0 ? position - window + 1 : std::int64_t{0});
}

/// InvalidArgument if the tree has more tokens than the sequence, or if the window has freed a position
/// that the oldest query sees. `first` and `end` are as for first_new_token().
inline Status check_kept(const LayerView& view, const AttendOptions& options, std::int64_t first,
                         std::int64_t end) {
  const std::int64_t position = first_new_token(options, first, end);
  if (position < 0)
    return Status::error(ErrorCode::InvalidArgument, "%d tree_tokens in a sequence of %lld",
                         options.tree_tokens, static_cast<long long>(end));
  const std::int64_t oldest = oldest_seen(view, options, first, end);
  if (oldest >= view.first_kept || options.end_position <= oldest) return {};
  return Status::error(ErrorCode::InvalidArgument,
                       "the query at position %lld sees back to position %lld, but the window has "
                       "freed those before %lld: append fewer tokens at once, keep more "
                       "recent_tokens, or call attend_prefill before appending them",
                       static_cast<long long>(position), static_cast<long long>(oldest),
                       static_cast<long long>(view.first_kept));
}

/// Turns the options into the RowRule of each query row.
class RowRules {
 public:
  RowRules(const LayerView& view, const TensorView& queries, const AttendOptions& options,
           std::int64_t first_position)
      : options_(options),
        first_position_(first_position),
        newest_end_(first_position + queries.tokens),
        first_new_(first_new_token(options, first_position, newest_end_)),
        window_(effective_window(view, options)),
        keep_sinks_(view.shape.keep_sinks),
        sink_tokens_(view.sink_tokens) {
    const float scale = options.scale > 0.0f ? options.scale : implied_scale(queries.dim);
    // Logits are in base 2; with a cap, the factor gives the argument of tanh instead.
    query_factor_ = options.soft_cap > 0.0f ? scale / options.soft_cap : scale * log2_e;
  }

  [[nodiscard]] float query_factor() const { return query_factor_; }

  [[nodiscard]] RowRule row(std::int64_t token, int head) const {
    const std::int64_t position = first_position_ + token;
    const std::size_t index = static_cast<std::size_t>(head);
    RowRule rule{};
    rule.position = position;
    rule.first_position =
        std::max(options_.first_position, window_ > 0 ? position - window_ + 1 : std::int64_t{0});
    rule.tree_start = std::numeric_limits<std::int64_t>::max() / 2;
    const bool tree = !options_.tree_mask.empty();
    if (tree) show_tree(rule, token);
    rule.first_sink = keep_sinks_ ? options_.first_position : rule.first_position;
    rule.sink_end = keep_sinks_ ? sink_tokens_ : 0;
    const bool causal = options_.causal && !tree;
    rule.end_position = std::min(options_.end_position, causal ? position + 1 : newest_end_);
    rule.logit.cap = options_.soft_cap * log2_e;
    if (!options_.alibi_slopes.empty()) rule.logit.slope = options_.alibi_slopes[index] * log2_e;
    rule.has_sink = !options_.sink_logits.empty();
    if (rule.has_sink) rule.sink_logit = options_.sink_logits[index] * log2_e;
    return rule;
  }

 private:
  void show_tree(RowRule& rule, std::int64_t token) const {
    rule.tree = options_.tree_mask[static_cast<std::size_t>(token)];
    rule.tree_start = first_new_;
    if (window_ == 0) return;
    const int new_tokens = static_cast<int>(newest_end_ - first_new_);
    const TreeWindow left = TreeWindow::of(rule.tree, new_tokens, window_);
    rule.first_position = std::max(options_.first_position, first_new_ - left.older);
    std::uint64_t sinks = 0;  // of the new tokens, those that stay visible outside the window
    if (keep_sinks_ && sink_tokens_ > first_new_)
      sinks = ~std::uint64_t{0} >> (64 - std::min<std::int64_t>(sink_tokens_ - first_new_, 64));
    rule.tree &= left.seen | sinks;
  }

  const AttendOptions& options_;
  std::int64_t first_position_;
  std::int64_t newest_end_;
  std::int64_t first_new_;
  int window_;
  bool keep_sinks_;
  std::int64_t sink_tokens_;
  float query_factor_;
};

}  // namespace kvtilt::detail
