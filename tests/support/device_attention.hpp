// SPDX-License-Identifier: MIT
/// Runs the decode attention kernel's body in the emulator and compares it with float64.
#pragma once

#include <kvtilt/cuda/attention/block.hpp>

#include "support/attend_check.hpp"
#include "support/device_layer.hpp"
#include "support/emulated_threads.hpp"
#include "support/random_input.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace kvtilt::test {

/// The parameters of an emulated launch.
struct EmulatedLaunch {
  int blocks = 3;
  int warps = 2;
  int stages = 2;
  LaunchOrder order = {};
  std::vector<std::int32_t> indptr = {};  ///< empty: equally many rows for each sequence
};

/// The device's array for the host's number, which then holds for each sequence.
inline std::vector<std::int32_t> tree_tokens_of(const AttendOptions& options, int sequences) {
  if (options.tree_tokens == 0) return {};
  return std::vector<std::int32_t>(static_cast<std::size_t>(sequences), options.tree_tokens);
}

/// Attention of the newest tokens of each sequence of a batch; rows of one sequence after the
/// other. With indptr, a tree mask is [rows]; without, all sequences share it. Unwritten rows stay
/// 7.
template <class Traits>
Output emulated_attend(const DeviceLayer& device, const Rows<float>& queries,
                       const AttendOptions& options, const EmulatedLaunch& launch = {}) {
  const cuda::LayerView& layer = device.layer();
  const int count = device.batch().count;
  Output output(queries.tokens, queries.heads, layer.value_dim);
  std::fill(output.out.data.begin(), output.out.data.end(), 7.0f);
  const bool ragged = !launch.indptr.empty();
  const cuda::BatchRows rows{ragged ? launch.indptr.data() : nullptr,
                             ragged || count == 0 ? 0 : static_cast<int>(queries.tokens / count)};
  std::vector<std::uint64_t> trees;
  for (int i = 0; i < (ragged ? 1 : count); ++i)
    trees.insert(trees.end(), options.tree_mask.begin(), options.tree_mask.end());
  const std::vector<std::int32_t> tree_tokens = tree_tokens_of(options, count);
  const auto array = [](const auto& items) { return items.empty() ? nullptr : items.data(); };
  const cuda::DeviceAttendOptions rules{options.scale,
                                        options.soft_cap,
                                        options.window,
                                        array(options.alibi_slopes),
                                        array(options.sink_logits),
                                        array(trees),
                                        array(tree_tokens),
                                        options.first_position,
                                        options.end_position,
                                        options.causal};
  cuda::AttendArguments arguments = cuda::make_arguments(
      layer, device.batch(), rows, queries.view(), output.out.out(), output.lse.data(), rules);
  arguments.stages = launch.stages;

  const std::size_t parts = static_cast<std::size_t>(2 * launch.blocks * cuda::item_rows);
  std::vector<float> outputs(parts * static_cast<std::size_t>(layer.value_dim), std::nanf(""));
  std::vector<float> states(parts * 2, std::nanf(""));
  std::vector<std::uint32_t> arrivals(static_cast<std::size_t>(launch.blocks));
  arguments.workspace = {arrivals.data(), outputs.data(), states.data()};

  const std::size_t shared =
      cuda::AttendShared::of<Traits>(launch.warps, launch.stages, count).bytes;
  for (int replay = 0; replay < 2; ++replay)  // arrival counters must be zero again
    EXPECT_TRUE(emulate(
        launch.blocks, 32 * launch.warps, shared,
        [&](EmulatedThreads& threads) { cuda::attend_block<Traits>(threads, arguments); },
        launch.order));
  for (const std::uint32_t arrived : arrivals) EXPECT_EQ(arrived, 0u);
  return output;
}

/// Random options for `tokens` queries of a layer, with the arrays that they point to.
struct RandomOptions {
  std::vector<float> slopes;
  std::vector<float> sinks;
  std::vector<std::uint64_t> tree;
  AttendOptions options;

  RandomOptions(Random& random, const LayerShape& shape, const Rows<float>& queries) {
    for (int head = 0; head < queries.heads; ++head) {
      slopes.push_back(static_cast<float>(random.uniform(-0.1, 0.1)));
      sinks.push_back(static_cast<float>(random.sampled_normal()) * 3);
    }
    for (int i = 0; i < queries.tokens; ++i) tree.push_back(random.next() | random.next());
    if (random.chance(3)) options.scale = 0.2f;
    if (random.chance(3)) options.soft_cap = 5.0f;
    if (random.chance(3)) options.alibi_slopes = slopes;
    if (random.chance(3)) options.sink_logits = sinks;
    if (random.chance(3) && !tree.empty()) {
      options.tree_mask = tree;
      if (random.chance(2)) options.tree_tokens = random.between(1, most_tree_tokens);
    } else {
      options.causal = !random.chance(4);
    }
    if (random.chance(3)) options.window = random.between(1, shape.window > 0 ? shape.window : 300);
    if (random.chance(4)) options.first_position = random.below(100);
    if (random.chance(4)) options.end_position = options.first_position + random.below(300);
  }
  void no_tree() {
    options.tree_mask = {};
    options.tree_tokens = 0;
  }
  RandomOptions(RandomOptions&&) = default;  // the spans' vectors keep their memory
};

