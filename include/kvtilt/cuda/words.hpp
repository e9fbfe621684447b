// SPDX-License-Identifier: MIT
/// Words of memory, as one instruction loads and stores them. The same bytes are written and read
/// as fp16 elsewhere, so these types may alias any other: without that a compiler for the host may
/// move a load across the store whose result it is to read.
#pragma once

#include <kvtilt/core/config.hpp>

#include <cstdint>

namespace kvtilt::cuda {

using Word [[gnu::may_alias]] = std::uint32_t;
using DoubleWord [[gnu::may_alias]] = std::uint64_t;

/// 1, 2 or 4 words: 4 to 16 bytes, aligned to their size.
template <int Count>
struct [[gnu::may_alias]] alignas(4 * Count) WordRun {
  std::uint32_t word[Count];
};
using WordPair = WordRun<2>;
using Words = WordRun<4>;

KVTILT_HD inline std::uint32_t load_word(const void* from) {
  return *static_cast<const Word*>(from);
}
KVTILT_HD inline std::uint64_t load_double_word(const void* from) {
  return *static_cast<const DoubleWord*>(from);
}
template <int Count = 4>
KVTILT_HD WordRun<Count> load_words(const void* from) {
  return *static_cast<const WordRun<Count>*>(from);
}

}  // namespace kvtilt::cuda
