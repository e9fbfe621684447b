// SPDX-License-Identifier: MIT
/// How many bytes a cache uses, and for what.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kvtilt {

/// Bytes in use by live tokens, over all layers. A page that forks share counts once for each sequence
/// that holds it, so bytes_in_use() can exceed reserved_bytes. Only reserved_bytes is of the cache as a
/// whole: what it holds from the allocator and from page_memory, used or not.
struct MemoryReport {
  std::size_t page_bytes = 0;      ///< sealed pages, whole
  std::size_t tail_bytes = 0;      ///< 16-bit tokens of the tails
  std::size_t sink_bytes = 0;      ///< 16-bit tokens of the sinks
  std::size_t table_bytes = 0;     ///< page-table entries
  std::size_t reserved_bytes = 0;  ///< taken by reserve, fork and load
  std::int64_t elements = 0;       ///< key and value elements of live tokens, unpadded

  [[nodiscard]] std::size_t bytes_in_use() const {
    return page_bytes + tail_bytes + sink_bytes + table_bytes;
  }
  /// Bits per element with everything counted: pages, metadata, padding, tail, sinks, tables.
  [[nodiscard]] double effective_bits() const {
    return elements == 0
               ? 0.0
               : 8.0 * static_cast<double>(bytes_in_use()) / static_cast<double>(elements);
  }
};

}  // namespace kvtilt
