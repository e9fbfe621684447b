// SPDX-License-Identifier: MIT
// Reads one JSON object of config.json key by key. It remembers the keys that were read, so that
// unknown ones can be refused at the end.
#pragma once

#include <kvtilt/io/json.hpp>

#include "fail.hpp"

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>

namespace llama {

/// Throws a sentence naming the file, the line and the key of a value.
[[noreturn]] inline void fail_at(const kvtilt::JsonValue& value, const std::string& what) {
  fail(value.error(what).message());
}

/// A getter throws a sentence naming file, line and key if the value is not what it reads. The
/// document must outlive the reader.
class ConfigReader {
 public:
  ConfigReader(std::string file, const kvtilt::JsonValue& object)
      : file_(std::move(file)), object_(object) {
    (void)object.members().value();  // throws if it is not an object
  }

  /// The value of `key`, unless it is absent or null.
  std::optional<kvtilt::JsonValue> get(const std::string& key) {
    asked_.insert(key);
    const std::optional<kvtilt::JsonValue> value = object_.find(key);
    return value && !value->is_null() ? value : std::nullopt;
  }

  /// Whether the key is present, even if its value is null.
  [[nodiscard]] bool has(std::string_view key) const { return object_.find(key).has_value(); }

  // Far above any real model, far below what could overflow a product of two of them.
  static constexpr std::int64_t largest_count = std::int64_t{1} << 26;

  /// A whole number; `otherwise` if the key is absent or null, or an error if that is not given.
  int count(const std::string& key, std::optional<int> otherwise = std::nullopt, int least = 1) {
    const std::optional<kvtilt::JsonValue> value = get(key);
    if (!value && otherwise) return *otherwise;
    return static_cast<int>(object_.at(key).value().integer(least, largest_count).value());
  }

  double positive(const std::string& key, std::optional<double> otherwise = std::nullopt) {
    const std::optional<kvtilt::JsonValue> value = get(key);
    if (!value && otherwise) return *otherwise;
    const double number = object_.at(key).value().number().value();
    if (!(number > 0)) fail_at(*value, "is " + value->text() + ", not a positive number");
    return number;
  }

  bool flag(const std::string& key, bool otherwise) {
    const std::optional<kvtilt::JsonValue> value = get(key);
    return value ? value->boolean().value() : otherwise;
  }

  std::string text(const std::string& key, const std::string& otherwise) {
    const std::optional<kvtilt::JsonValue> value = get(key);
    return value ? std::string(value->string().value()) : otherwise;
  }

  /// Throws unless `key` is absent, null or has the value `only`, written as by JsonValue::text().
  void require(const std::string& key, std::string_view only) {
    const std::optional<kvtilt::JsonValue> value = get(key);
    if (value && value->text() != only) {
      fail_at(*value, "is " + value->text() + "; this engine only computes " + std::string(only));
    }
  }

  void refuse_the_rest() const {
    const auto members = object_.members().value();
    for (const auto& [key, value] : members) {
      const bool off = value.is_null() || (value.is_bool() && !value.boolean().value());
      if (!off && !asked_.contains(std::string(key))) {
        fail_at(value, "is " + value.text() +
                           ", which is not known to this engine and may change what the model "
                           "computes");
      }
    }
  }

  [[nodiscard]] const std::string& file() const { return file_; }

 private:
  std::string file_;
  kvtilt::JsonValue object_;
  std::set<std::string> asked_;
};

}  // namespace llama
