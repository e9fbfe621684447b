// SPDX-License-Identifier: MIT
/// Images that are no saved sequence, another cache's, damaged, or forged with a valid checksum.
#include <kvtilt/page/saved_reader.hpp>
#include <kvtilt/page/saved_writer.hpp>
#include <kvtilt/quant/plan.hpp>
#include <kvtilt/quant/presets.hpp>
#include <kvtilt/quant/recipe.hpp>

#include "support/saved_images.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace kvtilt {
namespace {

using test::forged;
using testing::HasSubstr;

/// What a cache says of a layer.
struct Layer {
  LayerShape shape;
  LayerLayouts layouts;
};

std::vector<Layer> layers_of(const CacheShape& shape, const Recipe& recipe,
                             const TokenPlacement& placement) {
  const Plan plan =
      resolve_plan(Plan::uniform(shape, recipe), shape, placement.page_tokens).value();
  std::vector<Layer> layers;
  for (std::size_t layer = 0; layer < shape.layers.size(); ++layer)
    layers.push_back(
        {shape.layers[layer], make_layer_layouts(shape.layers[layer], plan.recipes[layer],
                                                 placement.page_tokens, placement.sink_tokens)});
  return layers;
}

constexpr std::uint64_t fingerprint = 0xfedcba9876543210u;

/// A sequence of `length` tokens, all zeros.
std::vector<std::byte> zeros_saved(const std::vector<Layer>& layers,
                                   const TokenPlacement& placement, std::int64_t length) {
  const auto write = [&](std::span<std::byte> image) {
    SavedWriter writer(image, static_cast<int>(layers.size()), length, placement, fingerprint);
    std::uint64_t blocks = 0;
    for (const Layer& layer : layers) {
      if (layer.shape.kv_heads == 0) {
        writer.skip_layer();
        continue;
      }
      TokenPlacement own = placement;
      own.window = layer.shape.window;
      SavedLayer saved;
      saved.pages = static_cast<std::int32_t>(own.counts_at(length).pages);
      saved.tail_start = own.sink_tokens + own.seals(own.sink_tokens, length) * own.page_tokens;
      const std::int64_t first = saved.tail_start - std::int64_t{saved.pages} * own.page_tokens;
      if (first > own.sink_tokens) saved.first_kept = first;
      const SavedPlaces places =
          writer.add_layer(layer.shape, layer.layouts, saved, [&](std::int32_t i) {
            return SavedPage{first + std::int64_t{i} * own.page_tokens, own.page_tokens};
          });
      if (!image.empty()) blocks += saved_sum(image, places.first_block(), places.end);
    }
    if (!image.empty()) writer.finish(blocks);
    return writer.bytes();
  };
  std::vector<std::byte> image(write({}));
  write(image);
  return image;
}

/// The checks of a cache that loads an image.
Status check(const std::vector<std::byte>& image, const std::vector<Layer>& layers,
             const TokenPlacement& placement) {
  Result<SavedReader> reader = SavedReader::open(image);
  if (!reader) return std::move(reader).take_status();
  KVTILT_RETURN_IF_ERROR(reader->verify_checksum());
  KVTILT_RETURN_IF_ERROR(reader->check_tables(layers, placement, fingerprint));
  return reader->check_values(layers);
}

/// Two layers; the window of the second has freed two pages.
class SavedReaderHostile : public testing::Test {
 protected:
  static CacheShape shape() {
    CacheShape shape = CacheShape::uniform(2, 2, 32);
    shape.layers[1].window = 40;
    return shape;
  }
  static constexpr TokenPlacement placement{32, 4, 16};

  [[nodiscard]] Status check(const std::vector<std::byte>& image) const {
    return kvtilt::check(image, layers_, placement);
  }
  /// The image is refused with this code and these words.
  void expect_refused(const std::vector<std::byte>& image, ErrorCode code, const char* words) {
    expect_refused(image, layers_, placement, code, words);
  }
  static void expect_refused(const std::vector<std::byte>& image, const std::vector<Layer>& layers,
                             const TokenPlacement& placement, ErrorCode code, const char* words) {
    const Status status = kvtilt::check(image, layers, placement);
    EXPECT_EQ(status.code(), code) << words;
    EXPECT_THAT(std::string(status.message()), HasSubstr(words));
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

  const std::vector<Layer> layers_ = layers_of(shape(), presets::k4v2, placement);
  const std::vector<std::byte> image_ = zeros_saved(layers_, placement, 150);
};

TEST_F(SavedReaderHostile, ASequenceIsAcceptedAsItWasWritten) {
  const Status status = check(image_);
  EXPECT_TRUE(status.ok()) << status.message();
}

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
    EXPECT_EQ(check(damaged).code() == ErrorCode::Unsupported, i >= 8 && i < 12);
    EXPECT_FALSE(check(damaged).ok()) << "byte " << i;
  }
}

