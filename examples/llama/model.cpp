// SPDX-License-Identifier: MIT
#include "model.hpp"

#include <kvtilt/quant/hadamard.hpp>

#include "checkpoint.hpp"
#include "fail.hpp"
#include "fingerprint.hpp"

#include <algorithm>

namespace llama {
namespace {

Matrix transposed(const Matrix& matrix) {
  Matrix result{matrix.cols, matrix.rows, Floats(matrix.data.size())};
  for (int row = 0; row < matrix.rows; ++row) {
    for (int col = 0; col < matrix.cols; ++col) {
      result.data[static_cast<std::size_t>(col) * matrix.rows + row] =
          matrix.data[static_cast<std::size_t>(row) * matrix.cols + col];
    }
  }
  return result;
}

/// The Hadamard transform of heads [tokens, heads, dim] in place.
void transform_heads(int tokens, int heads, int dim, float* data) {
  const auto done = kvtilt::hadamard_transform({data, tokens, heads, dim});
  if (!done.ok()) fail(done.message());
}

}  // namespace

Model::Model(const std::filesystem::path& folder, Transforms transforms)
    : config_(read_config(folder)), rope_(config_), transforms_(transforms) {
  load_weights(folder);
  if (transforms.values) transform_values();
}

void Model::load_weights(const std::filesystem::path& folder) {
  Checkpoint checkpoint(folder);
  const auto vector = [&](const std::string& name, int size) {
    return checkpoint.load(name, {size});
  };
  const auto matrix = [&](const std::string& name, int rows, int cols) {
    return Matrix{rows, cols, checkpoint.load(name + ".weight", {rows, cols})};
  };
  const ModelConfig& c = config_;
  embedding_ = matrix("model.embed_tokens", c.vocab, c.hidden);
  norm_ = vector("model.norm.weight", c.hidden);
  if (!c.tied_embeddings) output_ = matrix("lm_head", c.vocab, c.hidden);
  for (int i = 0; i < c.layers; ++i) {
    const std::string prefix = "model.layers." + std::to_string(i) + ".";
    const std::string attention = prefix + "self_attn.";
    Layer layer;
    layer.attention_norm = vector(prefix + "input_layernorm.weight", c.hidden);
    layer.query = matrix(attention + "q_proj", c.query_width(), c.hidden);
    layer.key = matrix(attention + "k_proj", c.kv_width(), c.hidden);
    layer.value = matrix(attention + "v_proj", c.kv_width(), c.hidden);
    layer.output = matrix(attention + "o_proj", c.hidden, c.query_width());
    if (c.qkv_bias) {
      layer.query_bias = vector(attention + "q_proj.bias", c.query_width());
      layer.key_bias = vector(attention + "k_proj.bias", c.kv_width());
      layer.value_bias = vector(attention + "v_proj.bias", c.kv_width());
    }
    if (c.qk_norm) {
      layer.query_norm = vector(attention + "q_norm.weight", c.head_dim);
      layer.key_norm = vector(attention + "k_norm.weight", c.head_dim);
    }
    layer.mlp_norm = vector(prefix + "post_attention_layernorm.weight", c.hidden);
    layer.gate = matrix(prefix + "mlp.gate_proj", c.mlp, c.hidden);
    layer.up = matrix(prefix + "mlp.up_proj", c.mlp, c.hidden);
    layer.down = matrix(prefix + "mlp.down_proj", c.hidden, c.mlp);
    layers_.push_back(std::move(layer));
  }
  for (const std::string& name : checkpoint.unused()) {
    // Old files contain the rotary frequencies; models with tied embeddings, a copy of the
    // embedding.
    const bool known =
        name.ends_with(".rotary_emb.inv_freq") || (c.tied_embeddings && name == "lm_head.weight");
    if (!known) {
      fail(folder.string(), ": tensor \"", name, "\" is not part of ", c.architecture,
           " as config.json describes it, and may change what the model computes");
    }
  }
}

std::uint64_t Model::fingerprint() const {
  Fingerprint result;
  result.add(rope_.frequencies());
  result.add((transforms_.keys ? 1U : 0U) + (transforms_.values ? 2U : 0U));
  for (const Floats* numbers : {&embedding_.data, &norm_, &output_.data}) result.add(*numbers);
  for (const Layer& layer : layers_) {
    for (const Floats* numbers :
         {&layer.attention_norm, &layer.query.data, &layer.key.data, &layer.value.data,
          &layer.output.data, &layer.query_bias, &layer.key_bias, &layer.value_bias,
          &layer.query_norm, &layer.key_norm, &layer.mlp_norm, &layer.gate.data, &layer.up.data,
          &layer.down.data}) {
      result.add(*numbers);
    }
  }
  return result.value();
}

void Model::transform_values() {
  const int dim = config_.head_dim;
  for (Layer& layer : layers_) {
    Matrix columns = transposed(layer.value);
    transform_heads(columns.rows, config_.kv_heads, dim, columns.data.data());
    layer.value = transposed(columns);
    if (config_.qkv_bias) transform_heads(1, config_.kv_heads, dim, layer.value_bias.data());
    transform_heads(layer.output.rows, config_.query_heads, dim, layer.output.data.data());
  }
}

/// Sizes the buffers for the tokens, and computes their rotations and that of turning back.
void Model::prepare(int tokens, int position, int removed, Scratch& scratch) const {
  const auto count = static_cast<std::size_t>(tokens);
  const std::size_t half = static_cast<std::size_t>(config_.head_dim) / 2;
  const auto room = [count](Floats& buffer, std::size_t width) {
    if (buffer.size() < count * width) buffer.resize(count * width);
  };
  room(scratch.hidden, config_.hidden);
  room(scratch.normed, config_.hidden);
  room(scratch.queries, config_.query_width());
  if (removed > 0) room(scratch.turned, config_.query_width());
  room(scratch.keys, config_.kv_width());
  room(scratch.values, config_.kv_width());
  room(scratch.mixed, config_.query_width());
  room(scratch.gate, config_.mlp);
  room(scratch.up, config_.mlp);
  const std::size_t rotations = removed > 0 ? count + 1 : count;
  if (scratch.cosines.size() < rotations * half) {
    scratch.cosines.resize(rotations * half);
    scratch.sines.resize(rotations * half);
  }
  for (std::size_t i = 0; i < rotations; ++i) {
    rope_.angles(i < count ? position + static_cast<int>(i) : -removed,
                 scratch.cosines.data() + i * half, scratch.sines.data() + i * half);
  }
}

void Model::embed(std::span<const int> tokens, Scratch& scratch) const {
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    const int token = tokens[i];
    if (token < 0 || token >= config_.vocab) {
      fail("token ", token, " is outside the model's vocabulary of ", config_.vocab);
    }
    std::copy_n(embedding_.data.data() + std::ptrdiff_t{token} * config_.hidden, config_.hidden,
                scratch.hidden.data() + i * config_.hidden);
  }
}

