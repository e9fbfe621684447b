// SPDX-License-Identifier: MIT
#include "support.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <llama/checkpoint.hpp>

namespace llama {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::string open(const TemporaryFolder& folder) {
  return error_of([&] { Checkpoint{folder.path()}; });
}

TEST(Checkpoint, ConvertsWhatItUnderstandsToFloats) {
  const TemporaryFolder folder;
  // 1, -2 in F16; 1, -2 in BF16; 1 in F32. The header's odd length leaves all of them unaligned.
  const std::string data("\x00\x3C\x00\xC0\x80\x3F\x00\xC0\x00\x00\x80\x3F", 12);
  folder.write("model.safetensors",
               kvtilt::test::safetensors_bytes(
                   R"({"f16":{"dtype":"F16","shape":[2],"data_offsets":[0,4]},)"
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
              HasSubstr("nowhere: there is no such file or folder"));
  Checkpoint checkpoint(golden_folder("llama_f32"));
  EXPECT_THAT(error_of([&] { (void)checkpoint.load("absent", {1}); }),
              HasSubstr("model.safetensors: has no tensor 'absent'"));
  EXPECT_THAT(error_of([&] {
                (void)checkpoint.load("model.norm.weight", {8, 4});
              }),
              HasSubstr("has shape [32]; config.json asks for [8, 4]"));
}

TEST(CheckpointHostile, RefusesDtypesThatItCannotConvert) {
  const TemporaryFolder folder;
  folder.write("model.safetensors",
               kvtilt::test::safetensors_bytes(
                   R"({"t":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}})", "12345678"));
  Checkpoint checkpoint(folder.path());
  EXPECT_THAT(error_of([&] { (void)checkpoint.load("t", {8}); }),
              HasSubstr("is stored as U8; only F32, F16, BF16"));
}

}  // namespace
}  // namespace llama
