// SPDX-License-Identifier: MIT
#include "support.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <llama/checkpoint.hpp>

namespace llama {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr const char* index_file = "model.safetensors.index.json";

std::string open(const TemporaryFolder& folder) {
  return error_of([&] { Checkpoint{folder.path()}; });
}

TEST(Checkpoint, ConvertsWhatItUnderstandsToFloats) {
  const TemporaryFolder folder;
  // 1, -2 as F16; 1, -2 as BF16; 1 as F32. The odd header length leaves everything unaligned.
  const std::string data("\x00\x3C\x00\xC0\x80\x3F\x00\xC0\x00\x00\x80\x3F", 12);
  folder.write(
      "model.safetensors",
      TemporaryFolder::with_header(R"({"f16":{"dtype":"F16","shape":[2],"data_offsets":[0,4]},)"
                                   R"("bf16":{"dtype":"BF16","shape":[2,1],"data_offsets":[4,8]},)"
                                   R"("f32":{"dtype":"F32","shape":[1],"data_offsets":[8,12]}} )",
                                   data));
  Checkpoint checkpoint(folder.path());
  EXPECT_THAT(checkpoint.load("f16", {2}), ElementsAre(1, -2));
  EXPECT_THAT(checkpoint.load("bf16", {2, 1}), ElementsAre(1, -2));
  EXPECT_THAT(checkpoint.unused(), ElementsAre("f32"));
  EXPECT_THAT(checkpoint.load("f32", {1}), ElementsAre(1));
  EXPECT_THAT(checkpoint.unused(), testing::IsEmpty());
}

TEST(Checkpoint, FindsEveryTensorOfAnIndexInItsShard) {
  Checkpoint checkpoint(golden_folder("qwen3_sharded"));
  EXPECT_EQ(checkpoint.load("model.layers.1.self_attn.q_norm.weight", {16}).size(), 16U);
  EXPECT_EQ(checkpoint.load("model.embed_tokens.weight", {48, 32}).size(), 48U * 32U);
}

TEST(CheckpointHostile, SaysWhatIsMissing) {
  const TemporaryFolder folder;
  EXPECT_THAT(open(folder), HasSubstr("neither model.safetensors nor"));
  EXPECT_THAT(error_of([&] { Checkpoint{folder.path() / "nowhere"}; }),
              HasSubstr("no such folder"));
  Checkpoint checkpoint(golden_folder("llama_f32"));
  EXPECT_THAT(error_of([&] { (void)checkpoint.load("absent", {1}); }),
              HasSubstr("model.safetensors: tensor \"absent\" is missing"));
  EXPECT_THAT(error_of([&] {
                (void)checkpoint.load("model.norm.weight", {8, 4});
              }),
              HasSubstr("has shape [32]; config.json asks for [8,4]"));
}

TEST(CheckpointHostile, RefusesDtypesThatItCannotConvert) {
  const TemporaryFolder folder;
  folder.write("model.safetensors",
               TemporaryFolder::with_header(
                   R"({"t":{"dtype":"F8_E4M3","shape":[8],"data_offsets":[0,8]}})", "12345678"));
  Checkpoint checkpoint(folder.path());
  EXPECT_THAT(error_of([&] { (void)checkpoint.load("t", {8}); }),
              HasSubstr("is stored as F8_E4M3; only F32, F16 and BF16 are understood"));
}

TEST(CheckpointHostile, RefusesDamagedIndexes) {
  const TemporaryFolder folder("qwen3_sharded");
  const auto edited = [&](auto edit) {
    const std::string before = folder.read(index_file);
    folder.edit_json(index_file, edit);
    const std::string error = open(folder);
    folder.write(index_file, before);
    return error;
  };
  const std::string tensor = "model.norm.weight";
  EXPECT_EQ(open(folder), "");
  EXPECT_THAT(edited([](auto& index) { index.erase("weight_map"); }), HasSubstr("no weight_map"));
  EXPECT_THAT(edited([&](auto& index) { index["weight_map"][tensor] = 3; }),
              HasSubstr("tensor \"model.norm.weight\" names no shard"));
  for (const std::string name : {"../model.safetensors", "/etc/passwd", "..", "", "a/b"}) {
    EXPECT_THAT(edited([&](auto& index) { index["weight_map"][tensor] = name; }),
                HasSubstr("not a plain file name"));
  }
  EXPECT_THAT(edited([&](auto& index) { index["weight_map"][tensor] = "absent.safetensors"; }),
              HasSubstr("absent.safetensors: cannot be opened"));
  EXPECT_THAT(edited([](auto& index) {
                index["weight_map"]["extra"] = "model-00001-of-00003.safetensors";
              }),
              HasSubstr("tensor \"extra\" is not in its shard model-00001-of-00003.safetensors"));
  folder.write(index_file, "{");
  EXPECT_THAT(open(folder), HasSubstr("index.json is not valid JSON"));
}

TEST(CheckpointHostile, RefusesADamagedShard) {
  const TemporaryFolder folder("qwen3_sharded");
  const std::string shard = "model-00002-of-00003.safetensors";
  const std::string whole = folder.read(shard);
  folder.write(shard, whole.substr(0, whole.size() - 100));
  EXPECT_THAT(open(folder), HasSubstr(shard));
  std::filesystem::remove(folder.path() / shard);
  EXPECT_THAT(open(folder), HasSubstr("cannot be opened"));
}

}  // namespace
}  // namespace llama