void Model::attend(int index, int tokens, AttentionCache& cache, Scratch& scratch) const {
  const Layer& layer = layers_[static_cast<std::size_t>(index)];
  const ModelConfig& c = config_;
  for (int i = 0; i < tokens; ++i) {
    const std::ptrdiff_t row = std::ptrdiff_t{i} * c.hidden;
    rms_norm(c.hidden, scratch.hidden.data() + row, layer.attention_norm.data(), c.norm_eps,
             scratch.normed.data() + row);
  }
  multiply(layer.query, layer.query_bias, tokens, scratch.normed.data(), scratch.queries.data());
  multiply(layer.key, layer.key_bias, tokens, scratch.normed.data(), scratch.keys.data());
  multiply(layer.value, layer.value_bias, tokens, scratch.normed.data(), scratch.values.data());

  const auto norm_heads = [&](const Floats& weight, int heads, float* data) {
    if (weight.empty()) return;
    for (int head = 0; head < heads; ++head, data += c.head_dim) {
      rms_norm(c.head_dim, data, weight.data(), c.norm_eps, data);
    }
  };
  norm_heads(layer.query_norm, tokens * c.query_heads, scratch.queries.data());
  norm_heads(layer.key_norm, tokens * c.kv_heads, scratch.keys.data());
  const auto rotate = [&](int rotation, int heads, float* data) {
    const std::ptrdiff_t offset = std::ptrdiff_t{rotation} * (c.head_dim / 2);
    rope_.rotate(heads, scratch.cosines.data() + offset, scratch.sines.data() + offset, data);
  };
  for (int i = 0; i < tokens; ++i) {
    rotate(i, c.query_heads, scratch.queries.data() + std::ptrdiff_t{i} * c.query_width());
    rotate(i, c.kv_heads, scratch.keys.data() + std::ptrdiff_t{i} * c.kv_width());
  }
  const bool shifted = cache.removed() > 0;
  if (shifted) {
    std::copy_n(scratch.queries.data(), std::ptrdiff_t{tokens} * c.query_width(),
                scratch.turned.data());
    // Rotations add up, so that by -removed puts a query where the gap is closed.
    rotate(tokens, tokens * c.query_heads, scratch.turned.data());
  }
  if (transforms_.keys) {
    transform_heads(tokens, c.query_heads, c.head_dim, scratch.queries.data());
    if (shifted) transform_heads(tokens, c.query_heads, c.head_dim, scratch.turned.data());
    transform_heads(tokens, c.kv_heads, c.head_dim, scratch.keys.data());
  }
  cache.attend(index, tokens, scratch.queries.data(), scratch.turned.data(), scratch.keys.data(),
               scratch.values.data(), scratch.mixed.data());
  multiply(layer.output, {}, tokens, scratch.mixed.data(), scratch.normed.data());
  add(tokens * c.hidden, scratch.hidden.data(), scratch.normed.data());
}

