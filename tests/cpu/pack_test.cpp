// SPDX-License-Identifier: MIT
// pack.inl through the kernel table of every instruction set.
#include <kvtilt/cpu/kernels.hpp>

#include "support/float_modes.hpp"
#include "support/kernel_tables.hpp"
#include "support/page_data.hpp"

#include <gtest/gtest.h>

#include <span>
#include <vector>

namespace kvtilt {
namespace {

using test::Block;
using test::Extents;

void pack(const cpu::Kernels& kernels, const HeadLayout& half, const Block& source,
          const HeadLayout& packed, Block& block) {
  kernels.pack[cpu::width_slot(packed.key.format.bits)](half.key, source.data(), packed.key,
                                                        block.data());
  kernels.pack[cpu::width_slot(packed.value.format.bits)](half.value, source.data(), packed.value,
                                                          block.data());
}

/// A head in 16 bits, full of hostile data, and the packed form that the specification gives it.
struct Head {
  HeadLayout half;
  HeadLayout packed;
  Block source;
  Block expected;

  Head(const Recipe& recipe, Extents extents, std::uint64_t seed)
      : half(head_layout(Recipe{}, extents.dim, extents.dim, extents.tokens, 0)),
        packed(head_layout(recipe, extents.dim, extents.dim, extents.tokens, 0)),
        source(half.bytes()),
        expected(packed.bytes()) {
    test::Random random(seed);
    test::fill_half_tensor(random, half.key, packed.key, source.data());
    test::fill_half_tensor(random, half.value, packed.value, source.data());
    test::pack_by_specification(half.key, source.data(), packed.key, expected.data());
    test::pack_by_specification(half.value, source.data(), packed.value, expected.data());
  }
};

void expect_specification(const Head& head, const std::string& what) {
  for (const test::KernelTable& table : test::kernel_tables()) {
    Block block(head.packed.bytes());
    pack(*table.kernels, head.half, head.source, head.packed, block);
    ASSERT_EQ(test::first_difference(block, head.expected), -1) << table.name << ": " << what;
    ASSERT_TRUE(block.guards_are_whole()) << table.name << ": " << what;
  }
}

/// One test per width, so that a failure shows the width.
class PackAgreement : public testing::TestWithParam<int> {};

TEST_P(PackAgreement, GivesTheBytesOfTheSpecification) {
  std::uint64_t seed = 1;
  for (const Extents extents : test::all_extents())
    for (const Format& format : test::formats_of(GetParam(), extents))
      expect_specification(Head({format, format}, extents, seed++),
                           test::to_string(format, extents));
}

TEST_P(PackAgreement, FlushToZeroChangesNothing) {
  const Extents extents{72, 32};
  for (const Format& format : test::formats_of(GetParam(), extents)) {
    const Head head({format, format}, extents, 7);
    const test::FloatModeGuard guard(test::FloatMode::FlushToZero);
    expect_specification(head, test::to_string(format, extents));
  }
}

INSTANTIATE_TEST_SUITE_P(Widths, PackAgreement, testing::Values(1, 2, 3, 4, 5, 6, 7, 8, 16));

/// Packs `total` or more groups of 16, which fill(index, group) writes, along both axes.
template <class Fill>
void expect_specification_of_groups(const Format& format, int total, Fill fill) {
  const Extents extents{512, 32};
  const HeadLayout half = test::layout_of(Format{}, extents);
  const HeadLayout packed = test::layout_of(format, extents);
  Block source(half.bytes());
  const auto fill_tensor = [&](const TensorLayout& to, const TensorLayout& groups, int& next) {
    test::for_each_group_of(groups, [&](int, int, int count, const auto& position) {
      F16 group[max_group];
      fill(next++ % total, std::span(group, static_cast<std::size_t>(count)));
      for (int i = 0; i < count; ++i) {
        const auto [outer, inner] = position(i);
        test::halves(source.data(), to)[half_position(to.matrix, outer, inner)] = group[i];
      }
    });
  };
  int next_key = 0;
  int next_value = total / 2;
  while (next_key < total) {
    fill_tensor(half.key, packed.key, next_key);
    fill_tensor(half.value, packed.value, next_value);
    Block expected(packed.bytes());
    test::pack_by_specification(half.key, source.data(), packed.key, expected.data());
    test::pack_by_specification(half.value, source.data(), packed.value, expected.data());
    for (const test::KernelTable& table : test::kernel_tables()) {
      Block block(packed.bytes());
      pack(*table.kernels, half, source, packed, block);
      ASSERT_EQ(test::first_difference(block, expected), -1)
          << table.name << ": " << test::to_string(format, extents);
    }
  }
}

constexpr int positive_halves = 0x7c00;

/// The smallest scale is found for every range that starts at zero, and for many that do not.
TEST(PackExhaustive, EveryRange) {
  test::Random random(23);
  for (int bits = 2; bits <= 8; ++bits) {
    const Format format{bits, Granularity::PerChannel, 16, RangeRule::MinMax};
    const auto fill = [&](int index, std::span<F16> group) {
      for (F16& value : group) value = F16{};
      group[static_cast<std::size_t>(index % 16)].bits = static_cast<std::uint16_t>(index);
    };
    expect_specification_of_groups(format, positive_halves, fill);
    const auto offset = [&](int index, std::span<F16> group) {
      fill(index, group);
      const F16 low{static_cast<std::uint16_t>(0x8000 | random.below(positive_halves))};
      group[static_cast<std::size_t>((index + 7) % 16)] = low;
    };
    expect_specification_of_groups(format, positive_halves, offset);
  }
}

/// Values halfway between codes reveal a reciprocal that is off by one unit in the last place.
TEST(PackExhaustive, EveryScaleAtItsMidpoints) {
  for (const int bits : {4, 8}) {
    const Format format{bits, Granularity::PerChannel, 16, RangeRule::MinMax};
    const float levels = static_cast<float>(max_code(bits));
    expect_specification_of_groups(format, positive_halves, [&](int index, std::span<F16> group) {
      const float scale = to_float(F16{static_cast<std::uint16_t>(index)});
      const float widest = scale * levels < f16_max ? scale * levels : f16_max;
      for (std::size_t i = 0; i < group.size(); ++i) {
        const float midpoint = scale * (static_cast<float>(i) - 0.5f);
        group[i] = to_f16(i == 0 ? 0.0f : midpoint < widest ? midpoint : widest);
      }
      group[15] = to_f16(widest);
      if (to_float(group[15]) > widest) --group[15].bits;
    });
  }
}

TEST(PackProperty, SealedBytesDependOnValuesAlone) {
  // Zeros of either sign must give equal codes and no negative zero in the metadata.
  const Extents extents{64, 32};
  const Format format{4, Granularity::PerChannel, 32, RangeRule::MinMse};
  const HeadLayout half = test::layout_of(Format{}, extents);
  const HeadLayout packed = test::layout_of(format, extents);
  for (const test::KernelTable& table : test::kernel_tables()) {
    Block plus(packed.bytes());
    Block mixed(packed.bytes());
    Block source(half.bytes());
    pack(*table.kernels, half, source, packed, plus);
    test::Random random(1);
    for (std::size_t i = 1; i < half.value.end(); i += 2)
      source.data()[i] = random.chance(2) ? std::byte{0x80} : std::byte{0};
    pack(*table.kernels, half, source, packed, mixed);
    EXPECT_EQ(test::first_difference(plus, mixed), -1) << table.name;
  }
}

TEST(PackProperty, SixteenBitsAreCopied) {
  const Extents extents{72, 32};
  const HeadLayout half = test::layout_of(Format{}, extents);
  Block source(half.bytes());
  for (std::size_t i = 0; i < half.value.end(); ++i)
    source.data()[i] = static_cast<std::byte>(i * 37);  // NaN patterns too
  for (const test::KernelTable& table : test::kernel_tables()) {
    Block copy(half.bytes());
    pack(*table.kernels, half, source, half, copy);
    EXPECT_EQ(test::first_difference(source, copy), -1) << table.name;
  }
}

/// Keys and values of one head with different widths, as plans assign them.
TEST(PackRandom, MixedRecipesGiveTheBytesOfTheSpecification) {
  test::Random random(17);
  for (int round = 0; round < 60; ++round) {
    const Extents extents{8 * random.between(1, 25), 32 << random.below(2)};
    Recipe recipe;
    for (Format* format : {&recipe.key, &recipe.value}) {
      const int bits = random.chance(9) ? 16 : random.between(1, 8);
      const std::vector<Format> formats = test::formats_of(bits, extents);
      *format = formats[static_cast<std::size_t>(random.below(static_cast<int>(formats.size())))];
    }
    expect_specification(
        Head(recipe, extents, random.next()),
        test::to_string(recipe.key, extents) + "; " + test::to_string(recipe.value, extents));
  }
}

}  // namespace
}  // namespace kvtilt
