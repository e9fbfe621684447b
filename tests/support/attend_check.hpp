// SPDX-License-Identifier: MIT
/// Compares attend() with any options with the oracle of options_oracle.hpp.
#pragma once

#include "support/caches.hpp"
#include "support/options_oracle.hpp"

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace kvtilt::test {

/// Live tokens of one kv head; owns what the LiveTokens point to.
struct LiveHead {
  std::vector<float> keys;
  std::vector<float> values;
  std::vector<LiveToken> tokens;

  LiveHead(const LayerView& view, int kv_head) {
    std::int64_t count = 0;
    for (std::int32_t i = 0; i < view.page_count; ++i) count += view.pages[i].tokens;
    keys.resize(static_cast<std::size_t>(count * view.shape.key_dim));
    values.resize(static_cast<std::size_t>(count * view.shape.value_dim));
    EXPECT_EQ(unpack_head(view, kv_head, keys.data(), values.data()), count);
    std::int64_t index = 0;
    for (std::int32_t i = 0; i < view.page_count; ++i)
      for (int slot = 0; slot < view.pages[i].tokens; ++slot, ++index)
        tokens.push_back(
            {view.pages[i].first_position + slot, keys.data() + index * view.shape.key_dim,
             values.data() + index * view.shape.value_dim, view.pages[i].kind == PageKind::Sinks});
  }
  LiveHead(LiveHead&&) = default;
};

/// Whether `output` is the attention of the newest queries.tokens positions of the view.
inline testing::AssertionResult follows_oracle(const LayerView& view, const Rows<float>& queries,
                                               const AttendOptions& options, const Output& output,
                                               double stretch = 1.0) {
  const int gqa_ratio = queries.heads / view.shape.kv_heads;
  for (int kv_head = 0; kv_head < view.shape.kv_heads; ++kv_head) {
    const LiveHead live(view, kv_head);
    for (int head = kv_head * gqa_ratio; head < (kv_head + 1) * gqa_ratio; ++head)
      for (std::int64_t t = 0; t < queries.tokens; ++t) {
        const std::int64_t first = view.length - queries.tokens;
        const OracleRow row =
            oracle_row(options, view.shape, {first + t, first, static_cast<int>(t), head},
                       &queries.at(t, head, 0), live.tokens);
        const testing::AssertionResult kept =
            keeps_bound(row, &output.out.at(t, head, 0),
                        output.lse[static_cast<std::size_t>(t * queries.heads + head)], stretch);
        if (!kept)
          return testing::AssertionFailure()
                 << "query " << t << ", head " << head << ": " << kept.message();
      }
  }
  return testing::AssertionSuccess();
}

}  // namespace kvtilt::test
