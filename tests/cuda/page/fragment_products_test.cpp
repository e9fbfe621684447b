// SPDX-License-Identifier: MIT
/// The purpose of fragment_order.hpp, tested on emulated tensor cores.
#include <kvtilt/core/half.hpp>
#include <kvtilt/cuda/page/fragment_order.hpp>

#include "support/emulated_threads.hpp"

#include <gtest/gtest.h>

#include <cstdint>

namespace kvtilt::cuda {
namespace {

/// A lane's registers of a tile whose elements are small integers.
template <class Element>
void load_tile(Role role, int lane, const Element& element, std::uint32_t (&a)[4]) {
  for (std::uint32_t& reg : a) reg = 0;
  for (int outer = 0; outer < 16; ++outer)
    for (int inner = 0; inner < 16; ++inner) {
      const FragmentPlace place = fragment_place(role, outer, inner);
      if (place.lane != lane) continue;
      const std::uint32_t bits = to_f16(static_cast<float>(element(outer, inner))).bits;
      a[place.reg] |= bits << (16 * place.half);
    }
}

/// Keys times queries, transposed in registers by transpose(), then multiplied by the values.
TEST(FragmentProducts, ChainsBothProductsWithoutShuffles) {
  const auto key = [](int token, int channel) { return (token * 7 + channel * 3) % 5 - 2; };
  const auto value = [](int channel, int token) { return (channel * 5 + token * 11) % 7 - 3; };
  const auto query = [](int head, int channel) { return (head + channel * channel) % 3 - 1; };
  int scores[8][16] = {};
  for (int head = 0; head < 8; ++head)
    for (int token = 0; token < 16; ++token)
      for (int channel = 0; channel < 16; ++channel)
        scores[head][token] += key(token, channel) * query(head, channel);

  test::emulate(1, 32, 0, [&](test::EmulatedThreads& threads) {
    const int g = threads.lane() / 4;
    const int t = threads.lane() % 4;
    const auto pair = [](int low, int high) {
      return to_f16(static_cast<float>(low)).bits |
             static_cast<std::uint32_t>(to_f16(static_cast<float>(high)).bits) << 16;
    };
    std::uint32_t a[4];
    load_tile(Role::Keys, threads.lane(), key, a);
    float c[4] = {};
    threads.mma(c, a, pair(query(g, 4 * t), query(g, 4 * t + 1)),
                pair(query(g, 4 * t + 2), query(g, 4 * t + 3)));
    for (int index = 0; index < 4; ++index)
      EXPECT_EQ(c[index], static_cast<float>(scores[2 * t + index % 2][2 * g + index / 2]));

    const auto rounded = [](float low, float high) {
      return to_f16(low).bits | static_cast<std::uint32_t>(to_f16(high).bits) << 16;
    };
    const std::uint32_t b0 = threads.transpose(rounded(c[0], c[1]));
    const std::uint32_t b1 = threads.transpose(rounded(c[2], c[3]));
    load_tile(Role::Values, threads.lane(), value, a);
    float out[4] = {};
    threads.mma(out, a, b0, b1);
    for (int index = 0; index < 4; ++index) {
      const int channel = 2 * g + index / 2;
      const int head = 2 * t + index % 2;
      int expected = 0;
      for (int token = 0; token < 16; ++token)
        expected += value(channel, token) * scores[head][token];
      EXPECT_EQ(out[index], static_cast<float>(expected)) << channel << ", " << head;
    }
  });
}

}  // namespace
}  // namespace kvtilt::cuda
