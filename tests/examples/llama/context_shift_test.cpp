// SPDX-License-Identifier: MIT
// Contexts that go on when they are full.
#include "support.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <llama/capturing_cache.hpp>
#include <llama/context_shift.hpp>
#include <llama/evaluation.hpp>
#include <llama/float_cache.hpp>
#include <llama/generation.hpp>
#include <llama/kvtilt_cache.hpp>
#include <llama/pieces.hpp>
#include <llama/text_file.hpp>

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

namespace llama {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::Pair;

/// Keeps nothing but what it was called with.
class RecordingCache final : public AttentionCache {
 public:
  RecordingCache(int length, int removed) : length_(length), removed_(removed) {}

  void restart(int /*positions*/) override { length_ = removed_ = 0; }
  void attend(int layer, int tokens, const float* queries, const float* turned, const float* keys,
              const float* /*values*/, float* out) override {
    const ModelConfig& c = *config;
    if (layer == 0) {
      const std::ptrdiff_t width = std::ptrdiff_t{tokens} * c.query_width();
      seen_queries.assign(queries, queries + width);
      seen_turned.assign(turned, turned + (removed_ > 0 ? width : 0));
      seen_keys.assign(keys, keys + std::ptrdiff_t{tokens} * c.kv_width());
    }
    std::fill_n(out, std::ptrdiff_t{tokens} * c.query_width(), 0.0F);
    if (layer == c.layers - 1) length_ += tokens;
  }
  [[nodiscard]] int draft_room() const override { return 0; }
  void truncate(int length) override { length_ = length; }
  void remove(int from, int to) override {
    removals.emplace_back(from, to);
    removed_ += to - from;
  }
  [[nodiscard]] int removed() const override { return removed_; }
  [[nodiscard]] int length() const override { return length_; }
  [[nodiscard]] CacheUsage usage() const override { return {}; }
  [[nodiscard]] double page_bits() const override { return 16; }
  [[nodiscard]] bool touched_codes() const override { return false; }

  const ModelConfig* config = nullptr;
  std::vector<float> seen_queries, seen_turned, seen_keys;
  std::vector<std::pair<int, int>> removals;

