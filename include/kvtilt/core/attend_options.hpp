// SPDX-License-Identifier: MIT
/// The options of attention beside its tensors, and their check.
#pragma once

#include <kvtilt/core/half.hpp>
#include <kvtilt/core/shape.hpp>
#include <kvtilt/core/softmax_state.hpp>
#include <kvtilt/core/status.hpp>
#include <kvtilt/core/tree_window.hpp>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>

namespace kvtilt {

/// The arithmetic of dot products with quantized codes. It is chosen for keys and for values apart, as
/// their code widths may differ.
enum class Arithmetic : std::uint8_t {
  /// Integer dot products if this machine has fast ones for the tensor's code width, else float32.
  /// Integers require queries or probabilities to be rounded too, in steps that follow the width of
  /// the codes: measured (bench/run.sh --errors), this adds a fifth of the codes' own error (rms) at
  /// most. No number of tokens makes it more, as the rounding of probabilities is right on average. The
  /// rounding of queries adds up to two fifths of the error of keys alone, where one channel has much the
  /// largest queries and few distinct keys, which few bits store exactly (source `delimiters`).
  Fast,
  Exact,  ///< float32: attend() states the error bound
};

/// Order of operations, for a query at position i and a key at position j:
///
///     logit = cap * tanh(scale * q.k / cap) + slope * (j - i)     cap and slope where given
///     then keys are masked out unless they are in first_position to end_position - 1, inside the
///     window, and visible by causality (if `causal`) or by the tree mask;
///     then the head's sink logit, without scale, cap or slope, joins the softmax denominator.
struct AttendOptions {
  float scale = 0.0f;     ///< of q.k, up to 1e30; 0: 1 / sqrt(key_dim)
  float soft_cap = 0.0f;  ///< up to 1e30; 0: none
  int window = 0;         ///< newest tokens a query sees, itself included; 0: the layer's own
  std::span<const float> alibi_slopes = {};  ///< [query_heads], up to +-1e30; empty: none
  Arithmetic arithmetic = Arithmetic::Fast;
  /// [query_heads] attention-sink logits (gpt-oss), up to +-1e30: each joins its head's softmax as a
  /// key with value 0. When parts are merged, exactly one must have them. -infinity: none for that
  /// head. Empty: none.
  std::span<const float> sink_logits = {};
  /// [queries] words for speculative decoding, in place of causality: bit j of word i lets query i
  /// see the j-th of the newest `tree_tokens` tokens; higher bits must be 0. Empty: causal. A window
  /// counts the tokens that a query sees, so a node of a tree attends as at the end of its path; ALiBi
  /// counts tokens in the order of appending. To keep one path of a tree, verify it by attend_prefill()
  /// before anything is appended, then append the rows of the path. A path of a tree that has been
  /// appended and is still in the tail is kept exactly, too: unpack its rows as F16, truncate to before
  /// the tree, append them.
  std::span<const std::uint64_t> tree_mask = {};
  /// Tokens of the tree, at most 64; the queries are the newest of them. More than queries where a tree
  /// grows level by level: older levels are seen, but only the newest one asks. 0: as many as queries.
  int tree_tokens = 0;
  /// Restricts attention to the keys at first_position to end_position - 1: one part, for merge().
  std::int64_t first_position = 0;
  std::int64_t end_position = std::numeric_limits<std::int64_t>::max();
  /// false: queries also see the tokens after their own, up to the newest. For bidirectional chunks
  /// (images), and for a shared prefix that serves queries of many sequences at once: pass them as the
  /// queries of one sequence that holds the prefix, with end_position at its end. Windows and ALiBi
  /// then use the rows' positions in that sequence; without them, there may be more queries than tokens.
  bool causal = true;
};

namespace detail {

/// The largest magnitude accepted for factors, slopes and logits; far above any model's.
inline constexpr float largest_option = 1e30f;

/// True for 0 <= x <= largest_option; false for -0 and NaN. Compares bits, because -ffast-math lets
/// the compiler assume that there is no NaN.
inline bool is_factor(float x) {
  return bit_cast<std::uint32_t>(x) <= bit_cast<std::uint32_t>(largest_option);
}

/// True for |x| <= largest_option.
inline bool is_moderate(float x) {
  return is_factor(bit_cast<float>(bit_cast<std::uint32_t>(x) & 0x7fffffffu));
}

}  // namespace detail

/// InvalidArgument, naming an option that is out of range or contradicts another.
inline Status check_attend_options(const AttendOptions& options, const LayerShape& shape,
                                   std::int64_t queries, int query_heads) {
  constexpr ErrorCode invalid = ErrorCode::InvalidArgument;
  if (!detail::is_factor(options.scale))
    return Status::error(invalid,
                         "scale is %g, must be positive, up to 1e30, or 0 for 1/sqrt(key_dim)",
                         static_cast<double>(options.scale));
  if (!detail::is_factor(options.soft_cap))
    return Status::error(invalid, "soft_cap is %g, must be positive, up to 1e30, or 0 for none",
                         static_cast<double>(options.soft_cap));
  if (options.arithmetic > Arithmetic::Exact)
    return Status::error(invalid, "arithmetic is %d, must be Fast or Exact",
                         static_cast<int>(options.arithmetic));
  if (options.window < 0)
    return Status::error(invalid, "window is %d, must be positive, or 0 for the layer's own",
                         options.window);
  if (shape.window > 0 && options.window > shape.window)
    return Status::error(invalid,
                         "window %d is wider than the layer's %d: older tokens may be gone",
                         options.window, shape.window);
  const std::size_t heads = static_cast<std::size_t>(query_heads);
  if (!options.alibi_slopes.empty() && options.alibi_slopes.size() != heads)
    return Status::error(invalid, "%zu ALiBi slopes for %d query heads",
                         options.alibi_slopes.size(), query_heads);
  if (!options.sink_logits.empty() && options.sink_logits.size() != heads)
    return Status::error(invalid, "%zu sink logits for %d query heads", options.sink_logits.size(),
                         query_heads);
  for (std::size_t head = 0; head < options.alibi_slopes.size(); ++head)
    if (!detail::is_moderate(options.alibi_slopes[head]))
      return Status::error(invalid, "the ALiBi slope of head %zu is %g, must be within 1e30", head,
                           static_cast<double>(options.alibi_slopes[head]));
  for (std::size_t head = 0; head < options.sink_logits.size(); ++head)
    if (const float logit = options.sink_logits[head];
        !detail::is_moderate(logit) && !is_minus_infinity(logit))
      return Status::error(
          invalid,
          "the sink logit of head %zu is %g, must be within 1e30, or -infinity for "
          "none",
          head, static_cast<double>(logit));
  if (!options.tree_mask.empty() &&
      (options.tree_mask.size() != static_cast<std::size_t>(queries) || queries > most_tree_tokens))
    return Status::error(
        invalid, "the tree mask has %zu words for %lld queries; one each is needed, for at most %d",
        options.tree_mask.size(), static_cast<long long>(queries), most_tree_tokens);
  if (options.tree_tokens != 0 && (options.tree_mask.empty() || options.tree_tokens < queries ||
                                   options.tree_tokens > most_tree_tokens))
    return Status::error(invalid,
                         "%d tree_tokens for %lld queries %s; a tree holds its queries, and at "
                         "most %d tokens",
                         options.tree_tokens, static_cast<long long>(queries),
                         options.tree_mask.empty() ? "without a tree mask" : "under a tree mask",
                         most_tree_tokens);
  const std::int64_t tree_tokens = std::max<std::int64_t>(queries, options.tree_tokens);
  for (std::size_t query = 0; query < options.tree_mask.size(); ++query)
    if (const std::uint64_t beyond = options.tree_mask[query] & ~detail::tree_bits(tree_tokens);
        beyond != 0)
      return Status::error(invalid,
                           "query %zu has bit %d in the tree mask, but the tree has %lld tokens: "
                           "tree_tokens or, if that is 0, the queries",
                           query, std::countr_zero(beyond), static_cast<long long>(tree_tokens));
  if (!options.tree_mask.empty() && !options.causal)
    return Status::error(invalid,
                         "a tree mask says what is seen of the newest tokens: causal = false "
                         "cannot say it, too");
  if (options.first_position < 0 || options.end_position < options.first_position)
    return Status::error(invalid, "positions %lld to %lld are not a range",
                         static_cast<long long>(options.first_position),
                         static_cast<long long>(options.end_position));
  return {};
}

}  // namespace kvtilt
