// SPDX-License-Identifier: MIT
#include "config.hpp"

#include <kvtilt/io/json.hpp>
#include <kvtilt/io/mapped_file.hpp>

#include "config_reader.hpp"
#include "fail.hpp"

namespace llama {
namespace {

using kvtilt::JsonValue;

/// Keys that do not change what the model computes at inference.
constexpr const char* harmless_keys[] = {"_name_or_path",
                                         "attention_dropout",
                                         "chunk_size_feed_forward",
                                         "dtype",
                                         "initializer_range",
                                         "model_type",
                                         "output_attentions",
                                         "output_hidden_states",
                                         "pad_token_id",
                                         "pretraining_tp",
                                         "return_dict",
                                         "torch_dtype",
                                         "transformers_version",
                                         "unk_token_id",
                                         "use_cache"};

void read_head_dim(ConfigReader& reader, ModelConfig& config) {
  if (!reader.get("head_dim") && config.qk_norm) {
    config.head_dim = 128;  // the default of Qwen3's configuration class
  } else if (!reader.get("head_dim") && config.hidden % config.query_heads != 0) {
    fail_at(*reader.get("hidden_size"),
            "is " + std::to_string(config.hidden) + ", not a multiple of " +
                std::to_string(config.query_heads) + " heads, and there is no 'head_dim'");
  } else {
    config.head_dim = reader.count("head_dim", config.hidden / config.query_heads);
  }
  if (config.head_dim % 2 != 0) {
    fail(reader.file(), ": head_dim ", config.head_dim, " is odd; rotary pairs need it even");
  }
  if (config.layers > 10000 || config.query_heads > 10000 || config.head_dim > 10000) {
    fail(reader.file(), ": ", config.layers, " layers of ", config.query_heads, " heads of ",
         config.head_dim, " numbers are more than this engine addresses");
  }
}

/// Reads "rope_scaling", or "rope_parameters" in newer files, which also contains rope_theta.
void read_rope(ConfigReader& reader, ModelConfig& config) {
  const std::optional<JsonValue> parameters = reader.get("rope_parameters");
  const std::optional<JsonValue> scaling = parameters ? parameters : reader.get("rope_scaling");
  config.rope_theta = reader.positive("rope_theta", 10000);
  if (!scaling) return;
  ConfigReader rope(reader.file(), *scaling);
  config.rope_theta = rope.positive("rope_theta", config.rope_theta);
  const std::string kind = rope.text("rope_type", rope.text("type", "default"));
  rope.get("type");
  rope.require("partial_rotary_factor", "1");
  RopeScaling& result = config.rope_scaling;
  if (kind == "linear") {
    result.kind = RopeScaling::Kind::Linear;
    result.factor = rope.positive("factor");
  } else if (kind == "llama3") {
    result.kind = RopeScaling::Kind::Llama3;
    result.factor = rope.positive("factor");
    result.low_freq_factor = rope.positive("low_freq_factor");
    result.high_freq_factor = rope.positive("high_freq_factor");
    result.original_context = rope.positive("original_max_position_embeddings");
    if (!(result.high_freq_factor > result.low_freq_factor)) {
      fail_at(*scaling, "has a high_freq_factor that must be larger than its low_freq_factor");
    }
  } else if (kind != "default") {
    fail_at(*scaling, "has the type \"" + kind +
                          "\", which is not implemented; this engine knows default, linear and "
                          "llama3");
  }
  rope.refuse_the_rest();
}

/// Fills one window per layer; the model families state it in three different ways.
void read_windows(ConfigReader& reader, ModelConfig& config) {
  const bool mistral = config.architecture == "MistralForCausalLM";
  const bool qwen = config.architecture.starts_with("Qwen");
  config.windows.assign(static_cast<std::size_t>(config.layers), 0);

  // Defaults of the families' own configuration classes: without the key Mistral has a window of
  // 4096, with null it has none; the first 28 layers of Qwen have no window.
  const bool absent = !reader.has("sliding_window");
  const int window = mistral && absent ? 4096 : reader.count("sliding_window", 0);
  const bool in_use = mistral || (qwen && reader.flag("use_sliding_window", false));
  const int first = qwen ? reader.count("max_window_layers", 28, 0) : 0;
  if (!mistral && !qwen && window != 0) {
    fail_at(*reader.get("sliding_window"), "is not part of " + config.architecture);
  }
  if (in_use && qwen && window == 0) {
    fail_at(*reader.get("use_sliding_window"), "is true, but there is no 'sliding_window'");
  }

  const std::optional<JsonValue> types = reader.get("layer_types");
  std::vector<JsonValue> type_of;
  if (types) type_of = types->elements().value();
  if (types && type_of.size() != config.windows.size()) {
    fail_at(*types,
            "does not name a type for each of " + std::to_string(config.layers) + " layers");
  }
  for (int layer = 0; layer < config.layers; ++layer) {
    bool slides = in_use && layer >= first;
    if (types) {
      const JsonValue& type = type_of[static_cast<std::size_t>(layer)];
      const std::string_view name = type.string().value();
      if (name != "full_attention" && name != "sliding_attention") {
        fail_at(type, "is " + type.text() +
                          "; this engine knows \"full_attention\" and \"sliding_attention\"");
      }
      slides = name == "sliding_attention";
      if (slides && window == 0) {
        fail_at(type, "slides, but there is no 'sliding_window'");
      }
    }
    config.windows[static_cast<std::size_t>(layer)] = slides ? window : 0;
  }
}

void read_tokens(ConfigReader& reader, ModelConfig& config) {
  const auto token = [&](const JsonValue& value) {
    return static_cast<int>(value.integer(0, config.vocab - 1).value());
  };
  if (const std::optional<JsonValue> begin = reader.get("bos_token_id")) {
    config.begin_token = token(*begin);
  }
  const std::optional<JsonValue> end = reader.get("eos_token_id");
  if (end && end->is_list()) {
    const std::vector<JsonValue> tokens = end->elements().value();
    for (const JsonValue& value : tokens) config.end_tokens.push_back(token(value));
  } else if (end) {
    config.end_tokens.push_back(token(*end));
  }
  const std::string tokenizer = reader.text("tokenizer", "");
  if (!tokenizer.empty() && tokenizer != "bytes") {
    fail_at(*reader.get("tokenizer"), "is \"" + tokenizer + "\"; the only value is \"bytes\"");
  }
  config.byte_tokens = tokenizer == "bytes";
}

void read_architecture(ConfigReader& reader, ModelConfig& config) {
  const std::optional<JsonValue> value = reader.get("architectures");
  if (!value) fail(reader.file(), ": 'architectures' is missing");
  const std::vector<JsonValue> names = value->elements().value();
  if (names.size() != 1) fail_at(*value, "does not name one architecture");
  config.architecture = names[0].string().value();
  if (config.architecture == "Qwen2ForCausalLM") {
    config.qkv_bias = true;
  } else if (config.architecture == "Qwen3ForCausalLM") {
    config.qk_norm = true;
  } else if (config.architecture != "LlamaForCausalLM" &&
             config.architecture != "MistralForCausalLM") {
    fail_at(names[0], "is " + config.architecture +
                          ", which is not implemented; this engine runs LlamaForCausalLM, "
                          "MistralForCausalLM, Qwen2ForCausalLM and Qwen3ForCausalLM");
  }
}

}  // namespace

ModelConfig read_config(const std::filesystem::path& folder) {
  const auto path = folder / "config.json";
  if (!std::filesystem::exists(path)) {
    fail(path.string(), ": no such file; is this a model folder?");
  }
  const kvtilt::MappedFile file = kvtilt::MappedFile::open(path).value();
  const kvtilt::JsonDocument document =
      kvtilt::JsonDocument::parse(file.text(), path.string()).value();
  ModelConfig config;
  ConfigReader reader(path.string(), document.root());
  for (const char* key : harmless_keys) reader.get(key);
  read_architecture(reader, config);
  config.hidden = reader.count("hidden_size");
  config.layers = reader.count("num_hidden_layers");
  config.query_heads = reader.count("num_attention_heads");
  config.kv_heads = reader.count("num_key_value_heads", config.query_heads);
  config.mlp = reader.count("intermediate_size");
  config.vocab = reader.count("vocab_size");
  config.context = reader.count("max_position_embeddings");
  config.norm_eps = static_cast<float>(reader.positive("rms_norm_eps"));
  config.tied_embeddings = reader.flag("tie_word_embeddings", false);
  if (config.query_heads % config.kv_heads != 0) {
    fail(reader.file(), ": ", config.query_heads, " query heads cannot share ", config.kv_heads,
         " kv heads evenly");
  }
  read_head_dim(reader, config);
  reader.require("hidden_act", "\"silu\"");
  reader.require("attention_bias", config.qkv_bias ? "true" : "false");
  reader.require("mlp_bias", "false");
  reader.require("partial_rotary_factor", "1");
  read_rope(reader, config);
  read_windows(reader, config);
  read_tokens(reader, config);
  reader.refuse_the_rest();
  return config;
}

}  // namespace llama
