// SPDX-License-Identifier: MIT
/// The key-value pairs at the head of a GGUF file.
#pragma once

#include <kvtilt/core/status.hpp>
#include <kvtilt/io/byte_reader.hpp>
#include <kvtilt/io/shown.hpp>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <iterator>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace kvtilt {

/// Types of values, numbered as in the file.
enum class GgufType : std::uint32_t {
  Uint8,
  Int8,
  Uint16,
  Int16,
  Uint32,
  Int32,
  Float32,
  Bool,
  String,
  Array,
  Uint64,
  Int64,
  Float64,
};

constexpr const char* to_string(GgufType type) {
  constexpr const char* names[] = {"uint8",  "int8",    "uint16", "int16",  "uint32",
                                   "int32",  "float32", "bool",   "string", "array",
                                   "uint64", "int64",   "float64"};
  return static_cast<std::uint32_t>(type) < std::size(names)
             ? names[static_cast<std::uint32_t>(type)]
             : "unknown";
}

/// The bytes of a value in the file: checked when the file is opened, decoded by GgufMetadata.
struct GgufValue {
  GgufType type = GgufType::Uint8;  ///< of the value, or of the elements of an array
  bool array = false;
  std::uint64_t count = 1;           ///< of elements; 1 if not an array
  std::span<const std::byte> bytes;  ///< of all elements, without their type and count
};

namespace detail {

/// Bytes of a value of fixed size; 0 for strings, arrays and unknown types.
constexpr std::size_t gguf_size(GgufType type) {
  switch (type) {
    case GgufType::Uint8:
    case GgufType::Int8:
    case GgufType::Bool:
      return 1;
    case GgufType::Uint16:
    case GgufType::Int16:
      return 2;
    case GgufType::Uint32:
    case GgufType::Int32:
    case GgufType::Float32:
      return 4;
    case GgufType::Uint64:
    case GgufType::Int64:
    case GgufType::Float64:
      return 8;
    case GgufType::String:
    case GgufType::Array:
      break;
  }
  return 0;
}

inline constexpr int max_gguf_depth = 4;  // of arrays in arrays

/// Moves the reader over `count` elements of a type. Returns what is wrong with them, or null.
inline const char* skip_gguf_elements(ByteReader& reader, GgufType type, std::uint64_t count,
                                      int depth) {
  constexpr const char* truncated = "reaches beyond the end of the file (truncated download?)";
  if (const std::size_t size = gguf_size(type); size != 0) {
    if (count > reader.left() / size) return truncated;
    const std::span<const std::byte> bytes = reader.take(static_cast<std::size_t>(count) * size);
    if (type == GgufType::Bool)
      for (const std::byte byte : bytes)
        if (byte > std::byte{1}) return "is a bool other than 0 and 1";
    return nullptr;
  }
  if (type == GgufType::Array && depth == max_gguf_depth) return "is an array nested too deep";
  for (std::uint64_t i = 0; i < count; ++i) {
    if (type == GgufType::String) {
      reader.take_string();
      if (reader.failed()) return truncated;
      continue;
    }
    const GgufType inner = static_cast<GgufType>(reader.take_number<std::uint32_t>());
    const std::uint64_t inner_count = reader.take_number<std::uint64_t>();
    if (reader.failed()) return truncated;
    if (inner > GgufType::Float64) return "has elements of an unknown type";
    if (const char* problem = skip_gguf_elements(reader, inner, inner_count, depth + 1))
      return problem;
  }
  return nullptr;
}

template <class T>
T gguf_element(const std::byte* bytes) {
  T value;
  std::memcpy(&value, bytes, sizeof(value));
  return value;
}

}  // namespace detail

/// Key-value pairs, with getters that check the type. A getter fails with Corrupt if the value has
/// another type, with InvalidArgument if the key is absent; the message names file and key.
class GgufMetadata {
 public:
  [[nodiscard]] const std::map<std::string, GgufValue, std::less<>>& values() const {
    return values_;
  }
  [[nodiscard]] bool contains(std::string_view key) const { return values_.contains(key); }

