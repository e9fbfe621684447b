// SPDX-License-Identifier: MIT
/// Attention in float64, one query row at a time, and the error bound that the library promises.
/// Shares no code with the kernels: stored values come in as plain floats.
#pragma once

#include <kvtilt/core/attend_options.hpp>
#include <kvtilt/cpu/layer_view.hpp>
#include <kvtilt/page/unpack.hpp>

#include "support/fp16_oracle.hpp"
#include "support/rows.hpp"
#include "support/unpack_head.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <sstream>
#include <vector>

namespace kvtilt::test {

/// Keys and values of one kv head, [tokens][dim].
struct StoredHead {
  int key_dim = 0;
  int value_dim = 0;
  std::vector<float> keys;
  std::vector<float> values;
  std::vector<float> key_widths;    ///< |key| for the bound; empty: the key's own
  std::vector<float> value_widths;  ///< likewise

  [[nodiscard]] std::int64_t tokens() const {
    return static_cast<std::int64_t>(keys.size()) / key_dim;
  }
  void add(const Rows<float>& more_keys, const Rows<float>& more_values, int head) {
    for (std::int64_t token = 0; token < more_keys.tokens; ++token) {
      for (int c = 0; c < key_dim; ++c) keys.push_back(more_keys.at(token, head, c));
      for (int c = 0; c < value_dim; ++c) values.push_back(more_values.at(token, head, c));
    }
  }
};

/// The largest magnitude that a code in the element's group can decode to.
inline float group_width(const TensorLayout& tensor, const std::byte* block, int outer, int inner) {
  if (!tensor.format.quantized()) return std::abs(unpack_value(tensor, block, outer, inner));
  const int along = tensor.group_along_outer ? outer : inner;
  const int entry = tensor.group_along_outer ? inner : outer;
  const F16* scales = tensor.scales(block, along / tensor.format.group);
  const Affine affine{scales[entry], scales[tensor.pitch() + entry]};
  return std::max(std::abs(decode(0, affine)),
                  std::abs(decode(max_code(tensor.format.bits), affine)));
}

enum class Width { OfElements, OfGroups };

/// The values that a view holds, by unpack_head(). `width` selects |k| and |v| for the bound.
inline StoredHead stored_head(const LayerView& view, int kv_head, Width width = Width::OfElements) {
  StoredHead head{view.shape.key_dim, view.shape.value_dim, {}, {}, {}, {}};
  head.keys.resize(static_cast<std::size_t>(view.length * head.key_dim));
  head.values.resize(static_cast<std::size_t>(view.length * head.value_dim));
  // unpack_head() gives live tokens without gaps; each goes to its position. Freed ones stay 0.
  std::vector<float> keys(head.keys.size());
  std::vector<float> values(head.values.size());
  std::int64_t live = unpack_head(view, kv_head, keys.data(), values.data());
  for (std::int32_t i = view.page_count; i-- > 0;) {
    const PageEntry& page = view.pages[i];
    live -= page.tokens;
    std::copy_n(keys.data() + live * head.key_dim, page.tokens * head.key_dim,
                head.keys.data() + page.first_position * head.key_dim);
    std::copy_n(values.data() + live * head.value_dim, page.tokens * head.value_dim,
                head.values.data() + page.first_position * head.value_dim);
  }
  EXPECT_EQ(live, 0);
  for (std::int32_t i = 0; width == Width::OfGroups && i < view.page_count; ++i) {
    const HeadLayout& layout = view.head(view.pages[i].kind, kv_head);
    const std::byte* block = view.pages[i].data + layout.offset;
    for (int token = 0; token < view.pages[i].tokens; ++token) {
      for (int c = 0; c < head.key_dim; ++c)
        head.key_widths.push_back(group_width(layout.key, block, token, c));
      for (int c = 0; c < head.value_dim; ++c)
        head.value_widths.push_back(layout.values_in_keys()
                                        ? group_width(layout.key, block, token, c)
                                        : group_width(layout.value, block, c, token));
    }
  }
  return head;
}

/// Turns sanitizers off in the loops of oracles, where they would take most of the tests' time.
#define KVTILT_TEST_UNCHECKED __attribute__((no_sanitize("address", "undefined")))

struct OracleRow {
  std::vector<double> out;
  double lse = 0.0;
  double bound = 0.0;  ///< of every element of out
  double lse_bound = 0.0;
  double value_norm = 0.0;  ///< of options_oracle.hpp: weighted mean of the values' norms
  bool empty = false;       ///< nothing visible: out is 0, lse minus infinity
};

/// Attention of one query over the positions [first, last].
KVTILT_TEST_UNCHECKED inline OracleRow oracle_row(const StoredHead& stored, const float* query,
                                                  std::int64_t first, std::int64_t last,
                                                  double scale) {
  OracleRow row;
  row.out.assign(static_cast<std::size_t>(stored.value_dim), 0.0);
  double* const out = row.out.data();
  row.empty = first > last;
  if (row.empty) return row;
  std::vector<double> logits;
  double largest_product = 0.0;
  double largest_value = 0.0;
  const auto& key_widths = stored.key_widths.empty() ? stored.keys : stored.key_widths;
  const auto& value_widths = stored.value_widths.empty() ? stored.values : stored.value_widths;
  for (std::int64_t t = first; t <= last; ++t) {
    const float* key = stored.keys.data() + t * stored.key_dim;
    const float* width = key_widths.data() + t * stored.key_dim;
    double dot = 0.0;
    double magnitude = 0.0;
    for (int c = 0; c < stored.key_dim; ++c) {
      dot += static_cast<double>(query[c]) * static_cast<double>(key[c]);
      magnitude += std::fabs(static_cast<double>(query[c]) * static_cast<double>(width[c]));
    }
    logits.push_back(dot * scale);
    largest_product = std::max(largest_product, magnitude * scale);
  }
  const double largest = *std::max_element(logits.begin(), logits.end());
  double sum = 0.0;
  for (std::int64_t t = first; t <= last; ++t) {
    const double weight = std::exp(logits[static_cast<std::size_t>(t - first)] - largest);
    const float* value = stored.values.data() + t * stored.value_dim;
    const float* width = value_widths.data() + t * stored.value_dim;
    sum += weight;
    for (int c = 0; c < stored.value_dim; ++c) {
      out[c] += weight * static_cast<double>(value[c]);
      const double size = std::fabs(static_cast<double>(width[c]));
      if (size > largest_value) largest_value = size;
    }
  }
  for (double& x : row.out) x /= sum;
  row.lse = largest + std::log(sum);
  row.lse_bound = 1e-5 + 8.0 * 0x1p-24 * largest_product;
  row.bound = row.lse_bound * largest_value;
  return row;
}

/// The output of attention: [tokens, query_heads, value_dim] and [tokens, query_heads].
struct Output {
  Rows<float> out;
  std::vector<float> lse;

