// SPDX-License-Identifier: MIT
/// Reads JSON with errors that name file and line, for invalid values ("key 'bits' is 9") as well
/// as for syntax. The parser is nlohmann's; values are read through getters that check.
#pragma once

#include <kvtilt/core/status.hpp>
#include <kvtilt/io/json_tree.hpp>
#include <kvtilt/io/shown.hpp>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <initializer_list>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace kvtilt {

/// A cheap handle to a value of a JsonDocument and its place in it; valid as long as the document.
/// A getter that does not find what it wants fails with Corrupt and a sentence like "model.json:7:
/// key 'bits' of 'layers' is "four", not a whole number from 1 to 16".
class JsonValue {
 public:
  using Member = std::pair<std::string_view, JsonValue>;

  [[nodiscard]] std::size_t line() const { return node_->line; }
  [[nodiscard]] bool is_null() const { return is<std::monostate>(); }
  [[nodiscard]] bool is_bool() const { return is<bool>(); }
  [[nodiscard]] bool is_string() const { return is<std::string>(); }
  [[nodiscard]] bool is_list() const { return is<std::vector<detail::JsonNode>>(); }
  [[nodiscard]] bool is_object() const { return is<std::vector<detail::JsonMember>>(); }

  [[nodiscard]] Result<bool> boolean() const {
    if (const bool* value = get<bool>()) return *value;
    return is_not("true or false");
  }

  /// A number from `least` to `most` that is written without fraction and exponent.
  [[nodiscard]] Result<std::int64_t> integer(
      std::int64_t least = 0, std::int64_t most = std::numeric_limits<std::int64_t>::max()) const {
    const std::int64_t* value = get<std::int64_t>();
    if (value != nullptr && *value >= least && *value <= most) return *value;
    return is_not("a whole number from " + std::to_string(least) + " to " + std::to_string(most));
  }

  /// Any number, rounded to a double.
  [[nodiscard]] Result<double> number() const {
    if (const double* value = get<double>()) return *value;
    if (const std::int64_t* value = get<std::int64_t>()) return static_cast<double>(*value);
    return is_not("a number");
  }

  [[nodiscard]] Result<std::string_view> string() const {
    if (const std::string* value = get<std::string>()) return std::string_view(*value);
    return is_not("a string");
  }

  [[nodiscard]] Result<std::vector<JsonValue>> elements() const {
    const auto* nodes = get<std::vector<detail::JsonNode>>();
    if (nodes == nullptr) return is_not("a list");
    std::vector<JsonValue> values;
    values.reserve(nodes->size());
    for (const detail::JsonNode& node : *nodes)
      values.push_back({file_, &node, key_, of_, static_cast<std::ptrdiff_t>(values.size())});
    return values;
  }

  /// The members of an object, sorted by key.
  [[nodiscard]] Result<std::vector<Member>> members() const {
    const auto* nodes = get<std::vector<detail::JsonMember>>();
    if (nodes == nullptr) return is_not("an object");
    std::vector<Member> values;
    values.reserve(nodes->size());
    for (const detail::JsonMember& member : *nodes) values.push_back(item(member));
    return values;
  }

  /// A member of an object; nothing if the key is absent or this is not an object.
  [[nodiscard]] std::optional<JsonValue> find(std::string_view key) const {
    const auto* nodes = get<std::vector<detail::JsonMember>>();
    if (nodes == nullptr) return std::nullopt;
    const detail::JsonMember* member = detail::find_member(*nodes, key);
    if (member == nullptr) return std::nullopt;
    return item(*member).second;
  }

  /// A member of an object; fails if it is absent.
  [[nodiscard]] Result<JsonValue> at(std::string_view key) const {
    if (!is_object()) return is_not("an object");
    std::optional<JsonValue> member = find(key);
    if (!member) return error("has no key '" + shown(key) + "'");
    return *member;
  }

  /// Fails if the object has a key that is not in `keys`, naming the first one in the file.
  [[nodiscard]] Status allow_only(std::initializer_list<std::string_view> keys) const {
    const auto* nodes = get<std::vector<detail::JsonMember>>();
    if (nodes == nullptr) return is_not("an object");
    const detail::JsonMember* first = nullptr;
    for (const detail::JsonMember& member : *nodes) {
      bool known = false;
      for (const std::string_view key : keys) known = known || key == member.key;
      if (!known && (first == nullptr || member.node.line < first->node.line)) first = &member;
    }
    return first == nullptr ? Status{} : item(*first).second.error("is not known");
  }

