// SPDX-License-Identifier: MIT
#include <kvtilt/io/json_tree.hpp>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <variant>
#include <vector>

namespace kvtilt::detail {
namespace {

using testing::HasSubstr;

const std::string file = "f.json";

std::string error_of(const std::string& text) {
  JsonNode root;
  return std::string(build_json_tree(text, file, root).message());
}

const std::vector<JsonMember>& members(const JsonNode& node) {
  return std::get<std::vector<JsonMember>>(node.value);
}

TEST(JsonTree, KnowsTheLineOfEveryValue) {
  // The parser ends a number at the character after it: here a line end, a comma, a bracket, text.
  const std::string text =
      "\n{\"a\": 1\n,\"b\":\n2.5,\n\"c\": [\ntrue,\n\n-3\n, 4], \"d\": {\"e\":\nnull}\n}\n";
  JsonNode root;
  ASSERT_TRUE(build_json_tree(text, file, root).ok());
  EXPECT_EQ(root.line, 2u);
  ASSERT_EQ(members(root).size(), 4u);
  EXPECT_EQ(find_member(members(root), "a")->node.line, 2u);
  EXPECT_EQ(find_member(members(root), "b")->node.line, 4u);
  const JsonNode& list = find_member(members(root), "c")->node;
  EXPECT_EQ(list.line, 5u);
  const auto& elements = std::get<std::vector<JsonNode>>(list.value);
  ASSERT_EQ(elements.size(), 3u);
  EXPECT_EQ(elements[0].line, 6u);
  EXPECT_EQ(elements[1].line, 8u);
  EXPECT_EQ(elements[2].line, 9u);
  const JsonNode& object = find_member(members(root), "d")->node;
  EXPECT_EQ(object.line, 9u);
  EXPECT_EQ(members(object)[0].node.line, 10u);
  JsonNode number;
  ASSERT_TRUE(build_json_tree("\n\n7", file, number).ok());
  EXPECT_EQ(number.line, 3u);
}

TEST(JsonTree, HoldsEveryKindOfValue) {
  JsonNode root;
  ASSERT_TRUE(
      build_json_tree(R"([null, false, -9223372036854775808, 9223372036854775807, 2e0, "x"])", file,
                      root)
          .ok());
  const auto& list = std::get<std::vector<JsonNode>>(root.value);
  ASSERT_EQ(list.size(), 6u);
  EXPECT_TRUE(std::holds_alternative<std::monostate>(list[0].value));
  EXPECT_FALSE(std::get<bool>(list[1].value));
  EXPECT_EQ(std::get<std::int64_t>(list[2].value), std::numeric_limits<std::int64_t>::min());
  EXPECT_EQ(std::get<std::int64_t>(list[3].value), std::numeric_limits<std::int64_t>::max());
  EXPECT_EQ(std::get<double>(list[4].value), 2.0);
  EXPECT_EQ(std::get<std::string>(list[5].value), "x");
}

TEST(JsonTree, FindsMembersByKey) {
  JsonNode root;
  ASSERT_TRUE(build_json_tree(R"({"b": 1, "": 2, "a": 3})", file, root).ok());
  EXPECT_EQ(std::get<std::int64_t>(find_member(members(root), "")->node.value), 2);
  EXPECT_EQ(std::get<std::int64_t>(find_member(members(root), "a")->node.value), 3);
  EXPECT_EQ(std::get<std::int64_t>(find_member(members(root), "b")->node.value), 1);
  EXPECT_EQ(find_member(members(root), "c"), nullptr);
  EXPECT_EQ(find_member(members(root), "A"), nullptr);
}

TEST(JsonTreeHostile, NamesTheLineOfASyntaxError) {
  EXPECT_THAT(error_of(""), HasSubstr("f.json:1: not valid JSON: "));
  EXPECT_THAT(error_of("{\n\"a\": 1,\n}"), HasSubstr("f.json:3: not valid JSON: "));
  EXPECT_THAT(error_of("{\n\"a\": 1\n\n"), HasSubstr("f.json:3: not valid JSON: "));
  EXPECT_THAT(error_of("[1,\n2,\nnul]"), HasSubstr("f.json:3: not valid JSON: "));
  EXPECT_THAT(error_of("[\n\"a\n\"]"), HasSubstr("f.json:2: not valid JSON: "));
  EXPECT_THAT(error_of("{}\nx"), HasSubstr("f.json:2: not valid JSON: "));
  EXPECT_THAT(error_of("[\"\xFF\"]"), HasSubstr("ill-formed UTF-8"));
  EXPECT_THAT(error_of("[\n1e999]"), HasSubstr("f.json:2: not valid JSON: number overflow"));
}

TEST(JsonTree, HoldsIntegersBeyond64BitsAsDoubles) {
  JsonNode root;
  ASSERT_TRUE(build_json_tree("[9223372036854775808, -9223372036854775809, 1000000000000000000000]",
                              file, root)
                  .ok());
  const auto& list = std::get<std::vector<JsonNode>>(root.value);
  EXPECT_EQ(std::get<double>(list[0].value), 0x1p63);
  EXPECT_EQ(std::get<double>(list[1].value), -0x1p63);
  EXPECT_EQ(std::get<double>(list[2].value), 1e21);
}

TEST(JsonTreeHostile, RefusesKeysThatAppearTwice) {
  EXPECT_EQ(error_of("{\"a\": 1,\n\"b\": 2,\n\"a\": 1}"), "f.json:3: key 'a' appears twice");
  EXPECT_EQ(error_of("[{\"a\": {}},\n{\"b\": {\"x\": 1,\n\"\\u0078\": 2}}]"),
            "f.json:3: key 'x' appears twice");
  EXPECT_EQ(error_of(R"([{"a": 1}, {"a": 1}])"), "");
}

TEST(JsonTreeHostile, RefusesANulBehindTheText) {
  EXPECT_EQ(error_of("{}\n"), "");
  EXPECT_EQ(error_of(std::string("{}\n\0", 4)), "f.json:2: not valid JSON: a NUL byte");
  EXPECT_EQ(error_of(std::string("{}\0 anything", 12)), "f.json:1: not valid JSON: a NUL byte");
}

TEST(JsonTreeHostile, RefusesDeepNesting) {
  const auto nested = [](std::size_t depth) {
    return std::string(depth, '[') + std::string(depth, ']');
  };
  EXPECT_EQ(error_of(nested(64)), "");
  EXPECT_THAT(error_of(nested(65)), HasSubstr("more than 64 deep"));
  EXPECT_THAT(error_of(std::string(1000000, '[')), HasSubstr("more than 64 deep"));
  std::string objects;
  for (int i = 0; i < 65; ++i) objects += "{\"a\":";
  EXPECT_THAT(error_of(objects), HasSubstr("more than 64 deep"));
}

TEST(JsonTreeHostile, RefusesMoreValuesThanMemoryHolds) {
  std::string list = "[";
  for (std::size_t i = 1; i < JsonTreeBuilder::max_values; ++i) list += "1,";
  list.back() = ']';
  EXPECT_EQ(error_of(list), "");
  list.back() = ',';
  EXPECT_THAT(error_of(list + "1]"), HasSubstr("more than 4194304 values"));
}

}  // namespace
}  // namespace kvtilt::detail
