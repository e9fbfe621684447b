// SPDX-License-Identifier: MIT
#include <kvtilt/cache/layer_pages.hpp>
#include <kvtilt/cuda/page/convert_page.hpp>
#include <kvtilt/page/unpack.hpp>
#include <kvtilt/quant/recipe.hpp>

#include "support/fragment_code.hpp"
#include "support/golden_file.hpp"
#include "support/page_data.hpp"
#include "support/random.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

namespace kvtilt::cuda {
namespace {

using test::Block;
using ::testing::HasSubstr;

/// Compares element by element, by the definitions of both orders.
void expect_same_tensor(Role role, const TensorLayout& tensor, const std::byte* host,
                        const std::byte* device, const std::string& what) {
  const auto* host_codes = reinterpret_cast<const std::uint8_t*>(host + tensor.codes);
  const auto* device_codes = reinterpret_cast<const std::uint8_t*>(device + tensor.codes);
  for (int outer = 0; outer < tensor.matrix.outer; ++outer)
    for (int inner = 0; inner < tensor.matrix.inner; ++inner) {
      int expected = 0;
      int found = 0;
      if (tensor.format.quantized()) {
        const int bits = tensor.format.bits;
        expected = read_code(host_codes, tensor.matrix, bits, outer, inner);
        found = test::read_fragment_code(role, device_codes, tensor.matrix, bits, outer, inner);
      } else {
        std::memcpy(&expected, host_codes + 2 * half_position(tensor.matrix, outer, inner), 2);
        std::memcpy(&found, device_codes + half_offset(role, tensor.matrix, outer, inner), 2);
      }
      ASSERT_EQ(found, expected) << what << ": outer " << outer << ", inner " << inner;
    }
  ASSERT_EQ(std::memcmp(host + tensor.metadata, device + tensor.metadata, tensor.metadata_bytes()),
            0)
      << what;
}

/// Converts to the device's order and back; all bytes of `host` must return, padding included.
void check_page(const PageLayout& layout, const Block& host, const std::string& what) {
  Block device(layout.bytes, 0xcc);
  to_device_page(layout, host.data(), device.data());
  for (const HeadLayout& head : layout.heads) {
    expect_same_tensor(Role::Keys, head.key, host.data() + head.offset, device.data() + head.offset,
                       what + ", keys");
    expect_same_tensor(Role::Values, head.value, host.data() + head.offset,
                       device.data() + head.offset, what + ", values");
    if (testing::Test::HasFatalFailure()) return;
  }
  Block back(layout.bytes, 0x33);
  to_host_page(layout, device.data(), back.data());
  ASSERT_EQ(test::first_difference(host, back), -1) << what;
  ASSERT_TRUE(device.guards_are_whole() && back.guards_are_whole()) << what;
}

TEST(ConvertPage, MovesRandomBytesOfEveryFormatThereAndBack) {
  test::Random random(1);
  int converted = 0;
  for (const int tokens : {32, 64, 128})
    for (const int dim : {16, 48, 64, 80, 96, 112, 128, 192, 256, 576})
      for (const int bits : {1, 2, 3, 4, 5, 6, 7, 8, 16}) {
        const Recipe recipe{bits == half_bits ? Format{} : key_format(bits),
                            bits == half_bits ? Format{} : value_format(bits)};
        const LayerShape shape{1, dim, dim};
        if (!supports_device_page(shape, recipe, tokens).ok()) continue;
        const PageLayout layout =
            PageLayout::make(shape, {*resolve_recipe(recipe, shape, tokens)}, tokens);
        Block host(layout.bytes);
        for (std::size_t i = 0; i < host.size(); ++i)
          host.data()[i] = static_cast<std::byte>(random.below(256));
        check_page(layout, host,
                   std::to_string(bits) + " bits, dim " + std::to_string(dim) + ", tokens " +
                       std::to_string(tokens));
        if (HasFatalFailure()) return;
        ++converted;
      }
  EXPECT_EQ(converted, 3 * 10 * 9 - 4 * 4);
}

TEST(ConvertPageAgreement, HoldsWhatLayerPagesSealed) {
  const LayerShape shape{3, 192, 128};
  const std::vector<Recipe> recipes = {*parse_recipe("k4v2"), *parse_recipe("k3tv5c"),
                                       *parse_recipe("k16v7")};
  Result<LayerPages> pages = LayerPages::create(shape, recipes, 64);
  ASSERT_TRUE(pages.ok()) << pages.status().message();
  test::Random random(2);
  std::vector<float> keys(64 * 3 * 192);
  std::vector<float> values(64 * 3 * 128);
  for (float& x : keys) x = static_cast<float>(random.normal());
  for (float& x : values) x = static_cast<float>(random.normal());
  Block half(pages->bytes(PageKind::Tail));
  Block sealed(pages->bytes(PageKind::Sealed));
  ASSERT_TRUE(pages
                  ->write(TensorView(keys.data(), 64, 3, 192),
                          TensorView(values.data(), 64, 3, 128), 0, half.data())
                  .ok());
  ASSERT_TRUE(pages->seal(half.data(), sealed.data()).ok());

  std::vector<Recipe> resolved;
  for (const Recipe& recipe : recipes) {
    EXPECT_TRUE(supports_device_page(shape, recipe, 64).ok());
    resolved.push_back(*resolve_recipe(recipe, shape, 64));
  }
  const PageLayout layout = PageLayout::make(shape, resolved, 64);
  ASSERT_EQ(layout.bytes, sealed.size());
  check_page(layout, sealed, "sealed");
  check_page(PageLayout::make_half(shape, 64), half, "16 bits");
}

/// The blocks of tests/golden/pages.txt whose shape GPUs support.
TEST(ConvertPageGolden, KeepsTheGoldenPages) {
  std::ifstream list(test::golden_file("pages.txt"));
  std::ifstream file(test::golden_file("pages.bin"), std::ios::binary);
  std::string name;
  std::string rule;
  int key_dim = 0;
  int value_dim = 0;
  int tokens = 0;
  std::uint64_t seed = 0;
  std::size_t bytes = 0;
  int converted = 0;
  while (list >> name >> key_dim >> value_dim >> tokens >> rule >> seed >> bytes) {
    Block host(bytes);
    ASSERT_TRUE(
        file.read(reinterpret_cast<char*>(host.data()), static_cast<std::streamsize>(bytes)));
    const LayerShape shape{1, key_dim, value_dim};
    const Recipe recipe = *parse_recipe(name);
    if (!supports_device_page(shape, recipe, tokens).ok()) continue;
    const PageLayout layout =
        PageLayout::make(shape, {*resolve_recipe(recipe, shape, tokens)}, tokens);
    ASSERT_EQ(layout.bytes, bytes);
    check_page(layout, host, name);
    if (HasFatalFailure()) return;
    ++converted;
  }
  EXPECT_GE(converted, 20);
}

std::string refusal(const LayerShape& shape, const char* recipe, int tokens, ErrorCode code) {
  const Status status = supports_device_page(shape, *parse_recipe(recipe), tokens);
  EXPECT_EQ(status.code(), code) << recipe;
  return std::string(status.message());
}

TEST(ConvertPageHostile, SaysWhatTheGpuDoesNotTake) {
  EXPECT_THAT(refusal({1, 72, 64}, "k4v4", 64, ErrorCode::Unsupported),
              HasSubstr("key_dim is 72: on the GPU head dimensions are multiples of 16"));
  EXPECT_THAT(refusal({1, 64, 8}, "k16v16", 64, ErrorCode::Unsupported),
              HasSubstr("value_dim is 8"));
  EXPECT_THAT(refusal({1, 80, 64}, "k3v2", 32, ErrorCode::Unsupported),
              HasSubstr("key_dim 80 at 3 bits in pages of 32 tokens"));
  EXPECT_THAT(refusal({1, 64, 112}, "k4v1", 32, ErrorCode::Unsupported),
              HasSubstr("value_dim 112 at 1 bits"));
  EXPECT_THAT(refusal({1, 64, 64}, "k4v4", 48, ErrorCode::InvalidArgument), HasSubstr("48"));
  EXPECT_THAT(refusal({1, 60, 64}, "k4v4", 64, ErrorCode::InvalidArgument), HasSubstr("60"));
  EXPECT_THAT(refusal({1, 1024, 64}, "k4v4", 64, ErrorCode::InvalidArgument), HasSubstr("1024"));
  EXPECT_THAT(refusal({1, 64, 64}, "k4v4:g48,64", 64, ErrorCode::InvalidArgument), HasSubstr("48"));
}

TEST(ConvertPageHostile, TakesEveryOtherShape) {
  EXPECT_TRUE(supports_device_page({0, 0, 0}, *parse_recipe("k4v4"), 64).ok()) << "keeps no cache";
  for (const int tokens : {32, 64, 128})
    for (int dim = 16; dim <= max_head_dim; dim += 16)
      for (const int bits : {1, 2, 3, 4, 5, 6, 7, 8, 16}) {
        const bool fits = tokens != 32 || dim % 32 == 0 || bits % 2 == 0;
        EXPECT_EQ(supports_order({tokens, dim}, bits), fits)
            << tokens << ", " << dim << ", " << bits;
        EXPECT_EQ(supports_order({dim, tokens}, bits), fits);
      }
}

}  // namespace
}  // namespace kvtilt::cuda
