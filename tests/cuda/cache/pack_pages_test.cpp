// SPDX-License-Identifier: MIT
// Compares with pages that LayerPages has sealed on the CPU.
#include <kvtilt/cache/layer_pages.hpp>
#include <kvtilt/cuda/cache/pack_pages.hpp>

#include "support/caches.hpp"
#include "support/emulated_layer.hpp"
#include "support/emulated_threads.hpp"
#include "support/random_input.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

namespace kvtilt::test {
namespace {

constexpr std::int32_t pool_pages = 9;

/// Rows that are packed into an engine's pool of zeros.
struct Packing {
  std::vector<Recipe> recipes;
  LayerPages cpu;
  EmulatedLayer device;
  std::vector<std::int32_t> pages;
  RandomInput keys;
  RandomInput values;
  Block pool;

  Packing(Random& random, const LayerShape& shape, const Recipe& recipe, int page_tokens,
          std::vector<std::int32_t> pages_)
      : recipes{resolve_recipe(recipe, shape, page_tokens).value()},
        cpu(LayerPages::create(shape, recipes, page_tokens).value()),
        device(shape, recipes, {page_tokens, 0, 0, 0}, 1, 1),
        pages(std::move(pages_)),
        keys(random, rows(page_tokens), shape.kv_heads, shape.key_dim),
        values(random, rows(page_tokens), shape.kv_heads, shape.value_dim),
        pool(pool_pages * device.layout(PageKind::Sealed).bytes) {}

  [[nodiscard]] std::int64_t rows(int page_tokens) const {
    return static_cast<std::int64_t>(pages.size()) * page_tokens;
  }
  [[nodiscard]] TensorView value_rows() const {
    return device.view().values_in_keys != 0 ? TensorView{} : values.view();
  }
  void pack() { pack(keys.view(), value_rows(), {}); }
  void pack(const TensorView& from_keys, const TensorView& from_values,
            const cuda::SourcePages& source) {
    cuda::LayerView layer = device.view();
    layer.pool[static_cast<int>(PageKind::Sealed)] = pool.data();
    cuda::PackPagesArguments arguments{
        {layer, {}, from_keys, from_values, {}}, source, pages.data(), pool_pages};
    KVTILT_EXPECT_OK(cuda::detail::complete_source(arguments));
    EXPECT_TRUE(emulate(static_cast<int>(pages.size()) * layer.kv_heads, cuda::pack_threads,
                        cuda::pack_shared_bytes(layer),
                        [&](EmulatedThreads& threads) {
                          if (layer.min_max_only != 0)
                            cuda::pack_pages<cuda::FitRules::MinMax>(threads, arguments);
                          else
                            cuda::pack_pages<cuda::FitRules::All>(threads, arguments);
                        },
                        {LaunchOrder::Shuffled, 1}));
  }
  /// Every page named holds the CPU's bytes for its rows, and no other page was written.
  void expect_pages() {
    const PageLayout& sealed = device.layout(PageKind::Sealed);
    const int page_tokens = cpu.page_tokens();
    Block expected(pool.size());
    for (std::size_t i = 0; i < pages.size(); ++i) {
      if (pages[i] < 0 || pages[i] >= pool_pages) continue;
      const std::int64_t first = static_cast<std::int64_t>(i) * page_tokens;
      const auto page_rows = [&](TensorView view) {
        if (view.data == nullptr) return view;
        view.data = static_cast<const std::byte*>(view.data) +
                    first * view.token_stride * static_cast<std::int64_t>(element_bytes(view.type));
        view.tokens = page_tokens;
        return view;
      };
      Block block(cpu.bytes(PageKind::Tail));
      Block page(sealed.bytes);
      KVTILT_EXPECT_OK(cpu.write(page_rows(keys.view()), page_rows(value_rows()), 0, block.data()));
      KVTILT_EXPECT_OK(cpu.seal(block.data(), page.data()));
      for (const HeadLayout& head : sealed.heads)
        to_fragment_order(
            head, page.data() + head.offset,
            expected.data() + sealed.bytes * static_cast<std::size_t>(pages[i]) + head.offset);
    }
    EXPECT_EQ(first_difference(pool, expected), -1)
        << to_string(recipes[0]) << ", pages of " << sealed.bytes << " bytes";
    EXPECT_TRUE(pool.guards_are_whole());
  }
};

TEST(PackPages, PagesHaveTheCpusBytes) {
  Random random(1);
  for (const char* recipe : {"k4v2", "k16v16", "k16v4", "k8tv8", "k4v2c", "k1v1", "k3v6"}) {
    Packing packing(random, {3, 64, 96}, parse_recipe(recipe).value(), 64, {4, -1, 0, 7});
    packing.pack();
    packing.expect_pages();
    EXPECT_EQ(packing.device.record().fault, cuda::DeviceFault::None);
  }
}

TEST(PackPages, Latents) {
  Random random(4);
  for (const char* recipe : {"k8", "k4t", "k16"}) {
    Packing packing(random, LayerShape::latent(64, 32), parse_recipe(recipe).value(), 64, {4, 0});
    packing.pack();
    packing.expect_pages();
  }
}

/// An engine's fp16 pages of keys and values, [pages, 2, kv_heads, page_tokens, dim].
struct SourcePool {
  static constexpr int pages = 6;
  static constexpr int heads = 2;
  static constexpr int page_tokens = 64;
  static constexpr int dim = 32;
  static constexpr std::int64_t head_stride = std::int64_t{page_tokens} * dim;
  static constexpr std::int64_t page_stride = 2 * heads * head_stride;

