// SPDX-License-Identifier: MIT
#include <kvtilt/quant/hadamard.hpp>

#include "support.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <llama/capturing_cache.hpp>
#include <llama/float_cache.hpp>
#include <llama/make_cache.hpp>
#include <llama/model.hpp>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <set>
#include <vector>

namespace llama {
namespace {

using testing::HasSubstr;

constexpr const char* checkpoints[] = {
    "llama_f32", "llama_linear_rope",   "llama3_rope",  "mistral_window_bf16",
    "qwen2_f16", "qwen2_mixed_windows", "qwen3_sharded"};

/// All logits, with the tokens given to the model in chunks of at most `chunk`.
std::vector<float> run(const Model& model, AttentionCache& cache, const std::vector<int>& tokens,
                       std::size_t chunk) {
  const auto vocab = static_cast<std::size_t>(model.config().vocab);
  std::vector<float> logits(tokens.size() * vocab);
  Scratch scratch;
  cache.restart(static_cast<int>(tokens.size()));
  for (std::size_t begin = 0; begin < tokens.size(); begin += chunk) {
    const std::size_t count = std::min(chunk, tokens.size() - begin);
    model.forward({&tokens[begin], count}, cache, scratch, {&logits[begin * vocab], count * vocab});
  }
  return logits;
}

class ModelGolden : public testing::TestWithParam<const char*> {
 protected:
  Model model_{golden_folder(GetParam())};
  Golden golden_ = read_golden(GetParam());
};

TEST_P(ModelGolden, GivesTheLogitsOfAnIndependentImplementation) {
  std::vector<float> expected;
  for (const auto& row : golden_.logits) expected.insert(expected.end(), row.begin(), row.end());
  FloatCache cache(model_.config(), CacheRounding::None);
  const auto logits = run(model_, cache, golden_.tokens, 1);
  ASSERT_EQ(logits.size(), expected.size());
  EXPECT_LE(largest_difference(logits, expected), 1e-4F);
}

TEST_P(ModelGolden, GivesTheSameLogitsForChunksAsForSingleTokens) {
  FloatCache cache(model_.config());
  const auto single = run(model_, cache, golden_.tokens, 1);
  for (const std::size_t chunk : {2UL, 7UL, golden_.tokens.size()}) {
    // Matrix products add in another order than row products; rounding to f16 amplifies the
    // difference.
    EXPECT_LE(largest_difference(run(model_, cache, golden_.tokens, chunk), single), 2e-3F);
    FloatCache unrounded(model_.config(), CacheRounding::None);
    const auto exact = run(model_, unrounded, golden_.tokens, 1);
    EXPECT_LE(largest_difference(run(model_, unrounded, golden_.tokens, chunk), exact), 1e-5F);
  }
}

TEST_P(ModelGolden, GivesTheSameLogitsThrough16BitKvtiltAsThroughTheBaseline) {
  FloatCache baseline(model_.config());
  const auto expected = run(model_, baseline, golden_.tokens, 1);
  const auto cache = make_cache(model_.config(), "k16v16", {32, 0, 4});
  for (const std::size_t chunk : {1UL, 7UL}) {
    EXPECT_LE(largest_difference(run(model_, *cache, golden_.tokens, chunk), expected), 2e-3F);
  }
}

/// What the cache is given must be the transforms of what it would be given otherwise.
void expect_transforms(const Floats& transforms, Floats numbers, int tokens, int heads, int dim) {
  ASSERT_TRUE(kvtilt::hadamard_transform({numbers.data(), tokens, heads, dim}).ok());
  EXPECT_LE(
      largest_difference({transforms.begin(), transforms.end()}, {numbers.begin(), numbers.end()}),
      1e-4F);
}

TEST_P(ModelGolden, HasAFingerprintOfItsOwn) {
  EXPECT_EQ(Model(golden_folder(GetParam())).fingerprint(), model_.fingerprint());
  std::set<std::uint64_t> others{model_.fingerprint()};
  for (const Transforms& transforms : {Transforms{true, false}, {false, true}, {true, true}}) {
    EXPECT_TRUE(others.insert(Model(golden_folder(GetParam()), transforms).fingerprint()).second);
  }
  const TemporaryFolder folder;
  std::filesystem::copy(golden_folder(GetParam()), folder.path());
  folder.edit_json("config.json", [](auto& config) {
    auto& place = config.contains("rope_parameters") ? config["rope_parameters"] : config;
    place["rope_theta"] = 123456.0;
  });
  EXPECT_TRUE(others.insert(Model(folder.path()).fingerprint()).second);
}

TEST_P(ModelGolden, IsTheSameModelWithHadamardTransforms) {
  const ModelConfig& config = model_.config();
  const Model transformed(golden_folder(GetParam()), {.keys = true, .values = true});
  CapturingCache cache(config, std::make_unique<FloatCache>(config, CacheRounding::None));
  const auto logits = run(model_, cache, golden_.tokens, golden_.tokens.size());
  const auto plain = cache.layers();
  EXPECT_LE(
      largest_difference(run(transformed, cache, golden_.tokens, golden_.tokens.size()), logits),
      1e-4F);
  for (std::size_t i = 0; i < plain.size(); ++i) {
    const auto check = [&](Floats CapturedLayer::*tensor, int heads) {
      expect_transforms(cache.layers()[i].*tensor, plain[i].*tensor, cache.length(), heads,
                        config.head_dim);
    };
    check(&CapturedLayer::queries, config.query_heads);
    check(&CapturedLayer::keys, config.kv_heads);
    check(&CapturedLayer::values, config.kv_heads);
  }
}

INSTANTIATE_TEST_SUITE_P(Checkpoints, ModelGolden, testing::ValuesIn(checkpoints),
                         [](const auto& test) { return std::string(test.param); });

TEST_P(ModelGolden, ContinuesFromAnyLayer) {
  const auto hidden = static_cast<std::size_t>(model_.config().hidden);
  const auto vocab = static_cast<std::size_t>(model_.config().vocab);
  const std::size_t count = golden_.tokens.size();
  const std::size_t begin = count / 3;
  Scratch scratch;
  FloatCache cache(model_.config());
  cache.restart(static_cast<int>(count));
  std::vector<float> logits(count * vocab);
  std::vector<std::vector<float>> states(static_cast<std::size_t>(model_.config().layers));
  const auto observe = [&](int layer, std::span<const float> state) {
    auto& kept = states[static_cast<std::size_t>(layer)];
    kept.insert(kept.end(), state.begin(), state.end());
  };
  model_.forward({golden_.tokens.data(), begin}, cache, scratch, {logits.data(), begin * vocab},
                 observe);
  model_.forward({&golden_.tokens[begin], count - begin}, cache, scratch,
                 {&logits[begin * vocab], (count - begin) * vocab}, observe);
  for (int layer = 0; layer < model_.config().layers; ++layer) {
    const auto& state = states[static_cast<std::size_t>(layer)];
    ASSERT_EQ(state.size(), count * hidden);
    FloatCache again(model_.config());
    again.restart(static_cast<int>(count));
    std::vector<float> got(count * vocab);
    model_.forward_from(layer, 0, {state.data(), begin * hidden}, again, scratch,
                        {got.data(), begin * vocab});
    model_.forward_from(layer, static_cast<int>(begin),
                        {state.data() + begin * hidden, (count - begin) * hidden}, again, scratch,
                        {&got[begin * vocab], (count - begin) * vocab});
    EXPECT_EQ(got, logits) << "layer " << layer;
  }
}

TEST(Model, GivesTheLastLogitsAloneWhenAskedForOneRow) {
  const Model model(golden_folder("llama_f32"));
  const Golden golden = read_golden("llama_f32");
  FloatCache cache(model.config());
  const auto all = run(model, cache, golden.tokens, golden.tokens.size());
  cache.restart(static_cast<int>(golden.tokens.size()));
  Scratch scratch;
  std::vector<float> last(static_cast<std::size_t>(model.config().vocab));
  model.forward(golden.tokens, cache, scratch, last);
  const std::vector<float> expected(all.end() - model.config().vocab, all.end());
  EXPECT_LE(largest_difference(last, expected), 1e-5F);  // a vector product adds in another order
}

TEST(ModelHostile, RefusesTokensAndPositionsThatDoNotExist) {
  const Model model(golden_folder("llama_f32"));
  const int vocab = model.config().vocab;
  FloatCache cache(model.config());
  Scratch scratch;
  std::vector<float> logits(static_cast<std::size_t>(vocab));
  const auto forward = [&](std::vector<int> tokens) {
    return error_of([&] { model.forward(tokens, cache, scratch, logits); });
  };
  cache.restart(model.config().context);
  EXPECT_THAT(forward({vocab}), HasSubstr("outside the model's vocabulary of 48"));
  EXPECT_THAT(forward({-1}), HasSubstr("token -1"));
  EXPECT_THAT(forward({}), HasSubstr("at least one token"));
  EXPECT_THAT(forward(std::vector<int>(65, 1)), HasSubstr("context of 64"));
  EXPECT_EQ(forward(std::vector<int>(64, 1)), "");
  EXPECT_THAT(forward({1}), HasSubstr("positions 64 to 64 do not fit the model's context of 64"));
  logits.resize(7);
  cache.restart(1);
  EXPECT_THAT(forward({1}), HasSubstr("room for 7 numbers"));
}

TEST(ModelHostile, CannotContinueFromWhatIsNoState) {
  const Model model(golden_folder("llama_f32"));
  FloatCache cache(model.config());
  cache.restart(8);
  Scratch scratch;
  std::vector<float> logits(static_cast<std::size_t>(model.config().vocab));
  const auto forward = [&](int layer, std::size_t numbers) {
    const std::vector<float> hidden(numbers);
    return error_of([&] { model.forward_from(layer, 0, hidden, cache, scratch, logits); });
  };
  EXPECT_EQ(forward(1, 32), "");
  EXPECT_THAT(forward(2, 32), HasSubstr("layer 2 of 2 cannot start from 32 numbers, 32 a token"));
  EXPECT_THAT(forward(-1, 32), HasSubstr("layer -1"));
  EXPECT_THAT(forward(0, 33), HasSubstr("33 numbers"));
  EXPECT_THAT(forward(0, 0), HasSubstr("at least one token"));
}

TEST(ModelHostile, RefusesTensorsThatItWouldHaveToIgnore) {
  const TemporaryFolder folder("qwen2_f16");  // has biases, which the new family lacks
  folder.edit_json("config.json",
                   [](auto& config) { config["architectures"] = {"LlamaForCausalLM"}; });
  EXPECT_THAT(error_of([&] { Model{folder.path()}; }),
              HasSubstr("key 'sliding_window' is not part of LlamaForCausalLM"));
  folder.edit_json("config.json", [](auto& config) {
    config.erase("max_window_layers");
    config.erase("sliding_window");
  });
  EXPECT_THAT(error_of([&] { Model{folder.path()}; }),
              HasSubstr("tensor \"model.layers.0.self_attn.k_proj.bias\" is not part of"));
}

TEST(ModelHostile, NamesTheTensorThatIsMissingOrMisshapen) {
  const TemporaryFolder folder("llama_f32");
  folder.edit_json("config.json", [](auto& config) { config["num_hidden_layers"] = 3; });
  EXPECT_THAT(error_of([&] { Model{folder.path()}; }),
              HasSubstr("has no tensor 'model.layers.2.input_layernorm.weight'"));
  folder.edit_json("config.json", [](auto& config) {
    config["num_hidden_layers"] = 2;
    config["intermediate_size"] = 41;
  });
  EXPECT_THAT(error_of([&] { Model{folder.path()}; }),
              HasSubstr("gate_proj.weight' has shape [40, 32]; config.json asks for [41, 32]"));
}

}  // namespace
}  // namespace llama
