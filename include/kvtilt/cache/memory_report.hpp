// SPDX-License-Identifier: MIT
/// Where the bytes of a cache are.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kvtilt {

/// Bytes in use by live tokens, over all layers; reserved_bytes is what the allocator gave, what was
/// taken from page_memory, and neither has back, used or not; it belongs to the cache as a whole.
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
