// SPDX-License-Identifier: MIT
#include <kvtilt/io/safetensors_writer.hpp>

#include "support.hpp"
#include "support/tensor_files.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <llama/norm_source.hpp>

#include <cmath>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace llama {
namespace {

using testing::HasSubstr;

/// A checkpoint of one layer with 4 query and 2 kv heads, whose tensors the test chooses.
class Folder : public TemporaryFolder {
 public:
  struct Named {
    std::string name;
    std::vector<std::int64_t> shape;
    std::vector<float> numbers;
  };

  explicit Folder(
      const std::vector<Named>& tensors,
      const std::string& config =
          R"({"num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2})") {
    write("config.json", config);
    std::vector<kvtilt::TensorToWrite> list;
    for (const Named& tensor : tensors) {
      list.push_back({tensor.name, "F32", tensor.shape, std::as_bytes(std::span(tensor.numbers))});
    }
    EXPECT_TRUE(kvtilt::write_safetensors(path() / "model.safetensors", list).ok());
  }
};

/// [rows, columns] with `row + 1` in each row's first column and 0 elsewhere: the Frobenius norm of
/// any set of rows identifies them.
Folder::Named matrix(const std::string& name, int rows, int columns = 3) {
  Folder::Named tensor{
      name, {rows, columns}, std::vector<float>(static_cast<std::size_t>(rows * columns))};
  for (int row = 0; row < rows; ++row) {
    tensor.numbers[static_cast<std::size_t>(row * columns)] = static_cast<float>(row + 1);
  }
  return tensor;
}

/// A GGUF file. Lists of one count are stored as numbers, all others as arrays.
class Gguf : public TemporaryFolder {
 public:
  using Counts = std::vector<std::pair<std::string, std::vector<std::uint32_t>>>;

  explicit Gguf(const Counts& counts, const std::vector<Folder::Named>& tensors = {},
                const std::string& family = "a") {
    kvtilt::test::GgufBytes bytes(tensors.size(), counts.size() + 1);
    bytes.pair("general.architecture", 8).string(family);
    for (const auto& [key, list] : counts) {
      bytes.pair(family + "." + key, list.size() == 1 ? 4 : 9);
      if (list.size() != 1) bytes.number<std::uint32_t>(4).number<std::uint64_t>(list.size());
      for (const std::uint32_t count : list) bytes.number(count);
    }
    kvtilt::test::GgufBytes data;
    const std::size_t before = data.align().bytes().size();
    for (const Folder::Named& tensor : tensors) {
      const std::vector<std::uint64_t> dimensions(tensor.shape.rbegin(), tensor.shape.rend());
      bytes.tensor(tensor.name, dimensions, 0, data.bytes().size() - before);
      for (const float number : tensor.numbers) data.number(number);
      data.align();
    }
    write("a.gguf", bytes.align().data(data.bytes().substr(before)).bytes());
  }

  [[nodiscard]] std::filesystem::path file() const { return path() / "a.gguf"; }
};

/// Frobenius norm of the rows `first` to first + count - 1 of matrix().
double norm_of(int first, int count) {
  double sum = 0;
  for (int row = first; row < first + count; ++row) sum += (row + 1.0) * (row + 1.0);
  return std::sqrt(sum);
}

std::string error(const std::filesystem::path& path) {
  return error_of([&] { (void)read_weight_norms(path, 1); });
}

TEST(NormSource, ReadsSeparateProjections) {
  const Folder folder(
      {matrix("model.layers.0.self_attn.k_proj.weight", 16),
       matrix("model.layers.0.self_attn.v_proj.weight", 32),
       {"model.layers.0.self_attn.k_proj.bias", {16}, std::vector<float>(16, 0.5F)}});
  const WeightNorms norms = read_weight_norms(folder.path(), 2);
  ASSERT_EQ(norms.layers.size(), 1U);
  EXPECT_EQ(norms.shape.layers[0], (kvtilt::LayerShape{2, 8, 16, 0}));
  const kvtilt::LayerNorms& layer = norms.layers[0];
  EXPECT_NEAR(layer.keys.frobenius, norm_of(0, 16), 1e-6);
  EXPECT_NEAR(layer.keys.spectral, norm_of(0, 16), 1e-6) << "of rank one";
  EXPECT_NEAR(layer.keys.head_frobenius.at(1), norm_of(8, 8), 1e-6);
  EXPECT_NEAR(layer.values.frobenius, norm_of(0, 32), 1e-6);
  EXPECT_NEAR(layer.keys.bias, 2, 1e-6);
  EXPECT_EQ(layer.keys.hidden, 3);
  EXPECT_FALSE(layer.key_norm);
}

