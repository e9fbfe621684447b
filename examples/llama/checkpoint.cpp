// SPDX-License-Identifier: MIT
#include "checkpoint.hpp"

#include "fail.hpp"
#include "half.hpp"
#include "json.hpp"

#include <cstring>
#include <utility>

namespace llama {
namespace {

std::string shape_text(const std::vector<std::int64_t>& shape) {
  return nlohmann::json(shape).dump();
}

template <class Convert>
void convert_16_bit(std::span<const std::byte> bytes, Floats& values, Convert convert) {
  for (std::size_t i = 0; i < values.size(); ++i) {
    std::uint16_t bits = 0;  // copied out: the header's length decides the data's alignment
    std::memcpy(&bits, bytes.data() + 2 * i, sizeof bits);
    values[i] = convert(bits);
  }
}

}  // namespace

Checkpoint::Checkpoint(const std::filesystem::path& folder) {
  const auto single = folder / "model.safetensors";
  const auto index = folder / "model.safetensors.index.json";
  if (!std::filesystem::is_directory(folder)) fail(folder.string(), ": no such folder");
  if (std::filesystem::exists(single)) {
    description_ = single.string();
    add_file(single);
  } else if (std::filesystem::exists(index)) {
    description_ = index.string();
    read_index(index);
  } else {
    fail(folder.string(), ": neither model.safetensors nor model.safetensors.index.json is there");
  }
}

void Checkpoint::add_file(const std::filesystem::path& path) {
  const auto [file, inserted] = files_.emplace(path.string(), SafetensorsFile(path));
  if (!inserted) return;
  for (const auto& [name, tensor] : file->second.tensors()) {
    tensors_.emplace(name, Entry{&tensor, file->first});
  }
}

void Checkpoint::read_index(const std::filesystem::path& path) {
  const auto index = parse_json_object(path.string(), read_text_file(path));
  const auto map = index.find("weight_map");
  if (map == index.end() || !map->is_object()) fail(path.string(), ": has no weight_map");
  std::map<std::string, Entry> listed;
  for (const auto& [tensor, shard] : map->items()) {
    if (!shard.is_string()) fail(path.string(), ": tensor \"", tensor, "\" names no shard");
    const std::filesystem::path name = shard.get<std::string>();
    // A shard lies next to its index; a path that leads elsewhere comes from a crafted file.
    if (name.empty() || name.filename() != name || name == "." || name == "..") {
      fail(path.string(), ": tensor \"", tensor, "\" names the shard ", shard,
           ", which is not a plain file name");
    }
    const auto file = path.parent_path() / name;
    if (!files_.contains(file.string())) {
      files_.emplace(file.string(), SafetensorsFile(file));
    }
    const auto& tensors = files_.at(file.string()).tensors();
    const auto found = tensors.find(tensor);
    if (found == tensors.end()) {
      fail(path.string(), ": tensor \"", tensor, "\" is not in its shard ", name.string());
    }
    listed.emplace(tensor, Entry{&found->second, file.string()});
  }
  tensors_ = std::move(listed);
}

Floats Checkpoint::load(const std::string& name, const std::vector<std::int64_t>& shape) {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) fail(description_, ": tensor \"", name, "\" is missing");
  Entry& entry = found->second;
  const StoredTensor& tensor = *entry.tensor;
  const std::string where = entry.file + ": tensor \"" + name + "\"";
  if (tensor.shape != shape) {
    fail(where, " has shape ", shape_text(tensor.shape), "; config.json asks for ",
         shape_text(shape));
  }
  std::int64_t count = 1;
  for (const std::int64_t extent : shape) count *= extent;
  Floats values(static_cast<std::size_t>(count));
  if (tensor.dtype == "F32") {
    std::memcpy(values.data(), tensor.bytes.data(), tensor.bytes.size());
  } else if (tensor.dtype == "F16") {
    convert_16_bit(tensor.bytes, values, f16_to_float);
  } else if (tensor.dtype == "BF16") {
    convert_16_bit(tensor.bytes, values, bf16_to_float);
  } else {
    fail(where, " is stored as ", tensor.dtype, "; only F32, F16 and BF16 are understood");
  }
  entry.used = true;
  return values;
}

std::vector<std::string> Checkpoint::unused() const {
  std::vector<std::string> names;
  for (const auto& [name, entry] : tensors_) {
    if (!entry.used) names.push_back(name);
  }
  return names;
}

}  // namespace llama
