// SPDX-License-Identifier: MIT
#include <kvtilt/cache/layer_store.hpp>

#include "support/aligned_memory.hpp"
#include "support/caches.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <set>
#include <string>
#include <vector>

namespace kvtilt {
namespace {

using test::AlignedMemory;
using test::Random;
using test::random_rows;
using test::Rows;
using testing::HasSubstr;

LayerStore make_store(const LayerShape& shape, const std::vector<std::string>& recipes,
                      const TokenPlacement& placement) {
  std::vector<Recipe> resolved;
  for (const std::string& name : recipes)
    resolved.push_back(
        resolve_recipe(parse_recipe(name).value(), shape, placement.page_tokens).value());
  return LayerStore::make(shape, resolved, placement);
}

TEST(LayerStore, HasALayoutForEveryKindOfPage) {
  const LayerStore store = make_store({2, 64, 32, 0}, {"k4v2"}, {64, 5, 128});
  EXPECT_EQ(store.layout(PageKind::Sinks).tokens, 16);  // rounded up to whole lines
  EXPECT_EQ(store.layout(PageKind::Tail).tokens, 64);
  EXPECT_EQ(store.layout(PageKind::Sealed).tokens, 64);
  EXPECT_EQ(store.layout(PageKind::Sinks).bytes, 2u * 16 * (64 + 32) * 2);
  EXPECT_EQ(store.layout(PageKind::Tail).bytes, 2u * 64 * (64 + 32) * 2);
  // Keys: 64 x 64 / 2 bytes and 64 groups; values: 32 x 64 / 4 and 64 groups.
  EXPECT_EQ(store.layout(PageKind::Sealed).bytes, 2u * (2048 + 256 + 512 + 256));
  EXPECT_FALSE(store.layout(PageKind::Tail).heads[0].key.format.quantized());
  EXPECT_EQ(store.layout(PageKind::Sealed).heads[1].key.format.bits, 4);
  EXPECT_EQ(store.layout(PageKind::Sealed).heads[1].value.format.bits, 2);
}

TEST(LayerStore, ALayerWithoutHeadsTakesNoBytes) {
  const LayerStore store = LayerStore::make({}, {}, {64, 4, 128});
  for (const PageLayout& layout : store.layouts) EXPECT_EQ(layout.bytes, 0u);
}

TEST(LayerStore, TokensAreWrittenWhereTheLayoutSays) {
  const LayerShape shape{2, 24, 40, 0};
  const LayerStore store = make_store(shape, {"k4v2"}, {32, 0, 0});
  Random random(1);
  const Rows<float> keys = random_rows(random, 3, 2, 24);
  const Rows<float> values = random_rows(random, 3, 2, 40);
  for (const Isa isa : test::usable_isas()) {
    AlignedMemory block(store.layout(PageKind::Tail).bytes);
    const cpu::Kernels& kernels = *cpu::kernels<AllFormats>(isa);
    store.write_tokens(kernels, keys.view(), values.view(), 0, 1, PageKind::Tail, block.data(), 0);
    store.write_tokens(kernels, keys.view(), values.view(), 1, 2, PageKind::Tail, block.data(), 1);
    for (int h = 0; h < 2; ++h) {
      const HeadLayout& head = store.layout(PageKind::Tail).heads[static_cast<std::size_t>(h)];
      for (int t = 0; t < 3; ++t) {
        for (int c = 0; c < 24; ++c)
          EXPECT_EQ(unpack_value(head.key, block.data() + head.offset, t, c),
                    to_float(to_f16(keys.at(t, h, c))));
        for (int c = 0; c < 40; ++c)
          EXPECT_EQ(unpack_value(head.value, block.data() + head.offset, c, t),
                    to_float(to_f16(values.at(t, h, c))));
      }
    }
  }
}

TEST(LayerStore, PagesOfOneBlockHaveTheSameBytesOnEveryInstructionSet) {
  const LayerShape shape{3, 72, 40, 0};
  const LayerStore store =
      make_store(shape, {"k4v2", "k3tv5c", "k7tv1"}, {32, 0, 0});  // one recipe per head
  Random random(2);
  const Rows<float> keys = random_rows(random, 32, 3, 72);
  const Rows<float> values = random_rows(random, 32, 3, 40);
  std::vector<std::byte> first;
  for (const Isa isa : test::usable_isas())
    for (const int poison : {0xff, 0x00, 0x7e}) {
      const cpu::Kernels& kernels = *cpu::kernels<AllFormats>(isa);
      AlignedMemory block(store.layout(PageKind::Tail).bytes);
      AlignedMemory page(store.layout(PageKind::Sealed).bytes);
      std::memset(page.data(), poison, store.layout(PageKind::Sealed).bytes);
      store.write_tokens(kernels, keys.view(), values.view(), 0, 32, PageKind::Tail, block.data(),
                         0);
      store.fill_page(kernels, {block.data(), page.data()});
      const std::vector<std::byte> bytes(page.data(),
                                         page.data() + store.layout(PageKind::Sealed).bytes);
      if (first.empty()) first = bytes;
      EXPECT_EQ(bytes, first) << to_string(isa) << ", page full of " << poison;
    }
}

TEST(LayerStoreHostile, AWidthThatTheBuildLacksIsNamedWithItsLayer) {
  const CacheShape shape = CacheShape::uniform(6, 2, 64);
  Plan plan = Plan::uniform(shape, presets::k4v2);
  plan.recipes[5] = {presets::k8v8};
  const CacheOptions options;
  BlockPools pools(options.allocator, {});
  using Few = Formats<Keys<4>, Values<2>>;
  const auto stores = make_layer_stores<Few>(shape, plan, options, pools);
  EXPECT_EQ(stores.code(), ErrorCode::Unsupported);
  EXPECT_EQ(stores.message(), "layer 5: keys of 8 bits are not in this build's Keys list");
}

TEST(LayerStoreHostile, ValuesOutOfRangeAreNamedByPlace) {
  const LayerStore store = make_store({2, 16, 8, 0}, {"k4v1", "k1v8"}, {32, 0, 0});
  const auto message = [&](bool key, int token, int head, int channel, float value) {
    Rows<float> keys(5, 2, 16);
    Rows<float> values(5, 2, 8);
    (key ? keys : values).at(token, head, channel) = value;
    std::set<std::string> messages;
    for (const Isa isa : test::usable_isas()) {
      const Status status =
          store.check_values(*cpu::kernels<AllFormats>(isa), keys.view(), values.view(), 7);
      EXPECT_EQ(status.code(), status.ok() ? ErrorCode::Ok : ErrorCode::InvalidValue);
      messages.insert(std::string(status.message()));
    }
    EXPECT_EQ(messages.size(), 1u);
    return *messages.begin();
  };
  EXPECT_EQ(message(true, 1, 0, 2, 65504.0f), "");
  EXPECT_EQ(message(true, 3, 0, 12, 65505.0f),
            "layer 7: key of token 3, kv head 0, channel 12 is 65505; 4-bit formats hold finite "
            "magnitudes up to 65504");
  EXPECT_EQ(message(false, 0, 0, 1, -32752.0f), "");
  EXPECT_THAT(message(false, 0, 0, 1, -32753.0f),
              HasSubstr("value of token 0, kv head 0, channel 1 is -32753; 1-bit"));
  EXPECT_THAT(message(true, 4, 1, 15, 40000.0f), HasSubstr("up to 32752"));
  EXPECT_EQ(message(false, 4, 1, 7, 40000.0f), "");
  EXPECT_THAT(message(false, 4, 1, 7, bit_cast<float>(0x7fc00000u)), HasSubstr("is nan"));
  EXPECT_THAT(message(true, 2, 1, 0, bit_cast<float>(0xff800000u)), HasSubstr("is -inf"));
}

}  // namespace
}  // namespace kvtilt