TEST(NormSource, ReadsFusedProjectionsInBothOrders) {
  const Folder blocks({matrix("model.layers.0.self_attn.qkv_proj.weight", 64)});
  const auto phi = read_weight_norms(blocks.path(), 1).layers[0];
  EXPECT_NEAR(phi.keys.frobenius, norm_of(32, 16), 1e-5);
  EXPECT_NEAR(phi.values.head_frobenius.at(0), norm_of(48, 8), 1e-5);
  const Folder per_head({matrix("model.layers.0.attention.wqkv.weight", 64)});
  const auto intern = read_weight_norms(per_head.path(), 1).layers[0];
  EXPECT_NEAR(intern.keys.head_frobenius.at(0), norm_of(16, 8), 1e-5);
  EXPECT_NEAR(intern.values.head_frobenius.at(1), norm_of(56, 8), 1e-5);
}

TEST(NormSource, SeesTheNormThatKeysPass) {
  const WeightNorms norms = read_weight_norms(golden_folder("qwen3_sharded"), 1);
  ASSERT_EQ(norms.layers.size(), 2U);
  for (const auto& layer : norms.layers) {
    EXPECT_TRUE(layer.key_norm);
    EXPECT_EQ(layer.key_gains.size(), 16U);
  }
  EXPECT_FALSE(read_weight_norms(golden_folder("llama_f32"), 1).layers[0].key_norm);
  EXPECT_GT(read_weight_norms(golden_folder("qwen2_f16"), 1).layers[0].keys.bias, 0);
}

/// Safetensors files of Gemma 3 and Qwen3-Next store a gain minus one; GGUF files store the gain.
TEST(NormSource, AddsTheOneThatFamiliesLeaveOutOfGains) {
  const auto gains = [](const std::string& config) {
    const Folder folder({matrix("model.layers.0.self_attn.k_proj.weight", 16),
                         matrix("model.layers.0.self_attn.v_proj.weight", 16),
                         {"model.layers.0.self_attn.k_norm.weight", {8}, std::vector<float>(8, 3)}},
                        config);
    return read_weight_norms(folder.path(), 1).layers[0].key_gains;
  };
  const std::string counts = R"("num_hidden_layers": 1, "num_attention_heads": 2)";
  for (const std::string family : {"gemma3", "gemma3_text", "qwen3_next", "qwen3_5", "qwen3_5_text",
                                   "qwen3_5_moe", "qwen3_5_moe_text"}) {
    EXPECT_EQ(gains("{\"model_type\": \"" + family + "\", " + counts + "}"),
              std::vector<float>(8, 4))
        << family;
  }
  EXPECT_EQ(gains(R"({"model_type": "gemma3", "text_config": {)" + counts + "}}"),
            std::vector<float>(8, 4));
  EXPECT_EQ(
      gains(R"({"model_type": "x", "text_config": {"model_type": "gemma3_text", )" + counts + "}}"),
      std::vector<float>(8, 4));
  for (const std::string family : {"qwen3", "gemma3n", "gemma3n_text", "gemma4"}) {
    EXPECT_EQ(gains("{\"model_type\": \"" + family + "\", " + counts + "}"),
              std::vector<float>(8, 3))
        << family;
  }
  const Gguf file({{"block_count", {1}}, {"attention.head_count", {2}}},
                  {matrix("blk.0.attn_k.weight", 16),
                   matrix("blk.0.attn_v.weight", 16),
                   {"blk.0.attn_k_norm.weight", {8}, std::vector<float>(8, 4)}},
                  "gemma3");
  EXPECT_EQ(read_weight_norms(file.file(), 1).layers[0].key_gains, std::vector<float>(8, 4));
}

/// In hybrid models, layers of linear attention have no k_proj and v_proj.
TEST(NormSource, LayersWithoutProjectionsKeepNoCache) {
  const Folder folder({matrix("model.layers.0.linear_attn.in_proj.weight", 16),
                       matrix("model.layers.1.self_attn.k_proj.weight", 16),
                       matrix("model.layers.1.self_attn.v_proj.weight", 16)},
                      R"({"text_config": {"num_hidden_layers": 2, "num_attention_heads": 2}})");
  const WeightNorms norms = read_weight_norms(folder.path(), 1);
  EXPECT_EQ(norms.shape.layers[0].kv_heads, 0);
  EXPECT_EQ(norms.shape.layers[1].kv_heads, 2);
}

