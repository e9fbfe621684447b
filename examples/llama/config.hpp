// SPDX-License-Identifier: MIT
// Reads and checks config.json. Anything that changes the computation in a way this engine does not
// implement is refused, so that a model never runs wrong silently.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace llama {

/// How rotary frequencies are stretched beyond the trained context.
struct RopeScaling {
  enum class Kind { None, Linear, Llama3 };
  Kind kind = Kind::None;
  double factor = 1;
  double low_freq_factor = 1;  // llama3 only, like the two below
  double high_freq_factor = 4;
  double original_context = 0;  // positions
};

struct ModelConfig {
  std::string architecture;  // "LlamaForCausalLM", ...
  int hidden = 0;
  int layers = 0;
  int query_heads = 0;
  int kv_heads = 0;
  int head_dim = 0;
  int mlp = 0;  // width of the feed-forward layer
  int vocab = 0;
  int context = 0;  // positions
  float norm_eps = 0;
  double rope_theta = 10000;
  RopeScaling rope_scaling;
  bool tied_embeddings = false;  // the output matrix is the embedding matrix
  bool qkv_bias = false;         // Qwen2
  bool qk_norm = false;          // Qwen3: RMSNorm over each query and key head, before the rotation
  std::vector<int> windows;      // per layer: positions a query sees, itself included; 0 = all
  std::optional<int> begin_token;
  std::vector<int> end_tokens;
  bool byte_tokens = false;  // "tokenizer": "bytes"

  [[nodiscard]] int query_width() const { return query_heads * head_dim; }
  [[nodiscard]] int kv_width() const { return kv_heads * head_dim; }
};

/// Reads config.json of `folder`. Throws a sentence naming the file and the key.
ModelConfig read_config(const std::filesystem::path& folder);

}  // namespace llama
