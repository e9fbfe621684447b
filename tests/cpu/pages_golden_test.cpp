// SPDX-License-Identifier: MIT
// The page format, byte for byte: tests/golden/make_pages.py writes the blocks from the description
// of the format alone; this file generates the same input and packs it.
#include <kvtilt/cpu/kernels.hpp>
#include <kvtilt/quant/recipe.hpp>

#include "support/golden_file.hpp"
#include "support/kernel_tables.hpp"
#include "support/page_data.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <fstream>
#include <iterator>
#include <ostream>
#include <string>
#include <vector>

namespace kvtilt {
namespace {

using test::Block;

/// One line of pages.txt, and the offset of its block in pages.bin.
struct Case {
  std::string recipe;
  int key_dim = 0;
  int value_dim = 0;
  int tokens = 0;
  std::string rule;
  std::uint64_t seed = 0;
  std::size_t bytes = 0;
  std::size_t offset = 0;

  friend std::ostream& operator<<(std::ostream& out, const Case& c) {
    return out << c.recipe << ", dimensions " << c.key_dim << " and " << c.value_dim << ", "
               << c.tokens << " tokens, rule " << c.rule;
  }
};

std::vector<Case> read_cases() {
  std::ifstream file(test::golden_file("pages.txt"));
  std::vector<Case> cases;
  Case c;
  while (file >> c.recipe >> c.key_dim >> c.value_dim >> c.tokens >> c.rule >> c.seed >> c.bytes) {
    cases.push_back(c);
    c.offset += c.bytes;
  }
  return cases;
}

std::vector<char> read_blocks() {
  std::ifstream file(test::golden_file("pages.bin"), std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

/// The random generator of make_pages.py.
class Generator {
 public:
  explicit Generator(std::uint64_t seed) : state_(seed) {}
  std::uint32_t next() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<std::uint32_t>(state_ >> 33);
  }

 private:
  std::uint64_t state_;
};

std::uint32_t element(std::uint32_t r, std::uint32_t index, std::uint32_t position, bool one_bit) {
  const std::uint32_t sign = (r >> 30) != 0 ? 0x8000u : 0u;
  const std::uint32_t mantissa = r & 1023u;
  const std::uint32_t normal = sign | (12 + (r >> 11) % 6) << 10 | mantissa;
  switch (index % 12) {
    case 3:
      return 0x4c00u + 200u + r % 64;
    case 4:
      return 0x3c00u + index % 1000;
    case 5:
      return sign | r % 64;
    case 6:
      return sign;
    case 7:
      return r % 2 != 0 ? 0x4900u : 0xb555u;
    case 8:
      return sign | (r % 8 != 0 ? (one_bit ? 0x77ffu : 0x7bffu) : r % 0x7000u);
    case 9:
      return sign | (r >> 12) % 30 << 10 | mantissa;
    case 10:
      return position == 5 ? 0x7000u : normal;
    case 11:
      return 0x6400u + r % 5;
    default:
      return normal;
  }
}

void fill(Generator& generator, const TensorLayout& half, const Format& format, bool keys,
          std::byte* block) {
  const int tokens = keys ? half.matrix.outer : half.matrix.inner;
  const int channels = keys ? half.matrix.inner : half.matrix.outer;
  const bool by_channel = !format.quantized() || format.granularity == Granularity::PerChannel;
  for (int token = 0; token < tokens; ++token)
    for (int channel = 0; channel < channels; ++channel) {
      const std::uint32_t bits =
          element(generator.next(), static_cast<std::uint32_t>(by_channel ? channel : token),
                  static_cast<std::uint32_t>(by_channel ? token : channel), format.bits == 1);
      const std::size_t at = keys ? half_position(half.matrix, token, channel)
                                  : half_position(half.matrix, channel, token);
      test::halves(block, half)[at] = F16{static_cast<std::uint16_t>(bits)};
    }
}

Recipe recipe_of(const Case& c) {
  Recipe recipe = *parse_recipe(c.recipe);
  if (c.rule == "min-max") recipe.key.rule = recipe.value.rule = RangeRule::MinMax;
  return *resolve_recipe(recipe, {1, c.key_dim, c.value_dim, 0}, c.tokens);
}

void expect_golden(const Block& block, const Case& c, const std::vector<char>& golden,
                   const std::string& what) {
  for (std::size_t i = 0; i < c.bytes; ++i)
    ASSERT_EQ(static_cast<int>(block.data()[i]),
              static_cast<int>(static_cast<std::uint8_t>(golden[c.offset + i])))
        << "byte " << i << ", " << what << ", " << c;
}

void check_case(const Case& c, const std::vector<char>& golden) {
  const Recipe recipe = recipe_of(c);
  const HeadLayout half = head_layout(Recipe{}, c.key_dim, c.value_dim, c.tokens, 0);
  const HeadLayout packed = head_layout(recipe, c.key_dim, c.value_dim, c.tokens, 0);
  ASSERT_EQ(packed.bytes(), c.bytes) << c;
  Block source(half.bytes());
  Generator generator(c.seed);
  fill(generator, half.key, recipe.key, true, source.data());
  fill(generator, half.value, recipe.value, false, source.data());

  Block specified(packed.bytes());
  test::pack_by_specification(half.key, source.data(), packed.key, specified.data());
  test::pack_by_specification(half.value, source.data(), packed.value, specified.data());
  expect_golden(specified, c, golden, "specification");
  for (const test::KernelTable& table : test::kernel_tables()) {
    const cpu::Kernels& kernels = *table.kernels;
    Block block(packed.bytes());
    kernels.pack[cpu::width_slot(recipe.key.bits)](half.key, source.data(), packed.key,
                                                   block.data());
    kernels.pack[cpu::width_slot(recipe.value.bits)](half.value, source.data(), packed.value,
                                                     block.data());
    expect_golden(block, c, golden, table.name);
  }
}

TEST(PagesGolden, EveryInstructionSetWritesTheseBytes) {
  const std::vector<Case> cases = read_cases();
  const std::vector<char> golden = read_blocks();
  ASSERT_GE(cases.size(), 40u) << "cannot read " << test::golden_file("pages.txt");
  ASSERT_EQ(cases.back().offset + cases.back().bytes, golden.size());
  for (const Case& c : cases) {
    check_case(c, golden);
    if (HasFatalFailure()) return;
  }
}

}  // namespace
}  // namespace kvtilt
