// SPDX-License-Identifier: MIT
#include "head_counts.hpp"

#include <kvtilt/core/shape.hpp>
#include <kvtilt/io/json.hpp>
#include <kvtilt/io/mapped_file.hpp>

#include "fail.hpp"

#include <array>
#include <cstddef>
#include <initializer_list>
#include <optional>
#include <string_view>

namespace llama {
namespace {

/// Reads the head sizes of keys and values. `number(key)` returns a std::optional. A size that is
/// not stated is the quotient of the keys `width` and `heads`.
template <class Number>
void read_head_sizes(HeadCounts& counts, Number number, std::initializer_list<const char*> of_keys,
                     std::initializer_list<const char*> of_values, const char* width,
                     const char* heads) {
  const auto add = [&](HeadSizes& sizes, std::initializer_list<const char*> keys) {
    for (const std::string key : keys) {
      if (const std::optional<std::int64_t> size = number(key)) sizes.add(key, *size);
    }
  };
  add(counts.key_sizes, of_keys);
  add(counts.value_sizes, of_values);
  if (counts.key_sizes.any_of.empty()) {
    if (const std::optional<std::int64_t> hidden = number(width)) {
      counts.key_sizes.guessed = true;
      counts.key_sizes.add(std::string(width) + " " + std::to_string(*hidden) + " / " + heads +
                               " " + std::to_string(counts.query_heads),
                           *hidden / counts.query_heads);
    }
  }
  if (counts.value_sizes.any_of.empty()) counts.value_sizes = counts.key_sizes;
}

/// The value of the first of `keys` that is present.
std::optional<kvtilt::JsonValue> find_any(const kvtilt::JsonValue& object,
                                          std::initializer_list<const char*> keys) {
  for (const char* key : keys) {
    const auto value = object.find(key);
    if (value && !value->is_null()) return value;
  }
  return std::nullopt;
}

/// Whether the QK-norms of a family multiply by 1 + the stored gain. (Gemma 3n's do not; GGUF files
/// store the gain with the 1 added.)
bool adds_one_to_gains(std::string_view model_type) {
  constexpr std::array<std::string_view, 7> families{
      "gemma3",       "gemma3_text", "qwen3_next",      "qwen3_5",
      "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text"};
  return std::find(families.begin(), families.end(), model_type) != families.end();
}

}  // namespace

HeadCounts config_counts(const std::filesystem::path& path) {
  const auto file = kvtilt::MappedFile::open(path).value();
  const auto document = kvtilt::JsonDocument::parse(file.text(), path.string()).value();
  // Multimodal models keep the language model's configuration in an object of its own.
  const kvtilt::JsonValue root = document.root().find("text_config").value_or(document.root());
  const auto count = [&](std::initializer_list<const char*> keys) {
    const auto value = find_any(root, keys);
    if (!value) fail(path.string(), ": has no \"", *keys.begin(), "\"");
    return value->integer(1, kvtilt::max_kv_heads).value();
  };
  HeadCounts counts;
  counts.layers = count({"num_hidden_layers", "n_layer", "num_layers"});
  counts.query_heads = count({"num_attention_heads", "n_head"});
  const auto kv_names = {"num_key_value_heads", "num_kv_heads", "n_head_kv"};
  counts.kv_heads = {find_any(root, kv_names) ? count(kv_names) : counts.query_heads};
  const auto number = [&](const std::string& key) -> std::optional<std::int64_t> {
    const auto value = find_any(root, {key.c_str()});
    if (!value) return std::nullopt;
    return value->integer(1, 1 << 20).value();
  };
  read_head_sizes(counts, number,
                  {"head_dim", "attention_head_dim", "global_head_dim", "swa_head_dim"},
                  {"v_head_dim", "swa_v_head_dim"}, "hidden_size", "num_attention_heads");
  for (const kvtilt::JsonValue& object : {document.root(), root}) {
    const auto family = find_any(object, {"model_type"});
    if (family && adds_one_to_gains(family->string().value())) counts.gains_add_one = true;
  }
  return counts;
}

HeadCounts gguf_counts(const kvtilt::GgufMetadata& metadata, const std::string& file) {
  const std::string prefix = std::string(metadata.string("general.architecture").value()) + ".";
  HeadCounts counts;
  counts.layers = metadata.integer(prefix + "block_count").value();
  const auto query_heads = metadata.integers(prefix + "attention.head_count").value();
  if (query_heads.empty()) fail(file, ": key '", prefix, "attention.head_count' is an empty array");
  counts.query_heads = query_heads.front();
  counts.kv_heads = {counts.query_heads};
  if (metadata.contains(prefix + "attention.head_count_kv")) {
    counts.kv_heads = metadata.integers(prefix + "attention.head_count_kv").value();
  }
  const bool sane =
      counts.layers >= 1 && counts.layers <= 10000 && counts.query_heads >= 1 &&
      (counts.kv_heads.size() == 1 ||
       counts.kv_heads.size() == static_cast<std::size_t>(counts.layers)) &&
      std::all_of(counts.kv_heads.begin(), counts.kv_heads.end(),
                  [](std::int64_t heads) { return heads >= 0 && heads <= kvtilt::max_kv_heads; });
  if (!sane) fail(file, ": block_count and head counts contradict each other");
  const auto number = [&](const std::string& key) -> std::optional<std::int64_t> {
    if (!metadata.contains(prefix + key)) return std::nullopt;
    return metadata.integer(prefix + key).value();
  };
  read_head_sizes(counts, number, {"attention.key_length", "attention.key_length_swa"},
                  {"attention.value_length", "attention.value_length_swa"}, "embedding_length",
                  "attention.head_count");
  return counts;
}

}  // namespace llama
