// SPDX-License-Identifier: MIT
#include <kvtilt/page/layer_layouts.hpp>

#include <gtest/gtest.h>

#include <cstddef>

namespace kvtilt {
namespace {

TEST(LayerLayouts, KindsOfPagesHaveLayoutsOfTheirOwn) {
  constexpr Recipe four_bits{{4, Granularity::PerChannel, 64, RangeRule::MinMse},
                             {4, Granularity::PerToken, 64, RangeRule::MinMse}};
  const LayerShape shape{2, 64, 64, 0};
  const LayerLayouts layouts = make_layer_layouts(shape, {four_bits}, 64, 4);
  const auto of = [&](PageKind kind) { return layouts[static_cast<std::size_t>(kind)]; };
  EXPECT_EQ(of(PageKind::Sinks).tokens, 16) << "whole lines";
  EXPECT_EQ(of(PageKind::Sealed).tokens, 64);
  EXPECT_EQ(of(PageKind::Tail).tokens, 64);
  EXPECT_EQ(of(PageKind::Sealed).heads[1].key.format.bits, 4);
  EXPECT_EQ(of(PageKind::Sinks).heads[1].value.format.bits, 16);
  EXPECT_EQ(of(PageKind::Tail).heads[1].key.format.bits, 16);
}

}  // namespace
}  // namespace kvtilt
