// SPDX-License-Identifier: MIT
/// Images that are no saved sequence, another cache's, damaged, or forged with a valid checksum.
#include <kvtilt/cache/saved_reader.hpp>

#include "support/caches.hpp"
#include "support/saved_images.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <string>
#include <vector>

namespace kvtilt {
namespace {

using test::forged;
using test::Random;
using test::random_rows;
using test::Rows;
using testing::HasSubstr;

/// Two layers; the window of the second has freed a page.
class SavedReaderHostile : public testing::Test {
 protected:
  static CacheShape shape() {
    CacheShape shape = CacheShape::uniform(2, 2, 32);
    shape.layers[1].window = 40;
    return shape;
  }
  static CacheOptions options() {
    CacheOptions options;
    options.page_tokens = 32;
    options.recent_tokens = 16;
    return options;
  }
  static KVCache make(const CacheShape& shape, const Recipe& recipe, const CacheOptions& options) {
    return test::make_cache(shape, Plan::uniform(shape, recipe), options);
  }
  static KVCache make() { return make(shape(), presets::k4v2, options()); }

  SavedReaderHostile() {
    Random random(1);
    const Rows<float> rows = random_rows(random, 150, 2, 32);
    const SequenceId id = test::open_reserved(cache_, 150);
    for (int layer = 0; layer < 2; ++layer)
      KVTILT_EXPECT_OK(cache_.append(id, layer, rows.view(), rows.view()));
    image_ = test::saved(cache_, id);
  }

  /// load() fails with this code and these words, and allocates nothing.
  void expect_refused(const std::vector<std::byte>& image, ErrorCode code, const char* words) {
    expect_refused(cache_, image, code, words);
  }
  static void expect_refused(KVCache& cache, const std::vector<std::byte>& image, ErrorCode code,
                             const char* words) {
    const std::size_t before = cache.memory().reserved_bytes;
    const Result<SequenceId> loaded = cache.load(image);
    EXPECT_EQ(loaded.code(), code) << words;
    EXPECT_THAT(std::string(loaded.message()), HasSubstr(words));
    EXPECT_EQ(cache.memory().reserved_bytes, before);
  }
  /// Forges a field of the header; below, one of layer `layer`.
  template <class T>
  void expect_forgery_refused(std::size_t offset, T value, const char* words) {
    expect_refused(forged(image_, offset, value), ErrorCode::Corrupt, words);
  }
  template <class T>
  void expect_layer_refused(int layer, std::size_t offset, T value, const char* words) {
    expect_forgery_refused(64 + static_cast<std::size_t>(layer) * 64 + offset, value, words);
  }

