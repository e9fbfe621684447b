// SPDX-License-Identifier: MIT
#include "float_cache.hpp"

#include "fail.hpp"
#include "half.hpp"

#include <Eigen/Core>

#include <algorithm>
#include <cmath>

namespace llama {
namespace {

using RowMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using ConstMatrix = Eigen::Map<const RowMajor>;
using ConstVector = Eigen::Map<const Eigen::VectorXf>;
using Vector = Eigen::Map<Eigen::VectorXf>;

}  // namespace

FloatCache::FloatCache(const ModelConfig& config, CacheRounding rounding)
    : query_heads_(config.query_heads),
      kv_heads_(config.kv_heads),
      head_dim_(config.head_dim),
      rounding_(rounding),
      layers_(static_cast<std::size_t>(config.layers)) {
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    layers_[i].heads.resize(static_cast<std::size_t>(kv_heads_));
    layers_[i].window = config.windows[i];
  }
}

void FloatCache::restart(int positions) {
  gap_ = {};
  const std::size_t numbers = static_cast<std::size_t>(positions) * head_dim_;
  for (Layer& layer : layers_) {
    layer.tokens = 0;
    for (Head& head : layer.heads) {
      head.keys.clear();
      head.values.clear();
      head.keys.reserve(numbers);
      head.values.reserve(numbers);
    }
  }
  scores_.resize(std::max(scores_.size(), static_cast<std::size_t>(positions)));
}

void FloatCache::append(Layer& layer, int tokens, const float* keys, const float* values) {
  const auto rounded = [this](float x) {
    return rounding_ == CacheRounding::F16 ? round_to_f16(x) : x;
  };
  for (int token = 0; token < tokens; ++token) {
    for (Head& head : layer.heads) {
      std::transform(keys, keys + head_dim_, std::back_inserter(head.keys), rounded);
      std::transform(values, values + head_dim_, std::back_inserter(head.values), rounded);
      keys += head_dim_;
      values += head_dim_;
    }
  }
  layer.tokens += tokens;
  if (scores_.size() < static_cast<std::size_t>(layer.tokens)) scores_.resize(2 * layer.tokens);
}

/// The attention of the token at `index` among those that are left.
void FloatCache::attend_one(const Layer& layer, int index, const float* queries,
                            const float* turned, float* out) {
  const int first = layer.window == 0 ? 0 : std::max(0, index + 1 - layer.window);
  const int count = index + 1 - first;
  const int before = gap_.tokens > 0 ? std::clamp(gap_.begin - first, 0, count) : 0;
  const float scale = 1.0F / std::sqrt(static_cast<float>(head_dim_));
  const int gqa_ratio = query_heads_ / kv_heads_;
  for (int i = 0; i < query_heads_; ++i) {
    const Head& head = layer.heads[static_cast<std::size_t>(i / gqa_ratio)];
    const std::ptrdiff_t offset = std::ptrdiff_t{first} * head_dim_;
    const ConstMatrix keys(head.keys.data() + offset, count, head_dim_);
    const ConstMatrix values(head.values.data() + offset, count, head_dim_);
    const std::ptrdiff_t row = std::ptrdiff_t{i} * head_dim_;
    Vector scores(scores_.data(), count);
    if (before > 0) {
      scores.head(before).noalias() = keys.topRows(before) * ConstVector(turned + row, head_dim_);
    }
    scores.tail(count - before).noalias() =
        keys.bottomRows(count - before) * ConstVector(queries + row, head_dim_);
    scores = ((scores.array() - scores.maxCoeff()) * scale).exp();
    Vector result(out + row, head_dim_);
    result.noalias() = values.transpose() * scores;
    result /= scores.sum();
  }
}

void FloatCache::attend(int layer, int tokens, const float* queries, const float* turned,
                        const float* keys, const float* values, float* out) {
  Layer& target = layers_[static_cast<std::size_t>(layer)];
  const int before = target.tokens;
  append(target, tokens, keys, values);
  const std::ptrdiff_t width = std::ptrdiff_t{query_heads_} * head_dim_;
  for (int token = 0; token < tokens; ++token) {
    const std::ptrdiff_t row = token * width;
    attend_one(target, before + token, queries + row, gap_.tokens > 0 ? turned + row : nullptr,
               out + row);
  }
}

void FloatCache::truncate(int length) {
  gap_.check_length(length);
  for (Layer& layer : layers_) {
    layer.tokens = std::min(layer.tokens, length - gap_.tokens);
    for (Head& head : layer.heads) {
      head.keys.resize(static_cast<std::size_t>(layer.tokens) * head_dim_);
      head.values.resize(static_cast<std::size_t>(layer.tokens) * head_dim_);
    }
  }
}

void FloatCache::remove(int from, int to) {
  const Gap gap = gap_.with(from, to);
  if (from < 0 || to > length()) fail("cannot remove tokens ", from, " to ", to - 1);
  for (Layer& layer : layers_) {
    layer.tokens -= to - from;
    for (Head& head : layer.heads) {
      const auto erase = [&](Floats& rows) {
        const auto first = rows.begin() + std::ptrdiff_t{gap.begin} * head_dim_;
        rows.erase(first, first + std::ptrdiff_t{to - from} * head_dim_);
      };
      erase(head.keys);
      erase(head.values);
    }
  }
  gap_ = gap;
}

int FloatCache::length() const { return layers_.back().tokens + gap_.tokens; }

CacheUsage FloatCache::usage() const {
  CacheUsage usage;
  for (const Layer& layer : layers_) {
    usage.bytes += std::size_t{2} * sizeof(std::uint16_t) * layer.tokens * kv_heads_ * head_dim_;
    for (const Head& head : layer.heads) {
      usage.reserved_bytes += (head.keys.capacity() + head.values.capacity()) * sizeof(float);
    }
  }
  usage.effective_bits = 16;
  return usage;
}

}  // namespace llama
