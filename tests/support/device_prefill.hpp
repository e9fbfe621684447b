// SPDX-License-Identifier: MIT
/// Runs the prefill kernel's body in the emulator and compares it with float64.
#pragma once

#include <kvtilt/cuda/attention/prefill_block.hpp>

#include "support/device_attention.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <vector>

namespace kvtilt::test {

/// A chunk for each sequence of a batch, in tensors of any strides and element types.
struct Chunks {
  std::vector<std::int32_t> indptr{0};
  RandomInput keys;
  RandomInput values;
  RandomInput queries;

  Chunks(Random& random, const LayerShape& shape, const std::vector<int>& lengths, int gqa_ratio)
      : keys(random, sum(lengths), shape.kv_heads, shape.key_dim),
        values(random, sum(lengths), shape.kv_heads, shape.value_dim),
        queries(random, sum(lengths), shape.kv_heads * gqa_ratio, shape.key_dim) {
    for (const int length : lengths) indptr.push_back(indptr.back() + length);
  }

 private:
  static std::int64_t sum(const std::vector<int>& lengths) {
    return std::accumulate(lengths.begin(), lengths.end(), 0);
  }
};

/// `trees` hold one word per row of the tensors. `copied_pages`: of PrefillArguments.
template <class Pages>
Output emulated_prefill(const DeviceLayer& device, const Chunks& chunks,
                        const AttendOptions& options, const std::vector<std::uint64_t>& trees,
                        const EmulatedLaunch& launch = {}, bool copied_pages = true) {
  using Traits = cuda::PrefillTraits<Pages>;
  const cuda::LayerView& layer = device.layer();
  const TensorView queries = chunks.queries.view();
  Output output(queries.tokens, queries.heads, layer.value_dim);
  const auto array = [](const auto& items) { return items.empty() ? nullptr : items.data(); };
  const std::vector<std::int32_t> tree_tokens = tree_tokens_of(options, device.batch().count);
  cuda::PrefillArguments arguments{};
  arguments.attend = cuda::make_arguments(
      layer, device.batch(), {chunks.indptr.data(), 0}, queries, output.out.out(),
      output.lse.data(),
      {options.scale, options.soft_cap, options.window, array(options.alibi_slopes),
       array(options.sink_logits), array(trees), array(tree_tokens), options.first_position,
       options.end_position, options.causal});
  arguments.keys = chunks.keys.view();
  arguments.values = chunks.values.view();
  arguments.copied_pages = copied_pages;
  const int block_rows = launch.warps * Traits::warp_rows;
  const int count = device.batch().count;

  const std::size_t parts = static_cast<std::size_t>(2 * launch.blocks * block_rows);
  std::vector<float> outputs(parts * static_cast<std::size_t>(layer.value_dim), std::nanf(""));
  std::vector<float> states(parts * 2, std::nanf(""));
  std::vector<std::uint32_t> arrivals(static_cast<std::size_t>(launch.blocks));
  arguments.attend.workspace = {arrivals.data(), outputs.data(), states.data()};
  const std::size_t shared =
      cuda::PrefillShared::of<Traits>(launch.warps, count, copied_pages).bytes;
  EXPECT_TRUE(emulate(
      launch.blocks, 32 * launch.warps, shared,
      [&](EmulatedThreads& threads) { cuda::attend_prefill_block<Traits>(threads, arguments); },
      launch.order));
  for (const std::uint32_t arrived : arrivals) EXPECT_EQ(arrived, 0u);
  return output;
}

/// Whether an output is attention over the views' content and, causally, the chunk in fp16. A tree
/// mask has a word per row of the tensors. If values may cancel, their norms count, but at least
/// `least_norm`.
inline testing::AssertionResult is_close(const std::vector<LayerView>& views, const Chunks& chunks,
                                         const AttendOptions& options, const Output& output,
                                         double tolerance = 2e-3, double least_norm = -1.0) {
  const Rows<float> keys = rounded_to_half(chunks.keys.rows());
  const Rows<float> values = rounded_to_half(chunks.values.rows());
  const Rows<float>& queries = chunks.queries.rows();
  const int gqa_ratio = queries.heads / keys.heads;
  for (std::size_t sequence = 0; sequence < views.size(); ++sequence)
    for (int kv_head = 0; kv_head < keys.heads; ++kv_head) {
      LiveHead live(views[sequence], kv_head);
      const std::int64_t past = views[sequence].length;
      const std::int64_t first = chunks.indptr[sequence];
      const std::int64_t count = chunks.indptr[sequence + 1] - first;
      const AttendOptions own = options_of_rows(options, first, count);
      for (std::int64_t t = 0; t < count; ++t)
        live.tokens.push_back({past + t, &keys.at(first + t, kv_head, 0),
                               &values.at(first + t, kv_head, 0),
                               past + t < views[sequence].sink_tokens});
      for (int head = kv_head * gqa_ratio; head < (kv_head + 1) * gqa_ratio; ++head)
        for (std::int64_t t = 0; t < count; ++t) {
          const std::int64_t row = first + t;
          const OracleRow expected =
              oracle_row(own, views[sequence].shape, {past + t, past, static_cast<int>(t), head},
                         &queries.at(row, head, 0), live.tokens);
          const testing::AssertionResult close =
              is_close(expected, &output.out.at(row, head, 0),
                       output.lse[static_cast<std::size_t>(row * queries.heads + head)], tolerance,
                       least_norm < 0 ? 0.0 : std::max(least_norm, expected.value_norm));
          if (!close)
            return testing::AssertionFailure() << "sequence " << sequence << ", query " << t
                                               << ", head " << head << ": " << close.message();
        }
    }
  return testing::AssertionSuccess();
}

}  // namespace kvtilt::test
