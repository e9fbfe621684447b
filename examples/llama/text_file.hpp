// SPDX-License-Identifier: MIT
// A whole file, mapped read-only.
#pragma once

#include <cstddef>
#include <filesystem>
#include <span>
#include <string>

namespace llama {

class MappedFile {
 public:
  /// Throws when the file cannot be opened, is not a regular file, or cannot be mapped.
  explicit MappedFile(const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  MappedFile& operator=(MappedFile&&) = delete;

  [[nodiscard]] std::span<const std::byte> bytes() const { return bytes_; }

 private:
  std::span<const std::byte> bytes_;
};

/// The whole of a small text file (configuration, index, text to evaluate). Throws when unreadable.
std::string read_text_file(const std::filesystem::path& path);

}  // namespace llama
