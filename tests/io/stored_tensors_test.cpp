// SPDX-License-Identifier: MIT
#include <kvtilt/io/stored_tensors.hpp>

#include <gtest/gtest.h>

#include <cstddef>
#include <span>
#include <string>
#include <vector>

namespace kvtilt {
namespace {

/// Checks tensors a, b, c, ... at these places, {begin, size} in bytes; returns the error.
std::string check(const std::vector<std::pair<std::size_t, std::size_t>>& places, Gaps gaps) {
  const std::vector<std::byte> data(20);
  StoredTensors tensors;
  std::string name = "a";
  for (const auto& [begin, size] : places) {
    tensors.emplace(name, StoredTensor{"f", name, {}, {}, std::span(data).subspan(begin, size)});
    ++name[0];
  }
  const Status status = check_coverage(tensors, data, "f", gaps);
  EXPECT_TRUE(status.ok() || status.code() == ErrorCode::Corrupt);
  return std::string(status.message());
}

TEST(StoredTensors, MayLieInAnyOrder) {
  EXPECT_EQ(check({{10, 10}, {0, 4}, {4, 6}}, Gaps::Refused), "");
  EXPECT_EQ(check({{0, 7}, {20, 0}, {7, 0}, {7, 13}, {0, 0}}, Gaps::Refused), "");
  EXPECT_EQ(check({{0, 20}, {7, 0}}, Gaps::Allowed), "");
  EXPECT_EQ(check({{5, 5}, {12, 2}}, Gaps::Allowed), "");
  EXPECT_EQ(check({}, Gaps::Allowed), "");
}

TEST(StoredTensorsHostile, RefusesOverlapsAndGaps) {
  for (const Gaps gaps : {Gaps::Refused, Gaps::Allowed}) {
    EXPECT_EQ(check({{0, 11}, {10, 10}}, gaps), "f: tensor 'b' overlaps tensor 'a'");
    EXPECT_EQ(check({{10, 10}, {0, 11}}, gaps), "f: tensor 'a' overlaps tensor 'b'");
    EXPECT_NE(check({{0, 10}, {0, 10}}, gaps), "");
    EXPECT_NE(check({{0, 20}, {5, 2}, {7, 13}}, gaps), "");
  }
  EXPECT_EQ(check({{0, 20}, {7, 0}}, Gaps::Refused), "f: tensor 'b' overlaps tensor 'a'");
  EXPECT_EQ(check({{3, 17}}, Gaps::Refused), "f: 3 bytes before tensor 'a' belong to nothing");
  EXPECT_EQ(check({{0, 10}, {12, 8}}, Gaps::Refused),
            "f: 2 bytes before tensor 'b' belong to nothing");
  EXPECT_EQ(check({{0, 19}}, Gaps::Refused), "f: 1 bytes after the last tensor belong to nothing");
  EXPECT_EQ(check({}, Gaps::Refused), "f: 20 bytes after the last tensor belong to nothing");
}

}  // namespace
}  // namespace kvtilt
