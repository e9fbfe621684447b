// SPDX-License-Identifier: MIT
// Both caches, through the interface that the model uses.
#include "support.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <llama/float_cache.hpp>
#include <llama/half.hpp>
#include <llama/make_cache.hpp>

#include <cmath>
#include <memory>
#include <random>

namespace llama {
namespace {

using testing::HasSubstr;

constexpr int query_heads = 6;
constexpr int kv_heads = 2;
constexpr int head_dim = 16;

ModelConfig config_with(std::vector<int> windows) {
  ModelConfig config;
  config.layers = static_cast<int>(windows.size());
  config.query_heads = query_heads;
  config.kv_heads = kv_heads;
  config.head_dim = head_dim;
  config.windows = std::move(windows);
  return config;
}

/// Random queries, keys and values of one layer, and attention over them in float64.
struct Sequence {
  Sequence(int tokens, unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    const auto fill = [&](std::vector<float>& numbers, int heads) {
      numbers.resize(static_cast<std::size_t>(tokens * heads * head_dim));
      for (float& x : numbers) x = normal(random);
    };
    fill(queries, query_heads);
    fill(keys, kv_heads);
    fill(values, kv_heads);
  }

  [[nodiscard]] std::vector<double> expected(int token, int head, int window, bool rounded) const {
    const int kv_head = head / (query_heads / kv_heads);
    const auto at = [&](const std::vector<float>& numbers, int t, int channel) {
      const float x =
          numbers[static_cast<std::size_t>((t * kv_heads + kv_head) * head_dim + channel)];
      return static_cast<double>(rounded ? round_to_f16(x) : x);
    };
    std::vector<double> out(head_dim);
    double sum = 0;
    for (int t = window > 0 ? std::max(0, token + 1 - window) : 0; t <= token; ++t) {
      double logit = 0;
      for (int c = 0; c < head_dim; ++c) {
        const auto query = static_cast<std::size_t>((token * query_heads + head) * head_dim + c);
        logit += static_cast<double>(queries[query]) * at(keys, t, c) / std::sqrt(head_dim);
      }
      const double weight = std::exp(logit);
      sum += weight;
      for (int c = 0; c < head_dim; ++c)
        out[static_cast<std::size_t>(c)] += weight * at(values, t, c);
    }
    for (double& x : out) x /= sum;
    return out;
  }

