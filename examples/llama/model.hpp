// SPDX-License-Identifier: MIT
// A decoder-only transformer of the Llama family: weights, and the forward pass over them.
#pragma once

#include "attention_cache.hpp"
#include "config.hpp"
#include "floats.hpp"
#include "linear.hpp"
#include "rope.hpp"
#include "transforms.hpp"

#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <vector>

namespace llama {

/// The buffers of one forward pass, one per thread. They grow to the largest chunk seen; a pass
/// over no more tokens than that allocates nothing.
struct Scratch {
  Floats hidden;   // [tokens, hidden]
  Floats normed;   // [tokens, hidden]
  Floats queries;  // [tokens, query_heads, head_dim]
  Floats turned;   // the same, turned back by what the cache has removed, if it has
  Floats keys;     // [tokens, kv_heads, head_dim]
  Floats values;   // [tokens, kv_heads, head_dim]
  Floats mixed;    // [tokens, query_heads, head_dim]
  Floats gate;     // [tokens, mlp]
  Floats up;       // [tokens, mlp]
  Floats cosines;  // [tokens, head_dim / 2], and behind them that of turning back, if needed
  Floats sines;    // likewise
};

/// Called with the input of each layer: hidden [tokens, hidden].
using LayerObserver = std::function<void(int layer, std::span<const float> hidden)>;

class Model {
 public:
  /// Loads config.json and the weights. Throws a sentence naming the file, and the tensor or the
  /// key, or for values whose head dimension cannot be transformed; for keys, forward() does.
  explicit Model(const std::filesystem::path& folder, Transforms transforms = {});

  [[nodiscard]] const ModelConfig& config() const { return config_; }

  /// Of weights, RoPE and transforms: caches of models that differ in these must not be exchanged.
  /// Cost: one pass over the weights.
  [[nodiscard]] std::uint64_t fingerprint() const;

  /// The projection W_O from the outputs of a layer's attention to the hidden state:
  /// [hidden, query_heads * head_dim].
  [[nodiscard]] const Matrix& output_projection(int layer) const {
    return layers_[static_cast<std::size_t>(layer)].output;
  }

  /// Runs the next tokens of the cache's sequence; their positions start at cache.length().
  ///
  /// logits [tokens, vocab], or [1, vocab] for those of the last token only Throws for a token
  /// outside the vocabulary or beyond the context, or what the cache throws. Up to same_bits_tokens
  /// tokens, all but the first within cache.draft_room(), give the same logits, bit for bit, as one
  /// call per token. Threads may call it at the same time with different caches and scratches.
  void forward(std::span<const int> tokens, AttentionCache& cache, Scratch& scratch,
               std::span<float> logits, const LayerObserver& observe = {}) const;

  /// Runs a forward pass from layer `first` on, from an input that an observer saw in another pass,
  /// so that the layers in front, if they are unchanged, need not run again. The cache's layers in
  /// front of `first` stay empty; the tokens' positions start at `position`.
  ///
  /// hidden [tokens, hidden]; logits as above
  void forward_from(int first, int position, std::span<const float> hidden, AttentionCache& cache,
                    Scratch& scratch, std::span<float> logits) const;

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
  void transform_values();
  void check_room(int position, std::size_t tokens, std::size_t logits) const;
  void prepare(int tokens, int position, int removed, Scratch& scratch) const;
  void embed(std::span<const int> tokens, Scratch& scratch) const;
  void run_layers(int first, int tokens, AttentionCache& cache, Scratch& scratch,
                  std::span<float> logits, const LayerObserver& observe) const;
  void attend(int index, int tokens, AttentionCache& cache, Scratch& scratch) const;
  void feed_forward(const Layer& layer, int tokens, Scratch& scratch) const;

  ModelConfig config_;
  Rope rope_;
  Matrix embedding_;  // [vocab, hidden]
  Matrix output_;     // [vocab, hidden]; empty when tied
  Floats norm_;       // [hidden]
  std::vector<Layer> layers_;
  Transforms transforms_;
};

}  // namespace llama