 private:
  int length_;
  int removed_;
};

TEST(ContextShift, TurnedQueriesStandWhereTheGapIsClosed) {
  const TemporaryFolder folder("llama_f32");
  folder.edit_json("config.json", [](auto& config) { config["max_position_embeddings"] = 64; });
  const std::vector<int> tokens{3, 1, 4};
  for (const bool hadamard : {false, true}) {
    const Model model(folder.path(), {hadamard, false});
    Scratch scratch;
    std::vector<float> logits(static_cast<std::size_t>(model.config().vocab));
    RecordingCache closed(50, 0);
    RecordingCache shifted(50 + 4000, 4000);  // far behind every trained position
    for (RecordingCache* cache : {&closed, &shifted}) {
      cache->config = &model.config();
      model.forward(tokens, *cache, scratch, logits);
    }
    EXPECT_LE(largest_difference(shifted.seen_turned, closed.seen_queries), 2e-6F);
    EXPECT_GT(largest_difference(shifted.seen_queries, closed.seen_queries), 0.1F);
    EXPECT_GT(largest_difference(shifted.seen_keys, closed.seen_keys), 0.1F);
  }
  RecordingCache full(64 + 4000, 4000);
  const Model model(folder.path());
  full.config = &model.config();
  Scratch scratch;
  std::vector<float> logits(static_cast<std::size_t>(model.config().vocab));
  EXPECT_THAT(error_of([&] {
                model.forward({tokens.data(), 1}, full, scratch, logits);
              }),
              HasSubstr("positions 64 to 64 do not fit the model's context of 64"));
}

ModelConfig config_with(int context) {
  ModelConfig config;
  config.layers = 2;
  config.query_heads = 6;
  config.kv_heads = 2;
  config.head_dim = 16;
  config.windows = {0, 0};
  config.context = context;
  return config;
}

TEST(ContextShift, RemovesTheOlderHalfBehindWhatIsKept) {
  const ModelConfig config = config_with(512);
  const auto removals = [&](int keep, CacheSettings settings) {
    const ContextShift shift{keep, settings};
    check_shift(config, shift);
    RecordingCache cache(511, 0);
    EXPECT_EQ(make_room(config, shift, cache), 1);
    EXPECT_TRUE(cache.removals.empty());
    for (int i = 0; i < 2; ++i) {
      cache.truncate(512 + cache.removed());
      EXPECT_EQ(make_room(config, {}, cache), 0);
      EXPECT_GE(make_room(config, shift, cache), settings.page_tokens);
    }
    return cache.removals;
  };
  EXPECT_EQ(kept_tokens({0, {32, 128, 4}}), 4);
  EXPECT_THAT(removals(0, {32, 128, 4}), ElementsAre(Pair(4, 228), Pair(228, 452)));
  EXPECT_THAT(removals(4, {32, 128, 4}), ElementsAre(Pair(4, 228), Pair(228, 452)));
  EXPECT_EQ(kept_tokens({5, {32, 128, 4}}), 36);
  EXPECT_THAT(removals(5, {32, 128, 4}), ElementsAre(Pair(36, 260), Pair(260, 484)));
  EXPECT_THAT(removals(32, {32, 128, 0}), ElementsAre(Pair(32, 256), Pair(256, 480)));
  EXPECT_THAT(removals(0, {32, 400, 4}), ElementsAre(Pair(4, 100), Pair(100, 196)));  // all pages
}

TEST(ContextShiftHostile, SaysWhatCannotBeShifted) {
  const auto error = [](const ModelConfig& config, int keep, CacheSettings settings) {
    return error_of([&] { check_shift(config, {keep, settings}); });
  };
  EXPECT_EQ(error(config_with(512), 4, {}), "");
  EXPECT_THAT(error(config_with(192), 4, {}),
              HasSubstr("a context of 192 tokens holds no page of 64 to remove beside the first 4 "
                        "and a tail of 128"));
  EXPECT_NE(error(config_with(512), 500, {}), "");
  EXPECT_NE(error(config_with(512), -1, {}), "");
  EXPECT_NE(error(config_with(512), 2000000000, {}), "");
  ModelConfig windowed = config_with(512);
  windowed.windows[1] = 100;
  EXPECT_THAT(error(windowed, 4, {}), HasSubstr("sliding windows"));
}

/// The baseline and kvtilt share no code.
TEST(ContextShift, BothCachesCloseTheGap) {
  const ModelConfig config = config_with(512);
  constexpr int tokens = 400;
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  const auto numbers = [&](int width) {
    std::vector<float> result(static_cast<std::size_t>(tokens * width));
    for (float& x : result) x = normal(random);
    return result;
  };
  const auto queries = numbers(config.query_width());
  const auto turned = numbers(config.query_width());
  const auto keys = numbers(config.kv_width());
  const auto values = numbers(config.kv_width());
  const auto run = [&](AttentionCache& cache, int chunk) {
    std::vector<float> out(queries.size());
    const auto read = [&](int begin, int end) {
      for (int first = begin; first < end; first += chunk) {
        const int count = std::min(chunk, end - first);
        const std::ptrdiff_t row = std::ptrdiff_t{first} * config.query_width();
        const std::ptrdiff_t kv_row = std::ptrdiff_t{first} * config.kv_width();
        for (int layer = 0; layer < config.layers; ++layer) {
          cache.attend(
              layer, count, &queries[static_cast<std::size_t>(row)],
              &turned[static_cast<std::size_t>(row)], &keys[static_cast<std::size_t>(kv_row)],
              &values[static_cast<std::size_t>(kv_row)], &out[static_cast<std::size_t>(row)]);
        }
      }
    };
    cache.restart(tokens - 96);
    read(0, 200);
    cache.remove(36, 100);
    read(200, 300);
    cache.remove(100, 132);
    EXPECT_EQ(cache.removed(), 96);
    read(300, tokens);
    EXPECT_EQ(cache.length(), tokens);
    cache.truncate(tokens - 1);
    EXPECT_EQ(cache.length(), tokens - 1);
    return out;
  };
  const CacheSettings settings{32, 16, 4};
  const auto quantized = make_cache(config, "k16v16", settings);
  FloatCache floats(config);
  const auto expected = run(floats, 1);
  for (const int chunk : {1, 7, 100}) {
    EXPECT_LE(largest_difference(run(*quantized, chunk), expected), 5e-6F) << chunk;
    EXPECT_LE(largest_difference(run(floats, chunk), expected), 5e-6F) << chunk;
  }
  for (AttentionCache* cache : {quantized.get(), static_cast<AttentionCache*>(&floats)}) {
    EXPECT_THAT(error_of([&] { cache->remove(164, 196); }),
                HasSubstr("cannot remove tokens 164 to 195 behind a gap from 36 to 131"));
    EXPECT_THAT(error_of([&] { cache->truncate(131); }), HasSubstr("in front of removed tokens"));
    EXPECT_NE(error_of([&] { cache->remove(132, 132); }), "");
    EXPECT_NE(error_of([&] { cache->remove(132, 900); }), "");
    EXPECT_EQ(cache->removed(), 96);
    cache->restart(10);
    EXPECT_EQ(cache->removed(), 0);
  }
  EXPECT_THAT(error_of([&] {
                (void)run(*quantized, 1);
                (void)quantized->save();
              }),
              HasSubstr("is not saved"));
  CapturingCache capturing(config, std::make_unique<FloatCache>(config));
  EXPECT_THAT(error_of([&] { capturing.remove(4, 36); }), HasSubstr("4 to 35 are captured"));
}

/// A trained model whose context is taken to be 256 tokens.
class LongTextTest : public testing::Test {
 protected:
  LongTextTest() {
    for (const std::string file : {"config.json", "model.safetensors"}) {
      std::filesystem::copy(data_folder("models/novels-3M") / file, folder_.path());
    }
    folder_.edit_json("config.json", [](auto& config) { config["max_position_embeddings"] = 256; });
    model_ = std::make_unique<Model>(folder_.path());
    tokenizer_ = load_tokenizer(folder_.path(), model_->config());
  }