  std::vector<float> queries, keys, values;
};

/// The largest error of a cache that gets the tokens of one layer in chunks.
double largest_error(AttentionCache& cache, int layer, const Sequence& sequence, int tokens,
                     int chunk, int window, bool rounded) {
  std::vector<float> out(static_cast<std::size_t>(tokens * query_heads * head_dim));
  for (int begin = 0; begin < tokens; begin += chunk) {
    const int count = std::min(chunk, tokens - begin);
    cache.attend(layer, count,
                 &sequence.queries[static_cast<std::size_t>(begin * query_heads * head_dim)],
                 nullptr, &sequence.keys[static_cast<std::size_t>(begin * kv_heads * head_dim)],
                 &sequence.values[static_cast<std::size_t>(begin * kv_heads * head_dim)],
                 &out[static_cast<std::size_t>(begin * query_heads * head_dim)]);
  }
  double largest = 0;
  for (int token = 0; token < tokens; ++token) {
    for (int head = 0; head < query_heads; ++head) {
      const auto expected = sequence.expected(token, head, window, rounded);
      for (int c = 0; c < head_dim; ++c) {
        const double x = out[static_cast<std::size_t>((token * query_heads + head) * head_dim + c)];
        largest = std::max(largest, std::abs(x - expected[static_cast<std::size_t>(c)]));
      }
    }
  }
  return largest;
}

TEST(Cache, BothAttendToWhatTheWindowOfTheLayerShows) {
  const int tokens = 150;
  const std::vector<int> windows{0, 1, 37};
  const ModelConfig config = config_with(windows);
  std::vector<std::unique_ptr<AttentionCache>> caches;
  caches.push_back(std::make_unique<FloatCache>(config));
  caches.push_back(make_cache(config, "f16", {}));
  caches.push_back(make_cache(config, "k16v16", {32, 16, 4}));
  for (const auto& cache : caches) {
    for (const int chunk : {1, 9, tokens}) {
      cache->restart(tokens);
      for (int layer = 0; layer < config.layers; ++layer) {
        const Sequence sequence(tokens, static_cast<unsigned>(layer));
        EXPECT_LE(largest_error(*cache, layer, sequence, tokens, chunk,
                                windows[static_cast<std::size_t>(layer)], true),
                  5e-6);
      }
      EXPECT_EQ(cache->length(), tokens);
    }
  }
}

TEST(Cache, TheBaselineCanAlsoKeepFloatsAsTheyAre) {
  FloatCache cache(config_with({0}), CacheRounding::None);
  const Sequence sequence(40, 3);
  EXPECT_LE(largest_error(cache, 0, sequence, 40, 1, 0, false), 2e-6);  // grows without restart()
}

TEST(Cache, TheBaselineCountsTwoBytesANumber) {
  FloatCache cache(config_with({0, 0}));
  cache.restart(10);
  const Sequence sequence(10, 3);
  for (int layer = 0; layer < 2; ++layer) largest_error(cache, layer, sequence, 10, 10, 0, true);
  EXPECT_EQ(cache.usage().bytes, 2U * 2 * 10 * kv_heads * head_dim * 2);
  EXPECT_EQ(cache.usage().effective_bits, 16);
  EXPECT_EQ(cache.page_bits(), 16);
}

TEST(Cache, CodesAreTouchedOnceAPageLiesBeyondTheTail) {
  const auto cache = make_cache(config_with({0}), "k4v2", {32, 8, 4});
  const Sequence sequence(100, 5);
  std::vector<float> out(query_heads * head_dim);
  cache->restart(100);
  for (int token = 0; token < 100; ++token) {
    cache->attend(0, 1, &sequence.queries[static_cast<std::size_t>(token * query_heads * head_dim)],
                  nullptr, &sequence.keys[static_cast<std::size_t>(token * kv_heads * head_dim)],
                  &sequence.values[static_cast<std::size_t>(token * kv_heads * head_dim)],
                  out.data());
    // 4 sinks, a page of 32, a tail of 8: the page is sealed by the 44th token or by the next.
    if (token != 43) {
      EXPECT_EQ(cache->touched_codes(), token >= 44) << token;
    }
  }
  EXPECT_LT(cache->page_bits(), 8);
  EXPECT_LT(cache->usage().effective_bits, 16);
  const std::size_t numbers = 100 * kv_heads * head_dim * 2;
  EXPECT_NEAR(cache->usage().effective_bits,
              8 * static_cast<double>(cache->usage().bytes) / static_cast<double>(numbers), 1e-9);
  cache->restart(50);
  EXPECT_EQ(cache->length(), 0);
  EXPECT_FALSE(cache->touched_codes());
}

TEST(Cache, TruncationForgetsTheNewest) {
  const Sequence sequence(60, 5);
  for (const std::string recipe : {"f16", "k8v8"}) {
    const auto cache = make_cache(config_with({0}), recipe, {32, 8, 4});
    cache->restart(60);
    const double error = largest_error(*cache, 0, sequence, 60, 1, 0, true);
    cache->truncate(0);
    EXPECT_EQ(cache->length(), 0);
    EXPECT_EQ(largest_error(*cache, 0, sequence, 60, 1, 0, true), error);
    cache->truncate(61);
    EXPECT_EQ(cache->length(), 60);
  }
}

TEST(CacheHostile, KvtiltsOwnSentencesComeThrough) {
  const auto make = [](const std::string& recipe, CacheSettings settings, ModelConfig config) {
    return error_of([&] { (void)make_cache(config, recipe, settings); });
  };
  EXPECT_EQ(make("k4v2", {}, config_with({0})), "");
  for (const std::string recipe : {"k9v2", "q4", "", "k4", "k0v0", "F16", "k4v2:g7,7"}) {
    EXPECT_NE(make(recipe, {}, config_with({0})), "") << recipe;
  }
  EXPECT_THAT(make("k4v2", {33, 128, 4}, config_with({0})), HasSubstr("33"));
  EXPECT_THAT(make("k4v2", {64, -5, 4}, config_with({0})), HasSubstr("-5"));
  EXPECT_THAT(make("k4v2", {64, 128, -6}, config_with({0})), HasSubstr("-6"));
  ModelConfig odd = config_with({0});
  odd.head_dim = 12;
  EXPECT_THAT(make("k4v2", {}, odd), HasSubstr("12"));
}

TEST(CacheHostile, NumbersThatTheCacheRefusesAreReported) {
  const auto cache = make_cache(config_with({0, 0}), "k4v2", {});
  cache->restart(4);
  Sequence sequence(1, 5);
  sequence.keys[head_dim + 2] = std::nanf("");
  std::vector<float> out(query_heads * head_dim);
  const std::string error = error_of([&] {
    cache->attend(1, 1, sequence.queries.data(), nullptr, sequence.keys.data(),
                  sequence.values.data(), out.data());
  });
  EXPECT_THAT(error, HasSubstr("layer 1"));
  EXPECT_THAT(error, HasSubstr("channel 2"));
}

}  // namespace
}  // namespace llama