void Model::feed_forward(const Layer& layer, int tokens, Scratch& scratch) const {
  for (int i = 0; i < tokens; ++i) {
    const std::ptrdiff_t row = std::ptrdiff_t{i} * config_.hidden;
    rms_norm(config_.hidden, scratch.hidden.data() + row, layer.mlp_norm.data(), config_.norm_eps,
             scratch.normed.data() + row);
  }
  multiply(layer.gate, {}, tokens, scratch.normed.data(), scratch.gate.data());
  multiply(layer.up, {}, tokens, scratch.normed.data(), scratch.up.data());
  gate_silu(tokens * config_.mlp, scratch.gate.data(), scratch.up.data());
  multiply(layer.down, {}, tokens, scratch.gate.data(), scratch.normed.data());
  add(tokens * config_.hidden, scratch.hidden.data(), scratch.normed.data());
}

void Model::check_room(int position, std::size_t tokens, std::size_t logits) const {
  const auto vocab = static_cast<std::size_t>(config_.vocab);
  if (tokens == 0) fail("a forward pass needs at least one token");
  if (tokens > static_cast<std::size_t>(config_.context - std::min(position, config_.context))) {
    fail("positions ", position, " to ", position + tokens - 1,
         " do not fit the model's context of ", config_.context);
  }
  if (logits != vocab && logits != vocab * tokens) {
    fail("logits have room for ", logits, " numbers; ", tokens, " tokens of ", vocab,
         " logits need ", vocab * tokens, ", or ", vocab, " for the last alone");
  }
}

void Model::forward(std::span<const int> tokens, AttentionCache& cache, Scratch& scratch,
                    std::span<float> logits, const LayerObserver& observe) const {
  const int position = cache.length();
  check_room(position - cache.removed(), tokens.size(), logits.size());
  prepare(static_cast<int>(tokens.size()), position, cache.removed(), scratch);
  embed(tokens, scratch);
  run_layers(0, static_cast<int>(tokens.size()), cache, scratch, logits, observe);
}

void Model::forward_from(int first, int position, std::span<const float> hidden,
                         AttentionCache& cache, Scratch& scratch, std::span<float> logits) const {
  const auto width = static_cast<std::size_t>(config_.hidden);
  if (first < 0 || first >= config_.layers || hidden.size() % width != 0) {
    fail("layer ", first, " of ", config_.layers, " cannot start from ", hidden.size(),
         " numbers, ", width, " a token");
  }
  const std::size_t tokens = hidden.size() / width;
  check_room(position - cache.removed(), tokens, logits.size());
  prepare(static_cast<int>(tokens), position, cache.removed(), scratch);
  std::copy(hidden.begin(), hidden.end(), scratch.hidden.begin());
  run_layers(first, static_cast<int>(tokens), cache, scratch, logits, {});
}

void Model::run_layers(int first, int tokens, AttentionCache& cache, Scratch& scratch,
                       std::span<float> logits, const LayerObserver& observe) const {
  const std::size_t numbers = static_cast<std::size_t>(tokens) * config_.hidden;
  for (int layer = first; layer < config_.layers; ++layer) {
    if (observe) observe(layer, std::span<const float>(scratch.hidden).first(numbers));
    attend(layer, tokens, cache, scratch);
    feed_forward(layers_[static_cast<std::size_t>(layer)], tokens, scratch);
  }

  const int wanted = static_cast<int>(logits.size()) / config_.vocab;
  float* last = scratch.hidden.data() + std::ptrdiff_t{tokens - wanted} * config_.hidden;
  for (int i = 0; i < wanted; ++i) {
    float* row = last + std::ptrdiff_t{i} * config_.hidden;
    rms_norm(config_.hidden, row, norm_.data(), config_.norm_eps, row);
  }
  multiply(config_.tied_embeddings ? embedding_ : output_, {}, wanted, last, logits.data());
}

}  // namespace llama
