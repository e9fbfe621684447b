// SPDX-License-Identifier: MIT
#include <kvtilt/io/checkpoint.hpp>

#include "support/golden_file.hpp"
#include "support/tensor_files.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

namespace kvtilt {
namespace {

using test::GgufBytes;
using test::safetensors_bytes;
using test::TemporaryFolder;
using testing::ElementsAre;
using testing::HasSubstr;

std::string open_error(const std::filesystem::path& path) {
  return std::string(Checkpoint::open(path).message());
}

/// A file with one F32 tensor of two numbers.
std::string one_tensor(const std::string& name) {
  return safetensors_bytes("{\"" + name + R"(":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})",
                           std::string(8, '\0'));
}

constexpr const char* index_file = "model.safetensors.index.json";

/// The error for a folder with two shards and an index with this weight map.
std::string index_error(const TemporaryFolder& folder, const std::string& weight_map) {
  folder.write("one.safetensors", one_tensor("a"));
  folder.write("two.safetensors", one_tensor("b"));
  folder.write(index_file, "{\n\"metadata\": {},\n\"weight_map\": {\n" + weight_map + "}}");
  return open_error(folder.path());
}

TEST(Checkpoint, ReadsAFolderWithOneFile) {
  const TemporaryFolder folder;
  folder.write("model.safetensors", one_tensor("a"));
  auto opened = Checkpoint::open(folder.path());
  ASSERT_TRUE(opened.ok()) << opened.message();
  const Checkpoint checkpoint = *std::move(opened);
  EXPECT_THAT(checkpoint.names(), ElementsAre("a"));
  ASSERT_NE(checkpoint.find("a"), nullptr);
  EXPECT_THAT(read_floats(*checkpoint.find("a")).value(), ElementsAre(0, 0));
  EXPECT_EQ(checkpoint.find("b"), nullptr);
  EXPECT_EQ(checkpoint.gguf(), nullptr);
}

TEST(Checkpoint, ReadsAFolderWithShards) {
  const TemporaryFolder folder;
  EXPECT_EQ(index_error(folder, R"("a": "one.safetensors", "b": "two.safetensors")"), "");
  const Checkpoint checkpoint = Checkpoint::open(folder.path()).value();
  EXPECT_THAT(checkpoint.names(), ElementsAre("a", "b"));
  EXPECT_THAT(checkpoint.find("b")->file, HasSubstr("two.safetensors"));
}

TEST(Checkpoint, TakesFromShardsWhatTheIndexNames) {
  const TemporaryFolder folder;
  EXPECT_EQ(index_error(folder, R"("b": "two.safetensors")"), "");
  EXPECT_THAT(Checkpoint::open(folder.path()).value().names(), ElementsAre("b"));
}

TEST(Checkpoint, ReadsSingleFiles) {
  const TemporaryFolder folder;
  const auto safetensors = folder.write("any name.safetensors", one_tensor("a"));
  EXPECT_THAT(Checkpoint::open(safetensors).value().names(), ElementsAre("a"));
  auto opened = Checkpoint::open(test::golden_file("tensors.gguf"));
  ASSERT_TRUE(opened.ok()) << opened.message();
  const Checkpoint gguf = *std::move(opened);
  ASSERT_NE(gguf.gguf(), nullptr);
  EXPECT_EQ(gguf.gguf()->integer("llama.block_count").value(), 2);
  std::vector<float> row(64);
  EXPECT_TRUE(read_floats(*gguf.find("q8_0"), 2, 1, row).ok());
  std::vector<float> expected(64);
  EXPECT_TRUE(read_floats(*gguf.find("q8_0.floats"), 2, 1, expected).ok());
  EXPECT_EQ(row, expected);
}