/// The error for a layer with these rows and 8 query heads, with `config` added to config.json; ""
/// if none.
std::string size_error(int key_rows, int value_rows, const std::string& config) {
  return error(Folder({matrix("model.layers.0.self_attn.k_proj.weight", key_rows),
                       matrix("model.layers.0.self_attn.v_proj.weight", value_rows)},
                      R"({"num_hidden_layers": 1, "num_attention_heads": 8, )" + config + "}")
                   .path());
}

TEST(NormSource, TakesHeadsOfTheSizeThatIsStated) {
  EXPECT_EQ(size_error(128, 128, R"("num_key_value_heads": 2, "head_dim": 64)"), "");
  EXPECT_EQ(size_error(128, 64, R"("num_key_value_heads": 2, "head_dim": 64, "v_head_dim": 32)"),
            "");
  EXPECT_EQ(size_error(128, 128, R"("num_kv_heads": 2, "head_dim": 32, "global_head_dim": 64)"),
            "");
  EXPECT_EQ(size_error(128, 128, R"("n_head_kv": 2, "hidden_size": 512)"), "");
  EXPECT_EQ(size_error(128, 128, R"("num_kv_heads": 2, "hidden_size": 480, "head_dim": 64)"), "");
}

/// config.json may omit head_dim although it is not hidden_size / heads (Gemma 3).
TEST(NormSource, GainsOfOneHeadTellItsSizeWhereNothingIsStated) {
  const auto with_gains = [](std::int64_t size) {
    return error(Folder({matrix("model.layers.0.self_attn.k_proj.weight", 16),
                         matrix("model.layers.0.self_attn.v_proj.weight", 16),
                         {"model.layers.0.self_attn.k_norm.weight",
                          {size},
                          std::vector<float>(static_cast<std::size_t>(size), 1)}},
                        R"({"num_hidden_layers": 1, "num_attention_heads": 4,
                            "num_key_value_heads": 2, "hidden_size": 24})")
                     .path());
  };
  EXPECT_EQ(with_gains(8), "");
  EXPECT_THAT(with_gains(16), HasSubstr("hidden_size 24 / num_attention_heads 4 is 6"));
}

TEST(NormSource, LinearAttentionOfGgufFilesKeepsNoCache) {
  const Gguf::Counts counts = {{"block_count", {2}},
                               {"attention.head_count", {6}},
                               {"attention.head_count_kv", {1}},
                               {"attention.key_length", {16}},
                               {"attention.value_length", {16}}};
  const auto with_rows = [&](int rows, const std::string& beside) {
    return Gguf(counts, {matrix("blk.0.attn_qkv.weight", rows), matrix("blk.0." + beside, 4),
                         matrix("blk.1.attn_k.weight", 16), matrix("blk.1.attn_v.weight", 16)});
  };
  for (const int rows : {192, 193}) {
    const Gguf file = with_rows(rows, "ssm_conv1d.weight");
    const WeightNorms norms = read_weight_norms(file.file(), 1);
    EXPECT_EQ(norms.shape.layers[0].kv_heads, 0) << rows;
    EXPECT_EQ(norms.shape.layers[1], (kvtilt::LayerShape{1, 16, 16, 0}));
  }
  EXPECT_EQ(read_weight_norms(with_rows(128, "ssm_a").file(), 1).shape.layers[0].kv_heads, 1);
  EXPECT_THAT(
      error(with_rows(192, "attn_norm.weight").file()),
      HasSubstr("\"blk.0.attn_qkv.weight\" of layer 0 has shape [192, 3], which for 6 query "
                "and 1 kv heads makes 24 rows a head; but attention.key_length is 16"));
}

TEST(NormSourceHostile, RefusesHeadsOfAnotherSizeThanStated) {
  EXPECT_THAT(size_error(128, 128, R"("num_key_value_heads": null, "head_dim": 64)"),
              HasSubstr("k_proj.weight\" of layer 0 has shape [128, 3], which for 8 query and 8 kv "
                        "heads makes 16 rows a head; but head_dim is 64"));
  EXPECT_THAT(size_error(128, 128, R"("hidden_size": 512, "num_key_value_heads_per_layer": [2])"),
              HasSubstr("makes 16 rows a head; but hidden_size 512 / num_attention_heads 8 is 64"));
  EXPECT_THAT(size_error(128, 128, R"("n_head_kv": 2, "head_dim": 64, "v_head_dim": 32)"),
              HasSubstr("v_proj.weight\" of layer 0 has shape [128, 3], which for 8 query and 2 kv "
                        "heads makes 64 rows a head; but v_head_dim is 32"));
  const Gguf file({{"block_count", {1}}, {"attention.head_count", {4}}, {"embedding_length", {32}}},
                  {matrix("blk.0.attn_k.weight", 64), matrix("blk.0.attn_v.weight", 64)});
  EXPECT_THAT(error(file.file()),
              HasSubstr("makes 16 rows a head; but embedding_length 32 / attention.head_count 4"));
}

