// SPDX-License-Identifier: MIT
// Sliding-window models on texts much longer than their windows: memory stays bounded, and outputs
// are those of a cache that keeps everything.

#include "support.hpp"

#include <gtest/gtest.h>
#include <llama/evaluation.hpp>
#include <llama/float_cache.hpp>
#include <llama/kvtilt_cache.hpp>
#include <llama/make_cache.hpp>
#include <llama/model.hpp>
#include <llama/pieces.hpp>
#include <llama/text_file.hpp>

#include <algorithm>
#include <cstddef>
#include <random>
#include <span>
#include <string>
#include <vector>

namespace llama {
namespace {

constexpr int tokens = 2000;
constexpr CacheSettings small_pages{32, 0, 4};

/// Loads a golden checkpoint with this window and a context that holds the text.
Model load(const std::string& name, int window) {
  const TemporaryFolder folder(name);
  folder.edit_json("config.json", [&](auto& config) {
    config["sliding_window"] = window;
    config["max_position_embeddings"] = tokens;
  });
  return Model(folder.path());
}

std::vector<int> random_text(const Model& model) {
  std::mt19937 random(3);
  std::vector<int> text(tokens);
  for (int& token : text) token = static_cast<int>(random() % model.config().vocab);
  return text;
}

/// Keeps every token: the window is an option of attend(), and the cache does not know it.
class UnwindowedCache final : public AttentionCache {
 public:
  UnwindowedCache(const ModelConfig& config, const std::string& recipe, CacheArithmetic arithmetic)
      : config_(config), arithmetic_(arithmetic), cache_(create(config, recipe)) {}

  void restart(int positions) override {
    id_ = cache_.open().value();
    ASSERT_TRUE(cache_.reserve(id_, positions).ok());
  }
  void attend(int layer, int count, const float* queries, const float* /*turned*/,
              const float* keys, const float* values, float* out) override {
    const auto rows = [&](const float* data, int heads) {
      return kvtilt::TensorView(data, count, heads, config_.head_dim);
    };
    ASSERT_TRUE(
        cache_.append(id_, layer, rows(keys, config_.kv_heads), rows(values, config_.kv_heads))
            .ok());
    const kvtilt::LayerView view = cache_.view(id_, layer).value();
    std::vector<std::byte> workspace(kvtilt::attend_workspace_bytes(view));
    kvtilt::AttendOptions options;
    options.window = config_.windows[static_cast<std::size_t>(layer)];
    if (arithmetic_ == CacheArithmetic::Exact) options.arithmetic = kvtilt::Arithmetic::Exact;
    ASSERT_TRUE(kvtilt::attend(view, rows(queries, config_.query_heads),
                               {out, count, config_.query_heads, config_.head_dim}, options,
                               workspace)
                    .ok());
  }
  [[nodiscard]] int draft_room() const override { return 0; }
  void truncate(int length) override { ASSERT_TRUE(cache_.truncate(id_, length).ok()); }
  void remove(int /*from*/, int /*to*/) override { FAIL() << "windows need no removal"; }
  [[nodiscard]] int removed() const override { return 0; }
  [[nodiscard]] int length() const override { return static_cast<int>(cache_.length(id_).value()); }
  [[nodiscard]] CacheUsage usage() const override {
    return {cache_.memory().bytes_in_use(), cache_.memory().reserved_bytes, 0};
  }
  [[nodiscard]] double page_bits() const override { return cache_.page_bits(); }
  [[nodiscard]] bool touched_codes() const override { return true; }

 private:
  static kvtilt::KVCache create(const ModelConfig& config, const std::string& recipe) {
    const auto shape = kvtilt::CacheShape::uniform(config.layers, config.kv_heads, config.head_dim);
    kvtilt::CacheOptions options;
    options.page_tokens = small_pages.page_tokens;
    options.recent_tokens = small_pages.recent_tokens;
    options.sink_tokens = small_pages.sink_tokens;
    const auto plan = kvtilt::Plan::uniform(shape, kvtilt::parse_recipe(recipe).value());
    return kvtilt::KVCache::create(shape, plan, options).value();
  }

