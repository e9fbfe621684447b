// SPDX-License-Identifier: MIT
#include <kvtilt/cpu/layer_view.hpp>

#include <gtest/gtest.h>

#include <type_traits>
#include <vector>

namespace kvtilt {
namespace {

constexpr Recipe four_bits{{4, Granularity::PerChannel, 64, RangeRule::MinMse},
                           {4, Granularity::PerToken, 64, RangeRule::MinMse}};

struct View {
  LayerShape shape{2, 64, 64, 0};
  PageLayout half = PageLayout::make_half(shape, 64);
  PageLayout sealed;
  std::vector<PageEntry> pages;
  LayerView view;

  View(const std::vector<Recipe>& recipes, std::vector<PageEntry> entries)
      : sealed(PageLayout::make(shape, recipes, 64)), pages(std::move(entries)) {
    view.shape = shape;
    view.heads[static_cast<int>(PageKind::Sinks)] = half.heads.data();
    view.heads[static_cast<int>(PageKind::Sealed)] = sealed.heads.data();
    view.heads[static_cast<int>(PageKind::Tail)] = half.heads.data();
    view.pages = pages.data();
    view.page_count = static_cast<std::int32_t>(pages.size());
  }
};

const PageEntry sinks{nullptr, 0, 4, PageKind::Sinks};
const PageEntry sealed_page{nullptr, 4, 64, PageKind::Sealed};
const PageEntry tail{nullptr, 68, 10, PageKind::Tail};

TEST(LayerView, FindsTheLayoutOfAPage) {
  const View v({four_bits, Recipe{}}, {});
  EXPECT_EQ(v.view.head(PageKind::Sealed, 0).key.format.bits, 4);
  EXPECT_EQ(v.view.head(PageKind::Sealed, 1).key.format.bits, 16);
  EXPECT_EQ(v.view.head(PageKind::Tail, 1).value.format.bits, 16);
  EXPECT_EQ(v.view.head(PageKind::Sealed, 1).offset, v.sealed.heads[0].bytes());
}

TEST(LayerView, TouchesCodesOnlyInSealedQuantizedPages) {
  EXPECT_FALSE(View({four_bits}, {}).view.touches_codes());
  EXPECT_FALSE(View({four_bits}, {sinks, tail}).view.touches_codes());
  EXPECT_TRUE(View({four_bits}, {sinks, sealed_page, tail}).view.touches_codes());
  EXPECT_FALSE(View({Recipe{}}, {sinks, sealed_page, tail}).view.touches_codes());
  EXPECT_TRUE(View({Recipe{}, four_bits}, {sealed_page}).view.touches_codes());
  EXPECT_TRUE(View({{Format{}, four_bits.value}}, {sealed_page}).view.touches_codes());
  EXPECT_TRUE(View({{four_bits.key, Format{}}}, {sealed_page}).view.touches_codes());
}

TEST(LayerView, IsPlainData) {
  static_assert(std::is_trivially_copyable_v<LayerView> && std::is_trivially_copyable_v<PageEntry>);
  static_assert(page_kinds == 3 && static_cast<int>(PageKind::Tail) == page_kinds - 1);
  const LayerView empty;
  EXPECT_EQ(empty.page_count, 0);
  EXPECT_EQ(empty.kernels, nullptr);
  EXPECT_FALSE(empty.touches_codes());
}

}  // namespace
}  // namespace kvtilt
