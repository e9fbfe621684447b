// SPDX-License-Identifier: MIT
/// Reads and writes a plan as a JSON file that people can read, compare and edit: one layer a line
/// (here two).
///
///     {
///       "kvtilt_recipe": 1,
///       "made_by": "plan --budget 3.5",
///       "budget": "3.5 bits per element",
///       "hadamard": ["values"],
///       "page_tokens": 64,
///       "layers": [
///         {"layer": 0, "kv_heads": 2, "key_dim": 128, "value_dim": 128,
///          "keys": "4c:g64:min-mse", "values": "2t:min-mse"},
///         {"layer": 1, "kv_heads": 2, "key_dim": 128, "value_dim": 128,
///          "keys": ["8c:min-max", "3c:min-mse"], "values": ["2t:min-mse", "2t:min-mse"]},
///         {"layer": 2, "kv_heads": 0}
///       ]
///     }
///
/// "kvtilt_recipe" is the version of this file format. "made_by" and "budget" are free text and may
/// be absent. So may "hadamard": the tensors, "keys" or "values", that the plan expects as Hadamard
/// transforms (quant/hadamard.hpp). All other keys are required, and further keys are errors. "keys"
/// and "values" of a layer are formats (format_name.hpp): one for all kv heads, or a list of one per
/// kv head; "values": "in-keys" says that the layer's values are in its keys. A layer without kv heads
/// has no cache and has neither dimensions nor formats.
#pragma once

#include <kvtilt/core/shape.hpp>
#include <kvtilt/core/status.hpp>
#include <kvtilt/io/format_name.hpp>
#include <kvtilt/io/json.hpp>
#include <kvtilt/io/mapped_file.hpp>
#include <kvtilt/io/shown.hpp>
#include <kvtilt/io/write_file.hpp>
#include <kvtilt/page/layout.hpp>
#include <kvtilt/quant/plan.hpp>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace kvtilt {

/// A plan, and the shape and page size that it was made for.
struct RecipeFile {
  Plan plan;         ///< layers without a cache: no recipes when read, ignored when written
  CacheShape shape;  ///< kv heads and head dimensions; windows are not stored
  int page_tokens = 64;
  std::string made_by;  ///< UTF-8, like budget
  std::string budget;
  /// What the engine must transform alike, or the plan is for other numbers.
  bool hadamard_keys = false;
  bool hadamard_values = false;
};