  std::vector<F16> data;

  explicit SourcePool(Random& random) : data(static_cast<std::size_t>(pages * page_stride)) {
    for (F16& x : data) x = to_f16(static_cast<float>(random.sampled_normal()));
  }

  [[nodiscard]] TensorView rows(bool values, std::int64_t page, std::int64_t tokens) const {
    const F16* first = data.data() + page * page_stride + (values ? heads * head_stride : 0);
    return TensorView(first, ElementType::F16, tokens, heads, dim).with_strides(dim, head_stride);
  }
};

TEST(PackPages, ThePagesOfAPoolThatAnIndexNames) {
  Random random(5);
  const SourcePool source(random);
  const std::vector<std::int32_t> index = {4, 0, 5};
  Packing packing(random, {source.heads, source.dim, source.dim}, presets::k4v2, source.page_tokens,
                  {7, -1, 2});
  const std::int64_t tokens = packing.rows(source.page_tokens);
  packing.pack(source.rows(false, 0, tokens), source.rows(true, 0, tokens),
               {source.page_stride, source.page_stride, index.data(), source.pages});
  const std::size_t bytes = packing.device.layout(PageKind::Sealed).bytes;
  for (const std::size_t i : {std::size_t{0}, std::size_t{2}}) {
    Packing one(random, {source.heads, source.dim, source.dim}, presets::k4v2, source.page_tokens,
                {packing.pages[i]});
    one.pack(source.rows(false, index[i], source.page_tokens),
             source.rows(true, index[i], source.page_tokens), {});
    const std::size_t at = bytes * static_cast<std::size_t>(packing.pages[i]);
    EXPECT_EQ(std::memcmp(packing.pool.data() + at, one.pool.data() + at, bytes), 0) << i;
    std::memset(packing.pool.data() + at, 0, bytes);
  }
  EXPECT_EQ(first_difference(packing.pool, Block(packing.pool.size())), -1);
  EXPECT_EQ(packing.device.record().fault, cuda::DeviceFault::None);
}

TEST(PackPagesHostile, PagesOutsideTheSourceAreLeftOutAndTold) {
  for (const std::int32_t outside : {SourcePool::pages, -1}) {
    Random random(6);
    const SourcePool source(random);
    const std::vector<std::int32_t> index = {outside};
    Packing packing(random, {source.heads, source.dim, source.dim}, presets::k4v2,
                    source.page_tokens, {1});
    packing.pack(source.rows(false, 0, source.page_tokens),
                 source.rows(true, 0, source.page_tokens),
                 {source.page_stride, source.page_stride, index.data(), source.pages});
    EXPECT_EQ(first_difference(packing.pool, Block(packing.pool.size())), -1);
    EXPECT_THAT(std::string(to_status(packing.device.record(), 64).message()),
                testing::HasSubstr("page " + std::to_string(outside) + " is outside its pool"));
  }
}

TEST(PackPagesHostile, HeadsOutsideTokensNeedTheDistanceOfPages) {
  Random random(7);
  const SourcePool source(random);
  const Packing packing(random, {source.heads, source.dim, source.dim}, presets::k4v2,
                        source.page_tokens, {1, 2});
  const std::vector<std::int32_t> index = {3, 4};
  const auto refusal = [&](const cuda::SourcePages& pages, std::int64_t tokens) {
    cuda::PackPagesArguments arguments{{packing.device.view(),
                                        {},
                                        source.rows(false, 0, tokens),
                                        source.rows(true, 0, tokens),
                                        {}},
                                       pages,
                                       packing.pages.data(),
                                       pool_pages};
    return std::string(cuda::detail::complete_source(arguments).message());
  };
  const std::int64_t stride = source.page_stride;
  EXPECT_EQ(refusal({}, 64), "");
  EXPECT_EQ(refusal({stride, stride}, 128), "");
  EXPECT_THAT(refusal({}, 128), testing::HasSubstr("rows 32 apart, heads 2048 apart, 128 rows"));
  EXPECT_THAT(refusal({stride, 0}, 128), testing::HasSubstr("how far apart pages are"));
  EXPECT_THAT(refusal({0, 0, index.data(), 6}, 64), testing::HasSubstr("384 rows"));
  EXPECT_EQ(refusal({stride, stride, index.data(), 6}, 128), "");
  EXPECT_THAT(refusal({stride, stride, index.data(), 0}, 128),
              testing::HasSubstr("a source with an index has 0 pages"));
}

TEST(PackPagesRandom, AnyRecipeAndPage) {
  Random random(2);
  for (int round = 0; round < 25; ++round) {
    const int page_tokens = 32 << random.below(3);
    const LayerShape shape{random.between(1, 3), 32 * random.between(1, 4),
                           32 * random.between(1, 4)};
    std::vector<std::int32_t> pages = {random.below(pool_pages)};
    const int step = 1 << random.below(3);
    for (int more = random.below(4); more > 0; --more)
      pages.push_back((pages.back() + step) % pool_pages);
    if (random.chance(2)) pages.back() = -1 - random.below(9);
    Packing packing(random, shape,
                    {random_format(random, shape.key_dim, page_tokens),
                     random_format(random, shape.value_dim, page_tokens)},
                    page_tokens, pages);
    packing.pack();
    packing.expect_pages();
  }
}

TEST(PackPagesHostile, PagesOutsideThePoolAreLeftOutAndTold) {
  Random random(3);
  Packing packing(random, {2, 64, 64}, presets::k4v2, 64, {1, pool_pages, 2});
  packing.pack();
  packing.expect_pages();
  EXPECT_EQ(packing.device.record().count, 1u);
  EXPECT_THAT(std::string(to_status(packing.device.record(), 64).message()),
              testing::HasSubstr("layer 3: rows from 64 on were not packed: page 9 is outside its "
                                 "pool"));
}

TEST(PackPagesHostile, WhatARecipeCannotHoldIsRepairedAndTold) {
  Random random(4);
  Packing packing(random, {2, 64, 64}, presets::k4v2, 64, {5, 3});
  packing.values.spoil(64 + 7, 1, 11, 0x7fc00000u);
  packing.pack();
  const cuda::DeviceRecord& record = packing.device.record();
  EXPECT_EQ(record.fault, cuda::DeviceFault::ElementRepaired);
  EXPECT_EQ(record.count, 1u);
  EXPECT_EQ(record.sequence, 3);
  EXPECT_EQ(record.token, 64 + 7);
  EXPECT_EQ(record.head, 1);
  EXPECT_EQ(record.channel, 64 + 11);
}

}  // namespace
}  // namespace kvtilt::test