TEST(NormSourceHostile, RefusesWeightsThatScalesBelongTo) {
  for (const std::string scale : {"v_proj.weight_scale_inv", "v_proj.weight_scale"}) {
    EXPECT_THAT(
        error(Folder({matrix("model.layers.0.self_attn.k_proj.weight", 16),
                      matrix("model.layers.0.self_attn.v_proj.weight", 16),
                      matrix("model.layers.0.self_attn." + scale, 1, 1)})
                  .path()),
        HasSubstr("\"model.layers.0.self_attn.v_proj.weight\" of layer 0 is to be scaled by "
                  "\"model.layers.0.self_attn." +
                  scale + "\", which is not understood"));
  }
  EXPECT_THAT(error(Folder({matrix("model.layers.0.self_attn.qkv_proj.weight", 64),
                            matrix("model.layers.0.self_attn.qkv_proj.weight_scale", 64, 1)})
                        .path()),
              HasSubstr("qkv_proj.weight_scale\", which is not understood"));
}

TEST(NormSourceHostile, RefusesCheckpointsThatLackLayers) {
  EXPECT_THAT(error(Folder({matrix("model.layers.1.self_attn.k_proj.weight", 16),
                            matrix("model.layers.1.self_attn.v_proj.weight", 16),
                            matrix("model.layers.10.mlp.weight", 16)},
                           R"({"num_hidden_layers": 4, "num_attention_heads": 2})")
                        .path()),
              HasSubstr(": 3 of 4 layers have no tensors at all, layer 0 the first of them"));
  const Folder::Named keys = matrix("blk.1.attn_k.weight", 32);
  const Folder::Named values = matrix("blk.1.attn_v.weight", 32);
  EXPECT_EQ(error(Gguf({{"block_count", {2}},
                        {"attention.head_count", {2}},
                        {"attention.head_count_kv", {0, 2}}},
                       {keys, values})
                      .file()),
            "")
      << "a layer without heads may have nothing";
  EXPECT_THAT(
      error(Gguf({{"block_count", {2}}, {"attention.head_count", {2}}}, {keys, values}).file()),
      HasSubstr("a.gguf: 1 of 2 layers have no tensors at all, layer 0 the first"));
}

TEST(NormSourceHostile, NamesWhatIsMissing) {
  EXPECT_THAT(error("/nowhere"), HasSubstr("/nowhere"));
  EXPECT_THAT(error(Folder({matrix("something.else", 16)}).path()),
              HasSubstr("no key and value projections"));
  EXPECT_THAT(error(Folder({matrix("model.layers.0.self_attn.k_proj.weight", 16)}).path()),
              HasSubstr("layer 0 has only one of"));
  EXPECT_THAT(error(Folder({matrix("model.layers.0.self_attn.k_proj.weight", 17),
                            matrix("model.layers.0.self_attn.v_proj.weight", 16)})
                        .path()),
              HasSubstr("[17, 3], which is not [2 kv heads x n, hidden]"));
  EXPECT_THAT(error(Folder({matrix("model.layers.0.self_attn.k_proj.weight", 16),
                            matrix("model.layers.0.self_attn.v_proj.weight", 16)},
                           "{}")
                        .path()),
              HasSubstr("no \"num_hidden_layers\""));
  EXPECT_THAT(error(Folder({matrix("model.layers.0.self_attn.k_proj.weight", 4),
                            matrix("model.layers.0.self_attn.v_proj.weight", 4)})
                        .path()),
              HasSubstr("head dimensions are key 2"));
  auto broken = matrix("model.layers.0.self_attn.v_proj.weight", 16);
  broken.numbers[5] = std::nanf("");
  EXPECT_THAT(error(Folder({matrix("model.layers.0.self_attn.k_proj.weight", 16), broken}).path()),
              HasSubstr("v_proj.weight\" of layer 0: row 1, column 2 is not finite"));
}

TEST(NormSourceHostile, RefusesCountsThatGgufFilesLeaveEmpty) {
  EXPECT_THAT(error(Gguf({{"block_count", {2}}, {"attention.head_count", {}}}).file()),
              HasSubstr("a.gguf: key 'a.attention.head_count' is an empty array"));
  EXPECT_THAT(error(Gguf({{"block_count", {2}},
                          {"attention.head_count", {4}},
                          {"attention.head_count_kv", {}}})
                        .file()),
              HasSubstr("block_count and head counts contradict each other"));
}

}  // namespace
}  // namespace llama
