// SPDX-License-Identifier: MIT
/// Builds valid and invalid tensor files in memory.
#pragma once

#include <kvtilt/io/stored_tensors.hpp>

#include "support/temporary_folder.hpp"

#include <gtest/gtest.h>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace kvtilt::test {

inline std::span<const std::byte> as_bytes(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

/// A copy that ends where the bytes end, so that a sanitizer sees the first byte read beyond them.
inline std::vector<std::byte> tight_copy(std::string_view text) {
  const std::span<const std::byte> bytes = as_bytes(text);
  return {bytes.begin(), bytes.end()};
}

/// Builds GGUF files from numbers and strings.
class GgufBytes {
 public:
  explicit GgufBytes(std::uint64_t tensors = 0, std::uint64_t pairs = 0,
                     std::uint32_t version = 3) {
    bytes_ = "GGUF";
    number(version).number(tensors).number(pairs);
  }

  template <class T>
  GgufBytes& number(T value) {
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof(value));
    return *this;
  }
  GgufBytes& string(std::string_view text) {
    number<std::uint64_t>(text.size());
    bytes_ += text;
    return *this;
  }
  /// The beginning of a pair; its value follows.
  GgufBytes& pair(std::string_view key, std::uint32_t type) { return string(key).number(type); }
  /// Dimensions in the order of the file: the contiguous one first.
  GgufBytes& tensor(std::string_view name, const std::vector<std::uint64_t>& dimensions,
                    std::uint32_t type, std::uint64_t offset) {
    string(name).number(static_cast<std::uint32_t>(dimensions.size()));
    for (const std::uint64_t extent : dimensions) number(extent);
    return number(type).number(offset);
  }
  GgufBytes& align(std::size_t alignment = 32) {
    bytes_.resize((bytes_.size() + alignment - 1) / alignment * alignment, '\0');
    return *this;
  }
  GgufBytes& data(std::string_view bytes) {
    bytes_ += bytes;
    return *this;
  }

  [[nodiscard]] const std::string& bytes() const { return bytes_; }

 private:
  std::string bytes_;
};

/// Checks that every tensor "x" with a companion "x.floats" reads as that one, bit for bit but for
/// NaN payloads. Returns how many there were.
inline int expect_floats_of_packages(const StoredTensors& tensors) {
  int compared = 0;
  for (const auto& [name, tensor] : tensors) {
    const auto expected = tensors.find(name + ".floats");
    if (expected == tensors.end()) continue;
    ++compared;
    EXPECT_EQ(tensor.shape, expected->second.shape) << name;
    const Result<std::vector<float>> found = read_floats(tensor);
    const Result<std::vector<float>> wanted = read_floats(expected->second);
    EXPECT_TRUE(found.ok()) << found.message();
    EXPECT_TRUE(wanted.ok()) << wanted.message();
    if (!found || !wanted) continue;
    EXPECT_EQ(found->size(), wanted->size()) << name;
    for (std::size_t i = 0; i < found->size() && i < wanted->size(); ++i) {
      const std::uint32_t a = std::bit_cast<std::uint32_t>((*found)[i]);
      const std::uint32_t b = std::bit_cast<std::uint32_t>((*wanted)[i]);
      const auto is_nan = [](std::uint32_t bits) { return (bits & 0x7fffffffu) > 0x7f800000u; };
      EXPECT_TRUE(a == b || (is_nan(a) && is_nan(b))) << name << " " << i << ": " << a << " " << b;
    }
  }
  return compared;
}

}  // namespace kvtilt::test
