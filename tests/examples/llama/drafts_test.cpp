// SPDX-License-Identifier: MIT
// Speculative decoding on quantized caches: one forward pass verifies several tokens, wrong ones
// are truncated, and the logits equal those of decoding one by one, bit for bit.
#include "support.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <llama/generation.hpp>
#include <llama/linear.hpp>
#include <llama/make_cache.hpp>
#include <llama/text_file.hpp>

#include <algorithm>
#include <cstring>
#include <random>
#include <string>
#include <utility>
#include <vector>

namespace llama {
namespace {

using testing::HasSubstr;

const CacheSettings page_settings[] = {{32, 0, 4}, {32, 16, 0}, {64, 40, 4}};

/// Logits of a text that is read token by token: [tokens][vocab].
std::vector<Floats> decode_steps(const Model& model, AttentionCache& cache,
                                 const std::vector<int>& text) {
  Scratch scratch;
  std::vector<Floats> logits(text.size(), Floats(static_cast<std::size_t>(model.config().vocab)));
  cache.restart(static_cast<int>(text.size()));
  for (std::size_t i = 0; i < text.size(); ++i) {
    model.forward({&text[i], 1}, cache, scratch, logits[i]);
  }
  return logits;
}

struct Drafts {
  int different = 0;  // tokens whose logits have other bits
  int rejected = 0;
  int cut = 0;  // drafts that ended where a page was due
};

/// Reads the same text in drafts of random length that end with wrong tokens.
Drafts decode_drafts(const Model& model, AttentionCache& cache, const std::vector<int>& text,
                     const std::vector<Floats>& expected) {
  const int vocab = model.config().vocab;
  Drafts result;
  Scratch scratch;
  std::mt19937 random(1);
  const auto below = [&random](int count) { return static_cast<int>(random() % count); };
  cache.restart(static_cast<int>(text.size()));
  for (int start = 0; start < static_cast<int>(text.size());) {
    const int left = static_cast<int>(text.size()) - start;
    const int wanted = below(9);
    const int drafted = std::min({wanted, left - 1, cache.draft_room()});
    if (drafted < std::min(wanted, left - 1)) ++result.cut;
    const int right = 1 + below(drafted + 1);
    std::vector<int> batch(text.begin() + start, text.begin() + start + 1 + drafted);
    for (int i = right; i <= drafted; ++i) batch[static_cast<std::size_t>(i)] = below(vocab);
    Floats logits(batch.size() * static_cast<std::size_t>(vocab));
    model.forward(batch, cache, scratch, logits);
    cache.truncate(start + right);
    EXPECT_EQ(cache.length(), start + right);
    result.rejected += 1 + drafted - right;
    for (int i = 0; i < right; ++i) {
      const Floats& row = expected[static_cast<std::size_t>(start + i)];
      if (std::memcmp(&logits[static_cast<std::size_t>(i * vocab)], row.data(),
                      row.size() * sizeof(float)) != 0) {
        ++result.different;
      }
    }
    start += right;
  }
  return result;
}

void expect_same_logits(const Model& model, const std::vector<int>& text) {
  for (const CacheSettings& settings : page_settings) {
    for (const std::string recipe : {"f16", "k16v16", "k8v8", "k4v2", "k2v3"}) {
      const auto cache = make_cache(model.config(), recipe, settings);
      const auto expected = decode_steps(model, *cache, text);
      const bool quantized = recipe.find("16") == std::string::npos;
      EXPECT_EQ(cache->touched_codes(), quantized);
      const Drafts drafts = decode_drafts(model, *cache, text, expected);
      EXPECT_EQ(drafts.different, 0) << recipe << ", page " << settings.page_tokens;
      EXPECT_GT(drafts.rejected, static_cast<int>(text.size()) / 3);
      EXPECT_EQ(drafts.cut >= 2, recipe != baseline_recipe);
    }
  }
}

/// The first `tokens` tokens of a shipped text.
std::vector<int> read_tokens(const Tokenizer& tokenizer, const std::string& file, int tokens) {
  std::vector<int> text =
      tokenizer.encode(read_text_file(data_folder("text/" + file)).substr(0, 2000));
  text.resize(static_cast<std::size_t>(tokens));
  return text;
}

TEST(Drafts, AreVerifiedWithTheBitsOfPlainDecoding) {
  for (const std::string name : {"stories260K", "novels-3M"}) {
    const auto folder = data_folder("models/" + name);
    const Model model(folder);
    const auto tokenizer = load_tokenizer(folder, model.config());
    const bool novels = name == "novels-3M";
    expect_same_logits(
        model, read_tokens(*tokenizer, novels ? "novels_heldout.txt" : "tinystories_317.txt",
                           novels ? 200 : 300));
  }
}

TEST(Drafts, AreVerifiedWithTheBitsOfPlainDecodingBehindWindows) {
  const TemporaryFolder folder("qwen2_mixed_windows");  // layer 1 has a window of 40
  folder.edit_json("config.json", [](auto& config) {
    config["sliding_window"] = 40;
    config["max_position_embeddings"] = 400;
  });
  const Model model(folder.path());
  std::mt19937 random(3);
  std::vector<int> text(400);
  for (int& token : text) token = static_cast<int>(random() % model.config().vocab);
  expect_same_logits(model, text);
}

Generation write(const Model& model, const Tokenizer& tokenizer, const std::string& prompt,
                 AttentionCache& cache, int draft, double temperature) {
  return generate(model, tokenizer, prompt, 200, draft, Sampler(temperature, 11), cache,
                  [](std::string_view) {});
}

TEST(Drafts, NeverChangeTheTextThatIsWritten) {
  const std::pair<const char*, const char*> prompts[] = {
      {"stories260K", "Once upon a time"},
      {"novels-3M", "The old man looked at the door, and the old man said to her, "}};
  for (const auto& [name, prompt] : prompts) {
    const auto folder = data_folder(std::string("models/") + name);
    const Model model(folder);
    const auto tokenizer = load_tokenizer(folder, model.config());
    for (const std::string recipe : {"k8v8", "k4v2", "f16"}) {
      for (const double temperature : {0.0, 0.8}) {
        const auto cache = make_cache(model.config(), recipe, {32, 8, 4});
        const Generation plain = write(model, *tokenizer, prompt, *cache, 0, temperature);
        EXPECT_EQ(plain.passes, plain.steps);
        for (const int draft : {4, 8}) {
          const Generation drafted = write(model, *tokenizer, prompt, *cache, draft, temperature);
          EXPECT_EQ(drafted.tokens, plain.tokens) << name << ' ' << recipe << ' ' << draft;
          EXPECT_EQ(drafted.tokens_kept, plain.tokens_kept);
          EXPECT_EQ(drafted.usage.bytes, plain.usage.bytes);  // as many sealed pages
          EXPECT_EQ(drafted.steps, drafted.passes + drafted.accepted);
          EXPECT_GT(drafted.accepted, 0);
          EXPECT_GT(drafted.drafted - drafted.accepted, 20);
          EXPECT_EQ(cache->touched_codes(), recipe != "f16");
        }
      }
    }
  }
}

TEST(Drafts, FitTheContextAndTheNumberOfTokens) {
  const Model model(data_folder("models/novels-3M"));  // has no end-of-text token
  const auto tokenizer = load_tokenizer(data_folder("models/novels-3M"), model.config());
  const auto cache = make_cache(model.config(), "k4v2", {32, 8, 4});
  std::string prompt;  // repeats, so that guesses are made up to the end
  while (prompt.size() < 960) prompt += "the old man ";
  const auto run = [&](int count, int draft) {
    return generate(model, *tokenizer, prompt, count, draft, Sampler(0, 1), *cache,
                    [](std::string_view) {});
  };
  const Generation whole = run(1000, 0);
  ASSERT_TRUE(whole.context_full);
  for (const int draft : {1, 15}) {
    EXPECT_EQ(run(1000, draft).tokens, whole.tokens);
    EXPECT_TRUE(run(1000, draft).context_full);
    for (const std::size_t count : {1U, 2U, 17U}) {
      const std::vector<int> first(whole.tokens.begin(), whole.tokens.begin() + count);
      EXPECT_EQ(run(static_cast<int>(count), draft).tokens, first);
    }
  }
}

TEST(DraftsHostile, LengthsThatCannotKeepTheBitsAreRefused) {
  const Model model(data_folder("models/stories260K"));
  const auto tokenizer = load_tokenizer(data_folder("models/stories260K"), model.config());
  const auto cache = make_cache(model.config(), "k4v2", {});
  for (const int draft : {-1, same_bits_tokens}) {
    EXPECT_THAT(error_of([&] { write(model, *tokenizer, "Once", *cache, draft, 0); }),
                HasSubstr("a draft has 0 to 15 tokens"));
  }
}

}  // namespace
}  // namespace llama
