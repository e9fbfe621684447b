// SPDX-License-Identifier: MIT
// One JSON object of config.json, read key by key. It remembers what was asked for, so that keys
// nobody knows can be refused at the end.
#pragma once

#include "fail.hpp"

#include <nlohmann/json.hpp>

#include <cmath>
#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <utility>

namespace llama {

/// Every getter throws a sentence naming file and key when the value is not what it asks for.
class ConfigReader {
 public:
  ConfigReader(std::string where, const nlohmann::json& object)
      : where_(std::move(where)), object_(object) {}

  /// The value of `key`, or null when it is absent.
  const nlohmann::json& get(const std::string& key) {
    static const nlohmann::json nothing;
    asked_.insert(key);
    const auto found = object_.find(key);
    return found == object_.end() ? nothing : *found;
  }

  [[nodiscard]] bool has(const std::string& key) const { return object_.contains(key); }

  // Far above any real model, far below what could overflow a product of two of them.
  static constexpr std::int64_t largest_count = std::int64_t{1} << 26;

  /// A whole number; `otherwise` when the key is absent or null, an error without it.
  int count(const std::string& key, std::optional<int> otherwise = std::nullopt, int least = 1) {
    const nlohmann::json& value = get(key);
    if (value.is_null() && otherwise) return *otherwise;
    if (value.is_null()) fail(where_, ": \"", key, "\" is missing");
    if (!value.is_number_integer() || value.get<std::int64_t>() < least ||
        value.get<std::int64_t>() > largest_count) {
      fail(where_, ": \"", key, "\" is ", value, ", which is not a count from ", least, " to ",
           largest_count);
    }
    return value.get<int>();
  }

  double positive(const std::string& key, std::optional<double> otherwise = std::nullopt) {
    const nlohmann::json& value = get(key);
    if (value.is_null() && otherwise) return *otherwise;
    if (value.is_null()) fail(where_, ": \"", key, "\" is missing");
    if (!value.is_number() || !(value.get<double>() > 0) || !std::isfinite(value.get<double>())) {
      fail(where_, ": \"", key, "\" is ", value, ", which is not a positive number");
    }
    return value.get<double>();
  }

  bool flag(const std::string& key, bool otherwise) {
    const nlohmann::json& value = get(key);
    if (value.is_null()) return otherwise;
    if (!value.is_boolean()) fail(where_, ": \"", key, "\" is ", value, ", not true or false");
    return value.get<bool>();
  }

  std::string text(const std::string& key, const std::string& otherwise) {
    const nlohmann::json& value = get(key);
    if (value.is_null()) return otherwise;
    if (!value.is_string()) fail(where_, ": \"", key, "\" is ", value, ", not a text");
    return value.get<std::string>();
  }

  /// Refuses every value of `key` but `only` (and absence).
  void require(const std::string& key, const nlohmann::json& only) {
    const nlohmann::json& value = get(key);
    if (!value.is_null() && value != only) {
      fail(where_, ": \"", key, "\" is ", value, "; this engine only computes ", only);
    }
  }

  void refuse_the_rest() const {
    for (const auto& [key, value] : object_.items()) {
      const bool off = value.is_null() || value == nlohmann::json(false);
      if (!off && !asked_.contains(key)) {
        fail(where_, ": \"", key, "\": ", value.dump().substr(0, 60),
             " is not known to this engine, and may change what the model computes");
      }
    }
  }

  [[nodiscard]] const std::string& where() const { return where_; }

 private:
  std::string where_;
  const nlohmann::json& object_;
  std::set<std::string> asked_;
};

}  // namespace llama