namespace detail {

inline constexpr int recipe_file_version = 1;

/// Adds a name to the text of a list.
inline void add_quoted(std::string& list, const std::string& name) {
  if (!list.empty()) list += ", ";
  list += '"' + name + '"';
}

/// ", "keys": ..., "values": ..." of one layer.
inline std::string recipes_text(const std::vector<Recipe>& recipes) {
  const auto formats = [&](Format Recipe::*tensor) {
    std::string list;
    for (const Recipe& recipe : recipes) add_quoted(list, to_string(recipe.*tensor));
    return recipes.size() == 1 ? list : "[" + list + "]";
  };
  return ", \"keys\": " + formats(&Recipe::key) + ", \"values\": " + formats(&Recipe::value);
}

/// "keys" or "values" of a layer: one format, or one per kv head.
inline Result<std::vector<Format>> read_formats(const JsonValue& layer, const char* tensor,
                                                int kv_heads) {
  const auto read = [](const JsonValue& value) -> Result<Format> {
    Result<std::string_view> name = value.string();
    if (!name) return std::move(name).take_status();
    Result<Format> format = parse_format(*name);
    if (!format) return value.error("is no format: " + std::string(format.message()));
    return format;
  };
  Result<JsonValue> value = layer.at(tensor);
  if (!value) return std::move(value).take_status();
  std::vector<JsonValue> elements{*value};
  if (!value->is_string()) {
    Result<std::vector<JsonValue>> list = value->elements();
    if (!list) return value->error("is " + value->text() + ", not a format or a list of formats");
    if (list->size() != static_cast<std::size_t>(kv_heads))
      return value->error("lists " + std::to_string(list->size()) + " formats for " +
                          std::to_string(kv_heads) + " kv heads; give one, or one per head");
    elements = *std::move(list);
  }
  std::vector<Format> formats;
  for (const JsonValue& element : elements) {
    Result<Format> format = read(element);
    if (!format) return std::move(format).take_status();
    formats.push_back(*format);
  }
  return formats;
}

/// The integer under a key, from `least` to `most`.
inline Result<int> read_int(const JsonValue& object, const char* key, int least, int most) {
  Result<JsonValue> value = object.at(key);
  if (!value) return std::move(value).take_status();
  Result<std::int64_t> number = value->integer(least, most);
  if (!number) return std::move(number).take_status();
  return static_cast<int>(*number);
}

/// Adds a layer to shape and plan.
inline Status read_layer(const JsonValue& value, RecipeFile& file) {
  const int number = static_cast<int>(file.shape.layers.size());
  Result<int> layer = read_int(value, "layer", number, number);
  if (!layer) return std::move(layer).take_status();
  Result<int> kv_heads = read_int(value, "kv_heads", 0, max_kv_heads);
  if (!kv_heads) return std::move(kv_heads).take_status();
  file.shape.layers.emplace_back();
  file.plan.recipes.emplace_back();
  if (*kv_heads == 0) return value.allow_only({"layer", "kv_heads"});
  KVTILT_RETURN_IF_ERROR(
      value.allow_only({"layer", "kv_heads", "key_dim", "value_dim", "keys", "values"}));
  Result<int> key_dim = read_int(value, "key_dim", 8, max_head_dim);
  if (!key_dim) return std::move(key_dim).take_status();
  Result<int> value_dim = read_int(value, "value_dim", 8, max_head_dim);
  if (!value_dim) return std::move(value_dim).take_status();
  LayerShape shape{*kv_heads, *key_dim, *value_dim};
  if (const Status status = check_shape(shape, number); !status.ok())
    return value.error("is impossible: " + std::string(status.message()));
  Result<std::vector<Format>> keys = read_formats(value, "keys", *kv_heads);
  if (!keys) return std::move(keys).take_status();
  Result<std::vector<Format>> values = read_formats(value, "values", *kv_heads);
  if (!values) return std::move(values).take_status();
  if (keys->size() != values->size())
    return value.error("has one format for one tensor and a list for the other");
  shape.values_in_keys = values->front() == in_keys;
  for (std::size_t head = 0; head < keys->size(); ++head) {
    const Recipe recipe{(*keys)[head], (*values)[head]};
    if (const Result<Recipe> resolved = resolve_recipe(recipe, shape, file.page_tokens); !resolved)
      return value.error("has an impossible recipe for kv head " + std::to_string(head) + ": " +
                         std::string(resolved.message()));
    file.plan.recipes.back().push_back(recipe);
  }
  file.shape.layers.back() = shape;
  return {};
}

inline Status read_transforms(const JsonValue& root, RecipeFile& file) {
  const std::optional<JsonValue> value = root.find("hadamard");
  if (!value) return {};
  Result<std::vector<JsonValue>> list = value->elements();
  if (!list) return std::move(list).take_status();
  for (const JsonValue& element : *list) {
    Result<std::string_view> tensor = element.string();
    if (!tensor) return std::move(tensor).take_status();
    if (*tensor != "keys" && *tensor != "values")
      return element.error("is " + element.text() + ", not \"keys\" or \"values\"");
    bool& transformed = *tensor == "keys" ? file.hadamard_keys : file.hadamard_values;
    if (transformed) return element.error("is there twice");
    transformed = true;
  }
  return {};
}

inline Status read_text(const JsonValue& root, const char* key, std::string& text) {
  const std::optional<JsonValue> value = root.find(key);
  if (!value) return {};
  Result<std::string_view> string = value->string();
  if (!string) return std::move(string).take_status();
  text = *string;
  return {};
}

}  // namespace detail

/// Reads the text of a recipe file. Fails with Corrupt, naming `file`, the line and the key, if it
/// departs from the description above, or for a recipe that is impossible for its layer.
inline Result<RecipeFile> parse_recipe_file(std::string_view text, const std::string& file) {
  Result<JsonDocument> document = JsonDocument::parse(text, file);
  if (!document) return std::move(document).take_status();
  const JsonValue root = document->root();
  Result<JsonValue> version = root.at("kvtilt_recipe");
  if (!version) return std::move(version).take_status();
  Result<std::int64_t> number = version->integer();
  if (!number) return std::move(number).take_status();
  if (*number != detail::recipe_file_version)
    return version->error("is " + version->text() + "; this is kvtilt " +
                          std::to_string(KVTILT_VERSION_MAJOR) + "." +
                          std::to_string(KVTILT_VERSION_MINOR) + ", which reads version " +
                          std::to_string(detail::recipe_file_version));
  KVTILT_RETURN_IF_ERROR(
      root.allow_only({"kvtilt_recipe", "made_by", "budget", "hadamard", "page_tokens", "layers"}));
  RecipeFile result;
  KVTILT_RETURN_IF_ERROR(detail::read_text(root, "made_by", result.made_by));
  KVTILT_RETURN_IF_ERROR(detail::read_text(root, "budget", result.budget));
  KVTILT_RETURN_IF_ERROR(detail::read_transforms(root, result));
  Result<JsonValue> page_tokens = root.at("page_tokens");
  if (!page_tokens) return std::move(page_tokens).take_status();
  Result<std::int64_t> tokens = page_tokens->integer(0, 128);
  if (!tokens) return std::move(tokens).take_status();
  if (const Status status = check_page_tokens(static_cast<int>(*tokens)); !status.ok())
    return page_tokens->error("is impossible: " + std::string(status.message()));
  result.page_tokens = static_cast<int>(*tokens);
  Result<JsonValue> layers = root.at("layers");
  if (!layers) return std::move(layers).take_status();
  Result<std::vector<JsonValue>> list = layers->elements();
  if (!list) return std::move(list).take_status();
  if (list->empty()) return layers->error("has no layers");
  for (const JsonValue& layer : *list) KVTILT_RETURN_IF_ERROR(detail::read_layer(layer, result));
  return result;
}

