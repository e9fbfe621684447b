// SPDX-License-Identifier: MIT
/// Where the bytes of a cache are.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kvtilt {

/// Bytes in use by live tokens, over all layers. A page that forks share counts once for each sequence
/// that holds it, so the bytes in use can exceed reserved_bytes: the bytes that the cache holds of the
/// allocator or of page_memory, used or not. Those belong to the cache as a whole; in the report of a
/// single sequence they are 0.
struct MemoryReport {
  std::size_t page_bytes = 0;      ///< sealed pages, whole
  std::size_t tail_bytes = 0;      ///< 16-bit tokens of the tails
  std::size_t sink_bytes = 0;      ///< 16-bit tokens of the sinks
  std::size_t table_bytes = 0;     ///< page-table entries
  std::size_t reserved_bytes = 0;  ///< by reserve, fork and load
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
