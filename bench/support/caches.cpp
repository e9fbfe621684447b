// SPDX-License-Identifier: MIT
#include "support/caches.hpp"

#include "support/reference.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <random>
#include <tuple>

namespace kvtilt::bench {

namespace {

constexpr std::int64_t period = 4096;

KVCache make_cache(const std::string& name, Tail tail) {
  const CacheShape shape = CacheShape::uniform(1, kv_heads, head_dim);
  const Recipe recipe = parse_recipe(name).value();
  return KVCache::create(shape, Plan::uniform(shape, recipe), cache_options(recipe, tail)).value();
}

}  // namespace

CacheOptions cache_options(const Recipe& recipe, Tail tail) {
  CacheOptions options;
  if (recipe.key.granularity == Granularity::PerChannel && is_page_size(recipe.key.group))
    options.page_tokens = recipe.key.group;
  if (tail == Tail::None) options.sink_tokens = options.recent_tokens = 0;
  return options;
}

Text::Text(std::int64_t tokens_) : tokens(tokens_) {
  const std::size_t row = std::size_t{kv_heads} * head_dim;
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> bias(row);
  for (std::size_t head = 0; head < kv_heads; ++head)
    for (int outlier = 0; outlier < 4; ++outlier)
      bias[head * head_dim + random() % head_dim] =
          (random() % 2 == 0 ? 1.0f : -1.0f) * static_cast<float>(6 + random() % 7);
  key_rows.resize(static_cast<std::size_t>(tokens) * row);
  value_rows.resize(key_rows.size());
  for (std::size_t i = 0; i < key_rows.size(); ++i) {
    const float shift = bias[i % row];
    key_rows[i] = normal(random) * (shift == 0.0f ? 1.0f : 1.5f) + shift;
    value_rows[i] = normal(random);
  }
}

TensorView Text::keys() const { return {key_rows.data(), tokens, kv_heads, head_dim}; }
TensorView Text::values() const { return {value_rows.data(), tokens, kv_heads, head_dim}; }

const Text& base_text() {
  static const Text text(period);
  return text;
}

std::vector<float> make_queries(std::int64_t tokens) {
  std::mt19937 random(2);
  std::normal_distribution<float> normal(0.0f, 2.0f);
  std::vector<float> queries(static_cast<std::size_t>(tokens) * query_heads * head_dim);
  for (float& x : queries) x = normal(random);
  return queries;
}

FilledCache::FilledCache(const std::string& recipe, std::int64_t tokens, Tail tail)
    : cache(make_cache(recipe, tail)), sequence(cache.open().value()) {
  require(cache.reserve(sequence, tokens));
  const Text& text = base_text();
  for (std::int64_t done = 0; done < tokens; done += period) {
    const std::int64_t count = std::min(period, tokens - done);
    require(cache.append(sequence, 0, TensorView(text.key_rows.data(), count, kv_heads, head_dim),
                         TensorView(text.value_rows.data(), count, kv_heads, head_dim)));
  }
}

double FilledCache::bits() const {
  const MemoryReport report = cache.memory(sequence).value();
  return report.effective_bits();
}

FilledCache& filled_cache(const std::string& recipe, std::int64_t tokens, Tail tail) {
  using Key = std::tuple<std::string, std::int64_t, Tail>;
  static std::map<Key, std::unique_ptr<FilledCache>> known;
  std::unique_ptr<FilledCache>& filled = known[Key{recipe, tokens, tail}];
  if (filled == nullptr) filled = std::make_unique<FilledCache>(recipe, tokens, tail);
  return *filled;
}

const std::vector<double>& reference_output(std::int64_t tokens) {
  static std::map<std::int64_t, std::vector<double>> known;
  std::vector<double>& out = known[tokens];
  if (!out.empty()) return out;
  const Text& text = base_text();
  const std::vector<float> queries = make_queries(1);
  out.assign(std::size_t{query_heads} * head_dim, 0.0);
  const std::size_t row = std::size_t{kv_heads} * head_dim;
  const auto repeats = [tokens](std::size_t t) {
    return static_cast<double>((tokens - static_cast<std::int64_t>(t) + period - 1) / period);
  };
  for (std::size_t head = 0; head < query_heads; ++head) {
    const std::size_t kv_offset = head / (query_heads / kv_heads) * head_dim;
    add_reference(ReferenceShape::square(head_dim, row), &queries[head * head_dim],
                  &text.key_rows[kv_offset], &text.value_rows[kv_offset],
                  static_cast<std::size_t>(std::min(tokens, period)), repeats,
                  &out[head * head_dim]);
  }
  return out;
}

void require(const Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", std::string(status.message()).c_str());
  std::abort();
}

double relative_error(const std::vector<float>& a, const std::vector<double>& b) {
  double difference = 0;
  double size = 0;
  for (std::size_t i = 0; i < b.size(); ++i) {
    const double d = static_cast<double>(a[i]) - b[i];
    difference += d * d;
    size += b[i] * b[i];
  }
  return std::sqrt(difference / size);
}

}  // namespace kvtilt::bench