/// Reads a recipe file. Fails like parse_recipe_file, and with FileAccess.
inline Result<RecipeFile> read_recipe_file(const std::filesystem::path& path) {
  Result<MappedFile> file = MappedFile::open(path);
  if (!file) return std::move(file).take_status();
  return parse_recipe_file(file->text(), shown_path(path));
}

/// The text of a recipe file, which parse_recipe_file reads back to the same plan. Fails with
/// InvalidArgument if shape, page size or plan are invalid, or a text is not UTF-8.
inline Result<std::string> to_text(const RecipeFile& file) {
  KVTILT_RETURN_IF_ERROR(check_shape(file.shape));
  KVTILT_RETURN_IF_ERROR(check_page_tokens(file.page_tokens));
  Result<Plan> resolved = resolve_plan(file.plan, file.shape, file.page_tokens);
  if (!resolved) return std::move(resolved).take_status();
  std::string text =
      "{\n  \"kvtilt_recipe\": " + std::to_string(detail::recipe_file_version) + ",\n";
  for (const auto& [key, value] :
       {std::pair<const char*, const std::string&>("made_by", file.made_by),
        std::pair<const char*, const std::string&>("budget", file.budget)}) {
    if (value.empty()) continue;
    Result<std::string> quoted = to_json_string(value);
    if (!quoted)
      return Status::error(ErrorCode::InvalidArgument, "%s: %s", key,
                           std::string(quoted.message()).c_str());
    text += "  \"" + std::string(key) + "\": " + *quoted + ",\n";
  }
  std::string transformed;
  if (file.hadamard_keys) detail::add_quoted(transformed, "keys");
  if (file.hadamard_values) detail::add_quoted(transformed, "values");
  if (!transformed.empty()) text += "  \"hadamard\": [" + transformed + "],\n";
  text += "  \"page_tokens\": " + std::to_string(file.page_tokens) + ",\n  \"layers\": [";
  for (std::size_t layer = 0; layer < file.shape.layers.size(); ++layer) {
    const LayerShape& shape = file.shape.layers[layer];
    text += layer == 0 ? "\n" : ",\n";
    text += "    {\"layer\": " + std::to_string(layer) +
            ", \"kv_heads\": " + std::to_string(shape.kv_heads);
    if (shape.kv_heads != 0)
      text += ", \"key_dim\": " + std::to_string(shape.key_dim) +
              ", \"value_dim\": " + std::to_string(shape.value_dim) +
              detail::recipes_text(file.plan.recipes[layer]);
    text += "}";
  }
  return text + "\n  ]\n}\n";
}

/// Writes a recipe file whole or not at all. Fails like to_text and write_file.
inline Status write_recipe_file(const std::filesystem::path& path, const RecipeFile& file) {
  Result<std::string> text = to_text(file);
  if (!text) return std::move(text).take_status();
  return write_file(path, *text);
}

/// Fails with InvalidArgument, naming the first difference, if the file was made for another shape
/// or page size. Whether the engine transforms as the file says is for its caller to compare.
inline Status check_fits(const RecipeFile& file, const CacheShape& shape, int page_tokens) {
  if (file.shape.layers.size() != shape.layers.size())
    return Status::error(ErrorCode::InvalidArgument,
                         "the recipe file was made for %zu layers, the model has %zu",
                         file.shape.layers.size(), shape.layers.size());
  if (file.page_tokens != page_tokens)
    return Status::error(ErrorCode::InvalidArgument,
                         "the recipe file was made for pages of %d tokens, the cache has %d",
                         file.page_tokens, page_tokens);
  for (std::size_t layer = 0; layer < shape.layers.size(); ++layer) {
    const LayerShape& made_for = file.shape.layers[layer];
    const LayerShape& found = shape.layers[layer];
    if (made_for.kv_heads == 0 && found.kv_heads == 0) continue;
    if (made_for.kv_heads != found.kv_heads || made_for.key_dim != found.key_dim ||
        made_for.value_dim != found.value_dim || made_for.values_in_keys != found.values_in_keys)
      return Status::error(ErrorCode::InvalidArgument,
                           "layer %zu: the recipe file was made for %d kv heads of %d and %d "
                           "channels (keys, values%s), the model has %d of %d and %d%s",
                           layer, made_for.kv_heads, made_for.key_dim, made_for.value_dim,
                           made_for.values_in_keys ? " in keys" : "", found.kv_heads, found.key_dim,
                           found.value_dim, found.values_in_keys ? ", values in keys" : "");
  }
  return {};
}

}  // namespace kvtilt
