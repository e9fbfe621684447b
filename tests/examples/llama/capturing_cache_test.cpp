// SPDX-License-Identifier: MIT
#include "support.hpp"

#include <gtest/gtest.h>
#include <llama/capturing_cache.hpp>
#include <llama/float_cache.hpp>
#include <llama/model.hpp>

#include <memory>
#include <vector>

namespace llama {
namespace {

class CapturingCacheTest : public testing::Test {
 protected:
  Model model_{golden_folder("qwen2_mixed_windows")};
  std::vector<int> tokens_ = read_golden("qwen2_mixed_windows").tokens;
  CapturingCache cache_{model_.config(), std::make_unique<FloatCache>(model_.config())};

  std::vector<float> run(AttentionCache& cache, std::size_t first, std::size_t last) const {
    Scratch scratch;
    std::vector<float> logits(static_cast<std::size_t>(model_.config().vocab));
    for (std::size_t i = first; i < last; ++i) {
      model_.forward({&tokens_[i], 1}, cache, scratch, logits);
    }
    return logits;
  }
};

/// The captured numbers are those the model attended with: a cache filled with them answers the
/// same.
TEST_F(CapturingCacheTest, KeepsWhatTheModelAttendedWith) {
  const ModelConfig& config = model_.config();
  const int count = static_cast<int>(tokens_.size());
  FloatCache plain(config);
  FloatCache replayed(config);
  cache_.restart(count);
  plain.restart(count);
  replayed.restart(count);
  EXPECT_EQ(run(cache_, 0, tokens_.size()), run(plain, 0, tokens_.size()));
  EXPECT_EQ(cache_.length(), count);
  ASSERT_EQ(cache_.layers().size(), static_cast<std::size_t>(config.layers));
  for (int i = 0; i < config.layers; ++i) {
    const CapturedLayer& layer = cache_.layers()[static_cast<std::size_t>(i)];
    ASSERT_EQ(layer.queries.size(),
              tokens_.size() * static_cast<std::size_t>(config.query_width()));
    ASSERT_EQ(layer.keys.size(), tokens_.size() * static_cast<std::size_t>(config.kv_width()));
    ASSERT_EQ(layer.values.size(), layer.keys.size());
    Floats out(layer.queries.size());
    replayed.attend(i, count, layer.queries.data(), nullptr, layer.keys.data(), layer.values.data(),
                    out.data());
    // One more token attends to the same keys in both caches.
    const Floats query(static_cast<std::size_t>(config.query_width()), 0.3F);
    const Floats key(static_cast<std::size_t>(config.kv_width()), -0.2F);
    Floats expected(query.size());
    Floats got(query.size());
    plain.attend(i, 1, query.data(), nullptr, key.data(), key.data(), expected.data());
    replayed.attend(i, 1, query.data(), nullptr, key.data(), key.data(), got.data());
    EXPECT_EQ(got, expected) << "layer " << i;
  }
}

TEST_F(CapturingCacheTest, ForgetsWhatTheCacheForgets) {
  const int count = static_cast<int>(tokens_.size());
  cache_.restart(count);
  (void)run(cache_, 0, tokens_.size());
  const std::vector<CapturedLayer> whole = cache_.layers();
  cache_.truncate(count / 2);
  EXPECT_EQ(cache_.length(), count / 2);
  EXPECT_EQ(cache_.layers()[0].keys.size(),
            static_cast<std::size_t>(count / 2 * model_.config().kv_width()));
  (void)run(cache_, static_cast<std::size_t>(count / 2), tokens_.size());
  for (std::size_t i = 0; i < whole.size(); ++i) {
    EXPECT_EQ(cache_.layers()[i].queries, whole[i].queries);
    EXPECT_EQ(cache_.layers()[i].keys, whole[i].keys);
    EXPECT_EQ(cache_.layers()[i].values, whole[i].values);
  }
  cache_.restart(count);
  EXPECT_EQ(cache_.length(), 0);
  for (const CapturedLayer& layer : cache_.layers()) {
    EXPECT_TRUE(layer.queries.empty() && layer.keys.empty() && layer.values.empty());
  }
}

}  // namespace
}  // namespace llama
