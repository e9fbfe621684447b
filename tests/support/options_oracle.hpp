// SPDX-License-Identifier: MIT
/// Attention in float64 with all AttendOptions, one query row at a time.
#pragma once

#include <kvtilt/core/attend_options.hpp>

#include "support/attention_oracle.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace kvtilt::test {

/// A live token: its position, key and value.
struct LiveToken {
  std::int64_t position;
  const float* key;
  const float* value;
  bool sink;
  const float* key_width = nullptr;  ///< |key| for the bound; null: the key's own
  const float* value_width = nullptr;
};

/// The query at `position`, one of the `queries` newest tokens, which start at `first_query`.
struct QueryPlace {
  std::int64_t position;
  std::int64_t first_query;
  int index;
  int head;
};

inline bool sees(const AttendOptions& options, const LayerShape& shape, const QueryPlace& query,
                 const LiveToken& token) {
  const int window = options.window > 0 ? options.window : shape.window;
  const std::int64_t j = token.position;
  if (j < options.first_position || j >= options.end_position) return false;
  const bool windowed = window > 0 && !(token.sink && shape.keep_sinks);
  if (options.tree_mask.empty())
    return !(windowed && j <= query.position - window) && (!options.causal || j <= query.position);
  const std::uint64_t word = options.tree_mask[static_cast<std::size_t>(query.index)];
  const auto in_tree = [&](std::int64_t new_token) { return (word >> new_token & 1) != 0; };
  const std::int64_t queries = static_cast<std::int64_t>(options.tree_mask.size());
  const std::int64_t new_tokens = std::max<std::int64_t>(queries, options.tree_tokens);
  const std::int64_t first_new = query.first_query + queries - new_tokens;
  if (j - first_new >= new_tokens) return false;
  if (j >= first_new && !in_tree(j - first_new)) return false;
  // Of what is seen, as many are newer than j; all before the new tokens are.
  std::int64_t newer = std::max<std::int64_t>(0, first_new - 1 - j);
  std::int64_t path = 0;
  for (std::int64_t i = 0; i < new_tokens; ++i) {
    path += in_tree(i);
    newer += in_tree(i) && first_new + i > j;
  }
  if (path == 0) ++newer;  // the row itself
  return !windowed || newer < window;
}

/// The softmax row and the bound of attend()'s docstring.
KVTILT_TEST_UNCHECKED inline OracleRow oracle_row(const AttendOptions& options,
                                                  const LayerShape& shape, const QueryPlace& query,
                                                  const float* q,
                                                  const std::vector<LiveToken>& tokens) {
  const double scale = options.scale > 0.0f ? static_cast<double>(options.scale)
                                            : 1.0 / std::sqrt(static_cast<double>(shape.key_dim));
  const double cap = static_cast<double>(options.soft_cap);
  const std::size_t head = static_cast<std::size_t>(query.head);
  OracleRow row;
  row.out.assign(static_cast<std::size_t>(shape.value_dim), 0.0);
  double* const out = row.out.data();
  row.empty = true;
  std::vector<double> logits;
  std::vector<const LiveToken*> seen;
  double product = 0.0;
  double largest_value = 0.0;
  for (const LiveToken& token : tokens) {
    if (!sees(options, shape, query, token)) continue;
    const float* key_width = token.key_width != nullptr ? token.key_width : token.key;
    const float* value_width = token.value_width != nullptr ? token.value_width : token.value;
    double dot = 0.0;
    double magnitude = 0.0;
    for (int c = 0; c < shape.key_dim; ++c) {
      dot += static_cast<double>(q[c]) * static_cast<double>(token.key[c]);
      magnitude += std::fabs(static_cast<double>(q[c]) * static_cast<double>(key_width[c]));
    }
    double logit = dot * scale;
    if (cap > 0) logit = cap * std::tanh(logit / cap);
    double bias = 0.0;
    if (!options.alibi_slopes.empty())
      bias = static_cast<double>(options.alibi_slopes[head]) *
             static_cast<double>(token.position - query.position);
    logits.push_back(logit + bias);
    seen.push_back(&token);
    product = std::max(product, magnitude * scale + std::fabs(bias));
    for (int c = 0; c < shape.value_dim; ++c) {
      const double size = std::fabs(static_cast<double>(value_width[c]));
      if (size > largest_value) largest_value = size;
    }
  }
  double largest = logits.empty() ? -1e300 : *std::max_element(logits.begin(), logits.end());
  double sum = 0.0;
  if (!options.sink_logits.empty()) {
    const double sink = static_cast<double>(options.sink_logits[head]);
    largest = std::max(largest, sink);
    sum = std::exp(sink - largest);
    row.empty = false;
  }
  for (std::size_t i = 0; i < seen.size(); ++i) {
    const double weight = std::exp(logits[i] - largest);
    sum += weight;
    row.empty = false;
    double squares = 0.0;
    for (int c = 0; c < shape.value_dim; ++c) {
      const double value = static_cast<double>(seen[i]->value[c]);
      out[c] += weight * value;
      squares += value * value;
    }
    row.value_norm += weight * std::sqrt(squares);
  }
  if (row.empty) return row;
  for (double& x : row.out) x /= sum;
  row.value_norm /= sum;
  row.lse = largest + std::log(sum);
  row.lse_bound = 1e-5 + 8.0 * 0x1p-24 * product + 0x1p-21 * cap;
  row.bound = row.lse_bound * largest_value;
  return row;
}

/// Whether a computed row keeps the bound; `stretch` widens it where stored values cancel.
inline testing::AssertionResult keeps_bound(const OracleRow& expected, const float* out, float lse,
                                            double stretch = 1.0) {
  if (expected.empty != is_minus_infinity(lse))
    return testing::AssertionFailure()
           << "lse " << lse << (expected.empty ? " should be -inf" : "");
  if (!expected.empty &&
      !(std::abs(static_cast<double>(lse) - expected.lse) <= expected.lse_bound * stretch &&
        is_finite(lse)))
    return testing::AssertionFailure() << "lse " << lse << ", expected " << expected.lse;
  for (std::size_t c = 0; c < expected.out.size(); ++c)
    if (!is_finite(out[c]) ||
        std::abs(static_cast<double>(out[c]) - expected.out[c]) > expected.bound * stretch)
      return testing::AssertionFailure() << "channel " << c << ": " << out[c] << ", expected "
                                         << expected.out[c] << ", bound " << expected.bound;
  return testing::AssertionSuccess();
}

}  // namespace kvtilt::test
