// SPDX-License-Identifier: MIT
#include <kvtilt/page/unpack.hpp>

#include "support/fp16_oracle.hpp"
#include "support/page_data.hpp"
#include "support/random.hpp"

#include <gtest/gtest.h>

#include <bit>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

namespace kvtilt {
namespace {

/// z + s*code rounded once, as bits; the two zeros alike.
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
          // A code, a scale and a minimum that a wrong index would get wrong.
          const auto code_of = [&](int outer, int inner) {
            return (outer * 7 + inner * 13) % (1 << bits);
          };
          std::uint8_t* codes = reinterpret_cast<std::uint8_t*>(block.data() + tensor->codes);
          test::for_each_group_of(
              *tensor, [&](int band, int entry, int count, const auto& position) {
                F16* scales = tensor->scales(block.data(), band);
                scales[entry] = F16{static_cast<std::uint16_t>(random.below(0x7000))};
                scales[tensor->pitch() + entry] = F16{test::any_finite(random)};
                for (int i = 0; i < count; ++i) {
                  const auto [outer, inner] = position(i);
                  write_code(codes, tensor->matrix, bits, outer, inner, code_of(outer, inner));
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

/// Two heads, four pages of all kinds, the third cut short.
class UnpackLayer : public testing::Test {
 protected:
  static constexpr int tokens_of[] = {4, 32, 19, 7};
  static constexpr PageKind kind_of[] = {PageKind::Sinks, PageKind::Sealed, PageKind::Sealed,
                                         PageKind::Tail};

  UnpackLayer() {
    const Recipe recipe{{3, Granularity::PerChannel, 16, RangeRule::MinMax},
                        {2, Granularity::PerToken, 24, RangeRule::MinMax}};
    sealed_ = PageLayout::make(shape_, {recipe}, 32);
    half_ = PageLayout::make_half(shape_, 32);
    test::Random random(3);
    for (int page = 0; page < 4; ++page) {
      const PageLayout& layout = kind_of[page] == PageKind::Sealed ? sealed_ : half_;
      auto bytes = std::make_unique<test::Block>(layout.bytes);
      for (std::size_t i = 0; i < layout.bytes; i += 2) {
        const std::uint16_t finite = test::any_finite(random) & 0xbfffu;
        std::memcpy(bytes->data() + i, &finite, 2);
      }
      pages_.push_back({bytes->data(), 0, tokens_of[page], kind_of[page]});
      blocks_.push_back(std::move(bytes));
    }
    view_.shape = shape_;
    view_.heads[static_cast<int>(PageKind::Sinks)] = half_.heads.data();
    view_.heads[static_cast<int>(PageKind::Sealed)] = sealed_.heads.data();
    view_.heads[static_cast<int>(PageKind::Tail)] = half_.heads.data();
    view_.pages = pages_.data();
    view_.page_count = 4;
  }

  LayerShape shape_{2, 40, 24, 0};
  PageLayout sealed_;
  PageLayout half_;
  std::vector<std::unique_ptr<test::Block>> blocks_;
  std::vector<PageEntry> pages_;
  LayerView view_;
};

TEST_F(UnpackLayer, ConcatenatesLiveTokens) {
  constexpr int total = 4 + 32 + 19 + 7;
  for (int head = 0; head < 2; ++head) {
    std::vector<float> keys(total * 40 + 1, -1.0f);
    std::vector<float> values(total * 24 + 1, -1.0f);
    ASSERT_EQ(unpack(view_, head, keys.data(), values.data()), total);
    EXPECT_EQ(keys.back(), -1.0f);
    EXPECT_EQ(values.back(), -1.0f);
    int row = 0;
    for (std::size_t page = 0; page < 4; ++page) {
      const HeadLayout& layout = view_.head(pages_[page].kind, head);
      const std::byte* block = pages_[page].data + layout.offset;
      for (int token = 0; token < pages_[page].tokens; ++token, ++row) {
        for (int channel = 0; channel < 40; ++channel)
          ASSERT_EQ(bits_of(keys[static_cast<std::size_t>(row * 40 + channel)]),
                    bits_of(unpack_value(layout.key, block, token, channel)));
        for (int channel = 0; channel < 24; ++channel)
          ASSERT_EQ(bits_of(values[static_cast<std::size_t>(row * 24 + channel)]),
                    bits_of(unpack_value(layout.value, block, channel, token)));
      }
    }
  }
}

TEST_F(UnpackLayer, TakesNullForWhatIsNotWanted) {
  std::vector<float> both(62 * 40);
  std::vector<float> alone(62 * 40);
  unpack(view_, 1, both.data(), nullptr);
  EXPECT_EQ(unpack(view_, 1, nullptr, nullptr), 62);
  std::vector<float> values(62 * 24);
  unpack(view_, 1, alone.data(), values.data());
  EXPECT_EQ(both, alone);
}

TEST_F(UnpackLayer, AnEmptyViewHasNoTokens) {
  view_.page_count = 0;
  EXPECT_EQ(unpack(view_, 0, nullptr, nullptr), 0);
}

}  // namespace
}  // namespace kvtilt
