// SPDX-License-Identifier: MIT
/// Compares KVCache::unpack with the model of a layer.
#pragma once

#include <kvtilt/cache/kv_cache.hpp>

#include "support/layer_model.hpp"
#include "support/random.hpp"
#include "support/rows.hpp"

#include <algorithm>
#include <cstdint>
#include <string>

namespace kvtilt::test {

/// Whether a model holds every position from `first` to first + tokens - 1.
inline bool holds(const LayerModel& model, std::int64_t first, std::int64_t tokens) {
  std::int64_t held = 0;
  for (const PageEntry& page : model.page_table())
    held += std::max<std::int64_t>(
        0, std::min<std::int64_t>(first + tokens, page.first_position + page.tokens) -
               std::max(first, page.first_position));
  return held == tokens && first <= model.length();
}

namespace detail {

inline constexpr float untouched = -12345.0f;

inline bool same_bits(float a, float b) {
  return bit_cast<std::uint32_t>(a) == bit_cast<std::uint32_t>(b);
}
inline bool same_bits(F16 a, float b) { return a == to_f16(b); }

/// Checks that rows from `first` on are the model's or, if not `written`, unchanged.
template <class T>
std::string compare_rows(const Rows<T>& rows, const ModelTensor& model, std::int64_t first,
                         bool written) {
  for (std::int64_t t = 0; t < rows.tokens; ++t)
    for (int head = 0; head < rows.heads; ++head)
      for (int c = 0; c < rows.dim; ++c) {
        const float expected = written ? model.values[model.at(first + t, head, c)] : untouched;
        if (!same_bits(rows.at(t, head, c), expected))
          return "unpack: position " + std::to_string(first + t) + ", head " +
                 std::to_string(head) + ", channel " + std::to_string(c) +
                 (written ? " is not what is stored" : " was written although it failed");
      }
  return {};
}

template <class T>
std::string unpack_as(const KVCache& cache, SequenceId id, int layer, const LayerModel& model,
                      std::int64_t first, std::int64_t tokens) {
  const LayerShape& shape = model.shape();
  Rows<T> keys(tokens, shape.kv_heads, shape.key_dim);
  Rows<T> values(tokens, shape.kv_heads, shape.value_dim);
  for (Rows<T>* rows : {&keys, &values})
    for (T& x : rows->data)
      if constexpr (sizeof(T) == sizeof(float))
        x = untouched;
      else
        x = to_f16(untouched);
  const Status status = cache.unpack(id, layer, first, keys.out(), values.out());
  const bool held = holds(model, first, tokens);
  if (status.ok() != held)
    return held ? std::string(status.message()) : "unpacked what is not there";
  const std::string wrong = compare_rows(keys, model.keys(), first, held);
  return wrong.empty() ? compare_rows(values, model.values(), first, held) : wrong;
}

}  // namespace detail

/// Unpacks some positions. Returns an empty string if unpack gives the model's values, or refuses
/// because the model does not hold all of the positions.
inline std::string unpack_differs(const KVCache& cache, SequenceId id, int layer,
                                  const LayerModel& model, std::int64_t first, std::int64_t tokens,
                                  ElementType type = ElementType::F32) {
  return type == ElementType::F32 ? detail::unpack_as<float>(cache, id, layer, model, first, tokens)
                                  : detail::unpack_as<F16>(cache, id, layer, model, first, tokens);
}

/// Unpacks random positions, sometimes beyond the end.
inline std::string unpack_differs(const KVCache& cache, SequenceId id, int layer,
                                  const LayerModel& model, Random& random) {
  const int length = static_cast<int>(model.length());
  const int first = random.between(0, length);
  const int tokens = random.between(0, length - first + (random.chance(8) ? 2 : 0));
  return unpack_differs(cache, id, layer, model, first, tokens,
                        random.chance(2) ? ElementType::F32 : ElementType::F16);
}

}  // namespace kvtilt::test