TEST_F(SavedReaderHostile, AnotherCacheIsNamed) {
  const auto expect = [&](const CacheShape& shape, const Recipe& recipe, const TokenPlacement& own,
                          const char* words) {
    expect_refused(image_, layers_of(shape, recipe, own), own, ErrorCode::InvalidArgument, words);
  };
  CacheShape other = shape();
  other.layers.pop_back();
  expect(other, presets::k4v2, placement, "the number of layers is 2 there, 1 here");
  other = shape();
  other.layers[1].window = 41;
  expect(other, presets::k4v2, placement, "layer 1: window is 40 there, 41 here");
  other = shape();
  other.layers[0] = {};
  expect(other, presets::k4v2, placement, "layer 0: kv_heads is 2 there, 0 here");
  other = shape();
  other.layers[0].value_dim = 40;
  expect(other, presets::k4v2, placement, "layer 0: value_dim is 32 there, 40 here");
  other = shape();
  for (LayerShape& layer : other.layers) layer.values_in_keys = true;
  expect(other, parse_recipe("k4").value(), placement,
         "layer 0: values_in_keys is 0 there, 1 here");
  expect(shape(), presets::k4v4, placement, "values have 2 bits per token");
  expect(shape(), parse_recipe("k4v2:g16,32").value(), placement,
         "keys have 4 bits per channel in groups of 32 by rule min-mse there, 4 bits per channel "
         "in groups of 16");
  TokenPlacement changed = placement;
  changed.page_tokens = 64;
  expect(shape(), presets::k4v2, changed, "page_tokens is 32 there, 64 here");
  changed = placement;
  changed.sink_tokens = 5;
  expect(shape(), presets::k4v2, changed, "sink_tokens is 4 there, 5 here");
  changed = placement;
  changed.recent_tokens = 17;
  expect(shape(), presets::k4v2, changed, "recent_tokens is 16 there, 17 here");
  expect_refused(
      forged(image_, offsetof(SavedHeader, fingerprint), std::uint64_t{0}),
      ErrorCode::InvalidArgument,
      "of another model: the fingerprint is 0000000000000000 there, fedcba9876543210 here");
}

TEST_F(SavedReaderHostile, ForgedNumbersAreRefused) {
  constexpr auto least = std::numeric_limits<std::int64_t>::min();
  constexpr auto most = std::numeric_limits<std::int64_t>::max();
  const std::size_t length = offsetof(SavedHeader, length);
  expect_forgery_refused(length, std::int64_t{-1}, "its length");
  expect_forgery_refused(length, most, "its length");
  expect_forgery_refused(length, std::int64_t{100}, "its tail starts elsewhere");
  expect_forgery_refused(length, std::int64_t{200}, "its tail is too long");
  expect_forgery_refused(length, std::int64_t{132 + 16 + 32}, "its tail is too long");
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
  for (const std::size_t word : {0, 1, 2})
    expect_layer_refused(1, offsetof(SavedLayer, reserved) + 4 * word, 1, "lies elsewhere");
}

TEST_F(SavedReaderHostile, ALayerWithoutACacheSaysNothing) {
  CacheShape shape = CacheShape::uniform(2, 2, 32);
  shape.layers[0] = {};
  const std::vector<Layer> layers = layers_of(shape, presets::k4v2, placement);
  const std::vector<std::byte> image = zeros_saved(layers, placement, 10);
  EXPECT_TRUE(kvtilt::check(image, layers, placement).ok());
  for (const std::size_t offset : {offsetof(SavedLayer, window), offsetof(SavedLayer, tail_start)})
    expect_refused(forged(image, 64 + offset, 1), layers, placement, ErrorCode::Corrupt,
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
      "values have 2 bits per token in groups of 32 by rule min-max there, 2 bits per token in "
      "groups of 32 by rule min-mse here");
  other = recipe;
  other.key.reserved = 1;
  expect_forgery_refused(first.offset, other, "reserved");
}

TEST_F(SavedReaderHostile, ForgedValuesAreRefused) {
  for (const std::size_t layer : {0, 1}) {
    const SavedHeader header = test::read_at<SavedHeader>(image_, 0);
    const SavedLayer own = test::read_at<SavedLayer>(image_, 64 + layer * 64);
    const LayerLayouts& layouts = layers_[layer].layouts;
    const SavedPlaces places(header, own, layouts);
    for (const PageKind kind : {PageKind::Sinks, PageKind::Sealed, PageKind::Tail}) {
      const std::uint64_t last = places.block(kind, places.count(kind) - 1);
      const HeadLayout& head = layouts[static_cast<std::size_t>(kind)].heads[1];
      for (const TensorLayout* tensor : {&head.key, &head.value}) {
        const std::uint32_t at = kind == PageKind::Sealed ? tensor->metadata : tensor->codes;
        for (const std::uint16_t bits :
             std::initializer_list<std::uint16_t>{0x7c00, 0xfc00, 0x7e00, 0xffff})
          expect_forgery_refused(last + head.offset + at, bits, "was forged");
        EXPECT_TRUE(check(forged(image_, last + head.offset + at, std::uint16_t{0xfbff})).ok());
      }
    }
  }
}

TEST_F(SavedReaderHostile, OneBitLayersHoldSmallerNumbersInTheirTail) {
  const std::vector<Layer> layers = layers_of(shape(), parse_recipe("k1v1").value(), placement);
  const std::vector<std::byte> image = zeros_saved(layers, placement, 150);
  const SavedPlaces places(test::read_at<SavedHeader>(image, 0),
                           test::read_at<SavedLayer>(image, 64), layers[0].layouts);
  const std::size_t at = places.block(PageKind::Tail, 0);
  for (const std::uint16_t most : std::initializer_list<std::uint16_t>{0x77ff, 0xf7ff}) {  // 32752
    EXPECT_TRUE(kvtilt::check(forged(image, at, most), layers, placement).ok());
    expect_refused(forged(image, at, static_cast<std::uint16_t>(most + 1)), layers, placement,
                   ErrorCode::Corrupt, "was forged");
  }
}

TEST_F(SavedReaderHostile, ShorterPagesAndHolesAreNotForged) {
  const std::size_t pages = test::read_at<SavedLayer>(image_, 64).offset + 2 * sizeof(SavedRecipe);
  EXPECT_TRUE(check(forged(image_, pages, SavedPage{4, 20})).ok());
}

}  // namespace
}  // namespace kvtilt
