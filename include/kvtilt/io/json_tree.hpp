// SPDX-License-Identifier: MIT
/// A JSON text as a tree of values that know their line. Built from the events of nlohmann's
/// parser, which (3.11) does not report positions itself. Users include json.hpp.
#pragma once

#include <kvtilt/core/status.hpp>
#include <kvtilt/io/shown.hpp>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <limits>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace kvtilt::detail {

struct JsonMember;

struct JsonNode {
  std::size_t line = 1;  ///< on which the value begins
  /// Integers beyond int64 are doubles.
  std::variant<std::monostate, bool, std::int64_t, double, std::string, std::vector<JsonNode>,
               std::vector<JsonMember>>
      value;  ///< members are sorted by key once their object is complete
};

struct JsonMember {
  std::string key;
  JsonNode node;
};

inline const JsonMember* find_member(const std::vector<JsonMember>& members, std::string_view key) {
  const auto found = std::lower_bound(
      members.begin(), members.end(), key,
      [](const JsonMember& member, std::string_view wanted) { return member.key < wanted; });
  return found != members.end() && found->key == key ? &*found : nullptr;
}

/// The text that the parser reads, and its line number: counts the line ends before the newest
/// character. The newest one is left out because the parser sees the end of a number only one
/// character later, and that character may be a line end; no other token ends with one.
struct JsonSource {
  const char* next;
  std::size_t line = 1;
  bool line_ended = false;  ///< the newest character was a line end

  void advance() {
    line += line_ended ? 1 : 0;
    line_ended = *next++ == '\n';
  }
};

/// Input iterator over a JsonSource; its copies share the source.
struct JsonIterator {
  using iterator_category = std::input_iterator_tag;
  using value_type = char;
  using difference_type = std::ptrdiff_t;
  using pointer = const char*;
  using reference = const char&;

  JsonSource* source;
  const char* end;  ///< set in the iterator that ends the range, else null

  reference operator*() const { return *source->next; }
  JsonIterator& operator++() {
    source->advance();
    return *this;
  }
  friend bool operator==(const JsonIterator& a, const JsonIterator& b) {
    return a.source->next == (b.end != nullptr ? b.end : a.end);
  }
};

/// Builds the tree from the parser's events (nlohmann's SAX interface).
class JsonTreeBuilder {
 public:
  static constexpr std::size_t max_depth = 64;
  static constexpr std::size_t max_values = std::size_t{1} << 22;

  JsonTreeBuilder(const JsonSource& source, const std::string& file, JsonNode& root)
      : source_(source), file_(file), root_(root) {}

  bool null() { return add(std::monostate{}) != nullptr; }
  bool boolean(bool value) { return add(value) != nullptr; }
  bool number_integer(std::int64_t value) { return add(value) != nullptr; }
  bool number_unsigned(std::uint64_t value) {
    if (value > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()))
      return add(static_cast<double>(value)) != nullptr;
    return add(static_cast<std::int64_t>(value)) != nullptr;
  }
  bool number_float(double value, const std::string&) { return add(value) != nullptr; }
  bool string(std::string& value) { return add(std::move(value)) != nullptr; }
  bool binary(std::vector<std::uint8_t>&) { return fail("JSON has no binary values"); }

  bool start_object(std::size_t) { return open(std::vector<JsonMember>{}); }
  bool start_array(std::size_t) { return open(std::vector<JsonNode>{}); }
  bool key(std::string& name) {
    members().push_back({std::move(name), {}});
    return true;
  }
  bool end_array() {
    open_.pop_back();
    return true;
  }
  bool end_object() {
    std::vector<JsonMember>& object = members();
    std::stable_sort(object.begin(), object.end(),
                     [](const JsonMember& a, const JsonMember& b) { return a.key < b.key; });
    for (std::size_t i = 1; i < object.size(); ++i)
      if (object[i].key == object[i - 1].key)
        return fail("key '" + shown(object[i].key) + "' appears twice", object[i].node.line);
    open_.pop_back();
    return true;
  }

  template <class Exception>
  bool parse_error(std::size_t, const std::string&, const Exception& exception) {
    // "[json.exception.parse_error.101] parse error at line 3, column 5: <the sentence>"
    std::string_view text = exception.what();
    text.remove_prefix(std::min(text.size(), text.find("] ") + 2));
    if (text.starts_with("parse error at")) text.remove_prefix(text.find(": ") + 2);
    return fail("not valid JSON: " + shown(text, 200));
  }

  [[nodiscard]] Status take_status() { return std::move(status_); }

 private:
  std::vector<JsonMember>& members() {
    return *std::get_if<std::vector<JsonMember>>(&open_.back()->value);
  }

  template <class Value>
  JsonNode* add(Value value) {
    if (++values_ > max_values) {
      fail("more than " + std::to_string(max_values) + " values");
      return nullptr;
    }
    JsonNode* node = &root_;
    if (!open_.empty()) {
      if (auto* list = std::get_if<std::vector<JsonNode>>(&open_.back()->value))
        node = &list->emplace_back();
      else
        node = &members().back().node;
    }
    node->line = source_.line;
    node->value = std::move(value);
    return node;
  }

  template <class Container>
  bool open(Container container) {
    if (open_.size() == max_depth)
      return fail("lists and objects lie more than " + std::to_string(max_depth) + " deep");
    JsonNode* const node = add(std::move(container));
    if (node == nullptr) return false;
    open_.push_back(node);  // stays valid: its parent gets no further element before it is closed
    return true;
  }

  bool fail(const std::string& what) { return fail(what, source_.line); }
  bool fail(const std::string& what, std::size_t line) {
    status_ = Status::error(ErrorCode::Corrupt, "%s:%zu: %s", file_.c_str(), line, what.c_str());
    return false;
  }

  const JsonSource& source_;
  const std::string& file_;
  JsonNode& root_;
  std::vector<JsonNode*> open_;
  std::size_t values_ = 0;
  Status status_;
};

inline Status build_json_tree(std::string_view text, const std::string& file, JsonNode& root) {
  JsonSource source{text.data()};
  JsonTreeBuilder builder(source, file, root);
  const JsonIterator first{&source, nullptr};
  const JsonIterator last{&source, text.data() + text.size()};
  if (!nlohmann::json::sax_parse(first, last, &builder)) return builder.take_status();
  // The parser takes a NUL for the end of the text and would leave the rest unread.
  if (text.find('\0') != std::string_view::npos)
    return Status::error(ErrorCode::Corrupt, "%s:%zu: not valid JSON: a NUL byte", file.c_str(),
                         source.line);
  return {};
}

}  // namespace kvtilt::detail
