// SPDX-License-Identifier: MIT
#include "norm_source.hpp"

#include <kvtilt/io/checkpoint.hpp>

#include "fail.hpp"
#include "for_each_piece.hpp"
#include "head_counts.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>

namespace llama {
namespace {

using kvtilt::Role;
using kvtilt::StoredTensor;

/// Prefixes of a layer's attention tensors in the model families; # is the layer's number.
constexpr std::array layer_prefixes{"model.layers.#.self_attn.",
                                    "model.language_model.layers.#.self_attn.",
                                    "language_model.model.layers.#.self_attn.",
                                    "model.layers.#.attention.",
                                    "transformer.h.#.self_attention.",
                                    "gpt_neox.layers.#.attention.",
                                    "blk.#."};

struct Projection {
  const StoredTensor* weight = nullptr;
  const StoredTensor* bias = nullptr;
  std::vector<std::int64_t> first_rows;  // of each kv head
  std::int64_t head_rows = 0;
};

/// Drops the mapped pages of a tensor: otherwise those of a large checkpoint would count as this
/// program's memory until the system needs them.
void release(std::span<const std::byte> bytes) {
  const auto page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto begin = (reinterpret_cast<std::uintptr_t>(bytes.data()) + page - 1) / page * page;
  const auto end = reinterpret_cast<std::uintptr_t>(bytes.data() + bytes.size()) / page * page;
  if (end > begin) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

class Layers {
 public:
  Layers(const kvtilt::Checkpoint& checkpoint, HeadCounts counts, std::string name)
      : checkpoint_(checkpoint),
        names_(checkpoint.names()),
        counts_(std::move(counts)),
        name_(std::move(name)) {}

  [[nodiscard]] int count() const { return static_cast<int>(counts_.layers); }

  /// Throws if some layers have no tensors at all, as in an incomplete checkpoint. (A layer without
  /// attention has other tensors.)
  void require_all() const {
    std::vector<int> missing;
    for (int layer = 0; layer < count(); ++layer) {
      if (kv_heads(layer) != 0 && !has_tensors(layer)) missing.push_back(layer);
    }
    // If no layer has any, the family's tensor names are unknown: reported elsewhere.
    if (missing.empty() || static_cast<int>(missing.size()) == count()) return;
    fail(name_, ": ", missing.size(), " of ", count(), " layers have no tensors at all, layer ",
         missing.front(), " the first of them; is a part of the checkpoint missing?");
  }

  /// The norms of one layer; sets `shape` to the shape of its cache.
  [[nodiscard]] kvtilt::LayerNorms read(int layer, kvtilt::LayerShape& shape) const {
    const std::int64_t heads = kv_heads(layer);
    if (heads == 0) return {};
    const Projection keys = find(layer, Role::Keys);
    const Projection values = find(layer, Role::Values);
    if ((keys.weight == nullptr) != (values.weight == nullptr)) {
      fail(name_, ": layer ", layer, " has only one of a key and a value projection");
    }
    if (keys.weight == nullptr) return {};
    const StoredTensor* gains = find_any(layer, {"k_norm.weight", "attn_k_norm.weight",
                                                 "key_layernorm.weight", "k_layernorm.weight"});
    require_size(keys, counts_.key_sizes, layer, gains);
    require_size(values, counts_.value_sizes, layer, gains);
    shape = {static_cast<int>(heads), static_cast<int>(keys.head_rows),
             static_cast<int>(values.head_rows), 0};
    const auto checked = kvtilt::check_shape(shape, layer);
    if (!checked.ok()) fail(name_, ": ", checked.message());
    kvtilt::LayerNorms norms;
    norms.keys = measure(keys, layer);
    norms.values = measure(values, layer);
    if (gains != nullptr) {
      norms.key_norm = true;
      auto numbers = kvtilt::read_floats(*gains).value();
      if (counts_.gains_add_one) {
        for (float& gain : numbers) gain += 1;
      }
      const auto rows = static_cast<std::size_t>(keys.head_rows);
      // Gains of all heads (OLMo2) or of one; any other number does not tell the scale.
      if (numbers.size() == rows || numbers.size() == rows * static_cast<std::size_t>(heads)) {
        norms.key_gains = std::move(numbers);
      }
    }
    return norms;
  }

 private:
  [[nodiscard]] std::int64_t kv_heads(int layer) const {
    return counts_.kv_heads[counts_.kv_heads.size() == 1 ? 0 : static_cast<std::size_t>(layer)];
  }

  /// The possible prefixes of the names of a layer's tensors.
  [[nodiscard]] static std::vector<std::string> prefixes(int layer) {
    std::vector<std::string> list;
    for (const std::string prefix : layer_prefixes) {
      const std::size_t place = prefix.find('#');
      list.push_back(prefix.substr(0, place) + std::to_string(layer) + prefix.substr(place + 1));
    }
    return list;
  }

  /// Whether the name of any tensor begins with `start`.
  [[nodiscard]] bool has_any(const std::string& start) const {
    const auto found = std::lower_bound(names_.begin(), names_.end(), start);
    return found != names_.end() && found->starts_with(start);
  }

  /// Whether the layer has tensors, of attention or not.
  [[nodiscard]] bool has_tensors(int layer) const {
    const std::string number = "." + std::to_string(layer) + ".";
    const auto all = prefixes(layer);
    return std::any_of(all.begin(), all.end(), [&](const std::string& prefix) {
      return has_any(prefix.substr(0, prefix.find(number) + number.size()));
    });
  }

  [[nodiscard]] const StoredTensor* find_any(int layer,
                                             std::initializer_list<const char*> names) const {
    for (const std::string& start : prefixes(layer)) {
      for (const char* name : names) {
        if (const StoredTensor* tensor = checkpoint_.find(start + name)) return tensor;
      }
    }
    return nullptr;
  }

  [[nodiscard]] Projection find(int layer, Role tensor) const {
    const bool keys = tensor == Role::Keys;
    const std::int64_t heads = kv_heads(layer);
    Projection found;
    found.weight = keys ? find_any(layer, {"k_proj.weight", "attn_k.weight"})
                        : find_any(layer, {"v_proj.weight", "attn_v.weight"});
    if (found.weight != nullptr) {
      found.bias = keys ? find_any(layer, {"k_proj.bias", "attn_k.bias"})
                        : find_any(layer, {"v_proj.bias", "attn_v.bias"});
      require_rows(*found.weight, layer, heads, "kv heads");
      found.head_rows = found.weight->rows() / heads;
      for (std::int64_t head = 0; head < heads; ++head) {
        found.first_rows.push_back(head * found.head_rows);
      }
      return found;
    }
    auto order = kvtilt::FusedRows::Blocks;
    found.weight = find_any(layer, {"qkv_proj.weight", "attn_qkv.weight"});
    if (found.weight != nullptr) {
      found.bias = find_any(layer, {"qkv_proj.bias", "attn_qkv.bias"});
    } else {
      order = kvtilt::FusedRows::PerKvHead;
      found.weight = find_any(layer, {"query_key_value.weight", "wqkv.weight"});
      found.bias = find_any(layer, {"query_key_value.bias", "wqkv.bias"});
    }
    if (found.weight == nullptr) return found;
    const std::int64_t all = counts_.query_heads + 2 * heads;
    const HeadSizes& sizes = keys ? counts_.key_sizes : counts_.value_sizes;
    // In GGUF files, the projection of linear attention has the name of softmax attention's.
    if (found.weight->name.ends_with("attn_qkv.weight") &&
        has_any("blk." + std::to_string(layer) + ".ssm_") &&
        (found.weight->rows() % all != 0 || !sizes.allow(found.weight->rows() / all))) {
      return {};
    }
    require_rows(*found.weight, layer, all, "query, key and value heads");
    found.head_rows = found.weight->rows() / all;
    for (std::int64_t head = 0; head < heads; ++head) {
      found.first_rows.push_back(kvtilt::fused_row(
          order, tensor, static_cast<int>(head), static_cast<int>(counts_.query_heads),
          static_cast<int>(heads), static_cast<int>(found.head_rows)));
    }
    return found;
  }

  void require_rows(const StoredTensor& tensor, int layer, std::int64_t heads,
                    const char* what) const {
    if (tensor.shape.size() == 2 && tensor.rows() % heads == 0 && tensor.rows() > 0) return;
    fail(tensor.file, ": tensor \"", tensor.name, "\" of layer ", layer, " has shape ",
         kvtilt::shape_text(tensor.shape), ", which is not [", heads, " ", what, " x n, hidden]");
  }

  /// Throws if the head size is not one that the file states, a sign of a wrong head count. Gains
  /// of one head overrule a guessed size, because some families have sizes of their own.
  void require_size(const Projection& projection, const HeadSizes& sizes, int layer,
                    const StoredTensor* gains) const {
    const std::int64_t size = projection.head_rows;
    if (sizes.allow(size)) return;
    if (sizes.guessed && gains != nullptr && gains->shape == std::vector{size}) return;
    const StoredTensor& tensor = *projection.weight;
    fail(tensor.file, ": tensor \"", tensor.name, "\" of layer ", layer, " has shape ",
         kvtilt::shape_text(tensor.shape), ", which for ", counts_.query_heads, " query and ",
         kv_heads(layer), " kv heads makes ", size, " rows a head; but ", sizes.text);
  }

  /// Throws if the tensor has separate scales, as in FP8 checkpoints: norms must include them.
  void require_unscaled(const StoredTensor& tensor, int layer) const {
    for (const char* suffix : {"_scale_inv", "_scale"}) {
      const StoredTensor* scale = checkpoint_.find(tensor.name + suffix);
      if (scale == nullptr) continue;
      fail(tensor.file, ": tensor \"", tensor.name, "\" of layer ", layer, " is to be scaled by \"",
           scale->name, "\", which is not understood; convert the checkpoint to bfloat16 first");
    }
  }

  [[nodiscard]] kvtilt::TensorNorms measure(const Projection& projection, int layer) const {
    const StoredTensor& tensor = *projection.weight;
    require_unscaled(tensor, layer);
    const auto heads = static_cast<std::int64_t>(projection.first_rows.size());
    const std::int64_t columns = tensor.columns();
    const std::int64_t block = projection.head_rows * columns;
    std::vector<float> weights(static_cast<std::size_t>(heads * block));
    std::vector<float> bias;
    std::vector<float> all_biases;
    if (projection.bias != nullptr) {
      all_biases = kvtilt::read_floats(*projection.bias).value();
      if (static_cast<std::int64_t>(all_biases.size()) != tensor.rows()) {
        fail(projection.bias->file, ": tensor \"", projection.bias->name, "\" has ",
             all_biases.size(), " numbers for ", tensor.rows(), " rows of weights");
      }
    }
    for (std::int64_t head = 0; head < heads; ++head) {
      const std::int64_t first = projection.first_rows[static_cast<std::size_t>(head)];
      const std::span<float> out(weights.data() + head * block, static_cast<std::size_t>(block));
      const auto status = kvtilt::read_floats(tensor, first, projection.head_rows, out);
      if (!status.ok()) fail(status.message());
      if (!all_biases.empty()) {
        const auto begin = all_biases.begin() + first;
        bias.insert(bias.end(), begin, begin + projection.head_rows);
      }
    }
    release(tensor.bytes);
    auto norms = kvtilt::weight_norms({weights.data(), heads * projection.head_rows, columns},
                                      static_cast<int>(heads), bias);
    if (!norms) {
      fail(tensor.file, ": tensor \"", tensor.name, "\" of layer ", layer, ": ", norms.message());
    }
    return *norms;
  }

  const kvtilt::Checkpoint& checkpoint_;
  std::vector<std::string_view> names_;  // sorted
  HeadCounts counts_;
  std::string name_;
};

}  // namespace

WeightNorms read_weight_norms(const std::filesystem::path& path, int threads,
                              const std::function<void(double share)>& progress) {
  const kvtilt::Checkpoint checkpoint = kvtilt::Checkpoint::open(path).value();
  const Layers layers(
      checkpoint,
      checkpoint.gguf() != nullptr
          ? gguf_counts(*checkpoint.gguf(), path.string())
          : config_counts((std::filesystem::is_directory(path) ? path : path.parent_path()) /
                          "config.json"),
      path.string());
  layers.require_all();
  WeightNorms norms;
  norms.layers.resize(static_cast<std::size_t>(layers.count()));
  norms.shape.layers.resize(norms.layers.size());
  std::mutex mutex;
  std::size_t done = 0;
  for_each_piece(
      norms.layers.size(), threads, [] { return 0; },
      [&](int, std::size_t i) {
        norms.layers[i] = layers.read(static_cast<int>(i), norms.shape.layers[i]);
        const std::lock_guard lock(mutex);
        if (progress) {
          progress(static_cast<double>(++done) / static_cast<double>(norms.layers.size()));
        }
      });
  const bool empty = std::all_of(norms.shape.layers.begin(), norms.shape.layers.end(),
                                 [](const auto& shape) { return shape.kv_heads == 0; });
  if (empty) {
    fail(path.string(), ": no key and value projections were found; looked for the names of the ",
         "Llama, Qwen, Mistral, Gemma, Phi-3, InternLM2, GPT-NeoX and BLOOM families and of GGUF");
  }
  return norms;
}

}  // namespace llama
