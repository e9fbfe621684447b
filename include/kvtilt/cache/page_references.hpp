// SPDX-License-Identifier: MIT
/// How many sequences share a page: a plain number in memory, counted by several threads. With the
/// builtins of GCC and Clang, because libc++ has std::atomic_ref from version 19 on only.
#pragma once

#include <cstdint>

namespace kvtilt {

inline void share_page(std::uint32_t* references) {
  __atomic_fetch_add(references, 1u, __ATOMIC_RELAXED);
}

[[nodiscard]] inline bool is_shared_page(const std::uint32_t* references) {
  return __atomic_load_n(references, __ATOMIC_RELAXED) > 1;
}

/// Whether the caller was the last: the page is then its own, counted once, and what others read of
/// it was read before.
[[nodiscard]] inline bool leave_page(std::uint32_t* references) {
  if (__atomic_fetch_sub(references, 1u, __ATOMIC_ACQ_REL) > 1) return false;
  __atomic_store_n(references, 1u, __ATOMIC_RELAXED);
  return true;
}

}  // namespace kvtilt
