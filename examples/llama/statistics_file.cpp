// SPDX-License-Identifier: MIT
#include "statistics_file.hpp"

#include <kvtilt/io/safetensors.hpp>
#include <kvtilt/io/safetensors_writer.hpp>

#include "fail.hpp"

#include <algorithm>
#include <cstdint>
#include <list>

namespace llama {
namespace {

constexpr const char* version = "2";

/// Tensors to write, with the storage of those that had to be converted.
class Tensors {
 public:
  void add_halves(const std::string& name, const std::vector<float>& numbers,
                  std::vector<std::int64_t> shape) {
    auto& halves = halves_.emplace_back(numbers.size());
    std::transform(numbers.begin(), numbers.end(), halves.begin(),
                   [](float x) { return kvtilt::to_f16(x); });
    list_.push_back({name, "F16", std::move(shape), std::as_bytes(std::span(halves))});
  }
  void add_floats(const std::string& name, const std::vector<double>& numbers,
                  std::vector<std::int64_t> shape) {
    auto& floats = floats_.emplace_back(numbers.begin(), numbers.end());
    list_.push_back({name, "F32", std::move(shape), std::as_bytes(std::span(floats))});
  }
  [[nodiscard]] const std::vector<kvtilt::TensorToWrite>& list() const { return list_; }

 private:
  std::list<std::vector<kvtilt::F16>> halves_;  // do not move while list_ points at them
  std::list<std::vector<float>> floats_;
  std::vector<kvtilt::TensorToWrite> list_;
};

std::string tensor_name(std::size_t layer, const char* what) {
  return "layers." + std::to_string(layer) + "." + what;
}

class Reader {
 public:
  Reader(const std::filesystem::path& path, const kvtilt::SafetensorsFile& file)
      : name_(path.string()), file_(file) {}

  [[nodiscard]] bool contains(const std::string& name) const {
    return file_.tensors().find(name) != file_.tensors().end();
  }
  [[nodiscard]] std::string metadata(const std::string& key) const {
    const auto found = file_.metadata().find(key);
    if (found == file_.metadata().end()) {
      fail(name_, ": its metadata have no \"", key, "\"; was it written by evaluate --capture?");
    }
    return found->second;
  }
  [[nodiscard]] const kvtilt::StoredTensor& tensor(const std::string& name,
                                                   std::size_t dimensions) const {
    const auto found = file_.tensors().find(name);
    if (found == file_.tensors().end()) fail(name_, ": tensor \"", name, "\" is missing");
    if (found->second.shape.size() != dimensions) {
      fail(name_, ": tensor \"", name, "\" has shape ", kvtilt::shape_text(found->second.shape),
           ", which has not ", dimensions, " dimensions");
    }
    return found->second;
  }
  [[nodiscard]] std::vector<double> numbers(const std::string& name, std::int64_t rows,
                                            std::int64_t columns) const {
    const kvtilt::StoredTensor& stored = tensor(name, 2);
    if (stored.shape[0] != rows || stored.shape[1] != columns) {
      fail(name_, ": tensor \"", name, "\" has shape ", kvtilt::shape_text(stored.shape),
           "; keys and values ask for [", rows, ", ", columns, "]");
    }
    const auto floats = kvtilt::read_floats(stored).value();
    return {floats.begin(), floats.end()};
  }
  [[nodiscard]] const std::string& name() const { return name_; }