TEST(CheckpointHostile, SaysWhatIsMissing) {
  const TemporaryFolder folder;
  EXPECT_THAT(open_error(folder.path()),
              HasSubstr("neither model.safetensors nor model.safetensors.index.json is there"));
  EXPECT_THAT(open_error(folder.path() / "nowhere"),
              HasSubstr("nowhere: there is no such file or folder"));
  EXPECT_THAT(open_error(folder.write("model.bin", "")),
              HasSubstr("model.bin: is neither a folder nor a .safetensors or .gguf file"));
  EXPECT_THAT(open_error(folder.path() / "nowhere.gguf"),
              HasSubstr("nowhere.gguf: cannot be opened"));
  folder.write("model.safetensors", one_tensor("a"));
  const Checkpoint checkpoint = Checkpoint::open(folder.path()).value();
  const auto absent = checkpoint.get("b");
  EXPECT_EQ(absent.code(), ErrorCode::InvalidArgument);
  EXPECT_THAT(std::string(absent.message()), HasSubstr("model.safetensors: has no tensor 'b'"));
  EXPECT_EQ(checkpoint.get("a").value(), checkpoint.find("a"));
}

TEST(CheckpointHostile, RefusesDamagedIndexes) {
  const TemporaryFolder folder;
  EXPECT_THAT(index_error(folder, R"("a": 3)"),
              HasSubstr("index.json:4: key 'a' of 'weight_map' is 3, not a string"));
  for (const std::string name : {"../one.safetensors", "/etc/passwd", "..", ".", "", "a/b",
                                 "one.safetensors\\u0000", "a\\\\b"})
    EXPECT_THAT(index_error(folder, "\"a\": \"" + name + "\""), HasSubstr("not a plain file name"));
  EXPECT_THAT(index_error(folder, R"("a": "absent.safetensors")"),
              HasSubstr("absent.safetensors: cannot be opened"));
  EXPECT_THAT(
      index_error(folder, "\"b\": \"two.safetensors\",\n\"x\": \"one.safetensors\""),
      HasSubstr("index.json:5: key 'x' of 'weight_map' is in the index, but not in its shard "
                "one.safetensors"));
  folder.write(index_file, "{\n}");
  EXPECT_THAT(open_error(folder.path()),
              HasSubstr("index.json:1: the document has no key 'weight_map'"));
  folder.write(index_file, "{\"weight_map\": []}");
  EXPECT_THAT(open_error(folder.path()), HasSubstr("is a list, not an object"));
  folder.write(index_file, "{");
  EXPECT_THAT(open_error(folder.path()), HasSubstr("index.json:1: not valid JSON"));
}

TEST(CheckpointHostile, RefusesADamagedShard) {
  const TemporaryFolder folder;
  const std::string map = R"("a": "one.safetensors", "b": "two.safetensors")";
  EXPECT_EQ(index_error(folder, map), "");
  folder.write("two.safetensors", folder.read("two.safetensors").substr(0, 30));
  EXPECT_THAT(open_error(folder.path()), HasSubstr("two.safetensors: the header should have"));
}

TEST(CheckpointHostile, RefusesOneShardOfSeveral) {
  const TemporaryFolder folder;
  const auto named = [&](const std::string& name) {
    return open_error(folder.write(name + ".safetensors", one_tensor("a")));
  };
  EXPECT_THAT(named("model-00001-of-00002"),
              HasSubstr("model-00001-of-00002.safetensors: is one of 2 parts; open the folder"));
  EXPECT_THAT(named("model-00002-of-00002"), HasSubstr("is one of 2 parts"));
  EXPECT_THAT(named("-00001-of-12340"), HasSubstr("is one of 12340 parts"));
  for (const std::string name :
       {"model-00001-of-00001", "model-00001-of-00000", "00001-of-00002", "model-00001-of-0000x",
        "model-00001_of-00002", "model-00001-of-00002-merged", "model-1-of-2"})
    EXPECT_EQ(named(name), "") << name;
}

TEST(CheckpointHostile, RefusesOnePartOfAGguf) {
  const TemporaryFolder folder;
  const auto with_parts = [&](std::uint16_t parts) {
    return open_error(
        folder.write("a.gguf", GgufBytes(0, 1).pair("split.count", 2).number(parts).bytes()));
  };
  EXPECT_EQ(with_parts(1), "");
  EXPECT_EQ(with_parts(0), "");
  EXPECT_THAT(with_parts(3), HasSubstr("a.gguf: is one of 3 parts; merge them first"));
  EXPECT_THAT(
      open_error(folder.write("b.gguf", GgufBytes(0, 1).pair("split.count", 8).string("").bytes())),
      HasSubstr("key 'split.count' is string, not an integer"));
}

}  // namespace
}  // namespace kvtilt
