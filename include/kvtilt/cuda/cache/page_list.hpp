// SPDX-License-Identifier: MIT
/// Which pages of a pool in device memory are free, and how many sequences hold each of the others.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace kvtilt::cuda {

/// Kept by the host alone: kernels need no reference counts, because a sequence knows which of its
/// pages may be shared (SequenceState::shared_end) and writes to none of them.
class PageList {
 public:
  explicit PageList(std::int32_t pages) : references_(static_cast<std::size_t>(pages), 0) {
    free_.reserve(references_.size());
    for (std::int32_t page = pages; page-- > 0;) free_.push_back(page);
  }

  [[nodiscard]] std::int64_t pages() const { return static_cast<std::int64_t>(references_.size()); }
  [[nodiscard]] std::int64_t free_pages() const { return static_cast<std::int64_t>(free_.size()); }
  /// How many sequences hold a page.
  [[nodiscard]] std::uint32_t references(std::int32_t page) const { return references_[at(page)]; }

  /// Takes a free page, which then has one holder; there must be one.
  [[nodiscard]] std::int32_t take() {
    const std::int32_t page = free_.back();
    free_.pop_back();
    references_[at(page)] = 1;
    return page;
  }
  void share(std::int32_t page) { ++references_[at(page)]; }
  /// Takes one holder away; a page without holders is free.
  void release(std::int32_t page) {
    if (--references_[at(page)] == 0) free_.push_back(page);
  }

 private:
  static std::size_t at(std::int32_t page) { return static_cast<std::size_t>(page); }

  std::vector<std::int32_t> free_;  ///< the last is taken next
  std::vector<std::uint32_t> references_;
};

}  // namespace kvtilt::cuda