  /// "FILE:LINE: key 'x' of 'y' <what>"
  [[nodiscard]] Status error(std::string_view what) const {
    return Status::error(ErrorCode::Corrupt, "%s:%zu: %s %.*s", file_->c_str(), node_->line,
                         place().c_str(), static_cast<int>(what.size()), what.data());
  }

  /// The value as messages show it: "a string", 7, an object.
  [[nodiscard]] std::string text() const {
    if (const bool* value = get<bool>()) return *value ? "true" : "false";
    if (const std::int64_t* value = get<std::int64_t>()) return std::to_string(*value);
    if (const std::string* value = get<std::string>()) return '"' + shown(*value, 40) + '"';
    if (const double* value = get<double>()) {
      char digits[32];
      std::snprintf(digits, sizeof(digits), "%.12g", *value);
      return digits;
    }
    return is_null() ? "null" : is_list() ? "a list" : "an object";
  }

 private:
  friend class JsonDocument;

  JsonValue(const std::string* file, const detail::JsonNode* node, std::string_view key,
            std::string_view of, std::ptrdiff_t index)
      : file_(file), node_(node), key_(key), of_(of), index_(index) {}

  template <class T>
  [[nodiscard]] const T* get() const {
    return std::get_if<T>(&node_->value);
  }
  template <class T>
  [[nodiscard]] bool is() const {
    return std::holds_alternative<T>(node_->value);
  }

  [[nodiscard]] Member item(const detail::JsonMember& member) const {
    return {member.key, JsonValue(file_, &member.node, member.key, key_, -1)};
  }

  [[nodiscard]] Status is_not(const std::string& wanted) const {
    return error("is " + text() + ", not " + wanted);
  }

  [[nodiscard]] std::string place() const {
    std::string text;
    if (index_ >= 0) text = "element " + std::to_string(index_);
    if (!key_.empty()) text += (text.empty() ? "key '" : " of key '") + shown(key_) + "'";
    if (!of_.empty()) text += " of '" + shown(of_) + "'";
    return text.empty() ? "the document" : text;
  }

  const std::string* file_;
  const detail::JsonNode* node_;
  std::string_view key_;       // of this value, or of the list that holds it
  std::string_view of_;        // key of the object that contains key_
  std::ptrdiff_t index_ = -1;  // in that list, or -1
};

/// A parsed JSON text; owns its values.
class JsonDocument {
 public:
  /// Parses a text, which errors call `file`. Fails with Corrupt for text that is not JSON, a key
  /// that an object has twice (parsers disagree on which one counts), numbers that a double cannot
  /// hold, more than 64 levels of lists and objects, or more than 4 million values (some 400 MB of
  /// memory).
  static Result<JsonDocument> parse(std::string_view text, std::string file) {
    JsonDocument document(std::move(file));
    KVTILT_RETURN_IF_ERROR(
        detail::build_json_tree(text, document.content_->file, document.content_->root));
    return document;
  }

  [[nodiscard]] JsonValue root() const { return {&content_->file, &content_->root, {}, {}, -1}; }

 private:
  struct Content {
    std::string file;
    detail::JsonNode root;
  };

  explicit JsonDocument(std::string file)
      : content_(std::make_unique<Content>(Content{std::move(file), {}})) {}

  std::unique_ptr<Content> content_;  // values point into it; it stays in place in a move
};

/// `text` in quotes, escaped. Fails with InvalidArgument if it is not UTF-8, as JSON requires.
inline Result<std::string> to_json_string(std::string_view text) {
  using Handler = nlohmann::json::error_handler_t;
  const nlohmann::json string(text);
  // The two handlers differ only on invalid UTF-8: one replaces the bytes, the other drops them.
  std::string quoted = string.dump(-1, ' ', false, Handler::replace);
  if (quoted != string.dump(-1, ' ', false, Handler::ignore))
    return Status::error(ErrorCode::InvalidArgument, "'%s' is not UTF-8", shown(text).c_str());
  return quoted;
}

}  // namespace kvtilt
