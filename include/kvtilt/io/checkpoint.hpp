// SPDX-License-Identifier: MIT
/// Reads the tensors of a model by name from a safetensors file, safetensors shards with an index,
/// or a GGUF file.
#pragma once

#include <kvtilt/core/status.hpp>
#include <kvtilt/io/gguf.hpp>
#include <kvtilt/io/json.hpp>
#include <kvtilt/io/mapped_file.hpp>
#include <kvtilt/io/safetensors.hpp>
#include <kvtilt/io/shown.hpp>
#include <kvtilt/io/tensor_data.hpp>

#include <cstddef>
#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

namespace kvtilt {

/// Tensor names are those in the file: Hugging Face's ("model.layers.0.self_attn.k_proj.weight") or
/// GGUF's ("blk.0.attn_k.weight"; in GGUF files of Llama models, llama.cpp also reorders the rows
/// within each query and key head). Tensors point into the checkpoint and stay valid when it is
/// moved; read_floats (tensor_data.hpp) converts them, whole or by rows.
class Checkpoint {
 public:
  /// `path` is a folder with model.safetensors or model.safetensors.index.json, or a file that ends
  /// in .safetensors or .gguf. Errors name the file: InvalidArgument if it is none of these,
  /// FileAccess if it does not exist, Unsupported if it is one part of several (by its name, like
  /// model-00001-of-00002.safetensors, or by GGUF's split.count), otherwise those of
  /// SafetensorsFile and GgufFile.
  static Result<Checkpoint> open(const std::filesystem::path& path) {
    Checkpoint checkpoint;
    KVTILT_RETURN_IF_ERROR(checkpoint.read(path));
    return checkpoint;
  }

  /// The tensor of this name, or null.
  [[nodiscard]] const StoredTensor* find(std::string_view name) const {
    const auto found = tensors_.find(name);
    return found == tensors_.end() ? nullptr : found->second;
  }

  /// The tensor of this name. Fails with InvalidArgument, naming the checkpoint, if there is none.
  [[nodiscard]] Result<const StoredTensor*> get(std::string_view name) const {
    if (const StoredTensor* tensor = find(name)) return tensor;
    return Status::error(ErrorCode::InvalidArgument, "%s: has no tensor '%s'", name_.c_str(),
                         shown(name).c_str());
  }

  /// All names, sorted.
  [[nodiscard]] std::vector<std::string_view> names() const {
    std::vector<std::string_view> names;
    for (const auto& [name, tensor] : tensors_) names.push_back(name);
    return names;
  }

  /// The key-value pairs of a GGUF file; null for other checkpoints.
  [[nodiscard]] const GgufMetadata* gguf() const { return gguf_ ? &gguf_->metadata() : nullptr; }

 private:
  Checkpoint() = default;

  Status read(const std::filesystem::path& path) {
    std::error_code ignored;
    if (!std::filesystem::is_directory(path, ignored)) return read_file(path);
    const std::filesystem::path single = path / "model.safetensors";
    const std::filesystem::path index = path / "model.safetensors.index.json";
    if (std::filesystem::exists(single, ignored)) return read_file(single);
    if (std::filesystem::exists(index, ignored)) return read_index(index);
    return Status::error(ErrorCode::InvalidArgument,
                         "%s: neither model.safetensors nor model.safetensors.index.json is there",
                         shown_path(path).c_str());
  }

  Status read_file(const std::filesystem::path& path) {
    name_ = shown_path(path);
    if (path.extension() == ".gguf") return read_gguf(path);
    std::error_code ignored;
    if (!std::filesystem::exists(path, ignored))
      return Status::error(ErrorCode::FileAccess, "%s: there is no such file or folder",
                           name_.c_str());
    if (path.extension() != ".safetensors")
      return Status::error(ErrorCode::InvalidArgument,
                           "%s: is neither a folder nor a .safetensors or .gguf file",
                           name_.c_str());
    if (const int parts = shards_of(path.stem().string()); parts > 1)
      return Status::error(ErrorCode::Unsupported,
                           "%s: is one of %d parts; open the folder of all, with their index",
                           name_.c_str(), parts);
    Result<SafetensorsFile> file = SafetensorsFile::open(path);
    if (!file) return std::move(file).take_status();
    add(shards_.emplace(path.string(), *std::move(file)).first->second.tensors());
    return {};
  }

