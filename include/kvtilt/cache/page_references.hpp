// SPDX-License-Identifier: MIT
/// Reference counts of shared pages: plain integers in memory, updated atomically by several threads.
/// Uses the builtins of GCC and Clang, because libc++ has std::atomic_ref only from version 19 on.
#pragma once

#include <cstdint>

namespace kvtilt {

inline void share_page(std::uint32_t* references) {
  __atomic_fetch_add(references, 1u, __ATOMIC_RELAXED);
}

[[nodiscard]] inline bool is_shared_page(const std::uint32_t* references) {
  return __atomic_load_n(references, __ATOMIC_RELAXED) > 1;
}

/// Drops one reference; true if it was the last. The caller then owns the page, with a count of 1, and
/// all reads by earlier owners have completed.
[[nodiscard]] inline bool leave_page(std::uint32_t* references) {
  if (__atomic_fetch_sub(references, 1u, __ATOMIC_ACQ_REL) > 1) return false;
  __atomic_store_n(references, 1u, __ATOMIC_RELAXED);
  return true;
}

}  // namespace kvtilt
