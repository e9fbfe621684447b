// SPDX-License-Identifier: MIT
#include <kvtilt/page/saved_sequence.hpp>

#include "support/caches.hpp"
#include "support/golden_file.hpp"

#include <gtest/gtest.h>

#include <cstddef>
#include <fstream>
#include <iterator>
#include <vector>

namespace kvtilt {
namespace {

using test::Rows;

// tests/golden/make_saved.py is written from the documentation alone.
TEST(SavedSequence, IsTheFileThatIsWrittenFromTheDescription) {
  std::ifstream file(test::golden_file("saved.bin"), std::ios::binary);
  const std::vector<char> golden(std::istreambuf_iterator<char>(file), {});
  const CacheShape shape{{{1, 8, 16, 0}, {1, 8, 16, 40}}};
  CacheOptions options;
  options.page_tokens = 32;
  options.sink_tokens = 2;
  options.recent_tokens = 20;
  options.fingerprint = 0x0123456789abcdef;
  KVCache cache = test::make_cache(shape, Plan::uniform(shape, presets::k16v16), options);
  const SequenceId id = test::open_reserved(cache, 70);
  for (int layer = 0; layer < 2; ++layer) {
    Rows<float> keys(70, 1, 8);
    Rows<float> values(70, 1, 16);
    for (int token = 0; token < 70; ++token)
      for (int channel = 0; channel < 16; ++channel) {
        const float x =
            static_cast<float>(100 * layer + token) + static_cast<float>(channel) / 64.0f;
        values.at(token, 0, channel) = -x;
        if (channel < 8) keys.at(token, 0, channel) = x;
      }
    KVTILT_EXPECT_OK(cache.append(id, layer, keys.view(), values.view()));
  }
  KVTILT_EXPECT_OK(cache.truncate(id, 60));
  const std::vector<std::byte> image = test::saved(cache, id);
  ASSERT_EQ(image.size(), golden.size());
  EXPECT_EQ(std::memcmp(image.data(), golden.data(), golden.size()), 0);
  EXPECT_TRUE(cache.load(std::as_bytes(std::span(golden))).ok());
}

TEST(SavedSequence, ChecksumFindsEveryBit) {
  std::vector<std::byte> image(192);
  for (std::size_t i = 0; i < image.size(); ++i) image[i] = static_cast<std::byte>(i * 37 % 256);
  const std::uint64_t whole = saved_checksum(image);
  for (std::size_t bit = 0; bit < 8 * image.size(); ++bit) {
    std::vector<std::byte> damaged = image;
    damaged[bit / 8] ^= static_cast<std::byte>(1 << bit % 8);
    const bool own = bit / 64 == offsetof(SavedHeader, checksum) / 8;
    EXPECT_EQ(saved_checksum(damaged) == whole, own) << "bit " << bit;
  }
}

TEST(SavedSequence, ChecksumKnowsWhereAWordStands) {
  std::vector<std::byte> image(192);
  image[64] = std::byte{1};
  std::vector<std::byte> moved(192);
  moved[72] = std::byte{1};
  EXPECT_NE(saved_checksum(image), saved_checksum(moved));
}

TEST(SavedSequence, PlacesFollowEachOtherInWholeLines) {
  const LayerShape shape{3, 64, 32, 0};
  const LayerLayouts layouts = make_layer_layouts(
      shape, resolve_plan(Plan{{{presets::k4v2}}}, {{shape}}, 64)->recipes[0], 64, 4);
  SavedHeader header;
  header.page_tokens = 64;
  header.length = 300;
  SavedLayer layer;
  layer.kv_heads = 3;
  layer.pages = 2;
  layer.tail_start = 132;
  layer.offset = 256;
  const SavedPlaces places(header, layer, layouts);
  EXPECT_EQ(places.recipes, 256u);
  EXPECT_EQ(places.pages, 256u + 3 * 16);
  EXPECT_EQ(places.block(PageKind::Sinks, 0), 384u);  // after 80 bytes of tables
  EXPECT_EQ(places.block(PageKind::Sealed, 0), 384u + 3 * 16 * (64 + 32) * 2);
  EXPECT_EQ(places.block(PageKind::Sealed, 1) - places.block(PageKind::Sealed, 0),
            layouts[static_cast<int>(PageKind::Sealed)].bytes);
  EXPECT_EQ(places.count(PageKind::Tail), 3);  // for 168 tokens
  EXPECT_EQ(places.end - places.block(PageKind::Tail, 0), 3u * 64 * 3 * (64 + 32) * 2);
}

}  // namespace
}  // namespace kvtilt
