// SPDX-License-Identifier: MIT
/// Unpacks a layer to floats, element by element: the reference for unpack() and attention.
#pragma once

#include <kvtilt/cpu/layer_view.hpp>
#include <kvtilt/page/unpack.hpp>

#include <cstddef>
#include <cstdint>

namespace kvtilt::test {

/// One value of a head's block, or what it is in the keys.
inline float unpack_head_value(const HeadLayout& head, const std::byte* block, int channel,
                               int token) {
  return head.values_in_keys() ? unpack_value(head.key, block, token, channel)
                               : unpack_value(head.value, block, channel, token);
}

/// All live tokens of one kv head, in order of position.
///
/// keys    receives [tokens, key_dim], or null
/// values  receives [tokens, value_dim], or null
/// Returns the number of tokens.
inline std::int64_t unpack_head(const LayerView& view, int kv_head, float* keys, float* values) {
  std::int64_t tokens = 0;
  for (std::int32_t index = 0; index < view.page_count; ++index) {
    const PageEntry& page = view.pages[index];
    const HeadLayout& head = view.head(page.kind, kv_head);
    const std::byte* block = page.data + head.offset;
    for (int token = 0; token < page.tokens; ++token, ++tokens) {
      for (int channel = 0; keys != nullptr && channel < view.shape.key_dim; ++channel)
        keys[tokens * view.shape.key_dim + channel] = unpack_value(head.key, block, token, channel);
      for (int channel = 0; values != nullptr && channel < view.shape.value_dim; ++channel)
        values[tokens * view.shape.value_dim + channel] =
            unpack_head_value(head, block, channel, token);
    }
  }
  return tokens;
}

}  // namespace kvtilt::test
