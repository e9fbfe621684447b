// SPDX-License-Identifier: MIT
#include <kvtilt/cache/layer_pages.hpp>
#include <kvtilt/cuda/page/convert_page.hpp>
#include <kvtilt/cuda/page/convert_tensor.hpp>
#include <kvtilt/quant/recipe.hpp>

#include "support/emulated_threads.hpp"
#include "support/page_data.hpp"
#include "support/random.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace kvtilt::cuda {
namespace {

using test::Block;
using test::EmulatedThreads;

/// A page of an image, at a multiple of 16 bytes only.
class ImagePage {
 public:
  explicit ImagePage(std::size_t bytes) : bytes_(bytes), memory_(bytes + page_alignment, 0x77) {}

  std::byte* data() { return memory_.data() + 16; }
  [[nodiscard]] bool is(const Block& page) const {
    return std::memcmp(memory_.data() + 16, page.data(), bytes_) == 0;
  }
  [[nodiscard]] bool surroundings_are_whole() const {
    for (std::size_t i = 0; i < memory_.size(); ++i)
      if ((i < 16 || i >= 16 + bytes_) && memory_.data()[i] != std::byte{0x77}) return false;
    return true;
  }

 private:
  std::size_t bytes_;
  Block memory_;
};

/// Converts all heads of a page with one block of threads.
template <class Convert>
void convert(const PageLayout& layout, int threads, test::LaunchOrder order,
             const Convert& convert_one) {
  int elements = 0;
  for (const HeadLayout& head : layout.heads)
    for (const TensorLayout* tensor : {&head.key, &head.value})
      if (tensor->format.quantized())
        elements = std::max(elements, tensor->matrix.outer * tensor->matrix.inner);
  ASSERT_TRUE(test::emulate(
      1, threads, convert_shared_bytes(elements, threads),
      [&](EmulatedThreads& block) {
        for (const HeadLayout& head : layout.heads) {
          convert_one(block, Role::Keys, head.key, head.offset);
          convert_one(block, Role::Values, head.value, head.offset);
        }
      },
      order));
}

/// Converts to the host's order and back; the host's 16-bit slots from `tokens` on become zeros.
void check_page(const PageLayout& layout, int tokens, int threads, test::LaunchOrder order,
                test::Random& random) {
  Block device(layout.bytes);
  for (std::size_t i = 0; i < device.size(); ++i)
    device.data()[i] = static_cast<std::byte>(random.next());
  Block host(layout.bytes);
  to_host_page(layout, device.data(), host.data());
  for (const HeadLayout& head : layout.heads)
    for (const bool keys : {true, false}) {
      const TensorLayout& tensor = keys ? head.key : head.value;
      if (tensor.format.quantized()) continue;
      F16* const halves = test::halves(host.data() + head.offset, tensor);
      for (int outer = 0; outer < tensor.matrix.outer; ++outer)
        for (int inner = 0; inner < tensor.matrix.inner; ++inner)
          if ((keys ? outer : inner) >= tokens)
            halves[half_position(tensor.matrix, outer, inner)] = F16{};
    }

  ImagePage image(layout.bytes);
  const std::uint64_t first_word = random.next();  // the page's first word in the image
  std::uint64_t expected_sum = 0;
  for (std::size_t i = 0; i < layout.bytes / 8; ++i) {
    std::uint64_t word;
    std::memcpy(&word, host.data() + 8 * i, sizeof word);
    expected_sum += saved_word_sum(word, first_word + i);
  }
  std::uint64_t sum = 0;
  convert(layout, threads, order,
          [&](EmulatedThreads& block, Role role, const TensorLayout& tensor, std::size_t head) {
            HostBlock<std::byte> to{image.data() + head, first_word + head / 8};
            tensor_to_host(block, role, tensor, device.data() + head, to, tokens, block.shared());
            block.atomic_add(&sum, to.sum);
          });
  EXPECT_EQ(sum, expected_sum);
  EXPECT_TRUE(image.is(host)) << "to the host";
  EXPECT_TRUE(image.surroundings_are_whole());
  EXPECT_TRUE(device.guards_are_whole());

  to_device_page(layout, host.data(), device.data());
  Block back(layout.bytes, 0x33);
  sum = 0;
  convert(layout, threads, order,
          [&](EmulatedThreads& block, Role role, const TensorLayout& tensor, std::size_t head) {
            HostBlock<const std::byte> from{image.data() + head, first_word + head / 8};
            tensor_to_device(block, role, tensor, from, back.data() + head, block.shared());
            block.atomic_add(&sum, from.sum);
          });
  EXPECT_EQ(sum, expected_sum);
  EXPECT_EQ(test::first_difference(back, device), -1) << "to the device";
  EXPECT_TRUE(back.guards_are_whole());
  EXPECT_TRUE(image.is(host) && image.surroundings_are_whole());
}

class ConvertTensor : public testing::TestWithParam<int> {};

TEST_P(ConvertTensor, MovesRandomBytesOfEveryShapeAsTheHostDoes) {
  const int bits = GetParam();
  test::Random random(static_cast<std::uint64_t>(bits));
  int converted = 0;
  for (const int tokens : {32, 64, 128})
    for (const int dim : {16, 48, 64, 80, 96, 128, 192, 256, 576})
      for (const bool swapped : {false, true}) {
        if (swapped && bits == half_bits) continue;
        const LayerShape shape{1, dim, dim};
        const Recipe recipe =
            bits == half_bits
                ? Recipe{}
                : Recipe{
                      key_format(bits, swapped ? Granularity::PerToken : Granularity::PerChannel,
                                 swapped && dim > 128 ? 64 : 0),
                      value_format(bits, swapped ? Granularity::PerChannel : Granularity::PerToken,
                                   !swapped && dim > 128 ? 64 : 0)};
        if (!supports_device_page(shape, recipe, tokens).ok()) continue;
        const PageLayout layout =
            PageLayout::make(shape, {*resolve_recipe(recipe, shape, tokens)}, tokens);
        const test::LaunchOrder order{
            swapped ? test::LaunchOrder::Backward : test::LaunchOrder::Shuffled,
            static_cast<std::uint32_t>(converted)};
        check_page(layout, tokens, converted % 3 == 0 ? 256 : 96, order, random);
        ASSERT_FALSE(HasFailure()) << tokens << " tokens of " << dim << " channels";
        ++converted;
      }
  EXPECT_GE(converted, bits == half_bits ? 27 : 46);
}

INSTANTIATE_TEST_SUITE_P(Bits, ConvertTensor, testing::Values(1, 2, 3, 4, 5, 6, 7, 8, 16),
                         testing::PrintToStringParamName());

TEST(ConvertTensorPages, HeadsOfManyKindsFollowEachOther) {
  const LayerShape shape{4, 80, 48};
  std::vector<Recipe> recipes;
  for (const Recipe& recipe :
       {Recipe{key_format(4), value_format(2)}, Recipe{}, Recipe{key_format(7), Format{}},
        Recipe{key_format(1), value_format(8)}})
    recipes.push_back(*resolve_recipe(recipe, shape, 64));
  test::Random random(20);
  check_page(PageLayout::make(shape, recipes, 64), 64, 128, {}, random);
}

TEST(ConvertTensorPages, SlotsWithoutATokenAreZerosInTheImage) {
  test::Random random(21);
  for (const int slots : {16, 64, 128})
    for (const int tokens : {0, 1, 4, 15, 16, 17, 63, 64, 100})
      if (tokens <= slots) {
        check_page(PageLayout::make_half({2, 64, 48}, slots), tokens, 64, {}, random);
        ASSERT_FALSE(HasFailure()) << tokens << " of " << slots << " tokens";
      }
}

TEST(ConvertTensorPages, NoPaddingIsLeftForAnyoneToWrite) {
  for (const int tokens : {32, 64, 128})
    for (int dim = 16; dim <= 576; dim += 16)
      for (const int bits : {1, 2, 3, 4, 5, 6, 7, 8, 16}) {
        const LayerShape shape{1, dim, dim};
        const Recipe recipe{bits == half_bits ? Format{} : key_format(bits),
                            bits == half_bits ? Format{} : value_format(bits)};
        if (!supports_device_page(shape, recipe, tokens).ok()) continue;
        const PageLayout layout =
            PageLayout::make(shape, {*resolve_recipe(recipe, shape, tokens)}, tokens);
        const HeadLayout& head = layout.heads[0];
        ASSERT_EQ(head.key.end(), head.value.codes) << bits << " bits, " << dim << " channels";
        ASSERT_EQ(head.value.end(), layout.bytes) << bits << " bits, " << dim << " channels";
      }
}

}  // namespace
}  // namespace kvtilt::cuda