  TemporaryFolder folder_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<Tokenizer> tokenizer_;
  CacheSettings settings_{32, 32, 4};
};

TEST_F(LongTextTest, IsPredictedAsWellAsAShortOneInBoundedMemory) {
  const std::string text = read_text_file(data_folder("text/novels_heldout.txt")).substr(0, 900);
  EvaluationOptions options;
  options.recipes = {"k16v16", "k4v2"};
  options.cache = settings_;
  const auto fresh = evaluate(*model_, cut_pieces(text, *tokenizer_, 256), options);
  options.shift = {{0, settings_}};
  const auto whole = cut_pieces(text, *tokenizer_, 900);
  ASSERT_EQ(whole.size(), 1U);
  const auto shifted = evaluate(*model_, whole, options);
  options.chunk = 16;
  const auto chunked = evaluate(*model_, whole, options);
  const double limits[] = {0, 1e-8, 1e-2};  // at least five times the measured means
  for (std::size_t i = 0; i < shifted.size(); ++i) {
    EXPECT_LT(shifted[i].nll, fresh[i].nll) << shifted[i].recipe;  // it sees more, on average
    EXPECT_LE(shifted[i].kld_mean, limits[i]) << shifted[i].recipe;
    EXPECT_LE(shifted[i].cache_bytes, fresh[i].cache_bytes) << shifted[i].recipe;
    EXPECT_NEAR(chunked[i].nll, shifted[i].nll, 1e-4) << shifted[i].recipe;
  }
}

TEST_F(LongTextTest, IsTheSameWithDrafts) {
  const auto write = [&](int draft, const std::string& recipe) {
    const auto cache = make_cache(model_->config(), recipe, settings_);
    // A prompt that alone is longer than the context.
    const std::string prompt =
        read_text_file(data_folder("text/novels_heldout.txt")).substr(0, 300);
    return generate(*model_, *tokenizer_, prompt, 400, draft, Sampler(0, 1), *cache,
                    [](std::string_view) {}, {}, {{40, settings_}});
  };
  for (const std::string recipe : {"f16", "k8v8", "k4v2"}) {
    const Generation plain = write(0, recipe);
    EXPECT_EQ(plain.tokens.size(), 400U);
    EXPECT_FALSE(plain.context_full);
    EXPECT_LE(plain.tokens_kept, 256);
    EXPECT_GT(plain.tokens_kept, 100);
    const Generation drafted = write(6, recipe);
    EXPECT_EQ(drafted.tokens, plain.tokens) << recipe;
    EXPECT_GT(drafted.accepted, 0) << recipe;
    EXPECT_GT(drafted.drafted, drafted.accepted) << recipe;
  }
}

}  // namespace
}  // namespace llama
