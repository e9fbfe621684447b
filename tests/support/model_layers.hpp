// SPDX-License-Identifier: MIT
/// Functions that the models of a cache's sequences and layers share.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

namespace kvtilt::test {

/// Length of the shortest layer that keeps a cache; 0 if none does.
template <class Layer>
std::int64_t shortest_of(const std::vector<std::optional<Layer>>& layers) {
  std::int64_t length = -1;
  for (const auto& own : layers)
    if (own) length = length < 0 ? own->length() : std::min(length, own->length());
  return std::max<std::int64_t>(length, 0);
}
template <class Layer>
std::int64_t longest_of(const std::vector<std::optional<Layer>>& layers) {
  std::int64_t length = 0;
  for (const auto& own : layers)
    if (own) length = std::max(length, own->length());
  return length;
}

/// Indices of the pages, in the order of their `first` positions, that start inside [from, to).
template <class Page>
std::pair<std::size_t, std::size_t> pages_between(const std::vector<Page>& pages, std::int64_t from,
                                                  std::int64_t to) {
  std::size_t first = 0;
  while (first < pages.size() && pages[first].first < from) ++first;
  std::size_t last = first;
  while (last < pages.size() && pages[last].first < to) ++last;
  return {first, last};
}

/// Whether [from, to) is not empty and each of its positions was freed by a window (all before
/// `freed_until`) or lies in a page entirely inside the range. Positions before `sinks` are never
/// freed and in no page.
template <class Page>
bool may_remove(const std::vector<Page>& pages, std::int64_t sinks, std::int64_t freed_until,
                std::int64_t from, std::int64_t to) {
  bool may = from < to && from >= sinks;
  for (std::int64_t position = from; may && position < to; ++position)
    may = position < freed_until || std::any_of(pages.begin(), pages.end(), [&](const Page& page) {
            const std::int64_t end = page.first + page.count;
            return position >= page.first && position < end && page.first >= from && end <= to;
          });
  return may;
}

}  // namespace kvtilt::test
