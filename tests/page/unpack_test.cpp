// SPDX-License-Identifier: MIT
#include <kvtilt/page/unpack.hpp>

#include "support/codes.hpp"
#include "support/fp16_oracle.hpp"
#include "support/page_data.hpp"
#include "support/random.hpp"

#include <gtest/gtest.h>

#include <bit>
#include <cstdint>

namespace kvtilt {
namespace {

/// The float32 bits of minimum + scale * code, rounded once; -0 counts as +0.
std::uint32_t expected_bits(F16 minimum, F16 scale, int code) {
  const test::Wide units =
      test::fp16_to_units(minimum.bits) + test::Wide{test::fp16_to_units(scale.bits)} * code;
  return test::float32_bits(test::round_to_float32(units, 1, -24));
}
std::uint32_t bits_of(float x) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(x);
  return bits == 0x80000000u ? 0 : bits;
}

TEST(UnpackValue, CombinesCodeScaleAndMinimumOfItsGroup) {
  test::Random random(2);
  for (const test::Extents extents : {test::Extents{72, 64}, {128, 32}, {200, 32}})
    for (int bits = 1; bits <= 8; ++bits)
      for (const Format& format : test::formats_of(bits, extents)) {
        const HeadLayout head = test::layout_of(format, extents);
        test::Block block(head.bytes());
        for (const TensorLayout* tensor : {&head.key, &head.value}) {
          // Codes, scales and minima that reveal a wrong index.
          const auto code_of = [&](int outer, int inner) {
            return (outer * 7 + inner * 13) % (1 << bits);
          };
          std::uint8_t* codes = reinterpret_cast<std::uint8_t*>(block.data() + tensor->codes);
          test::for_each_group_of(*tensor, [&](int band, int entry, int count,
                                               const auto& position) {
            F16* scales = tensor->scales(block.data(), band);
            scales[entry] = F16{static_cast<std::uint16_t>(random.below(0x7000))};
            scales[tensor->pitch() + entry] = F16{test::any_finite(random)};
            for (int i = 0; i < count; ++i) {
              const auto [outer, inner] = position(i);
              test::write_code(codes, tensor->matrix, bits, outer, inner, code_of(outer, inner));
            }
          });
          test::for_each_group_of(
              *tensor, [&](int band, int entry, int count, const auto& position) {
                const F16* scales = tensor->scales(block.data(), band);
                for (int i = 0; i < count; ++i) {
                  const auto [outer, inner] = position(i);
                  ASSERT_EQ(bits_of(unpack_value(*tensor, block.data(), outer, inner)),
                            expected_bits(scales[tensor->pitch() + entry], scales[entry],
                                          code_of(outer, inner)))
                      << test::to_string(format, extents) << " at " << outer << ", " << inner;
                }
              });
        }
      }
}

TEST(UnpackValue, ReturnsSixteenBitsAsTheyAre) {
  const test::Extents extents{72, 32};
  const HeadLayout head = test::layout_of(Format{}, extents);
  test::Block block(head.bytes());
  for (int token = 0; token < 32; ++token)
    for (int channel = 0; channel < 72; ++channel) {
      test::halves(block.data(), head.key)[half_position(head.key.matrix, token, channel)] =
          F16{static_cast<std::uint16_t>(token * 72 + channel)};
      test::halves(block.data(), head.value)[half_position(head.value.matrix, channel, token)] =
          F16{static_cast<std::uint16_t>(0x8000 + token * 72 + channel)};
    }
  for (int token = 0; token < 32; ++token)
    for (int channel = 0; channel < 72; ++channel) {
      const std::uint16_t bits = static_cast<std::uint16_t>(token * 72 + channel);
      const std::uint16_t negative = static_cast<std::uint16_t>(0x8000 + bits);
      ASSERT_EQ(unpack_value(head.key, block.data(), token, channel), to_float(F16{bits}));
      ASSERT_EQ(unpack_value(head.value, block.data(), channel, token), to_float(F16{negative}));
    }
}

}  // namespace
}  // namespace kvtilt
