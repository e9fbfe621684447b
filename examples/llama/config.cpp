// SPDX-License-Identifier: MIT
#include "config.hpp"

#include "config_reader.hpp"
#include "fail.hpp"
#include "json.hpp"
#include "mapped_file.hpp"

namespace llama {
namespace {

using nlohmann::json;

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
  if (reader.get("head_dim").is_null() && config.qk_norm) {
    config.head_dim = 128;  // the default of Qwen3's configuration class
  } else if (reader.get("head_dim").is_null() && config.hidden % config.query_heads != 0) {
    fail(reader.where(), ": hidden_size ", config.hidden, " is not a multiple of ",
         config.query_heads, " heads, and there is no \"head_dim\"");
  } else {
    config.head_dim = reader.count("head_dim", config.hidden / config.query_heads);
  }
  if (config.head_dim % 2 != 0) {
    fail(reader.where(), ": head_dim ", config.head_dim, " is odd; rotary pairs need it even");
  }
  if (config.layers > 10000 || config.query_heads > 10000 || config.head_dim > 10000) {
    fail(reader.where(), ": ", config.layers, " layers of ", config.query_heads, " heads of ",
         config.head_dim, " numbers are more than this engine addresses");
  }
}

/// Reads "rope_scaling", or "rope_parameters" of newer files, which holds rope_theta as well.
void read_rope(ConfigReader& reader, ModelConfig& config) {
  const json& parameters = reader.get("rope_parameters");
  const json& scaling = parameters.is_null() ? reader.get("rope_scaling") : parameters;
  config.rope_theta = reader.positive("rope_theta", 10000);
  if (scaling.is_null()) return;
  if (!scaling.is_object()) fail(reader.where(), ": the rope scaling is ", scaling);

  ConfigReader rope(
      reader.where() + (parameters.is_null() ? ": rope_scaling" : ": rope_parameters"), scaling);
  config.rope_theta = rope.positive("rope_theta", config.rope_theta);
  const std::string kind = rope.text("rope_type", rope.text("type", "default"));
  rope.get("type");
  rope.require("partial_rotary_factor", 1.0);
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
      fail(rope.where(), ": high_freq_factor must be larger than low_freq_factor");
    }
  } else if (kind != "default") {
    fail(rope.where(), ": rope scaling \"", kind,
         "\" is not implemented; this engine knows default, linear and llama3");
  }
  rope.refuse_the_rest();
}

/// Fills one window per layer from the three ways in which the families write them down.
void read_windows(ConfigReader& reader, ModelConfig& config) {
  const bool mistral = config.architecture == "MistralForCausalLM";
  const bool qwen = config.architecture.starts_with("Qwen");
  config.windows.assign(static_cast<std::size_t>(config.layers), 0);

  // Defaults of the families' own configuration classes: a Mistral file without the key has a
  // window of 4096, one with null has none; Qwen's first 28 layers never slide.
  const bool absent = !reader.has("sliding_window");
  const int window = mistral && absent ? 4096 : reader.count("sliding_window", 0);
  const bool in_use = mistral || (qwen && reader.flag("use_sliding_window", false));
  const int first = qwen ? reader.count("max_window_layers", 28, 0) : 0;
  if (!mistral && !qwen && window != 0) {
    fail(reader.where(), ": \"sliding_window\" is not part of ", config.architecture);
  }
  if (in_use && qwen && window == 0) {
    fail(reader.where(), ": \"use_sliding_window\" is true, but \"sliding_window\" is missing");
  }

  const json& types = reader.get("layer_types");
  if (!types.is_null() && (!types.is_array() || types.size() != config.windows.size())) {
    fail(reader.where(), ": \"layer_types\" does not name a type for each of ", config.layers,
         " layers");
  }
  for (int layer = 0; layer < config.layers; ++layer) {
    bool slides = in_use && layer >= first;
    if (!types.is_null()) {
      const json& type = types[static_cast<std::size_t>(layer)];
      if (type != "full_attention" && type != "sliding_attention") {
        fail(reader.where(), ": layer ", layer, " has the type ", type,
             "; this engine knows \"full_attention\" and \"sliding_attention\"");
      }
      slides = type == "sliding_attention";
      if (slides && window == 0) {
        fail(reader.where(), ": layer ", layer, " slides, but there is no \"sliding_window\"");
      }
    }
    config.windows[static_cast<std::size_t>(layer)] = slides ? window : 0;
  }
}

void read_tokens(ConfigReader& reader, ModelConfig& config) {
  const auto token = [&](const json& value, const char* key) {
    if (!value.is_number_integer() || value.get<std::int64_t>() < 0 ||
        value.get<std::int64_t>() >= config.vocab) {
      fail(reader.where(), ": \"", key, "\" is ", value, ", not a token of ", config.vocab);
    }
    return value.get<int>();
  };
  const json& begin = reader.get("bos_token_id");
  if (!begin.is_null()) config.begin_token = token(begin, "bos_token_id");
  const json& end = reader.get("eos_token_id");
  if (end.is_array()) {
    for (const json& value : end) config.end_tokens.push_back(token(value, "eos_token_id"));
  } else if (!end.is_null()) {
    config.end_tokens.push_back(token(end, "eos_token_id"));
  }
  const std::string tokenizer = reader.text("tokenizer", "");
  if (!tokenizer.empty() && tokenizer != "bytes") {
    fail(reader.where(), ": \"tokenizer\" is \"", tokenizer, "\"; the only value is \"bytes\"");
  }
  config.byte_tokens = tokenizer == "bytes";
}

void read_architecture(ConfigReader& reader, ModelConfig& config) {
  const json& names = reader.get("architectures");
  if (!names.is_array() || names.size() != 1 || !names[0].is_string()) {
    fail(reader.where(), ": \"architectures\" does not name one architecture");
  }
  config.architecture = names[0].get<std::string>();
  if (config.architecture == "Qwen2ForCausalLM") {
    config.qkv_bias = true;
  } else if (config.architecture == "Qwen3ForCausalLM") {
    config.qk_norm = true;
  } else if (config.architecture != "LlamaForCausalLM" &&
             config.architecture != "MistralForCausalLM") {
    fail(reader.where(), ": architecture ", config.architecture, " is not implemented; ",
         "this engine runs LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM and ",
         "Qwen3ForCausalLM");
  }
}

}  // namespace

ModelConfig read_config(const std::filesystem::path& folder) {
  const auto path = folder / "config.json";
  if (!std::filesystem::exists(path)) {
    fail(path.string(), ": no such file; is this a model folder?");
  }
  const json object = parse_json_object(path.string(), read_text_file(path));
  ModelConfig config;
  ConfigReader reader(path.string(), object);
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
    fail(reader.where(), ": ", config.query_heads, " query heads cannot share ", config.kv_heads,
         " kv heads evenly");
  }
  read_head_dim(reader, config);
  reader.require("hidden_act", "silu");
  reader.require("attention_bias", config.qkv_bias);
  reader.require("mlp_bias", false);
  reader.require("partial_rotary_factor", 1.0);
  read_rope(reader, config);
  read_windows(reader, config);
  read_tokens(reader, config);
  reader.refuse_the_rest();
  return config;
}

}  // namespace llama
