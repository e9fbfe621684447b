// SPDX-License-Identifier: MIT
#include <kvtilt/cuda/attention/block.hpp>
#include <kvtilt/cuda/attention/latent_page.hpp>

#include "support/cached_layer.hpp"

#include <gtest/gtest.h>

#include <cstdint>

namespace kvtilt::test {
namespace {

/// A layer of one kv head whose values are in its keys.
LayerShape latent(int key_dim, int value_dim) {
  return LayerShape::latent(value_dim, key_dim - value_dim);
}

TEST(AttendLatents, EveryWidthIsCloseToFloat64) {
  Random random(11);
  for (const int bits : storage_widths)
    for (const int page_tokens : {32, 64, 128})
      for (const Format& format : {per_channel(bits), per_channel(bits, 16), per_token(bits, 48)}) {
        const Recipe recipe{bits == half_bits ? Format{} : format, in_keys};
        if (!cuda::supports_order({page_tokens, 144}, bits)) continue;
        const CachedLayer layer(random, latent(144, 96), {recipe}, {2 * page_tokens + 9, 3, 0},
                                page_tokens);
        EXPECT_TRUE((is_close<cuda::LatentTraits<144, 96>>(layer, random)))
            << to_string(recipe) << " in pages of " << page_tokens;
      }
}

TEST(AttendLatents, AllQueryHeadsOfALargeLatentAreCloseToFloat64) {
  Random random(12);
  for (const char* recipe : {"k8", "k3"}) {
    const CachedLayer layer(random, LayerShape::latent(512, 64), {parse_recipe(recipe).value()},
                            {140}, 64);
    const Rows<float> queries = random_queries(random, layer.shape, 1, 20);
    const Output output =
        emulated_attend<cuda::LatentTraits<576, 512>>(layer.device(), queries, {}, {3, 2, 0, {}});
    EXPECT_TRUE(is_close(layer.views(), queries, {}, output)) << recipe;
  }
}

TEST(AttendLatents, HaveTheBitsOfValuesStoredApart) {
  for (const int bits : {1, 3, 4, 8, 16})
    for (const Format& format : {per_channel(bits), per_token(bits, 32)}) {
      const Format any = bits == half_bits ? Format{} : format;
      const LayerShape shape = latent(96, 64);
      LayerShape apart = shape;
      apart.values_in_keys = false;
      CacheOptions options;
      options.page_tokens = 64;
      options.recent_tokens = 3;
      KVCache once = make_cache(shape, {any, in_keys}, options);
      KVCache twice = make_cache(apart, {any, any}, options);
      Random random(static_cast<std::uint64_t>(13 + bits));
      const Rows<float> keys = random_rows(random, 150, 1, 96);
      TensorView values = keys.view();
      values.dim = 64;
      const SequenceId in_once = open_reserved(once, 150);
      const SequenceId in_twice = open_reserved(twice, 150);
      KVTILT_EXPECT_OK(once.append(in_once, 0, keys.view(), {}));
      KVTILT_EXPECT_OK(twice.append(in_twice, 0, keys.view(), values));
      const Rows<float> queries = random_queries(random, shape, 1, 4);
      const Output latents = emulated_attend<cuda::LatentTraits<96, 64>>(
          {{once.view(in_once, 0).value()}, {{any, in_keys}}, options}, queries, {}, {2, 2, 0, {}});
      const Output stored = emulated_attend<cuda::GenericTraits<96, 64>>(
          {{twice.view(in_twice, 0).value()}, {{any, any}}, options}, queries, {}, {2, 2, 0, {}});
      EXPECT_EQ(latents.out.data, stored.out.data) << bits << " bits";
      EXPECT_EQ(latents.lse, stored.lse) << bits << " bits";
    }
}

TEST(AttendLatentsHostile, SlotsWithoutATokenNeverReachAResult) {
  Random random(14);
  for (const Recipe& recipe : {Recipe{per_channel(5, 16), in_keys},
                               Recipe{per_token(4, 32), in_keys}, Recipe{{}, in_keys}})
    for (const int held : {1, 16, 37}) {
      CachedLayer layer(random, latent(96, 64), {recipe}, {100}, 64);
      KVTILT_EXPECT_OK(layer.cache.truncate(layer.ids[0], layer.options.sink_tokens + held));
      const DeviceLayer device = layer.device();
      poison(device, held);
      const Rows<float> queries = random_queries(random, layer.shape, 1, 3);
      const Output output =
          emulated_attend<cuda::LatentTraits<96, 64>>(device, queries, {}, {2, 2, 0, {}});
      EXPECT_TRUE(is_close(layer.views(), queries, {}, output))
          << to_string(recipe) << ", " << held << " tokens";
    }
}

}  // namespace
}  // namespace kvtilt::test
