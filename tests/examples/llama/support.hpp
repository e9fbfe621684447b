// SPDX-License-Identifier: MIT
// Copies of model folders that tests may modify, and the errors that follow.
#pragma once

#include "support/temporary_folder.hpp"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <filesystem>
#include <fstream>
#include <span>
#include <string>
#include <vector>

namespace llama {

inline std::filesystem::path golden_folder(const std::string& name) {
  return std::filesystem::path(KVTILT_TEST_GOLDEN) / name;
}
inline std::filesystem::path data_folder(const std::string& name) {
  return std::filesystem::path(KVTILT_TEST_DATA) / name;
}

/// A temporary folder, empty or with a copy of a golden checkpoint.
class TemporaryFolder : public kvtilt::test::TemporaryFolder {
 public:
  explicit TemporaryFolder(const std::string& golden = "") {
    if (!golden.empty()) std::filesystem::copy(golden_folder(golden), path());
  }

  /// Applies `edit` to a JSON file.
  template <class Edit>
  void edit_json(const std::string& file, Edit edit) const {
    auto json = nlohmann::json::parse(read(file));
    edit(json);
    write(file, json.dump());
  }
  /// Applies `edit` to the header of a safetensors file and keeps its data.
  template <class Edit>
  void edit_header(const std::string& file, Edit edit) const {
    const std::string bytes = read(file);
    std::uint64_t size = 0;
    std::memcpy(&size, bytes.data(), sizeof size);
    auto header = nlohmann::json::parse(bytes.substr(sizeof size, size));
    edit(header);
    write(file, kvtilt::test::safetensors_bytes(header.dump(), bytes.substr(sizeof size + size)));
  }
};

/// The message of what `action` throws; empty if it throws nothing.
template <class Action>
std::string error_of(Action action) {
  try {
    action();
  } catch (const std::exception& error) {
    return error.what();
  }
  return {};
}

inline float largest_difference(std::span<const float> a, std::span<const float> b) {
  float largest = 0;
  for (std::size_t i = 0; i < a.size(); ++i) largest = std::max(largest, std::abs(a[i] - b[i]));
  return largest;
}

/// A golden checkpoint's input and the logits that it must give.
struct Golden {
  std::vector<int> tokens;
  std::vector<std::vector<float>> logits;  // [tokens][vocab]
};

inline Golden read_golden(const std::string& name) {
  std::ifstream stream(golden_folder(name) / "golden.json");
  const auto json = nlohmann::json::parse(stream);
  return {json.at("tokens").get<std::vector<int>>(),
          json.at("logits").get<std::vector<std::vector<float>>>()};
}

}  // namespace llama