  KVCache cache_ = make();
  std::vector<std::byte> image_;
};

TEST_F(SavedReaderHostile, TooFewBytesOrForeignOnes) {
  expect_refused({}, ErrorCode::Corrupt, "0 bytes are no saved sequence");
  expect_refused({image_.begin(), image_.begin() + 63}, ErrorCode::Corrupt, "63 bytes");
  expect_refused({image_.begin(), image_.begin() + 128}, ErrorCode::Corrupt, "there are 128");
  expect_refused({image_.begin(), image_.end() - 64}, ErrorCode::Corrupt, "by its header");
  std::vector<std::byte> longer = image_;
  longer.resize(longer.size() + 64);
  expect_refused(longer, ErrorCode::Corrupt, "by its header");
  expect_refused(std::vector<std::byte>(4096, std::byte{0x20}), ErrorCode::Corrupt,
                 "start otherwise");
  expect_refused(forged(image_, offsetof(SavedHeader, version), 2u), ErrorCode::Unsupported,
                 "version 2");
}

TEST_F(SavedReaderHostile, DamageAnywhereIsFound) {
  for (std::size_t i = 0; i < image_.size(); i += 1 + image_.size() / 997) {
    std::vector<std::byte> damaged = image_;
    damaged[i] ^= std::byte{0x10};
    EXPECT_EQ(cache_.load(damaged).code() == ErrorCode::Unsupported, i >= 8 && i < 12);
    EXPECT_FALSE(cache_.load(damaged).ok()) << "byte " << i;
  }
}

TEST_F(SavedReaderHostile, AnotherCacheIsNamed) {
  const auto expect = [&](const CacheShape& shape, const Recipe& recipe,
                          const CacheOptions& options, const char* words) {
    KVCache other = make(shape, recipe, options);
    expect_refused(other, image_, ErrorCode::InvalidArgument, words);
  };
  CacheShape other = shape();
  other.layers.pop_back();
  expect(other, presets::k4v2, options(), "the number of layers is 2 there, 1 here");
  other = shape();
  other.layers[1].window = 41;
  expect(other, presets::k4v2, options(), "layer 1: window is 40 there, 41 here");
  other = shape();
  other.layers[0] = {};
  expect(other, presets::k4v2, options(), "layer 0: kv_heads is 2 there, 0 here");
  other = shape();
  other.layers[0].value_dim = 40;
  expect(other, presets::k4v2, options(), "layer 0: value_dim is 32 there, 40 here");
  expect(shape(), presets::k4v4, options(), "values have 2 bits per token");
  expect(
      shape(), parse_recipe("k4v2:g16,32").value(), options(),
      "keys have 4 bits per channel in groups of 32 by rule 1 there, 4 bits per channel in groups "
      "of 16");
  CacheOptions changed = options();
  changed.page_tokens = 64;
  expect(shape(), presets::k4v2, changed, "page_tokens is 32 there, 64 here");
  changed = options();
  changed.sink_tokens = 5;
  expect(shape(), presets::k4v2, changed, "sink_tokens is 4 there, 5 here");
  changed = options();
  changed.recent_tokens = 17;
  expect(shape(), presets::k4v2, changed, "recent_tokens is 16 there, 17 here");
}

TEST_F(SavedReaderHostile, ForgedNumbersAreRefused) {
  constexpr auto least = std::numeric_limits<std::int64_t>::min();
  constexpr auto most = std::numeric_limits<std::int64_t>::max();
  const std::size_t length = offsetof(SavedHeader, length);
  expect_forgery_refused(length, std::int64_t{-1}, "its length");
  expect_forgery_refused(length, most, "its length");
  expect_forgery_refused(length, std::int64_t{100}, "its tail starts elsewhere");
  expect_forgery_refused(length, std::int64_t{200}, "its tail is too long");
  expect_forgery_refused(length, std::int64_t{3}, "its tail starts elsewhere");
  expect_forgery_refused(offsetof(SavedHeader, reserved), 1, "reserved");
  const std::size_t tail_start = offsetof(SavedLayer, tail_start);
  for (const std::int64_t at : {least, std::int64_t{-1}, std::int64_t{3}, std::int64_t{151}, most})
    expect_layer_refused(0, tail_start, at, "its tail starts elsewhere");
  expect_layer_refused(0, offsetof(SavedLayer, first_kept), std::int64_t{36}, "window has freed");
  for (const std::int64_t at : {least, std::int64_t{-1}, std::int64_t{150}, most})
    expect_layer_refused(1, offsetof(SavedLayer, first_kept), at, "window has freed");
  for (const std::int32_t pages :
       {std::numeric_limits<std::int32_t>::min(), -1, std::numeric_limits<std::int32_t>::max()})
    expect_layer_refused(0, offsetof(SavedLayer, pages), pages, "too many pages");
  expect_layer_refused(0, offsetof(SavedLayer, pages), 100, "does not fit");
  expect_layer_refused(1, offsetof(SavedLayer, pages), 0, "behind its last layer");
  expect_layer_refused(1, offsetof(SavedLayer, offset), std::uint64_t{0}, "lies elsewhere");
  expect_layer_refused(1, offsetof(SavedLayer, reserved), std::int64_t{1}, "lies elsewhere");
}

TEST_F(SavedReaderHostile, ALayerWithoutACacheSaysNothing) {
  CacheShape shape = CacheShape::uniform(2, 2, 32);
  shape.layers[0] = {};
  KVCache cache = make(shape, presets::k4v2, options());
  const std::vector<std::byte> image = test::saved(cache, test::open_reserved(cache, 10));
  EXPECT_TRUE(cache.load(image).ok());
  for (const std::size_t offset : {offsetof(SavedLayer, window), offsetof(SavedLayer, tail_start)})
    expect_refused(cache, forged(image, 64 + offset, 1), ErrorCode::Corrupt,
                   "a layer without a cache has numbers");
}

TEST_F(SavedReaderHostile, ForgedPagesAreRefused) {
  const SavedLayer first = test::read_at<SavedLayer>(image_, 64);
  ASSERT_EQ(first.pages, 4);
  const std::size_t pages = first.offset + 2 * sizeof(SavedRecipe);
  const auto expect = [&](int page, SavedPage record) {
    expect_forgery_refused(pages + static_cast<std::size_t>(page) * sizeof record, record,
                           "out of place");
  };
  expect(0, {3, 32});    // begins in the sinks
  expect(0, {4, 33});    // too long, and overlaps the next
  expect(0, {4, 0});     // no tokens
  expect(0, {5, 32});    // overlaps the next
  expect(1, {35, 32});   // overlaps the previous
  expect(3, {101, 32});  // overlaps the tail
  expect(3, {std::numeric_limits<std::int64_t>::max(), 32});
  expect(1, {36, std::numeric_limits<std::int32_t>::min()});
  expect(1, {36, 32, 1});
  const SavedLayer second = test::read_at<SavedLayer>(image_, 128);
  ASSERT_GT(second.first_kept, 4);
  expect_forgery_refused(second.offset + 2 * sizeof(SavedRecipe), SavedPage{4, 32},
                         "out of place");  // the window has freed it
}

TEST_F(SavedReaderHostile, ForgedRecipesAreNamedOrRefused) {
  const SavedLayer first = test::read_at<SavedLayer>(image_, 64);
  const SavedRecipe recipe = test::read_at<SavedRecipe>(image_, first.offset);
  EXPECT_EQ(recipe, (SavedRecipe{{4, 0, 1, 0, 32}, {2, 1, 1, 0, 32}}));  // k4v2, head by head
  SavedRecipe other = recipe;
  other.value.rule = 0;
  expect_refused(
      forged(image_, first.offset, other), ErrorCode::InvalidArgument,
      "values have 2 bits per token in groups of 32 by rule 0 there, 2 bits per token in "
      "groups of 32 by rule 1 here");
  other = recipe;
  other.key.reserved = 1;
  expect_forgery_refused(first.offset, other, "reserved");
}

TEST_F(SavedReaderHostile, ForgedValuesAreRefused) {
  for (const std::size_t layer : {0, 1}) {
    const SavedHeader header = test::read_at<SavedHeader>(image_, 0);
    const SavedLayer own = test::read_at<SavedLayer>(image_, 64 + layer * 64);
    const LayerLayouts layouts = make_layer_layouts(
        shape().layers[layer],
        resolve_plan(Plan::uniform(shape(), presets::k4v2), shape(), 32)->recipes[layer], 32, 4);
    const SavedPlaces places(header, own, layouts);
    for (const PageKind kind : {PageKind::Sinks, PageKind::Sealed, PageKind::Tail}) {
      const std::uint64_t last = places.block(kind, places.count(kind) - 1);
      const HeadLayout& head = layouts[static_cast<std::size_t>(kind)].heads[1];
      for (const TensorLayout* tensor : {&head.key, &head.value}) {
        const std::uint32_t at = kind == PageKind::Sealed ? tensor->metadata : tensor->codes;
        for (const std::uint16_t bits :
             std::initializer_list<std::uint16_t>{0x7c00, 0xfc00, 0x7e00, 0xffff})
          expect_forgery_refused(last + head.offset + at, bits, "was forged");
        const Result<SequenceId> largest =
            cache_.load(forged(image_, last + head.offset + at, std::uint16_t{0xfbff}));
        ASSERT_TRUE(largest.ok());
        KVTILT_EXPECT_OK(cache_.close(*largest));
      }
    }
  }
}

TEST_F(SavedReaderHostile, ShorterPagesAndHolesAreNotForged) {
  const std::size_t pages = test::read_at<SavedLayer>(image_, 64).offset + 2 * sizeof(SavedRecipe);
  EXPECT_TRUE(cache_.load(forged(image_, pages, SavedPage{4, 20})).ok());
}

}  // namespace
}  // namespace kvtilt
