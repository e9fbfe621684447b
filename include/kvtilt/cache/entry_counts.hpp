// SPDX-License-Identifier: MIT
/// Counts what a page table holds, for threads that must not read the table itself.
#pragma once

#include <kvtilt/page/layer_layouts.hpp>

#include <atomic>
#include <cstdint>

namespace kvtilt {

/// Entries of each kind, and the tokens in them. One thread at a time may add; any may read meanwhile,
/// but two numbers may stem from different moments.
class EntryCounts {
 public:
  [[nodiscard]] std::int64_t entries(PageKind kind) const { return get(entries_, kind); }
  [[nodiscard]] std::int64_t tokens(PageKind kind) const { return get(tokens_, kind); }

  void add(PageKind kind, std::int64_t entries, std::int64_t tokens) {
    set(entries_, kind, get(entries_, kind) + entries);
    set(tokens_, kind, get(tokens_, kind) + tokens);
  }

 private:
  using Counts = std::atomic<std::int64_t>[page_kinds];

  // A plain store instead of an atomic addition: there is only one writer.
  static void set(Counts& counts, PageKind kind, std::int64_t count) {
    counts[static_cast<int>(kind)].store(count, std::memory_order_relaxed);
  }
  static std::int64_t get(const Counts& counts, PageKind kind) {
    return counts[static_cast<int>(kind)].load(std::memory_order_relaxed);
  }

  Counts entries_ = {};
  Counts tokens_ = {};
};

}  // namespace kvtilt
