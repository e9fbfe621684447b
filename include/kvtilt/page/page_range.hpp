// SPDX-License-Identifier: MIT
/// Finds the pages nearest to a refused removal, and makes its error message.
#pragma once

#include <kvtilt/core/status.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace kvtilt {

/// The positions `from` to `to` - 1.
struct PageRange {
  std::int64_t from = 0;
  std::int64_t to = 0;
};

/// The run of adjacent pages whose start is nearest to `from` and, given that start, whose end is
/// nearest to `to`; empty if there are no pages.
///
/// page  page(i): the PageRange of the i-th of `pages`, in order of position
template <class Page>
PageRange nearest_pages(std::size_t pages, Page page, std::int64_t from, std::int64_t to) {
  if (pages == 0) return {};
  const std::int64_t least = page(0).from;
  const std::int64_t most = page(pages - 1).to;
  from = std::clamp(from, least, most);
  to = std::clamp(to, least, most);
  const auto gap = [](std::int64_t a, std::int64_t b) { return a < b ? b - a : a - b; };
  std::size_t first = 0;
  while (first + 1 < pages && gap(page(first + 1).from, from) < gap(page(first).from, from))
    ++first;
  PageRange nearest = page(first);
  for (std::size_t i = first + 1;
       i < pages && page(i).from == nearest.to && gap(page(i).to, to) < gap(nearest.to, to); ++i)
    nearest.to = page(i).to;
  return nearest;
}

/// The error of a refused removal. `nearest` is the result of nearest_pages() in this layer.
inline Status refuse_removal(std::size_t layer, std::int64_t from, std::int64_t to,
                             const PageRange& nearest) {
  const auto number = [](std::int64_t position) { return static_cast<long long>(position); };
  if (nearest.from == nearest.to)
    return Status::error(ErrorCode::InvalidArgument,
                         "layer %zu has no sealed pages that hold exactly positions [%lld, %lld); "
                         "it has no sealed pages at all",
                         layer, number(from), number(to));
  return Status::error(
      ErrorCode::InvalidArgument,
      "layer %zu has no sealed pages that hold exactly positions [%lld, %lld); the "
      "nearest that it has hold [%lld, %lld)",
      layer, number(from), number(to), number(nearest.from), number(nearest.to));
}

}  // namespace kvtilt