  Output(std::int64_t tokens, int query_heads, int value_dim)
      : out(tokens, query_heads, value_dim),
        lse(static_cast<std::size_t>(tokens * query_heads), 77.0f) {
    for (float& x : out.data) x = 77.0f;  // shows elements that were not written
  }
  [[nodiscard]] OutputView view() {
    return {out.data.data(), out.tokens, out.heads, out.dim, lse.data()};
  }
};

/// Compares bits, because -ffast-math assumes that there are no infinities.
inline bool is_minus_infinity(float x) { return bit_cast<std::uint32_t>(x) == 0xff800000u; }

/// Whether every element of `output` is within the promised bound. Query i has position
/// first_position + i; `stored` has one entry per kv head, with every position that any query may
/// see.
inline testing::AssertionResult keeps_bound(const std::vector<StoredHead>& stored,
                                            const Rows<float>& queries, std::int64_t first_position,
                                            int window, double scale, const Output& output) {
  const int gqa_ratio = queries.heads / static_cast<int>(stored.size());
  double worst = 0.0;
  std::ostringstream where;
  const auto judge = [&](double error, double bound, const char* what, std::int64_t token, int head,
                         int channel) {
    if (error <= bound * std::max(worst, 1e-300)) return;
    worst = bound > 0.0 ? error / bound : (error > 0.0 ? 1e300 : 0.0);
    where.str({});
    where << what << " of query " << token << ", head " << head << ", channel " << channel
          << ": error " << error << ", bound " << bound;
  };
  for (std::int64_t token = 0; token < queries.tokens; ++token)
    for (int head = 0; head < queries.heads; ++head) {
      const StoredHead& own = stored[static_cast<std::size_t>(head / gqa_ratio)];
      const std::int64_t last = first_position + token;
      const std::int64_t first = window > 0 ? std::max<std::int64_t>(0, last - window + 1) : 0;
      const OracleRow row = oracle_row(own, &queries.at(token, head, 0), first, last, scale);
      const float lse = output.lse[static_cast<std::size_t>(token * queries.heads + head)];
      if (row.empty || !is_finite(lse)) {
        if (row.empty != is_minus_infinity(lse)) judge(1e300, 1.0, "lse", token, head, 0);
      } else {
        judge(std::abs(static_cast<double>(lse) - row.lse), row.lse_bound, "lse", token, head, 0);
      }
      for (int c = 0; c < output.out.dim; ++c) {
        const float got = output.out.at(token, head, c);
        const double error =
            is_finite(got)
                ? std::abs(static_cast<double>(got) - row.out[static_cast<std::size_t>(c)])
                : 1e300;
        judge(error, row.bound, "output", token, head, c);
      }
    }
  if (worst <= 1.0) return testing::AssertionSuccess() << "worst error / bound " << worst;
  return testing::AssertionFailure() << where.str();
}

/// Options with the arithmetic for which attend() promises its error bound.
inline AttendOptions exact_options() {
  AttendOptions options;
  options.arithmetic = Arithmetic::Exact;
  return options;
}

inline double logit_scale(const LayerView& view, const AttendOptions& options) {
  return options.scale > 0.0f ? static_cast<double>(options.scale)
                              : 1.0 / std::sqrt(static_cast<double>(view.shape.key_dim));
}

/// The same for attend(): the queries are the newest tokens of the view.
inline testing::AssertionResult keeps_bound(const LayerView& view, const Rows<float>& queries,
                                            const AttendOptions& options, const Output& output) {
  std::vector<StoredHead> stored;
  for (int head = 0; head < view.shape.kv_heads; ++head) stored.push_back(stored_head(view, head));
  return keeps_bound(stored, queries, view.length - queries.tokens, view.shape.window,
                     logit_scale(view, options), output);
}

}  // namespace kvtilt::test
