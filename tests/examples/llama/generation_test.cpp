// SPDX-License-Identifier: MIT
#include "support.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <llama/float_cache.hpp>
#include <llama/generation.hpp>
#include <llama/make_cache.hpp>

#include <cstddef>
#include <map>
#include <span>

namespace llama {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

class GenerationTest : public testing::Test {
 protected:
  Generation write(const std::string& prompt, int count, double temperature = 0,
                   std::uint64_t seed = 1) {
    text_.clear();
    FloatCache cache(model_.config());
    return generate(model_, *tokenizer_, prompt, count, 0, Sampler(temperature, seed), cache,
                    [this](std::string_view piece) { text_ += piece; });
  }

  Model model_{data_folder("models/stories260K")};
  std::unique_ptr<Tokenizer> tokenizer_ =
      load_tokenizer(data_folder("models/stories260K"), model_.config());
  std::string text_;
};

TEST_F(GenerationTest, WritesAStory) {
  const Generation story = write("", 60);
  EXPECT_THAT(text_, StartsWith("Once upon a time, there was a little girl named Lily."));
  EXPECT_EQ(story.tokens.size(), 60U);
  EXPECT_EQ(story.steps, 59);
  EXPECT_EQ(story.tokens_kept, 60);  // the begin token and all written tokens but the last
  EXPECT_EQ(story.usage.bytes, 60U * 5 * 2 * 4 * 8 * 2);
}

TEST_F(GenerationTest, ReadsAPromptLikeItsOwnTokens) {
  write("", 80);
  const std::string whole = text_;
  const std::string prompt = "Once upon a time, there was";
  write(prompt, 60);
  EXPECT_THAT(whole, StartsWith(prompt + text_.substr(0, 40)));
}

TEST_F(GenerationTest, StopsAtTheEndOfTheContext) {
  std::string prompt;
  for (int i = 0; i < 500; ++i) prompt += "a b ";
  EXPECT_THAT(error_of([&] { write(prompt, 1); }),
              HasSubstr("more than the model's context of 512"));
  const Generation filled = write("Once", 100000, 1.5, 3);
  EXPECT_LE(filled.tokens.size(), 512U);
  if (filled.context_full) {
    EXPECT_EQ(filled.steps, 510);  // the begin token and one token of prompt
  }
}

TEST_F(GenerationTest, TheSeedDecidesTheText) {
  const auto first = write("One day", 40, 1.0, 5).tokens;
  EXPECT_EQ(write("One day", 40, 1.0, 5).tokens, first);
  EXPECT_NE(write("One day", 40, 1.0, 6).tokens, first);
}

/// A model whose tokens are bytes, so a text can be cut anywhere.
class SavedPromptTest : public testing::Test {
 protected:
  std::vector<int> write(const std::string& prompt, const SavedPrompt& saved = {}) {
    const auto cache = make_cache(model_.config(), "k4v2", {32, 32, 4, CacheArithmetic::Fast});
    return generate(
               model_, *tokenizer_, prompt, 40, 0, Sampler(0, 1), *cache, [](std::string_view) {},
               saved)
        .tokens;
  }

  Model model_{data_folder("models/novels-3M")};
  std::unique_ptr<Tokenizer> tokenizer_ =
      load_tokenizer(data_folder("models/novels-3M"), model_.config());
  // A prompt is read in chunks of 64 tokens, and within a chunk attention is not quantized.
  std::string first_ =
      std::string(64, 'x') + "It was the best of times, it was the worst of times, it was the ";
  std::string second_ = "age of wisdom, it was the age of foolishness, ";
};

TEST_F(SavedPromptTest, TheTextGoesOnAsIfNothingHadHappened) {
  ASSERT_EQ(first_.size() % 64, 0U);
  std::vector<std::byte> image;
  std::vector<std::byte> expected;
  std::vector<std::byte> both;
  write(first_, {{}, &image});
  const std::vector<int> whole = write(first_ + second_, {{}, &expected});
  EXPECT_EQ(write(second_, {image, &both}), whole);
  EXPECT_EQ(both, expected);  // equal in every key and value
}

TEST_F(SavedPromptTest, RefusesWhatItCannotGoOnFrom) {
  std::vector<std::byte> image;
  write(first_, {{}, &image});
  EXPECT_THAT(error_of([&] { write("", {image, nullptr}); }), HasSubstr("what comes next"));
  EXPECT_THAT(error_of([&] {
                write(std::string(1000, 'x'), {image, nullptr});
              }),
              HasSubstr("and what was saved 128, together more than"));
  EXPECT_THAT(error_of([&] {
                write("x", {std::span<const std::byte>{}, nullptr});
              }),
              HasSubstr("no saved sequence"));
  image[5000] ^= std::byte{1};
  EXPECT_THAT(error_of([&] { write("x", {image, nullptr}); }), HasSubstr("is damaged"));
  FloatCache cache(model_.config());
  EXPECT_THAT(error_of([&] {
                (void)generate(model_, *tokenizer_, "x", 1, 0, Sampler(0, 1), cache,
                               [](std::string_view) {}, {{}, &image});
              }),
              HasSubstr("only kvtilt's caches can be saved"));
}

TEST(GenerationHostile, AnEmptyPromptNeedsABeginToken) {
  const Model model(data_folder("models/novels-3M"));
  const auto tokenizer = load_tokenizer(data_folder("models/novels-3M"), model.config());
  FloatCache cache(model.config());
  EXPECT_THAT(error_of([&] {
                (void)generate(model, *tokenizer, "", 5, 0, Sampler(0, 1), cache,
                               [](std::string_view) {});
              }),
              HasSubstr("no begin token"));
}

TEST(Sampler, DrawsTheDistributionOfTheLogits) {
  const std::vector<float> logits{std::log(1.0F), std::log(2.0F), std::log(5.0F), -1e30F};
  Sampler sampler(1.0, 42);
  std::map<int, int> counts;
  for (int i = 0; i < 80000; ++i) ++counts[sampler.choose(logits)];
  EXPECT_NEAR(counts[0], 10000, 500);
  EXPECT_NEAR(counts[1], 20000, 700);
  EXPECT_NEAR(counts[2], 50000, 700);
  EXPECT_EQ(counts[3], 0);
  EXPECT_EQ(Sampler(0, 1).choose(logits), 2);
}

}  // namespace
}  // namespace llama
