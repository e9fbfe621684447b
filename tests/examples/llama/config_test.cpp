// SPDX-License-Identifier: MIT
#include "support.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <llama/config.hpp>

namespace llama {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::AnyOf;
using testing::ElementsAre;
using testing::HasSubstr;

/// config.json of a golden checkpoint after `edit`.
template <class Edit>
ModelConfig read_edited(const std::string& golden, Edit edit) {
  const TemporaryFolder folder(golden);
  folder.edit_json("config.json", edit);
  return read_config(folder.path());
}

/// The error after one key of a golden configuration is set to another value.
std::string refuse(const std::string& key, const json& value,
                   const std::string& golden = "llama_f32") {
  return error_of([&] { (void)read_edited(golden, [&](json& config) { config[key] = value; }); });
}

std::string refuse_without(const std::string& key) {
  return error_of([&] { (void)read_edited("llama_f32", [&](json& c) { c.erase(key); }); });
}

TEST(Config, ReadsTheShippedModels) {
  const ModelConfig stories = read_config(data_folder("models/stories260K"));
  EXPECT_EQ(stories.query_heads, 8);
  EXPECT_EQ(stories.kv_heads, 4);
  EXPECT_EQ(stories.head_dim, 8);
  EXPECT_EQ(stories.context, 512);
  EXPECT_EQ(stories.begin_token, 1);
  EXPECT_THAT(stories.end_tokens, ElementsAre(2));
  EXPECT_FALSE(stories.byte_tokens);
  const ModelConfig novels = read_config(data_folder("models/novels-3M"));
  EXPECT_TRUE(novels.byte_tokens);
  EXPECT_FALSE(novels.begin_token.has_value());
}

TEST(Config, FillsInWhatOlderFilesLeaveOut) {
  const ModelConfig config = read_edited("llama_f32", [](json& c) {
    c.erase("num_key_value_heads");
    c.erase("rope_theta");
    c.erase("tie_word_embeddings");
    c["eos_token_id"] = {2, 3};
    c["mlp_bias"] = false;
    c["something_switched_off"] = nullptr;
  });
  EXPECT_EQ(config.kv_heads, 4);
  EXPECT_EQ(config.head_dim, 8);
  EXPECT_EQ(config.rope_theta, 10000);
  EXPECT_FALSE(config.tied_embeddings);
  EXPECT_THAT(config.end_tokens, ElementsAre(2, 3));
}

TEST(Config, FindsTheWindowOfEveryLayer) {
  const auto nothing = [](json&) {};
  EXPECT_THAT(read_edited("llama_f32", nothing).windows, ElementsAre(0, 0));
  EXPECT_THAT(read_edited("mistral_window_bf16", nothing).windows, ElementsAre(7, 7));
  EXPECT_THAT(
      read_edited("mistral_window_bf16", [](json& c) { c["sliding_window"] = nullptr; }).windows,
      ElementsAre(0, 0));
  EXPECT_THAT(
      read_edited("mistral_window_bf16", [](json& c) { c.erase("sliding_window"); }).windows,
      ElementsAre(4096, 4096));
  EXPECT_THAT(read_edited("qwen2_f16", nothing).windows, ElementsAre(0, 0));
  EXPECT_THAT(read_edited("qwen2_mixed_windows", nothing).windows, ElementsAre(0, 5));
  EXPECT_THAT(read_edited("qwen2_mixed_windows",
                          [](json& c) {
                            c["layer_types"] = {"sliding_attention", "full_attention"};
                          })
                  .windows,
              ElementsAre(5, 0));
}

TEST(ConfigHostile, RefusesWhatItCannotCompute) {
  EXPECT_THAT(refuse("architectures", {"GemmaForCausalLM"}),
              AllOf(HasSubstr("GemmaForCausalLM, which is not implemented"), HasSubstr("Qwen3")));
  EXPECT_THAT(refuse("architectures", json::array()), HasSubstr("does not name one architecture"));
  EXPECT_THAT(refuse("hidden_act", "gelu"),
              HasSubstr("key 'hidden_act' is \"gelu\"; this engine only computes \"silu\""));
  EXPECT_THAT(refuse("attention_bias", true), HasSubstr("only computes false"));
  EXPECT_THAT(refuse("mlp_bias", true), HasSubstr("only computes false"));
  EXPECT_THAT(refuse("partial_rotary_factor", 0.5), HasSubstr("only computes 1"));
  EXPECT_THAT(refuse("sliding_window", 8), HasSubstr("not part of LlamaForCausalLM"));
  EXPECT_THAT(
      refuse("quantization_config", {{"bits", 4}}),
      AllOf(HasSubstr("key 'quantization_config' is"), HasSubstr("not known to this engine")));
  EXPECT_THAT(refuse("final_logit_softcapping", 30.0), HasSubstr("may change what the model"));
  EXPECT_THAT(refuse("layer_types", {"full_attention", "linear_attention"}),
              HasSubstr("element 1 of key 'layer_types' is \"linear_attention\""));
  EXPECT_THAT(refuse("layer_types", {"full_attention"}), HasSubstr("each of 2 layers"));
  EXPECT_THAT(refuse("tokenizer", "words"), HasSubstr("the only value is \"bytes\""));
}

TEST(ConfigHostile, RefusesUnknownRotaryScaling) {
  for (const std::string key : {"rope_scaling", "rope_parameters"}) {
    EXPECT_THAT(refuse(key, {{"rope_type", "yarn"}, {"factor", 2.0}}),
                AllOf(HasSubstr(key), HasSubstr("\"yarn\", which is not implemented")));
    EXPECT_THAT(refuse(key, {{"type", "linear"}}), HasSubstr("'" + key + "' has no key 'factor'"));
    EXPECT_THAT(refuse(key, {{"type", "linear"}, {"factor", 0}}), HasSubstr("positive number"));
    EXPECT_THAT(refuse(key, {{"type", "linear"}, {"factor", 2}, {"short_factor", 3}}),
                HasSubstr("'short_factor' of '" + key + "'"));
    EXPECT_THAT(refuse(key, 4), HasSubstr("'" + key + "' is 4, not an object"));
  }
  EXPECT_THAT(refuse("rope_scaling", {{"rope_type", "llama3"},
                                      {"factor", 8},
                                      {"low_freq_factor", 4},
                                      {"high_freq_factor", 4},
                                      {"original_max_position_embeddings", 64}}),
              HasSubstr("must be larger"));
}

TEST(ConfigHostile, RefusesNumbersThatCannotBeMeant) {
  for (const std::string key :
       {"hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "intermediate_size", "vocab_size", "max_position_embeddings", "head_dim"}) {
    for (const json& value : {json(0), json(-1), json(1.5), json("8"), json(1LL << 40),
                              json(18446744073709551615ULL)}) {
      EXPECT_THAT(refuse(key, value), HasSubstr("'" + key + "' is ")) << value;
    }
  }
  for (const json& value : {json(0), json(-1e-5), json("small")}) {
    EXPECT_THAT(refuse("rms_norm_eps", value),
                AnyOf(HasSubstr("not a positive number"), HasSubstr("not a number")));
  }
  EXPECT_THAT(refuse_without("hidden_size"), HasSubstr("has no key 'hidden_size'"));
  EXPECT_THAT(refuse_without("rms_norm_eps"), HasSubstr("has no key 'rms_norm_eps'"));
  EXPECT_THAT(refuse("num_key_value_heads", 3), HasSubstr("cannot share 3 kv heads evenly"));
  EXPECT_THAT(refuse("hidden_size", 33), HasSubstr("not a multiple of 4 heads"));
  EXPECT_THAT(refuse("head_dim", 7), HasSubstr("head_dim 7 is odd"));
  EXPECT_THAT(refuse("num_hidden_layers", 20000), HasSubstr("more than this engine addresses"));
  EXPECT_THAT(refuse("bos_token_id", 48), HasSubstr("is 48, not a whole number from 0 to 47"));
  EXPECT_THAT(refuse("eos_token_id", {1, -1}), HasSubstr("element 1 of key 'eos_token_id' is -1"));
  EXPECT_THAT(refuse("tie_word_embeddings", 1), HasSubstr("not true or false"));
}

TEST(ConfigHostile, RefusesFilesThatAreNoConfiguration) {
  const TemporaryFolder folder;
  const auto read = [&] { return error_of([&] { (void)read_config(folder.path()); }); };
  EXPECT_THAT(read(), HasSubstr("config.json: no such file"));
  folder.write("config.json", "");
  EXPECT_THAT(read(), HasSubstr("not valid JSON"));
  folder.write("config.json", "[1]");
  EXPECT_THAT(read(), HasSubstr("config.json:1: the document is a list, not an object"));
  folder.write("config.json", R"({"hidden_size":1,"hidden_size":2})");
  EXPECT_THAT(read(), HasSubstr("config.json:1: key 'hidden_size' appears twice"));
}

}  // namespace
}  // namespace llama
