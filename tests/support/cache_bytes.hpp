// SPDX-License-Identifier: MIT
/// Copies and compares the bytes of a sequence's layer, to show that a call changed nothing.
#pragma once

#include <kvtilt/cpu/layer_view.hpp>

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace kvtilt::test {

inline std::size_t block_bytes(const LayerView& view, PageKind kind) {
  const HeadLayout& last = view.head(kind, view.shape.kv_heads - 1);
  return static_cast<std::size_t>(last.offset) + last.bytes();
}

/// A copy of everything, unused bytes included.
struct Snapshot {
  std::int64_t length = 0;
  std::vector<PageEntry> pages;
  std::vector<std::vector<std::byte>> blocks;

  explicit Snapshot(const LayerView& view) : length(view.length) {
    for (std::int32_t i = 0; i < view.page_count; ++i) {
      const PageEntry& page = view.pages[i];
      pages.push_back(page);
      blocks.emplace_back(page.data, page.data + block_bytes(view, page.kind));
    }
  }
};

inline bool same_entry(const PageEntry& a, const PageEntry& b) {
  return a.first_position == b.first_position && a.tokens == b.tokens && a.kind == b.kind;
}

/// Whether the layer has the same tokens in the same places with the same bytes as before.
inline testing::AssertionResult unchanged(const Snapshot& before, const LayerView& now) {
  const Snapshot after(now);
  if (before.length != after.length || before.pages.size() != after.pages.size())
    return testing::AssertionFailure()
           << "length " << before.length << " -> " << after.length << ", pages "
           << before.pages.size() << " -> " << after.pages.size();
  for (std::size_t i = 0; i < before.pages.size(); ++i)
    if (!same_entry(before.pages[i], after.pages[i]) ||
        before.pages[i].data != after.pages[i].data || before.blocks[i] != after.blocks[i])
      return testing::AssertionFailure() << "page " << i << " changed";
  return testing::AssertionSuccess();
}

namespace detail {

inline std::uint16_t half_at(const TensorLayout& tensor, const std::byte* block, int outer,
                             int inner) {
  std::uint16_t bits = 0;
  std::memcpy(&bits, block + tensor.codes + 2 * half_position(tensor.matrix, outer, inner), 2);
  return bits;
}

/// Live 16-bit elements, in (head, token, channel) order.
inline std::vector<std::uint16_t> live_halves(const LayerView& view, const PageEntry& page) {
  std::vector<std::uint16_t> bits;
  for (int kv_head = 0; kv_head < view.shape.kv_heads; ++kv_head) {
    const HeadLayout& head = view.head(page.kind, kv_head);
    for (int token = 0; token < page.tokens; ++token) {
      for (int c = 0; c < view.shape.key_dim; ++c)
        bits.push_back(half_at(head.key, page.data + head.offset, token, c));
      for (int c = 0; c < head.value.matrix.outer; ++c)
        bits.push_back(half_at(head.value, page.data + head.offset, c, token));
    }
  }
  return bits;
}

}  // namespace detail

/// Whether two layers, of any sequences and caches, have the same content: sealed pages byte for
/// byte with padding, tail and sinks in every live element.
inline testing::AssertionResult same_content(const LayerView& a, const LayerView& b) {
  if (a.length != b.length || a.page_count != b.page_count || a.shape != b.shape)
    return testing::AssertionFailure() << "lengths " << a.length << " and " << b.length
                                       << ", pages " << a.page_count << " and " << b.page_count;
  for (std::int32_t i = 0; i < a.page_count; ++i) {
    const PageEntry& left = a.pages[i];
    const PageEntry& right = b.pages[i];
    if (!same_entry(left, right))
      return testing::AssertionFailure() << "page " << i << " is another kind of page";
    if (left.kind == PageKind::Sealed) {
      const std::size_t bytes = block_bytes(a, left.kind);
      if (bytes != block_bytes(b, right.kind) || std::memcmp(left.data, right.data, bytes) != 0)
        return testing::AssertionFailure() << "bytes of sealed page " << i << " differ";
    } else if (detail::live_halves(a, left) != detail::live_halves(b, right)) {
      return testing::AssertionFailure() << "16-bit tokens of page " << i << " differ";
    }
  }
  return testing::AssertionSuccess();
}

}  // namespace kvtilt::test
