// SPDX-License-Identifier: MIT
#include <kvtilt/page/layout.hpp>
#include <kvtilt/quant/recipe.hpp>

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace kvtilt {
namespace {

Recipe resolved(const std::string& name, const LayerShape& shape, int tokens) {
  return *resolve_recipe(*parse_recipe(name), shape, tokens);
}

std::size_t head_bytes(const std::string& name, int key_dim, int value_dim, int tokens) {
  const Recipe recipe = resolved(name, {1, key_dim, value_dim, 0}, tokens);
  return head_layout(recipe, key_dim, value_dim, tokens, 0).bytes();
}

TEST(Layout, PagesHold32To128Tokens) {
  std::vector<int> sizes;
  for (int tokens = -1; tokens <= 300; ++tokens) {
    if (is_page_size(tokens)) sizes.push_back(tokens);
    EXPECT_EQ(check_page_tokens(tokens).ok(), is_page_size(tokens));
  }
  EXPECT_EQ(sizes, (std::vector<int>{32, 64, 128}));
  EXPECT_EQ(check_page_tokens(48).message(), "page_tokens is 48, must be 32, 64 or 128");
}

TEST(Layout, RoundsUp) {
  EXPECT_EQ(round_up(0, 64), 0u);
  EXPECT_EQ(round_up(1, 64), 64u);
  EXPECT_EQ(round_up(64, 64), 64u);
  EXPECT_EQ(round_up(65, 32), 96u);
}

TEST(LayoutGolden, K4V2TakesExactly108BytesPerTokenAndHead) {
  EXPECT_EQ(head_bytes("k4v2", 128, 128, 64), 108u * 64);
}

TEST(LayoutGolden, PresetsHaveKnownSizes) {
  // Codes: (key bits + value bits) * 128 / 8 per token. Keys add 4 bytes per channel and group of
  // 64 tokens (8 per token), values 4 per token and group of 128 channels.
  EXPECT_EQ(head_bytes("k16v16", 128, 128, 64), 512u * 64);
  EXPECT_EQ(head_bytes("k8v8", 128, 128, 64), (256u + 12) * 64);
  EXPECT_EQ(head_bytes("k8v4", 128, 128, 64), (192u + 12) * 64);
  EXPECT_EQ(head_bytes("k6v4", 128, 128, 64), (160u + 12) * 64);
  EXPECT_EQ(head_bytes("k4v4", 128, 128, 64), (128u + 12) * 64);
  EXPECT_EQ(head_bytes("k3v2", 128, 128, 64), (80u + 12) * 64);
  EXPECT_EQ(head_bytes("k2v2", 128, 128, 64), (64u + 12) * 64);
  EXPECT_EQ(head_bytes("k1v1", 128, 128, 64), (32u + 12) * 64);
  EXPECT_EQ(head_bytes("kivi2", 128, 128, 64), (64u + 16 + 16) * 64);
  EXPECT_EQ(head_bytes("k4v2", 128, 128, 32), (96u + 16 + 4) * 32);
  EXPECT_EQ(head_bytes("k4v2", 128, 128, 128), (96u + 4 + 4) * 128);
  EXPECT_EQ(head_bytes("k4tv2c", 128, 128, 64), (96u + 4 + 8) * 64);
  EXPECT_EQ(head_bytes("k8v8", 576, 512, 64), (1088u + 36 + 16) * 64) << "four value groups";
  EXPECT_EQ(head_bytes("k4v2", 192, 128, 64), (128u + 12 + 4) * 64);
  EXPECT_EQ(head_bytes("k16v4", 64, 64, 64), (160u + 4) * 64);
}

struct Case {
  int key_dim;
  int value_dim;
  int tokens;
};

std::vector<Case> cases() {
  std::vector<Case> list;
  for (const int tokens : {32, 64, 128})
    for (const int dim : {8, 16, 24, 64, 72, 80, 96, 112, 120, 128, 136, 192, 200, 256, 512, 576}) {
      list.push_back({dim, dim, tokens});
      list.push_back({dim, 72, tokens});
      list.push_back({136, dim, tokens});
    }
  return list;
}

std::vector<std::string> names() {
  std::vector<std::string> list;
  for (const std::string key : {"1", "2", "3", "4t", "5", "6", "7t", "8", "16"})
    for (const std::string value : {"1c", "2", "3c", "4", "5", "6", "7", "8c", "16"})
      list.push_back("k" + key + "v" + value);
  list.insert(list.end(), {"kivi2", "k4v2:g16,16", "k3tv3c:g32,16"});
  return list;
}

TEST(LayoutProperty, PartsFollowEachOtherAligned) {
  for (const Case& c : cases())
    for (const std::string& name : names()) {
      const Recipe recipe = resolved(name, {1, c.key_dim, c.value_dim, 0}, c.tokens);
      const HeadLayout head = head_layout(recipe, c.key_dim, c.value_dim, c.tokens, 0);
      ASSERT_EQ(head.key.codes, 0u);
      ASSERT_EQ(head.key.metadata, code_bytes({c.tokens, c.key_dim}, recipe.key.bits));
      ASSERT_GE(head.value.codes, head.key.end());
      ASSERT_LT(head.value.codes, head.key.end() + 32);
      ASSERT_EQ(head.value.metadata - head.value.codes,
                code_bytes({c.value_dim, c.tokens}, recipe.value.bits));
      ASSERT_GE(head.bytes(), head.value.end());
      ASSERT_LT(head.bytes(), head.value.end() + 64);
      ASSERT_EQ(head.bytes() % 64, 0u);
      ASSERT_EQ(head.value.codes % 32, 0u);
      ASSERT_EQ(head.key.metadata % 2 + head.value.metadata % 2, 0u);
      if (c.key_dim % 16 == 0) {
        ASSERT_EQ(head.value.codes % 64, 0u) << name << " " << c.key_dim << " " << c.tokens;
      }
    }
}

TEST(Layout, MetadataHasAScaleAndAMinimumPerGroup) {
  const auto bytes = [](const std::string& name, int dim, bool keys) {
    const HeadLayout head = head_layout(resolved(name, {1, dim, dim, 0}, 64), dim, dim, 64, 0);
    return keys ? head.key.metadata_bytes() : head.value.metadata_bytes();
  };
  EXPECT_EQ(bytes("k4v4", 72, true), 72u * 4);
  EXPECT_EQ(bytes("k4v4:g32,32", 72, true), 72u * 4 * 2);
  EXPECT_EQ(bytes("k4v4", 72, false), 64u * 4);
  EXPECT_EQ(bytes("k4v4:g32,32", 72, false), 64u * 4 * 3) << "the last group has 8 channels";
  EXPECT_EQ(bytes("k4v4", 576, false), 64u * 4 * 5) << "the last group has 64 channels";
  EXPECT_EQ(bytes("k4tv4c", 576, true), 64u * 4 * 5);
  EXPECT_EQ(bytes("k4tv4c", 72, false), 72u * 4);
  EXPECT_EQ(bytes("k16v16", 72, true), 0u);
}

TEST(Layout, BandsHoldScalesThenMinima) {
  const HeadLayout head = head_layout(resolved("k4v4:g32,32", {1, 72, 72, 0}, 64), 72, 72, 64, 0);
  std::vector<F16> storage(head.bytes() / 2);
  std::byte* block = reinterpret_cast<std::byte*>(storage.data());
  EXPECT_EQ(head.key.bands(), 2);
  EXPECT_EQ(head.key.pitch(), 72);
  EXPECT_EQ(head.value.bands(), 3);
  EXPECT_EQ(head.value.pitch(), 64);
  EXPECT_EQ(head.key.scales(block, 0), storage.data() + head.key.metadata / 2);
  EXPECT_EQ(head.key.scales(block, 1), storage.data() + head.key.metadata / 2 + 144);
  const std::byte* constant = block;
  EXPECT_EQ(head.value.scales(constant, 2), storage.data() + head.value.metadata / 2 + 256);
}

TEST(Layout, KeysAndValuesAreTransposed) {
  const HeadLayout head = head_layout(resolved("k4v4", {1, 80, 96, 0}, 64), 80, 96, 64, 0);
  EXPECT_EQ(head.key.matrix.outer, 64);
  EXPECT_EQ(head.key.matrix.inner, 80);
  EXPECT_EQ(head.value.matrix.outer, 96);
  EXPECT_EQ(head.value.matrix.inner, 64);
  EXPECT_TRUE(head.key.group_along_outer);
  EXPECT_TRUE(head.value.group_along_outer);
  EXPECT_TRUE(head.value.scales_along_inner());
  const HeadLayout swapped = head_layout(resolved("k4tv4c", {1, 80, 96, 0}, 64), 80, 96, 64, 0);
  EXPECT_FALSE(swapped.key.group_along_outer);
  EXPECT_FALSE(swapped.value.group_along_outer);
  EXPECT_FALSE(swapped.value.scales_along_inner());
}

TEST(PageLayout, HeadsFollowEachOther) {
  const LayerShape shape{3, 128, 128, 0};
  const PageLayout layout = PageLayout::make(shape, {resolved("k4v2", shape, 64)}, 64);
  ASSERT_EQ(layout.heads.size(), 3u);
  for (std::size_t head = 0; head < 3; ++head)
    EXPECT_EQ(layout.heads[head].offset, head * 108 * 64);
  EXPECT_EQ(layout.bytes, 3u * 108 * 64);
  EXPECT_EQ(layout.tokens, 64);
  EXPECT_DOUBLE_EQ(layout.page_bits(shape), 3.375);
}

TEST(PageLayout, HeadsMayDiffer) {
  const LayerShape shape{2, 72, 64, 0};
  const PageLayout layout =
      PageLayout::make(shape, {resolved("k8v4", shape, 32), resolved("k16v1", shape, 32)}, 32);
  ASSERT_EQ(layout.heads.size(), 2u);
  EXPECT_EQ(layout.heads[1].offset, layout.heads[0].bytes());
  EXPECT_EQ(layout.heads[0].key.format.bits, 8);
  EXPECT_EQ(layout.heads[1].value.format.bits, 1);
  EXPECT_EQ(layout.bytes, layout.heads[0].bytes() + layout.heads[1].bytes());
}

TEST(PageLayout, SixteenBitPagesTakeAnyLength) {
  const LayerShape shape{2, 72, 64, 0};
  for (const int tokens : {16, 32, 48, 160}) {
    const PageLayout layout = PageLayout::make_half(shape, tokens);
    EXPECT_EQ(layout.bytes, 2 * round_up(static_cast<std::size_t>(tokens) * (72 + 64) * 2, 64));
    EXPECT_FALSE(layout.heads[0].key.format.quantized());
  }
}

TEST(PageLayout, ValuesInKeysTakeNothing) {
  const LayerShape shape = LayerShape::latent(64, 16);
  const PageLayout layout = PageLayout::make(shape, {resolved("k4", shape, 64)}, 64);
  EXPECT_EQ(layout.bytes, 64u * 80 / 2 + 80 * 4);
  EXPECT_DOUBLE_EQ(layout.page_bits(shape), 4.5);
  EXPECT_EQ(PageLayout::make_half(shape, 48).bytes, 48u * 80 * 2);
  for (const std::string name : {"k4", "k3t", "k16"}) {
    const HeadLayout head = head_layout(resolved(name, shape, 64), 80, 64, 64, 0);
    EXPECT_TRUE(head.values_in_keys());
    EXPECT_FALSE(head.value.format.quantized());
    EXPECT_EQ(head.value.matrix.outer, 0);
    EXPECT_EQ(head.value.end(), head.key.end());
  }
}

TEST(PageLayout, LayersWithoutCacheTakeNothing) {
  const PageLayout layout = PageLayout::make(LayerShape{}, {Recipe{}}, 64);
  EXPECT_EQ(layout.bytes, 0u);
  EXPECT_EQ(layout.page_bits(LayerShape{}), 0.0);
}

TEST(Layout, IsUsableInConstantExpressions) {
  constexpr Recipe recipe{{4, Granularity::PerChannel, 64, RangeRule::MinMse},
                          {2, Granularity::PerToken, 128, RangeRule::MinMse}};
  static_assert(head_layout(recipe, 128, 128, 64, 0).bytes() == 108 * 64);
}

}  // namespace
}  // namespace kvtilt
