// SPDX-License-Identifier: MIT
// A decoder-only transformer of the Llama family: weights, and the forward pass over them.
#pragma once

#include "attention_cache.hpp"
#include "config.hpp"
#include "floats.hpp"
#include "linear.hpp"
#include "rope.hpp"

#include <filesystem>
#include <span>
#include <vector>

namespace llama {

/// The buffers of one forward pass. One per thread; they grow to the largest chunk seen, and a pass
/// over no more tokens than that allocates nothing.
struct Scratch {
  Floats hidden;   // [tokens, hidden]
  Floats normed;   // [tokens, hidden]
  Floats queries;  // [tokens, query_heads, head_dim]
  Floats keys;     // [tokens, kv_heads, head_dim]
  Floats values;   // [tokens, kv_heads, head_dim]
  Floats mixed;    // [tokens, query_heads, head_dim]
  Floats gate;     // [tokens, mlp]
  Floats up;       // [tokens, mlp]
  Floats cosines;  // [tokens, head_dim / 2]
  Floats sines;    // [tokens, head_dim / 2]
};

class Model {
 public:
  /// Loads config.json and the weights. Throws a sentence naming the file, and the tensor or the
  /// key.
  explicit Model(const std::filesystem::path& folder);

  [[nodiscard]] const ModelConfig& config() const { return config_; }

  /// Runs the next tokens of the cache's sequence; their positions start at cache.length().
  ///
  /// logits [tokens, vocab], or [1, vocab] to get those of the last token only
  /// Throws on a token outside the vocabulary, beyond the context, or what the cache refuses.
  /// Up to same_bits_tokens tokens, of which all but the first fit cache.draft_room(), get the same
  /// logits, bit for bit, as one after the other.
  /// Safe from several threads with different caches and scratches.
  void forward(std::span<const int> tokens, AttentionCache& cache, Scratch& scratch,
               std::span<float> logits) const;

 private:
  struct Layer {
    Floats attention_norm;  // [hidden]
    Matrix query, key, value, output;
    Floats query_bias, key_bias, value_bias;  // empty without biases
    Floats query_norm, key_norm;              // [head_dim]; empty without QK-norm
    Floats mlp_norm;                          // [hidden]
    Matrix gate, up, down;
  };

  void load_weights(const std::filesystem::path& folder);
  void prepare(std::span<const int> tokens, int position, Scratch& scratch) const;
  void attend(int index, int tokens, AttentionCache& cache, Scratch& scratch) const;
  void feed_forward(const Layer& layer, int tokens, Scratch& scratch) const;

  ModelConfig config_;
  Rope rope_;
  Matrix embedding_;  // [vocab, hidden]
  Matrix output_;     // [vocab, hidden]; empty when tied
  Floats norm_;       // [hidden]
  std::vector<Layer> layers_;
};

}  // namespace llama