/// Sequences of the given lengths in one layer, and the layer in device order.
struct DeviceSequences {
  CacheOptions options;
  std::vector<Recipe> recipes;  ///< one, or one per kv head
  KVCache cache;
  std::vector<LayerView> views;

  DeviceSequences(Random& random, const LayerShape& shape, const Recipe& recipe,
                  const std::vector<std::int64_t>& lengths, int page_tokens = 64, int recent = 20,
                  int sinks = 4)
      : DeviceSequences(random, shape, std::vector<Recipe>{recipe}, lengths, page_tokens, recent,
                        sinks) {}
  DeviceSequences(Random& random, const LayerShape& shape, const std::vector<Recipe>& recipes_,
                  const std::vector<std::int64_t>& lengths, int page_tokens = 64, int recent = 20,
                  int sinks = 4)
      : options(make_options(page_tokens, recent, sinks)),
        recipes(recipes_),
        cache(make_cache(CacheShape{{shape}}, Plan{{recipes}}, options)) {
    for (const std::int64_t length : lengths) {
      const SequenceId id = open_reserved(cache, length);
      const Rows<float> keys = random_rows(random, length, shape.kv_heads, shape.key_dim, 1, 0.5f);
      const Rows<float> values = random_rows(random, length, shape.kv_heads, shape.value_dim);
      KVTILT_EXPECT_OK(cache.append(id, 0, keys.view(), values.view()));
      views.push_back(cache.view(id, 0).value());
    }
  }
  [[nodiscard]] DeviceLayer device() const { return {views, recipes, options}; }

 private:
  static CacheOptions make_options(int page_tokens, int recent, int sinks) {
    CacheOptions options;
    options.page_tokens = page_tokens;
    options.recent_tokens = recent;
    options.sink_tokens = sinks;
    return options;
  }
};

/// Whether a row is within the error that Attention::attend() states for fp16 operands: `tolerance`
/// of the output's norm (of `norm` if values cancel, of 1 + |lse| for the lse), and more if
/// products of rounded queries add up to more than 32: then weight moves between tokens whose
/// values cancel.
inline testing::AssertionResult is_close(const OracleRow& expected, const float* out, float lse,
                                         double tolerance, double norm = 0.0) {
  double error = 0;
  double squares = 0;
  for (std::size_t c = 0; c < expected.out.size(); ++c) {
    const double want = expected.out[c];
    const double got = static_cast<double>(out[c]);
    error += (got - want) * (got - want);
    squares += want * want;
  }
  const double products = (expected.lse_bound - 1e-5) * 0x1p21;  // as 8 x 2^-24 bound it
  tolerance *= std::max(1.0, products / 32);
  if (products > 32) norm = std::max(norm, expected.value_norm);
  const bool lse_close = expected.empty ? is_minus_infinity(lse)
                                        : std::abs(static_cast<double>(lse) - expected.lse) <=
                                              tolerance * (1 + std::abs(expected.lse));
  if (lse_close && std::sqrt(error) <= tolerance * std::max(std::sqrt(squares), norm) + 1e-30)
    return testing::AssertionSuccess();
  return testing::AssertionFailure()
         << "error " << std::sqrt(error) << " of " << std::sqrt(squares) << " at a tolerance of "
         << tolerance << ", lse " << lse << ", expected " << expected.lse;
}

/// Options of one sequence, whose rows begin at `start`: selects its part of a tree mask [rows],
/// which has no bits for more than 64.
inline AttendOptions options_of_rows(const AttendOptions& options, std::int64_t start,
                                     std::int64_t count) {
  AttendOptions own = options;
  if (count > 64) own.tree_mask = {};
  if (!own.tree_mask.empty())
    own.tree_mask =
        own.tree_mask.subspan(static_cast<std::size_t>(start), static_cast<std::size_t>(count));
  return own;
}

/// Whether all rows of a batch are close. If values may cancel, their norms count, but at least
/// `least_norm`. `indptr` and tree masks are as in emulated_attend().
inline testing::AssertionResult is_close(const std::vector<LayerView>& views,
                                         const Rows<float>& queries, const AttendOptions& options,
                                         const Output& output, double tolerance = 2e-3,
                                         double least_norm = -1.0,
                                         const std::vector<std::int32_t>& indptr = {}) {
  const std::int64_t same = queries.tokens / static_cast<std::int64_t>(views.size());
  const LayerShape& shape = views[0].shape;
  const int gqa_ratio = queries.heads / shape.kv_heads;
  for (std::size_t sequence = 0; sequence < views.size(); ++sequence) {
    const std::int64_t start =
        indptr.empty() ? static_cast<std::int64_t>(sequence) * same : indptr[sequence];
    const std::int64_t each = indptr.empty() ? same : indptr[sequence + 1] - start;
    const std::int64_t first = views[sequence].length - each;
    const AttendOptions own = indptr.empty() ? options : options_of_rows(options, start, each);
    for (int kv_head = 0; kv_head < shape.kv_heads; ++kv_head) {
      const LiveHead live(views[sequence], kv_head);
      for (int head = kv_head * gqa_ratio; head < (kv_head + 1) * gqa_ratio; ++head)
        for (std::int64_t t = 0; t < each; ++t) {
          const std::int64_t row = start + t;
          const OracleRow expected =
              oracle_row(own, shape, {first + t, first, static_cast<int>(t), head},
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
  }
  return testing::AssertionSuccess();
}

}  // namespace kvtilt::test
