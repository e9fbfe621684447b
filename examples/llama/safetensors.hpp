// SPDX-License-Identifier: MIT
// One safetensors file: eight bytes of header length, a JSON header, then the tensors' bytes.
#pragma once

#include "mapped_file.hpp"

#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <vector>

namespace llama {

struct StoredTensor {
  std::string dtype;  // as written in the file: "F32", "F16", "BF16", ...
  std::vector<std::int64_t> shape;
  std::span<const std::byte> bytes;  // lives as long as the file that it was found in
};

/// A checked file: every tensor lies inside it, is as long as its shape says, and overlaps no
/// other.
class SafetensorsFile {
 public:
  /// Throws a sentence naming the file, and the tensor where there is one, when the file is
  /// damaged.
  explicit SafetensorsFile(const std::filesystem::path& path);

  [[nodiscard]] const std::map<std::string, StoredTensor>& tensors() const { return tensors_; }

 private:
  MappedFile file_;
  std::map<std::string, StoredTensor> tensors_;
};

}  // namespace llama