  /// The second number of a name that ends like "-00001-of-00002"; 1 for others.
  static int shards_of(std::string_view stem) {
    constexpr std::string_view form = "-00000-of-00000";
    if (stem.size() < form.size()) return 1;
    stem.remove_prefix(stem.size() - form.size());
    int parts = 0;
    for (std::size_t i = 0; i < form.size(); ++i) {
      const bool digit = stem[i] >= '0' && stem[i] <= '9';
      if (form[i] == '0' ? !digit : stem[i] != form[i]) return 1;
      parts = digit ? parts * 10 + (stem[i] - '0') : 0;
    }
    return parts;
  }

  Status read_gguf(const std::filesystem::path& path) {
    Result<GgufFile> file = GgufFile::open(path);
    if (!file) return std::move(file).take_status();
    if (file->metadata().contains("split.count")) {
      Result<std::int64_t> parts = file->metadata().integer("split.count");
      if (!parts) return std::move(parts).take_status();
      if (*parts > 1)
        return Status::error(
            ErrorCode::Unsupported,
            "%s: is one of %lld parts; merge them first (llama-gguf-split --merge)", name_.c_str(),
            static_cast<long long>(*parts));
    }
    gguf_ = *std::move(file);
    add(gguf_->tensors());
    return {};
  }

  void add(const StoredTensors& tensors) {
    for (const auto& [name, tensor] : tensors) tensors_.emplace(name, &tensor);
  }

  Status read_index(const std::filesystem::path& path) {
    name_ = shown_path(path);
    Result<MappedFile> file = MappedFile::open(path);
    if (!file) return std::move(file).take_status();
    Result<JsonDocument> document = JsonDocument::parse(file->text(), name_);
    if (!document) return std::move(document).take_status();
    Result<JsonValue> map = document->root().at("weight_map");
    if (!map) return std::move(map).take_status();
    Result<std::vector<JsonValue::Member>> entries = map->members();
    if (!entries) return std::move(entries).take_status();
    for (const auto& [tensor, shard] : *entries)
      KVTILT_RETURN_IF_ERROR(add_indexed(path.parent_path(), tensor, shard));
    return {};
  }

  Status add_indexed(const std::filesystem::path& folder, std::string_view tensor,
                     const JsonValue& shard) {
    Result<std::string_view> text = shard.string();
    if (!text) return std::move(text).take_status();
    // A shard lies next to its index; an index with any other path is crafted.
    if (text->empty() || *text == "." || *text == ".." ||
        text->find_first_of(std::string_view("/\\\0", 3)) != std::string_view::npos)
      return shard.error("is " + shard.text() + ", not a plain file name");
    const std::string path = (folder / *text).string();
    auto found = shards_.find(path);
    if (found == shards_.end()) {
      Result<SafetensorsFile> file = SafetensorsFile::open(path);
      if (!file) return std::move(file).take_status();
      found = shards_.emplace(path, *std::move(file)).first;
    }
    const StoredTensors& tensors = found->second.tensors();
    const auto stored = tensors.find(tensor);
    if (stored == tensors.end())
      return shard.error("is in the index, but not in its shard " + shown(*text));
    tensors_.emplace(tensor, &stored->second);
    return {};
  }

  std::string name_;  // of the checkpoint, for messages
  std::map<std::string, SafetensorsFile> shards_;
  std::optional<GgufFile> gguf_;
  std::map<std::string, const StoredTensor*, std::less<>> tensors_;
};

}  // namespace kvtilt
