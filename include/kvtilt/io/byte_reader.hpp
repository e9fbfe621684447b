// SPDX-License-Identifier: MIT
/// Takes numbers and strings off the front of untrusted bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>
#include <type_traits>

namespace kvtilt::detail {

/// Reads little-endian, unaligned values. After a read beyond the end, failed() stays true and
/// every later result is zero or empty, so that one check suffices after several reads.
class ByteReader {
 public:
  explicit ByteReader(std::span<const std::byte> bytes) : bytes_(bytes) {}

  [[nodiscard]] bool failed() const { return failed_; }
  [[nodiscard]] std::size_t left() const { return bytes_.size(); }

  std::span<const std::byte> take(std::size_t count) {
    if (count > bytes_.size()) {
      failed_ = true;
      bytes_ = {};
      return {};
    }
    const std::span<const std::byte> taken = bytes_.first(count);
    bytes_ = bytes_.subspan(count);
    return taken;
  }

  template <class T>
  T take_number() {
    static_assert(std::is_arithmetic_v<T>);
    T number{};
    if (const std::span<const std::byte> bytes = take(sizeof(T)); !bytes.empty())
      std::memcpy(&number, bytes.data(), sizeof(T));
    return number;
  }

  /// A string as GGUF stores it: 8 bytes of length, then the text.
  std::string_view take_string() {
    const std::uint64_t length = take_number<std::uint64_t>();
    if (length > bytes_.size()) {
      take(bytes_.size() + 1);
      return {};
    }
    const std::span<const std::byte> bytes = take(static_cast<std::size_t>(length));
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  }

 private:
  std::span<const std::byte> bytes_;
  bool failed_ = false;
};

}  // namespace kvtilt::detail
