// SPDX-License-Identifier: MIT
#include <kvtilt/cuda/page/input_tiles.hpp>

#include "support/emulated_threads.hpp"
#include "support/group_data.hpp"
#include "support/random.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

namespace kvtilt::test {
namespace {

constexpr int largest_tokens = 128;
constexpr int largest_dim = 144;

/// Compares bits, because -ffast-math may ignore NaN.
bool holds(float x, float limit) {
  return (bit_cast<std::uint32_t>(x) & 0x7fffffffu) <= bit_cast<std::uint32_t>(limit);
}

/// Writes full tiles from strided rows: their slots hold what to_f16() gives, others stay, and
/// exactly the lanes that read an element above the limit report it.
template <Role R>
void check_tiles(Random& random, ElementType type, float limit) {
  constexpr bool keys = R == Role::Keys;
  const int tokens = 16 * random.between(1, largest_tokens / 16);
  const int dim = 16 * random.between(1, largest_dim / 16);
  const CodeMatrix matrix = keys ? CodeMatrix{tokens, dim} : CodeMatrix{dim, tokens};
  const int slot = random.below(tokens - 15);
  const int first = (16 - slot % 16) % 16;
  const int some = 16 * random.between(0, (tokens - slot - first) / 16);
  const int stride = dim + 4 * random.below(4);
  const int warps = random.between(1, 5);

  // The task reads from row 1 of head 1 on.
  std::vector<std::uint16_t> wide(static_cast<std::size_t>((first + some + 1) * stride + dim));
  const auto value = [&](std::uint16_t bits) {
    return type == ElementType::F16 ? to_float(F16{bits}) : to_float(BF16{bits});
  };
  const std::uint32_t largest = cuda::detail::limit_bits(type, limit);
  const bool all_hold = random.chance(2);
  for (std::uint16_t& bits : wide) {
    do {
      const F16 half{any_finite(random)};
      bits = type == ElementType::F16 ? half.bits : to_bf16(to_float(half)).bits;
    } while (!holds(value(bits), limit));
    if (random.chance(100)) bits = static_cast<std::uint16_t>(largest);
    if (!all_hold && random.chance(200))
      bits = static_cast<std::uint16_t>(random.chance(2) ? largest + 1 : random.next() | 0x7c00u);
  }
  TensorView rows;
  rows.data = wide.data();
  rows.type = type;
  alignas(16) static std::byte codes[largest_tokens * largest_dim * 2];
  std::memset(codes, 0xcd, sizeof codes);
  const cuda::InputTask task{
      R, rows.with_strides(stride, dim), 1, limit, {0, 1, 0, 0}, matrix, codes, slot, first + some};
  std::vector<char> found(static_cast<std::size_t>(32 * warps));
  ASSERT_TRUE(emulate(1, 32 * warps, 0, [&](EmulatedThreads& threads) {
    found[static_cast<std::size_t>(threads.thread())] =
        cuda::detail::write_tiles<R>(threads, task, first, some);
  }));

  std::vector<char> expected(found.size());
  for (int at = 0; at < tokens; ++at)
    for (int channel = 0; channel < dim; ++channel) {
      const int outer = keys ? at : channel;
      const int inner = keys ? channel : at;
      std::uint16_t stored = 0;
      std::memcpy(&stored, codes + cuda::half_offset(R, matrix, outer, inner), 2);
      const int token = at - slot;
      if (token < first || token >= first + some) {
        ASSERT_EQ(stored, 0xcdcd) << "token " << token << ", channel " << channel;
        continue;
      }
      const float x = value(wide[static_cast<std::size_t>((1 + token) * stride + dim + channel)]);
      const int run = (token - first) / 16 * ((dim / 16 + 3) / 4) + channel / 64;
      const int lane = cuda::fragment_place(R, outer, inner).lane;
      if (holds(x, limit))
        ASSERT_EQ(stored, to_f16(x).bits) << "token " << token << ", channel " << channel;
      else
        expected[static_cast<std::size_t>(run % warps * 32 + lane)] = 1;
    }
  ASSERT_EQ(found, expected);
}

TEST(InputTilesAgreement, AreFullTilesOfHalves) {
  Random random(1);
  for (int round = 0; round < 100; ++round)
    for (const ElementType type : {ElementType::F16, ElementType::BF16})
      for (const float limit : {f16_max, 32752.0f}) {
        SCOPED_TRACE(std::string(to_string(type)) + ", limit " + std::to_string(limit));
        check_tiles<Role::Keys>(random, type, limit);
        check_tiles<Role::Values>(random, type, limit);
        if (testing::Test::HasFailure()) return;
      }
}

/// For all 2^16 patterns: the largest value allowed, the next above, infinity, NaN, of either sign.
TEST(InputTiles, MostTellsWhatIsAboveTheLimit) {
  struct Case {
    ElementType type;
    float limit;
    std::uint32_t largest;
  };
  for (const Case& c : {Case{ElementType::F16, f16_max, 0x7bff},
                        {ElementType::F16, 32752.0f, 0x77ff},
                        {ElementType::BF16, f16_max, 0x477f},
                        {ElementType::BF16, 32752.0f, 0x46ff}}) {
    const std::uint32_t limit = cuda::detail::limit_bits(c.type, c.limit);
    EXPECT_EQ(limit, c.largest);
    for (std::uint32_t bits = 0; bits < 0x10000u; ++bits)
      for (int place = 0; place < 8; ++place) {
        cuda::detail::RawTile<Role::Keys> tile{};
        tile.word[place / 2] = bits << (16 * (place % 2));
        const std::uint32_t most = tile.most(limit * 0x10001u);
        ASSERT_EQ(most >> (16 * (place % 2)) & 0xffffu,
                  (bits & 0x7fffu) > 0x7c00u ? 0x7fffu : std::max(bits & 0x7fffu, limit))
            << bits;
        ASSERT_EQ(most >> (16 - 16 * (place % 2)) & 0xffffu, limit);
      }
  }
}

}  // namespace
}  // namespace kvtilt::test