  /// A value of any integer type; fails for a uint64 beyond int64.
  [[nodiscard]] Result<std::int64_t> integer(std::string_view key) const {
    Result<std::vector<std::int64_t>> list = numbers<std::int64_t>(key, false, "an integer");
    if (!list) return std::move(list).take_status();
    return list->front();
  }
  /// An array of any integer type; a single integer counts as a list of one. Models whose layers
  /// differ store attention.head_count as an array.
  [[nodiscard]] Result<std::vector<std::int64_t>> integers(std::string_view key) const {
    return numbers<std::int64_t>(key, true, "an integer or an array of integers");
  }
  /// A float32, a float64 or an integer.
  [[nodiscard]] Result<double> number(std::string_view key) const {
    Result<std::vector<double>> list = numbers<double>(key, false, "a number");
    if (!list) return std::move(list).take_status();
    return list->front();
  }
  [[nodiscard]] Result<bool> boolean(std::string_view key) const {
    Result<const GgufValue*> value = find(key);
    if (!value) return std::move(value).take_status();
    if ((*value)->type != GgufType::Bool || (*value)->array) return is_not(key, **value, "a bool");
    return (*value)->bytes[0] != std::byte{0};
  }
  /// The text stays valid as long as the GgufFile.
  [[nodiscard]] Result<std::string_view> string(std::string_view key) const {
    Result<const GgufValue*> value = find(key);
    if (!value) return std::move(value).take_status();
    if ((*value)->type != GgufType::String || (*value)->array)
      return is_not(key, **value, "a string");
    return detail::ByteReader((*value)->bytes).take_string();
  }

 private:
  friend class GgufFile;

  /// Reads one pair. Returns what is wrong with it, or ""; sets `key` if that much was readable.
  std::string read(detail::ByteReader& reader, std::string_view& key) {
    constexpr const char* truncated = "reaches beyond the end of the file (truncated download?)";
    key = reader.take_string();
    GgufValue value;
    value.type = static_cast<GgufType>(reader.take_number<std::uint32_t>());
    if (value.type == GgufType::Array) {
      value.array = true;
      value.type = static_cast<GgufType>(reader.take_number<std::uint32_t>());
      value.count = reader.take_number<std::uint64_t>();
    }
    if (reader.failed()) return truncated;
    if (value.type > GgufType::Float64)
      return "has the unknown type " + std::to_string(static_cast<std::uint32_t>(value.type));
    detail::ByteReader start = reader;
    if (const char* problem =
            detail::skip_gguf_elements(reader, value.type, value.count, value.array ? 1 : 0))
      return problem;
    value.bytes = start.take(start.left() - reader.left());
    return values_.emplace(key, value).second ? "" : "appears twice";
  }

  Result<const GgufValue*> find(std::string_view key) const {
    const auto found = values_.find(key);
    if (found == values_.end())
      return Status::error(ErrorCode::InvalidArgument, "%s: has no key '%s'", file_.c_str(),
                           shown(key).c_str());
    return &found->second;
  }

  Status is_not(std::string_view key, const GgufValue& value, const char* wanted,
                const char* more = "") const {
    return Status::error(ErrorCode::Corrupt, "%s: key '%s' is %s%s%s, not %s", file_.c_str(),
                         shown(key).c_str(), value.array ? "an array of " : "",
                         to_string(value.type), more, wanted);
  }

  /// All elements, if they are integers or, for T = double, any numbers. `arrays`: allow arrays.
  template <class T>
  Result<std::vector<T>> numbers(std::string_view key, bool arrays, const char* wanted) const {
    Result<const GgufValue*> found = find(key);
    if (!found) return std::move(found).take_status();
    const GgufValue& value = **found;
    if (value.array && !arrays) return is_not(key, value, wanted);
    std::vector<T> list;
    const auto read = [&]<class Stored>() {
      for (std::uint64_t i = 0; i < value.count; ++i)
        list.push_back(
            static_cast<T>(detail::gguf_element<Stored>(value.bytes.data() + i * sizeof(Stored))));
    };
    constexpr bool real = std::is_same_v<T, double>;
    switch (value.type) {
      case GgufType::Uint8:
        read.template operator()<std::uint8_t>();
        break;
      case GgufType::Int8:
        read.template operator()<std::int8_t>();
        break;
      case GgufType::Uint16:
        read.template operator()<std::uint16_t>();
        break;
      case GgufType::Int16:
        read.template operator()<std::int16_t>();
        break;
      case GgufType::Uint32:
        read.template operator()<std::uint32_t>();
        break;
      case GgufType::Int32:
        read.template operator()<std::int32_t>();
        break;
      case GgufType::Uint64:
        read.template operator()<std::uint64_t>();
        break;
      case GgufType::Int64:
        read.template operator()<std::int64_t>();
        break;
      case GgufType::Float32:
        if constexpr (!real) return is_not(key, value, wanted);
        read.template operator()<float>();
        break;
      case GgufType::Float64:
        if constexpr (!real) return is_not(key, value, wanted);
        read.template operator()<double>();
        break;
      default:
        return is_not(key, value, wanted);
    }
    if (!real && value.type == GgufType::Uint64)
      for (const T element : list)
        if (element < 0) return is_not(key, value, wanted, " beyond what an int64 counts");
    return list;
  }

  std::string file_;
  std::map<std::string, GgufValue, std::less<>> values_;
};

}  // namespace kvtilt
