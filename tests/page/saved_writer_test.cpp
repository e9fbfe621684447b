// SPDX-License-Identifier: MIT
#include <kvtilt/page/saved_writer.hpp>
#include <kvtilt/quant/plan.hpp>
#include <kvtilt/quant/presets.hpp>

#include "support/cache_bytes.hpp"
#include "support/saved_images.hpp"

#include <gtest/gtest.h>

#include <cstddef>
#include <vector>

namespace kvtilt {
namespace {

TEST(SavedWriter, CountsWithoutAnImageWhatItWritesIntoOne) {
  const LayerShape shape{2, 16, 24, 0};
  const LayerLayouts layouts = make_layer_layouts(
      shape, resolve_plan(Plan{{{presets::k4v4}}}, {{shape}}, 32)->recipes[0], 32, 4);
  const TokenPlacement placement{32, 4, 16};
  SavedLayer layer;
  layer.pages = 5;
  layer.tail_start = 4 + 5 * 32;
  const auto write = [&](std::span<std::byte> image) {
    SavedWriter writer(image, 3, 170, placement, 7);
    writer.skip_layer();
    const SavedPlaces places = writer.add_layer(shape, layouts, layer, [](std::int32_t i) {
      return SavedPage{4 + std::int64_t{i} * 32, 32};
    });
    writer.skip_layer();
    if (!image.empty()) writer.finish(saved_sum(image, places.first_block(), places.end));
    return writer.bytes();
  };
  std::vector<std::byte> image(write({}), std::byte{0xff});
  ASSERT_EQ(write(image), image.size());
  const SavedHeader header = test::read_at<SavedHeader>(image, 0);
  EXPECT_EQ(header.bytes, image.size());
  EXPECT_EQ(header.fingerprint, 7u);
  EXPECT_EQ(header.checksum, saved_checksum(image));
  EXPECT_EQ(test::read_at<SavedLayer>(image, 64).kv_heads, 0);
  const SavedLayer second = test::read_at<SavedLayer>(image, 128);
  EXPECT_EQ(second.value_dim, 24);
  const SavedPlaces places(header, second, layouts);
  EXPECT_EQ(test::read_at<SavedPage>(image, places.pages + 3 * 16).first_position, 100);
  EXPECT_EQ(test::read_at<SavedLayer>(image, 192).offset, places.end);
  for (std::size_t i = places.pages + 5 * 16; i < places.block(PageKind::Sinks, 0); ++i)
    EXPECT_EQ(image[i], std::byte{0}) << "padding of the tables";
}

TEST(SavedWriter, ClearsUnusedSlotsAndNothingElse) {
  for (const int slots : {16, 32}) {
    const LayerShape shape{2, 24, 8, 0};
    const PageLayout half = PageLayout::make_half(shape, slots);
    std::vector<std::byte> block(half.bytes, std::byte{0xff});
    clear_unused_slots(half, 5, block.data());
    for (const HeadLayout& head : half.heads)
      for (int slot = 0; slot < slots; ++slot) {
        const std::uint16_t expected = slot < 5 ? 0xffff : 0;
        const std::byte* own = block.data() + head.offset;
        for (int c = 0; c < 24; ++c)
          EXPECT_EQ(test::detail::half_at(head.key, own, slot, c), expected);
        for (int c = 0; c < 8; ++c)
          EXPECT_EQ(test::detail::half_at(head.value, own, c, slot), expected);
      }
  }
}

}  // namespace
}  // namespace kvtilt
