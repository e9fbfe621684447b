// SPDX-License-Identifier: MIT
/// The smallest engine: fills a quantized cache token by token and attends to it. It needs no
/// exceptions and no run-time types, and checks the output against the mean of the values, which is
/// what attention is when every key is the same.
#include <kvtilt/kvtilt.hpp>

#include <cmath>
#include <cstddef>
#include <cstdio>
#include <string_view>
#include <vector>

namespace {

constexpr int layers = 2;
constexpr int kv_heads = 2;
constexpr int query_heads = 4;
constexpr int dim = 64;
constexpr int tokens = 300;

/// Only the widths that it uses: all of them take half a minute to compile.
using Widths = kvtilt::Formats<kvtilt::Keys<4>, kvtilt::Values<2>>;

int fail(const char* what, std::string_view message) {
  std::printf("%s: %.*s\n", what, static_cast<int>(message.size()), message.data());
  return 1;
}

}  // namespace

int main() {
  const kvtilt::CacheShape shape = kvtilt::CacheShape::uniform(layers, kv_heads, dim);
  const kvtilt::Result<kvtilt::Recipe> recipe = kvtilt::parse_recipe("k4v2");
  if (!recipe) return fail("parse_recipe", recipe.message());
  kvtilt::CacheOptions options;
  options.recent_tokens = 64;
  kvtilt::Result<kvtilt::KVCache> cache =
      kvtilt::KVCache::create<Widths>(shape, kvtilt::Plan::uniform(shape, *recipe), options);
  if (!cache) return fail("create", cache.message());
  const kvtilt::Result<kvtilt::SequenceId> sequence = cache->open();
  if (!sequence) return fail("open", sequence.message());
  if (const kvtilt::Status status = cache->reserve(*sequence, tokens); !status.ok())
    return fail("reserve", status.message());

  const std::vector<float> key(kv_heads * dim, 0.5f);
  std::vector<float> value(kv_heads * dim);
  for (int token = 0; token < tokens; ++token) {
    for (std::size_t channel = 0; channel < value.size(); ++channel)
      value[channel] = static_cast<float>(channel % dim) / dim + (token % 2 == 0 ? 0.25f : -0.25f);
    for (int layer = 0; layer < layers; ++layer) {
      const kvtilt::Status status =
          cache->append(*sequence, layer, kvtilt::TensorView(key.data(), 1, kv_heads, dim),
                        kvtilt::TensorView(value.data(), 1, kv_heads, dim));
      if (!status.ok()) return fail("append", status.message());
    }
  }

  const std::vector<float> query(query_heads * dim, 1.0f);
  std::vector<float> output(query_heads * dim);
  for (int layer = 0; layer < layers; ++layer) {
    const kvtilt::Result<kvtilt::LayerView> view = cache->view(*sequence, layer);
    if (!view) return fail("view", view.message());
    std::vector<std::byte> workspace(kvtilt::attend_workspace_bytes(*view));
    const kvtilt::Status status = kvtilt::attend(
        *view, kvtilt::TensorView(query.data(), 1, query_heads, dim),
        kvtilt::OutputView(output.data(), 1, query_heads, dim), kvtilt::AttendOptions{}, workspace);
    if (!status.ok()) return fail("attend", status.message());
    for (std::size_t channel = 0; channel < output.size(); ++channel) {
      const float mean = static_cast<float>(channel % dim) / dim;
      if (!(std::fabs(output[channel] - mean) < 0.25f)) return fail("output", "wrong");
    }
  }
  return 0;
}
