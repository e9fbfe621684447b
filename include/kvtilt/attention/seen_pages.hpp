// SPDX-License-Identifier: MIT
/// Finds the pages that hold what query rows see, without looking at the others.
#pragma once

#include <kvtilt/attention/tile.hpp>
#include <kvtilt/cache/unpack.hpp>
#include <kvtilt/cpu/layer_view.hpp>

#include <algorithm>
#include <cstdint>
#include <limits>

namespace kvtilt::detail {

/// Positions `first` to `end` - 1 hold all that some rows see, apart from sinks that outlive the window.
struct SeenPositions {
  std::int64_t first = std::numeric_limits<std::int64_t>::max();
  std::int64_t end = 0;

  void add(const RowRule& rule) {
    first = std::min(first, rule.first_position);
    end = std::max(end, rule.end_position);
  }
};

/// Entries `first` to `last` - 1 of a table of pages.
struct TableRange {
  int first;
  int last;
};

/// The pages that hold `seen`. Touches none of the table where that is all of it.
inline TableRange pages_of(const LayerView& view, const SeenPositions& seen) {
  TableRange range{0, view.page_count};
  if (seen.end < view.length) {
    const PageEntry* newest = page_at(view, seen.end - 1);
    range.last = static_cast<int>(newest - view.pages);
    if (range.last < view.page_count && newest->first_position < seen.end) ++range.last;
  }
  if (seen.first > 0)
    range.first = std::min(range.last, static_cast<int>(page_at(view, seen.first) - view.pages));
  return range;
}

/// The first page from `index` on that is in `pages`, or before them and holds sinks that outlive the
/// window. A cache has these in its first entry, a table for LayerPages anywhere.
///
/// first_sink  oldest position that a sink may have
inline int next_page(const LayerView& view, const TableRange& pages, std::int64_t first_sink,
                     int index) {
  if (index >= pages.first) return index;
  if (!view.shape.keep_sinks) return pages.first;
  const int end = view.sink_tokens > 0 ? std::min(1, pages.first) : pages.first;
  for (; index < end; ++index) {
    const PageEntry& page = view.pages[index];
    if (page.kind == PageKind::Sinks && page.first_position + page.tokens > first_sink)
      return index;
  }
  return pages.first;
}

}  // namespace kvtilt::detail
