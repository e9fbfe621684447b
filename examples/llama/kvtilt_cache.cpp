// SPDX-License-Identifier: MIT
#include "kvtilt_cache.hpp"

#include "fail.hpp"

#include <algorithm>

namespace llama {
namespace {

void check(const kvtilt::Status& status) {
  if (!status.ok()) fail(status.message());
}

kvtilt::KVCache create_cache(const ModelConfig& config, const kvtilt::Plan& plan,
                             const CacheSettings& settings) {
  kvtilt::CacheOptions options;
  options.page_tokens = settings.page_tokens;
  options.recent_tokens = settings.recent_tokens;
  options.sink_tokens = settings.sink_tokens;
  options.fingerprint = settings.fingerprint;
  options.max_sequences = 1;
  return kvtilt::KVCache::create(cache_shape(config), plan, options).value();
}

}  // namespace

kvtilt::CacheShape cache_shape(const ModelConfig& config) {
  auto shape = kvtilt::CacheShape::uniform(config.layers, config.kv_heads, config.head_dim);
  for (std::size_t layer = 0; layer < shape.layers.size(); ++layer) {
    shape.layers[layer].window = config.windows[layer];
  }
  return shape;
}

KvtiltCache::KvtiltCache(const ModelConfig& config, const kvtilt::Plan& plan,
                         const CacheSettings& settings)
    : layers_(config.layers),
      query_heads_(config.query_heads),
      kv_heads_(config.kv_heads),
      head_dim_(config.head_dim),
      page_tokens_(settings.page_tokens),
      cache_(create_cache(config, plan, settings)) {
  if (settings.arithmetic == CacheArithmetic::Exact) {
    options_.arithmetic = kvtilt::Arithmetic::Exact;
  }
}

void KvtiltCache::restart(int positions) {
  if (sequence_) check(cache_.close(*sequence_));
  sequence_ = cache_.open().value();
  check(cache_.reserve(*sequence_, positions));
  positions_ = positions;
  gap_ = {};
  touched_codes_ = false;
}

std::span<std::byte> KvtiltCache::workspace(std::size_t bytes) {
  if (workspace_.size() < bytes) workspace_.resize(bytes);  // grows once: sizes are per shape
  return workspace_;
}

/// Merges attention to the tokens in front of the gap into that to all others. All queries see them.
void KvtiltCache::add_beginning(const kvtilt::LayerView& view, const kvtilt::TensorView& turned,
                                const kvtilt::OutputView& out) {
  const auto rows = static_cast<std::size_t>(turned.tokens) * query_heads_;
  if (beginning_.size() < rows * (head_dim_ + 1)) beginning_.resize(rows * (head_dim_ + 1));
  const kvtilt::OutputView part(beginning_.data(), turned.tokens, query_heads_, head_dim_,
                                beginning_.data() + rows * head_dim_);
  kvtilt::AttendOptions options = options_;
  options.end_position = gap_.begin;
  options.causal = false;
  check(
      kvtilt::attend(view, turned, part, options, workspace(kvtilt::attend_workspace_bytes(view))));
  check(kvtilt::merge(out, part));
}

void KvtiltCache::attend(int layer, int tokens, const float* queries, const float* turned,
                         const float* keys, const float* values, float* out) {
  const kvtilt::SequenceId id = sequence_.value();
  const kvtilt::TensorView q(queries, tokens, query_heads_, head_dim_);
  const kvtilt::TensorView k(keys, tokens, kv_heads_, head_dim_);
  const kvtilt::TensorView v(values, tokens, kv_heads_, head_dim_);
  kvtilt::OutputView result(out, tokens, query_heads_, head_dim_);
  kvtilt::AttendOptions options = options_;
  if (gap_.tokens > 0) {
    lse_.resize(static_cast<std::size_t>(tokens) * query_heads_);
    result.lse = lse_.data();
    options.first_position = gap_.end();
  }
  if (layer == 0) touched_codes_ = false;

  kvtilt::LayerView view;
  if (tokens - 1 <= draft_room(layer)) {  // decode: tokens are read back out of the cache
    check(cache_.append(id, layer, k, v));
    view = cache_.view(id, layer).value();
    check(
        kvtilt::attend(view, q, result, options, workspace(kvtilt::attend_workspace_bytes(view))));
  } else {  // a prompt's chunk attends to its own tokens in floats, before the cache rounds them
    view = cache_.view(id, layer).value();
    check(kvtilt::attend_prefill(view, q, k, v, result, options,
                                 workspace(kvtilt::attend_prefill_workspace_bytes(view, tokens))));
    check(cache_.append(id, layer, k, v));
  }
  if (gap_.tokens > 0) {
    add_beginning(cache_.view(id, layer).value(), {turned, tokens, query_heads_, head_dim_},
                  result);
  }
  touched_codes_ = touched_codes_ || view.touches_codes();
}

/// The next token, which is no guess, may seal a page, but the guesses behind it must not: so each
/// token reads the pages that it would read if it came alone, and no page holds guesses that may be
/// taken back.
std::int64_t KvtiltCache::draft_room(int layer) const {
  const std::int64_t room = cache_.tokens_before_seal(sequence_.value(), layer).value();
  return room > 0 ? room - 1 : page_tokens_ - 1;
}

int KvtiltCache::draft_room() const {
  std::int64_t room = draft_room(0);
  for (int layer = 1; layer < layers_; ++layer) room = std::min(room, draft_room(layer));
  return static_cast<int>(room);
}

void KvtiltCache::truncate(int length) {
  gap_.check_length(length);
  check(cache_.truncate(sequence_.value(), length));
}

void KvtiltCache::remove(int from, int to) {
  const Gap gap = gap_.with(from, to);
  check(cache_.remove(sequence_.value(), from, to));
  gap_ = gap;
  // The pages that are free now take the new tokens.
  check(cache_.reserve(*sequence_, std::int64_t{positions_} + gap_.tokens));
}

std::vector<std::byte> KvtiltCache::save() const {
  if (gap_.tokens > 0) fail("a sequence whose context was shifted is not saved");
  std::vector<std::byte> saved(cache_.saved_bytes(sequence_.value()).value());
  check(cache_.save(*sequence_, saved));
  return saved;
}

void KvtiltCache::load(std::span<const std::byte> saved, int more) {
  const std::int64_t held = kvtilt::SavedReader::open(saved).value().length();
  if (sequence_) check(cache_.close(*sequence_));
  sequence_.reset();
  sequence_ = cache_.load(saved, held + more).value();
  positions_ = static_cast<int>(held) + more;
  gap_ = {};
  touched_codes_ = false;
}

int KvtiltCache::length() const {
  return sequence_ ? static_cast<int>(cache_.length(*sequence_).value()) : 0;
}

CacheUsage KvtiltCache::usage() const {
  if (!sequence_) return {};
  const auto report = cache_.memory(*sequence_).value();
  return {report.bytes_in_use(), cache_.memory().reserved_bytes, report.effective_bits()};
}

}  // namespace llama
