// SPDX-License-Identifier: MIT
#include <kvtilt/io/json.hpp>

#include "support/message.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <utility>

namespace kvtilt {
namespace {

using test::message;
using testing::HasSubstr;

JsonDocument parse(const std::string& text) {
  auto document = JsonDocument::parse(text, "f.json");
  EXPECT_TRUE(document.ok()) << document.message();
  return std::move(document).value();
}

const char* const everything = R"({
  "flag": true,
  "count": 7,
  "real": 2.5,
  "name": "k\u00f6rner",
  "list": [1, "two", {"three": null}],
  "nothing": null
})";

TEST(Json, ReadsEveryKind) {
  const JsonDocument document = parse(everything);
  const JsonValue root = document.root();
  EXPECT_TRUE(root.is_object());
  EXPECT_TRUE(root.at("flag").value().boolean().value());
  EXPECT_EQ(root.at("count").value().integer().value(), 7);
  EXPECT_EQ(root.at("count").value().number().value(), 7.0);
  EXPECT_EQ(root.at("real").value().number().value(), 2.5);
  EXPECT_EQ(root.at("name").value().string().value(), "k\xc3\xb6rner");
  EXPECT_TRUE(root.at("nothing").value().is_null());
  const auto list = root.at("list").value().elements().value();
  ASSERT_EQ(list.size(), 3u);
  EXPECT_EQ(list[1].string().value(), "two");
  EXPECT_TRUE(list[2].at("three").value().is_null());
  EXPECT_EQ(list[2].line(), 6u);
  EXPECT_FALSE(root.find("absent").has_value());
  EXPECT_FALSE(list[0].find("absent").has_value());
  EXPECT_EQ(root.members().value().size(), 6u);
  EXPECT_EQ(root.members().value()[0].first, "count");
}

TEST(Json, OutlivesMovesOfTheDocument) {
  JsonDocument document = parse(everything);
  const JsonValue name = document.root().at("name").value();
  const JsonDocument moved = std::move(document);
  EXPECT_EQ(name.string().value(), "k\xc3\xb6rner");
  EXPECT_EQ(message(name.integer(1, 2)),
            "f.json:5: key 'name' is \"k??rner\", not a whole number from 1 to 2");
}

TEST(JsonHostile, NamesLineKeyAndValueOfWhatIsWrong) {
  const JsonDocument document = parse(everything);
  const JsonValue root = document.root();
  EXPECT_EQ(message(root.at("flag").value().string()),
            "f.json:2: key 'flag' is true, not a string");
  EXPECT_EQ(message(root.at("count").value().integer(8, 9)),
            "f.json:3: key 'count' is 7, not a whole number from 8 to 9");
  EXPECT_FALSE(root.at("count").value().integer(0, 6).ok());
  EXPECT_EQ(message(root.at("real").value().integer(0, 5)),
            "f.json:4: key 'real' is 2.5, not a whole number from 0 to 5");
  EXPECT_EQ(message(root.at("name").value().number()),
            "f.json:5: key 'name' is \"k??rner\", not a number");
  EXPECT_EQ(message(root.at("nothing").value().boolean()),
            "f.json:7: key 'nothing' is null, not true or false");
  EXPECT_EQ(message(root.at("name").value().elements()),
            "f.json:5: key 'name' is \"k??rner\", not a list");
  EXPECT_EQ(message(root.at("list").value().members()),
            "f.json:6: key 'list' is a list, not an object");
  EXPECT_EQ(message(root.at("list").value().at("x")),
            "f.json:6: key 'list' is a list, not an object");
  EXPECT_EQ(message(root.at("absent")), "f.json:1: the document has no key 'absent'");
  const auto list = root.at("list").value().elements().value();
  EXPECT_EQ(message(list[1].integer(0, 1)),
            "f.json:6: element 1 of key 'list' is \"two\", not a whole number from 0 to 1");
  EXPECT_EQ(message(list[2].at("three").value().string()),
            "f.json:6: key 'three' of 'list' is null, not a string");
  EXPECT_EQ(root.at("absent").code(), ErrorCode::Corrupt);
}

TEST(JsonHostile, RefusesKeysThatNobodyKnows) {
  const JsonDocument document = parse("{\"z\": 1,\n\"known\": 2,\n\"a\": 3}");
  const JsonValue root = document.root();
  EXPECT_EQ(std::string(root.allow_only({"known", "z"}).message()),
            "f.json:3: key 'a' is not known");
  EXPECT_EQ(std::string(root.allow_only({"known"}).message()), "f.json:1: key 'z' is not known");
  EXPECT_TRUE(root.allow_only({"known", "z", "a", "more"}).ok());
  EXPECT_FALSE(root.at("z").value().allow_only({"z"}).ok());
}

TEST(JsonHostile, ShowsAnythingSafely) {
  const JsonDocument document =
      parse("{\"\\u001b[31m\": \"\\n\", \"long\": \"" + std::string(100, 'x') + "\"}");
  EXPECT_EQ(message(document.root().at("\x1b[31m").value().boolean()),
            "f.json:1: key '?[31m' is \"?\", not true or false");
  EXPECT_THAT(message(document.root().at("long").value().boolean()),
              HasSubstr("\"" + std::string(40, 'x') + "...\", not"));
  const auto error = JsonDocument::parse("{\n1}", "f.json");
  EXPECT_EQ(error.code(), ErrorCode::Corrupt);
  EXPECT_THAT(message(error), HasSubstr("f.json:2: not valid JSON"));
}

TEST(Json, QuotesStrings) {
  EXPECT_EQ(to_json_string("a\"\\\n\x01\xc3\xb6").value(), "\"a\\\"\\\\\\n\\u0001\xc3\xb6\"");
  for (const std::string text : {"", "plain", "\x7f", "\"", "\xf0\x9f\x98\x80"}) {
    const JsonDocument document = parse(to_json_string(text).value());
    EXPECT_EQ(document.root().string().value(), text);
  }
  for (const std::string text : {"\xff", "a\xc3", "\xed\xa0\x80", "\x80z"}) {
    const auto quoted = to_json_string(text);
    EXPECT_EQ(quoted.code(), ErrorCode::InvalidArgument);
    EXPECT_THAT(message(quoted), HasSubstr("is not UTF-8"));
  }
}

}  // namespace
}  // namespace kvtilt
