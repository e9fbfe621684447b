// SPDX-License-Identifier: MIT
#include "norm_file.hpp"

#include <kvtilt/io/json.hpp>
#include <kvtilt/io/mapped_file.hpp>

#include "fail.hpp"

#include <stdexcept>
#include <string>

namespace llama {

WeightNorms read_norm_file(const std::filesystem::path& path, int kv_heads, int head_dim) {
  const auto file = kvtilt::MappedFile::open(path).value();
  const auto document = kvtilt::JsonDocument::parse(file.text(), path.string()).value();
  const auto read = [&](const char* key) {
    std::vector<double> norms;
    const auto list = document.root().at(key).value().elements().value();
    for (const kvtilt::JsonValue& value : list) {
      norms.push_back(value.number().value());
      if (!(norms.back() > 0))
        throw std::runtime_error(
            std::string(value.error("is no norm: it is not above 0").message()));
    }
    return norms;
  };
  const std::vector<double> keys = read("w_k");
  const std::vector<double> values = read("w_v");
  if (keys.size() != values.size() || keys.empty()) {
    fail(path.string(), ": \"w_k\" lists ", keys.size(), " layers, \"w_v\" ", values.size());
  }
  WeightNorms norms;
  norms.one_norm = true;
  norms.shape = kvtilt::CacheShape::uniform(static_cast<int>(keys.size()), kv_heads, head_dim);
  for (std::size_t i = 0; i < keys.size(); ++i) {
    kvtilt::LayerNorms layer;
    layer.keys.frobenius = layer.keys.spectral = keys[i];
    layer.values.frobenius = layer.values.spectral = values[i];
    norms.layers.push_back(layer);
  }
  return norms;
}

}  // namespace llama