  ModelConfig config_;
  CacheArithmetic arithmetic_;
  kvtilt::KVCache cache_;
  kvtilt::SequenceId id_;
};

std::vector<float> decode_all(const Model& model, AttentionCache& cache,
                              const std::vector<int>& text) {
  const auto vocab = static_cast<std::size_t>(model.config().vocab);
  std::vector<float> logits(text.size() * vocab);
  Scratch scratch;
  cache.restart(static_cast<int>(text.size()));
  for (std::size_t i = 0; i < text.size(); ++i) {
    model.forward({&text[i], 1}, cache, scratch, {&logits[i * vocab], vocab});
  }
  return logits;
}

struct Case {
  const char* model;
  int window;
};
constexpr Case cases[] = {{"mistral_window_bf16", 7},    // the checkpoint's own window
                          {"qwen2_mixed_windows", 5},    // likewise, in the second layer only
                          {"mistral_window_bf16", 96}};  // a window of three pages

/// Tokens with a logit that differs by more than `limit`.
std::size_t tokens_beyond(float limit, const std::vector<float>& a, const std::vector<float>& b,
                          std::size_t tokens) {
  const std::size_t vocab = a.size() / tokens;
  std::size_t count = 0;
  for (std::size_t token = 0; token < tokens; ++token) {
    const auto logits = [&](const std::vector<float>& all) {
      return std::span(all).subspan(token * vocab, vocab);
    };
    count += largest_difference(logits(a), logits(b)) > limit ? 1 : 0;
  }
  return count;
}

TEST(Window, OutputsAreThoseOfACacheThatKeepsEverything) {
  for (const auto& [name, window] : cases) {
    const Model model = load(name, window);
    const auto text = random_text(model);
    FloatCache plain(model.config());
    const auto expected = decode_all(model, plain, text);
    float halves = 0;  // what storing in 16 bits changes
    for (const std::string recipe : {"k16v16", "k8v8", "k4v2"})
      for (const auto arithmetic : {CacheArithmetic::Exact, CacheArithmetic::Fast}) {
        CacheSettings settings = small_pages;
        settings.arithmetic = arithmetic;
        const auto cache = make_cache(model.config(), recipe, settings);
        UnwindowedCache keeps(model.config(), recipe, arithmetic);
        const auto windowed = decode_all(model, *cache, text);
        const auto unwindowed = decode_all(model, keeps, text);
        // Tables of different lengths are summed in different spans, which for some tokens changes how
        // a later layer's keys and values round to 16 bits. Fast arithmetic then also rounds its
        // weights in other groups of pages, which sometimes changes a code of a later layer: far less
        // than the error of the codes.
        const float codes = largest_difference(windowed, expected);
        if (recipe == "k16v16") halves = codes;
        const bool exact = arithmetic == CacheArithmetic::Exact;
        EXPECT_LE(largest_difference(windowed, unwindowed),
                  exact ? halves : std::max(1e-4F, codes / 5))
            << name << ' ' << recipe;
        if (exact) {
          EXPECT_LE(tokens_beyond(1e-5F, windowed, unwindowed, text.size()), text.size() / 50);
        }
        const bool quantized = recipe != "k16v16";
        EXPECT_EQ(codes > 2e-3F, quantized) << name << ' ' << recipe;
        EXPECT_LT(cache->usage().bytes, keeps.usage().bytes);
      }
  }
}

/// Bytes in use of one layer with `length` tokens, from the rules: every `page` tokens behind the
/// sinks are sealed at once; then the pages that end before the window are freed.
std::size_t expected_bytes(const ModelConfig& config, int window, double page_bits, int length) {
  const int page = small_pages.page_tokens;
  const int sealed = std::max(0, length - small_pages.sink_tokens) / page;
  const int newest = small_pages.sink_tokens + sealed * page;  // length when the last was sealed
  int kept = 0;
  for (int i = 0; i < sealed; ++i) {
    const int end = small_pages.sink_tokens + (i + 1) * page;
    if (window == 0 || end > newest - window) ++kept;
  }
  const std::size_t numbers = static_cast<std::size_t>(config.kv_heads * config.head_dim * 2);
  const int half = length - sealed * page;
  const int entries = kept + (length > 0 ? 1 : 0) + (length > newest ? 1 : 0);
  return static_cast<std::size_t>(kept * page_bits * page) * numbers / 8 +
         static_cast<std::size_t>(half) * numbers * 2 +
         static_cast<std::size_t>(entries) * sizeof(kvtilt::PageEntry);
}

TEST(Window, MemoryIsWhatTheWindowNeedsHoweverLongTheText) {
  for (const auto& [name, window] : cases) {
    const Model model = load(name, window);
    const auto text = random_text(model);
    const ModelConfig& config = model.config();
    const auto cache = make_cache(config, "k4v2", small_pages);
    cache->restart(tokens);
    const std::size_t reserved = cache->usage().reserved_bytes;
    Scratch scratch;
    std::vector<float> logits(static_cast<std::size_t>(config.vocab));
    std::vector<std::size_t> bytes;
    for (int i = 0; i < tokens; ++i) {
      model.forward({&text[static_cast<std::size_t>(i)], 1}, *cache, scratch, logits);
      std::size_t expected = 0;
      for (const int own : config.windows) {
        expected += expected_bytes(config, own, cache->page_bits(), i + 1);
      }
      ASSERT_EQ(cache->usage().bytes, expected) << name << " at " << i;
      ASSERT_EQ(cache->usage().reserved_bytes, reserved);  // new pages reuse those freed
      bytes.push_back(expected);
    }
    const bool all_windowed = std::count(config.windows.begin(), config.windows.end(), 0) == 0;
    const auto shorter = make_cache(config, "k4v2", small_pages);
    shorter->restart(tokens / 5);
    EXPECT_EQ(shorter->usage().reserved_bytes == reserved, all_windowed);
    const std::size_t page = static_cast<std::size_t>(small_pages.page_tokens);
    for (std::size_t i = tokens / 2; all_windowed && i < bytes.size(); ++i) {
      ASSERT_EQ(bytes[i], bytes[i - page]);  // periodic: no growth
    }
  }
}

TEST(Window, QuantizedPagesBehindAWindowCostLittle) {
  const TemporaryFolder folder;  // a trained model with a window of 128 tokens
  for (const std::string file : {"config.json", "model.safetensors"}) {
    std::filesystem::copy(data_folder("models/novels-3M") / file, folder.path());
  }
  folder.edit_json("config.json", [](auto& config) {
    config["architectures"] = {"MistralForCausalLM"};
    config["model_type"] = "mistral";
    config["sliding_window"] = 128;
  });
  const Model model(folder.path());
  const auto tokenizer = load_tokenizer(folder.path(), model.config());
  auto pieces = cut_pieces(read_text_file(data_folder("text/novels_heldout.txt")), *tokenizer, 700);
  pieces.resize(1);
  EvaluationOptions options;
  options.recipes = {"k16v16", "k8v8", "k4v2", "k2v2"};
  options.cache = small_pages;
  const auto reports = evaluate(model, pieces, options);
  const double limits[] = {0, 1e-8, 1e-5, 1e-2, 3e-2};  // at least five times the measured means
  for (std::size_t i = 1; i < reports.size(); ++i) {
    EXPECT_GT(reports[i].kld_mean, reports[i - 1].kld_mean) << reports[i].recipe;
    EXPECT_LT(reports[i].kld_mean, limits[i]) << reports[i].recipe;
    EXPECT_TRUE(std::isfinite(reports[i].kld_max)) << reports[i].recipe;
    EXPECT_LT(reports[i].cache_bytes, reports[0].cache_bytes / 4) << reports[i].recipe;
  }
  EXPECT_GT(reports[3].quantized_share, 0.9);
}

}  // namespace
}  // namespace llama