 private:
  std::string name_;
  const kvtilt::SafetensorsFile& file_;
};

Transforms read_transforms(const Reader& reader) {
  const std::string text = reader.metadata("transforms");
  for (const bool keys : {false, true}) {
    for (const bool values : {false, true}) {
      if (text == to_string(Transforms{keys, values})) return {keys, values};
    }
  }
  fail(reader.name(), ": transforms are of \"", text, "\"");
}

kvtilt::CapturedLayer read_layer(const Reader& reader, std::size_t index) {
  const auto& keys = reader.tensor(tensor_name(index, "keys"), 3);
  const auto& values = reader.tensor(tensor_name(index, "values"), 3);
  if (keys.shape[0] != values.shape[0] || keys.shape[1] != values.shape[1]) {
    fail(reader.name(), ": layer ", index, " has keys of shape ", kvtilt::shape_text(keys.shape),
         " and values of shape ", kvtilt::shape_text(values.shape));
  }
  kvtilt::CapturedLayer layer;
  constexpr std::int64_t most = std::int64_t{1} << 30;
  if (std::max({keys.shape[0], keys.shape[1], keys.shape[2], values.shape[2]}) > most) {
    fail(reader.name(), ": layer ", index, " has keys of shape ", kvtilt::shape_text(keys.shape));
  }
  layer.tokens = static_cast<int>(keys.shape[0]);
  layer.kv_heads = static_cast<int>(keys.shape[1]);
  layer.key_dim = static_cast<int>(keys.shape[2]);
  layer.value_dim = static_cast<int>(values.shape[2]);
  layer.keys = kvtilt::read_floats(keys).value();
  layer.values = kvtilt::read_floats(values).value();
  layer.query_square =
      reader.numbers(tensor_name(index, "query_square"), layer.kv_heads, layer.key_dim);
  layer.attention = reader.numbers(tensor_name(index, "attention"), layer.kv_heads, layer.tokens);
  layer.key_attention =
      reader.numbers(tensor_name(index, "key_attention"), layer.kv_heads, layer.tokens);
  layer.output_square =
      reader.numbers(tensor_name(index, "output_square"), layer.kv_heads, layer.value_dim);
  layer.weight = reader.numbers(tensor_name(index, "weight"), 1, 1).front();
  return layer;
}

}  // namespace

void write_statistics(const std::filesystem::path& path, const StatisticsFile& file) {
  Tensors tensors;
  for (std::size_t i = 0; i < file.layers.size(); ++i) {
    const kvtilt::CapturedLayer& layer = file.layers[i];
    tensors.add_halves(tensor_name(i, "keys"), layer.keys,
                       {layer.tokens, layer.kv_heads, layer.key_dim});
    tensors.add_halves(tensor_name(i, "values"), layer.values,
                       {layer.tokens, layer.kv_heads, layer.value_dim});
    tensors.add_floats(tensor_name(i, "query_square"), layer.query_square,
                       {layer.kv_heads, layer.key_dim});
    tensors.add_floats(tensor_name(i, "attention"), layer.attention,
                       {layer.kv_heads, layer.tokens});
    tensors.add_floats(tensor_name(i, "key_attention"), layer.key_attention,
                       {layer.kv_heads, layer.tokens});
    tensors.add_floats(tensor_name(i, "output_square"), layer.output_square,
                       {layer.kv_heads, layer.value_dim});
    tensors.add_floats(tensor_name(i, "weight"), {layer.weight}, {1, 1});
  }
  const auto status = kvtilt::write_safetensors(path, tensors.list(),
                                                {{"kvtilt_capture", version},
                                                 {"page_tokens", std::to_string(file.page_tokens)},
                                                 {"transforms", to_string(file.transforms)},
                                                 {"model", file.model},
                                                 {"text", file.text}});
  if (!status.ok()) fail(status.message());
}

StatisticsFile read_statistics(const std::filesystem::path& path) {
  const auto stored = kvtilt::SafetensorsFile::open(path).value();
  const Reader reader(path, stored);
  if (reader.metadata("kvtilt_capture") != version) {
    fail(reader.name(), ": is of version \"", reader.metadata("kvtilt_capture"),
         "\"; this program reads version ", version);
  }
  StatisticsFile file;
  for (const int page : {32, 64, 128}) {
    if (reader.metadata("page_tokens") == std::to_string(page)) file.page_tokens = page;
  }
  if (file.page_tokens == 0) {
    fail(reader.name(), ": page_tokens is \"", reader.metadata("page_tokens"),
         "\", must be 32, 64 or 128");
  }
  file.transforms = read_transforms(reader);
  file.model = reader.metadata("model");
  file.text = reader.metadata("text");
  for (std::size_t i = 0; reader.contains(tensor_name(i, "keys")); ++i) {
    file.layers.push_back(read_layer(reader, i));
  }
  if (file.layers.empty()) fail(reader.name(), ": tensor \"layers.0.keys\" is missing");
  return file;
}

}  // namespace llama
