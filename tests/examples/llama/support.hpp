// SPDX-License-Identifier: MIT
// Model folders that tests may damage, and the sentence that follows.
#pragma once

#include <nlohmann/json.hpp>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace llama {

inline std::filesystem::path golden_folder(const std::string& name) {
  return std::filesystem::path(KVTILT_TEST_GOLDEN) / name;
}
inline std::filesystem::path data_folder(const std::string& name) {
  return std::filesystem::path(KVTILT_TEST_DATA) / name;
}

/// A folder that disappears with the object; optionally a copy of a golden checkpoint at first.
class TemporaryFolder {
 public:
  explicit TemporaryFolder(const std::string& golden = "") {
    std::string name = (std::filesystem::temp_directory_path() / "kvtilt_XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr) throw std::runtime_error("mkdtemp failed");
    path_ = name;
    if (!golden.empty()) std::filesystem::copy(golden_folder(golden), path_);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }

  [[nodiscard]] const std::filesystem::path& path() const { return path_; }

  void write(const std::string& file, std::string_view bytes) const {
    std::ofstream(path_ / file, std::ios::binary) << bytes;
  }
  [[nodiscard]] std::string read(const std::string& file) const {
    std::ifstream stream(path_ / file, std::ios::binary);
    return {std::istreambuf_iterator<char>(stream), {}};
  }
  /// Rewrites a JSON file after `edit` changed it.
  template <class Edit>
  void edit_json(const std::string& file, Edit edit) const {
    auto json = nlohmann::json::parse(read(file));
    edit(json);
    write(file, json.dump());
  }
  /// Rewrites the header of a safetensors file after `edit` changed it; the data stays.
  template <class Edit>
  void edit_header(const std::string& file, Edit edit) const {
    const std::string bytes = read(file);
    std::uint64_t size = 0;
    std::memcpy(&size, bytes.data(), sizeof size);
    auto header = nlohmann::json::parse(bytes.substr(sizeof size, size));
    edit(header);
    write(file, with_header(header.dump(), bytes.substr(sizeof size + size)));
  }

  static std::string with_header(const std::string& header, const std::string& data) {
    const std::uint64_t size = header.size();
    std::string bytes(sizeof size, '\0');
    std::memcpy(bytes.data(), &size, sizeof size);
    return bytes + header + data;
  }

 private:
  std::filesystem::path path_;
};

/// What `action` throws, as text; empty when it throws nothing.
template <class Action>
std::string error_of(Action action) {
  try {
    action();
  } catch (const std::exception& error) {
    return error.what();
  }
  return {};
}

/// What a golden checkpoint must compute.
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
