// SPDX-License-Identifier: MIT
// Compiled with -O2 whatever the flags of the build: see tests/CMakeLists.txt.
#include <kvtilt/core/half.hpp>
#include <kvtilt/cuda/words.hpp>

#include <gtest/gtest.h>

#include <cstdint>

namespace kvtilt::cuda {
namespace {

struct alignas(16) Halves {
  F16 half[8] = {{1}, {2}, {3}, {4}, {5}, {6}, {7}, {8}};
};

/// Loads, stores 9 as fp16 in the first half, and loads again: the second load must see it.
/// noinline: the compiler knows nothing of `halves` but its type.
template <class Load>
[[gnu::noinline]] std::uint64_t changed_bits(F16* halves, const Load& load) {
  const std::uint64_t before = load(halves);
  halves[0] = F16{9};
  return before ^ load(halves);
}

constexpr std::uint64_t changed = 1 ^ 9;

TEST(Words, LoadsSeeWhatWasStoredAsFp16) {
  const auto expect_seen = [](const auto& load) {
    Halves halves;
    EXPECT_EQ(changed_bits(halves.half, load), changed);
  };
  expect_seen([](const F16* from) { return load_word(from); });
  expect_seen([](const F16* from) { return load_double_word(from); });
  expect_seen([](const F16* from) { return load_words<1>(from).word[0]; });
  expect_seen([](const F16* from) { return load_words<2>(from).word[0]; });
  expect_seen([](const F16* from) { return load_words<4>(from).word[0]; });
}

/// Stores a word between two loads as fp16.
[[gnu::noinline]] int changed_half(F16* halves, const WordPair& words) {
  const int before = halves[0].bits;
  *reinterpret_cast<WordPair*>(halves) = words;
  return before ^ halves[0].bits;
}

TEST(Words, Fp16SeesWhatWasStoredAsWords) {
  Halves halves;
  EXPECT_EQ(changed_half(halves.half, {{9, 0}}), 1 ^ 9);
}

TEST(Words, AreLittleEndianAndAligned) {
  const Halves halves;
  EXPECT_EQ(load_word(halves.half + 2), 0x00040003u);
  EXPECT_EQ(load_double_word(halves.half + 4), 0x0008000700060005u);
  EXPECT_EQ(load_words<2>(halves.half).word[1], 0x00040003u);
  EXPECT_EQ(load_words(halves.half).word[3], 0x00080007u);
  EXPECT_EQ(alignof(WordRun<1>), 4u);
  EXPECT_EQ(alignof(WordPair), 8u);
  EXPECT_EQ(alignof(Words), 16u);
}

}  // namespace
}  // namespace kvtilt::cuda
