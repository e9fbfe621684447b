// SPDX-License-Identifier: MIT
#include <kvtilt/cache/kv_cache.hpp>

#include "support/cache_bytes.hpp"
#include "support/caches.hpp"
#include "support/layer_model.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace kvtilt {
namespace {

using test::LayerModel;
using test::Random;
using test::random_rows;
using test::Rows;
using test::same_content;

/// Random keys and values of one layer.
struct Tokens {
  Rows<float> keys;
  Rows<float> values;

  Tokens(Random& random, const LayerShape& shape, std::int64_t count)
      : keys(random_rows(random, count, shape.kv_heads, shape.key_dim)),
        values(random_rows(random, count, shape.kv_heads, shape.value_dim)) {}

  Status append_to(KVCache& cache, SequenceId id, int layer, std::int64_t first,
                   std::int64_t count) const {
    return cache.append(id, layer, keys.view(first, count), values.view(first, count));
  }
  Status append_to(KVCache& cache, SequenceId id, int layer = 0) const {
    return append_to(cache, id, layer, 0, keys.tokens);
  }
};

CacheOptions placed(int page, int sinks, int recent) {
  CacheOptions options;
  options.page_tokens = page;
  options.sink_tokens = sinks;
  options.recent_tokens = recent;
  return options;
}

LayerModel model_of(const LayerShape& shape, const std::vector<Recipe>& recipes,
                    const CacheOptions& options) {
  std::vector<Recipe> resolved;
  for (int head = 0; head < shape.kv_heads; ++head)
    resolved.push_back(
        resolve_recipe(recipes[recipes.size() == 1 ? 0 : static_cast<std::size_t>(head)], shape,
                       options.page_tokens)
            .value());
  return {shape, resolved, options.page_tokens, options.sink_tokens, options.recent_tokens};
}

TEST(KVCache, AnotherOneTakesItsPlace) {
  Random random(7);
  const LayerShape shape{1, 16, 16, 0};
  const Tokens tokens(random, shape, 300);
  KVCache cache = test::make_cache(shape, presets::k4v2, placed(32, 4, 0));
  const SequenceId old = test::open_reserved(cache, 300);
  KVTILT_EXPECT_OK(tokens.append_to(cache, old));
  KVCache other = test::make_cache(shape, presets::k8v8, placed(64, 4, 0));
  (void)other.open();
  const SequenceId id = test::open_reserved(other, 200);
  KVTILT_EXPECT_OK(tokens.append_to(other, id, 0, 0, 200));
  const double bits = other.page_bits();

  cache = std::move(other);
  EXPECT_EQ(cache.page_bits(), bits);
  EXPECT_EQ(cache.length(id).value(), 200);
  KVTILT_EXPECT_OK(cache.reserve(id, 300));
  KVTILT_EXPECT_OK(tokens.append_to(cache, id, 0, 200, 100));
  KVCache& same = cache;
  cache = std::move(same);
  EXPECT_EQ(cache.length(id).value(), 300);
}

TEST(KVCacheProperty, AppendingInPartsIsAppendingAtOnce) {
  for (const char* name : {"k4v2", "k1tv1c", "k3v5", "k16v4", "k7tv16", "kivi2"})
    for (const CacheOptions& options : {placed(32, 4, 0), placed(64, 0, 63), placed(128, 17, 1)}) {
      Random random(1);
      const LayerShape shape{2, 24, 40, 0};
      const Tokens tokens(random, shape, 400);
      KVCache cache = test::make_cache(shape, parse_recipe(name).value(), options);
      const SequenceId whole = test::open_reserved(cache, 400);
      KVTILT_EXPECT_OK(tokens.append_to(cache, whole));
      for (const int most : {1, 3, 40, 200}) {
        const SequenceId parts = test::open_reserved(cache, 400);
        for (std::int64_t first = 0; first < 400;) {
          const std::int64_t count = std::min<std::int64_t>(random.between(0, most), 400 - first);
          KVTILT_EXPECT_OK(tokens.append_to(cache, parts, 0, first, count));
          first += count;
        }
        EXPECT_TRUE(same_content(cache.view(whole, 0).value(), cache.view(parts, 0).value()))
            << name << ", up to " << most << " at a time";
        KVTILT_EXPECT_OK(cache.close(parts));
      }
    }
}

TEST(KVCacheProperty, EveryElementTypeAndStrideGivesTheSameBytes) {
  Random random(2);
  const LayerShape shape{3, 40, 40, 0};
  const Rows<BF16> bf16 =
      test::converted<BF16>(random_rows(random, 300, 3, 40), to_bf16);  // exact in all 3 types
  const Rows<float> plain = test::converted<float>(bf16, [](BF16 x) { return to_float(x); });
  const Rows<F16> f16 = test::converted<F16>(plain, to_f16);
  std::vector<F16> heads_first(plain.data.size());  // [heads][tokens][dim], tokens last to first
  std::vector<float> spread(plain.data.size() * 2, bit_cast<float>(0x7fc00000u));
  for (int t = 0; t < 300; ++t)
    for (int h = 0; h < 3; ++h)
      for (int c = 0; c < 40; ++c) {
        heads_first[static_cast<std::size_t>((h * 300 + 299 - t) * 40 + c)] = f16.at(t, h, c);
        spread[static_cast<std::size_t>((t * 3 + 2 - h) * 80 + c)] = plain.at(t, h, c);
      }
  for (const char* name : {"k4v2", "k8tv8c"}) {
    KVCache cache = test::make_cache(shape, parse_recipe(name).value(), placed(64, 4, 32));
    const SequenceId expected = test::open_reserved(cache, 300);
    KVTILT_EXPECT_OK(cache.append(expected, 0, plain.view(), plain.view()));
    for (const TensorView& view :
         {bf16.view(), f16.view(),
          TensorView(heads_first.data() + 299 * 40, 300, 3, 40).with_strides(-40, 300 * 40),
          TensorView(spread.data() + 2 * 80, 300, 3, 40).with_strides(3 * 80, -80)}) {
      const SequenceId id = test::open_reserved(cache, 300);
      KVTILT_EXPECT_OK(cache.append(id, 0, view, plain.view()));
      EXPECT_TRUE(same_content(cache.view(expected, 0).value(), cache.view(id, 0).value()));
      const SequenceId other = test::open_reserved(cache, 300);
      KVTILT_EXPECT_OK(cache.append(other, 0, plain.view(), view));
      EXPECT_TRUE(same_content(cache.view(expected, 0).value(), cache.view(other, 0).value()));
    }
  }
}

TEST(KVCacheAgreement, EveryInstructionSetKeepsTheSameBytes) {
  for (std::uint64_t seed = 0; seed < 30; ++seed) {
    std::vector<KVCache> caches;
    std::vector<LayerView> views;
    for (const Isa isa : test::usable_isas()) {
      Random random(seed);
      const LayerShape shape{2, 8 * random.between(1, 12), 8 * random.between(1, 12), 0};
      CacheOptions options = placed(64, 4, 0);
      options.isa = isa;
      const Recipe recipe{test::random_format(random, shape.key_dim, 64),
                          test::random_format(random, shape.value_dim, 64)};
      caches.push_back(test::make_cache(shape, recipe, options));
      EXPECT_EQ(caches.back().isa(), isa);
      const SequenceId id = test::open_reserved(caches.back(), 200);
      KVTILT_EXPECT_OK(Tokens(random, shape, 200).append_to(caches.back(), id));
      views.push_back(caches.back().view(id, 0).value());
      EXPECT_TRUE(same_content(views.front(), views.back())) << "seed " << seed;
    }
  }
}

TEST(KVCacheProperty, TruncatingInsideTheTailIsNeverHavingAppended) {
  Random random(3);
  const LayerShape shape{2, 24, 24, 0};
  for (const CacheOptions& options : {placed(32, 4, 40), placed(64, 0, 64), placed(32, 17, 0)}) {
    const Tokens tokens(random, shape, 300);
    const Tokens more(random, shape, 120);
    KVCache cache = test::make_cache(shape, presets::k4v2, options);
    for (const int length : {3, 30, 100, 171, 250, 300}) {
      for (int cut = length; cut >= 0; cut -= random.between(1, 9)) {
        const SequenceId longer = test::open_reserved(cache, 420);
        const SequenceId shorter = test::open_reserved(cache, 420);
        KVTILT_EXPECT_OK(tokens.append_to(cache, longer, 0, 0, length));
        KVTILT_EXPECT_OK(cache.truncate(longer, cut));
        KVTILT_EXPECT_OK(tokens.append_to(cache, shorter, 0, 0, cut));
        // Pages that only the cut tokens caused to be sealed stay sealed: then the two may differ.
        const auto sealed = [&](int count) {
          return std::max(0, count - options.sink_tokens - options.recent_tokens) /
                 options.page_tokens;
        };
        if (sealed(cut) == sealed(length)) {
          EXPECT_TRUE(same_content(cache.view(longer, 0).value(), cache.view(shorter, 0).value()))
              << length << " to " << cut;
          KVTILT_EXPECT_OK(more.append_to(cache, longer));
          KVTILT_EXPECT_OK(more.append_to(cache, shorter));
          EXPECT_TRUE(same_content(cache.view(longer, 0).value(), cache.view(shorter, 0).value()))
              << length << " to " << cut << " and on";
        }
        KVTILT_EXPECT_OK(cache.close(longer));
        KVTILT_EXPECT_OK(cache.close(shorter));
      }
    }
  }
}

TEST(KVCache, ACutInsideASealedPageCanCostAPageOfTheReservation) {
  Random random(8);
  const LayerShape shape{1, 32, 32, 0};
  KVCache cache = test::make_cache(shape, presets::k4v2, placed(32, 0, 0));
  const SequenceId id = test::open_reserved(cache, 126);
  const Tokens tokens(random, shape, 96);
  KVTILT_EXPECT_OK(tokens.append_to(cache, id));  // all three pages
  KVTILT_EXPECT_OK(cache.truncate(id, 62));       // frees one page, leaves 30 tokens in another
  const test::Snapshot before(cache.view(id, 0).value());
  const Status refused = tokens.append_to(cache, id, 0, 0, 64);  // would seal two pages
  EXPECT_EQ(refused.code(), ErrorCode::OutOfCapacity);
  EXPECT_NE(std::string(refused.message()).find("reserve again"), std::string::npos);
  EXPECT_TRUE(test::unchanged(before, cache.view(id, 0).value()));
  KVTILT_EXPECT_OK(tokens.append_to(cache, id, 0, 0, 63));
  KVTILT_EXPECT_OK(cache.reserve(id, 126));
  KVTILT_EXPECT_OK(tokens.append_to(cache, id, 0, 63, 1));
}

TEST(KVCacheProperty, BytesOfASealedPageNeverChange) {
  Random random(4);
  const LayerShape shape{2, 32, 32, 0};
  KVCache cache = test::make_cache(shape, presets::k4v2, placed(32, 4, 10));
  const SequenceId id = test::open_reserved(cache, 600);
  const Tokens tokens(random, shape, 600);
  std::vector<std::vector<std::byte>> sealed;
  for (std::int64_t first = 0; first < 600; first += 5) {
    KVTILT_EXPECT_OK(tokens.append_to(cache, id, 0, first, 5));
    const LayerView view = cache.view(id, 0).value();
    const test::Snapshot now(view);
    std::size_t next = 0;
    for (std::size_t i = 0; i < now.pages.size(); ++i) {
      if (now.pages[i].kind != PageKind::Sealed) continue;
      if (next == sealed.size()) sealed.push_back(now.blocks[i]);
      ASSERT_EQ(now.blocks[i], sealed[next++]) << "page " << i << " after " << first + 5;
    }
    ASSERT_EQ(next, sealed.size());
  }
  EXPECT_EQ(sealed.size(), 18u);  // (600 - 4 - 10) / 32
}

TEST(KVCache, HeadsMayHaveRecipesOfTheirOwn) {
  Random random(5);
  const LayerShape shape{3, 40, 72, 0};
  const CacheOptions options = placed(32, 4, 0);
  const std::vector<Recipe> recipes = {presets::k8v4, presets::k16v16,
                                       parse_recipe("k1tv3c:g16,16").value()};
  KVCache cache = test::make_cache(CacheShape{{shape}}, Plan{{recipes}}, options);
  LayerModel model = model_of(shape, recipes, options);
  const SequenceId id = test::open_reserved(cache, 100);
  const Tokens tokens(random, shape, 100);
  KVTILT_EXPECT_OK(tokens.append_to(cache, id));
  model.append(tokens.keys, tokens.values);
  EXPECT_TRUE(model.matches(cache.view(id, 0).value()));
  EXPECT_TRUE(test::attends_within_bound(cache.view(id, 0).value(),
                                         test::random_queries(random, shape, 3, 2)));
}

TEST(KVCache, LayersMayDifferOrKeepNoCache) {
  Random random(6);
  const CacheShape shape{{{2, 64, 64, 0}, {0, 0, 0, 0}, {1, 192, 128, 20}, {4, 8, 8, 0}}};
  KVCache cache = test::make_cache(
      shape, Plan{{{presets::k4v2}, {}, {presets::k8v8}, {presets::k16v16}}}, placed(32, 4, 0));
  EXPECT_EQ(cache.layers(), 4);
  const SequenceId id = test::open_reserved(cache, 80);
  for (const int layer : {0, 2, 3}) {
    EXPECT_EQ(cache.length(id).value(), 0);
    const LayerShape& own = shape.layers[static_cast<std::size_t>(layer)];
    KVTILT_EXPECT_OK(Tokens(random, own, 80).append_to(cache, id, layer));
    EXPECT_EQ(cache.length(id, layer).value(), 80);
    EXPECT_TRUE(test::attends_within_bound(cache.view(id, layer).value(),
                                           test::random_queries(random, own, 2, 3)));
  }
  EXPECT_EQ(cache.length(id).value(), 80);
}

TEST(KVCache, TruncationRepairsLayersOutOfStep) {
  Random random(7);
  const CacheShape shape = CacheShape::uniform(3, 1, 32);
  KVCache cache = test::make_cache(shape, Plan::uniform(shape, presets::k4v2));
  const SequenceId id = test::open_reserved(cache, 60);
  const Tokens tokens(random, shape.layers[0], 60);
  constexpr int held[] = {50, 30, 40};
  for (int layer = 0; layer < 3; ++layer)
    KVTILT_EXPECT_OK(tokens.append_to(cache, id, layer, 0, held[layer]));
  EXPECT_EQ(cache.length(id).value(), 30);
  KVTILT_EXPECT_OK(cache.truncate(id, 45));  // shorter layers keep all their tokens
  EXPECT_EQ(cache.length(id, 0).value(), 45);
  EXPECT_EQ(cache.length(id, 1).value(), 30);
  EXPECT_EQ(cache.length(id, 2).value(), 40);
  KVTILT_EXPECT_OK(cache.truncate(id, cache.length(id).value()));
  const SequenceId fresh = test::open_reserved(cache, 60);
  for (int layer = 0; layer < 3; ++layer) {
    KVTILT_EXPECT_OK(tokens.append_to(cache, id, layer, 30, 30));
    KVTILT_EXPECT_OK(tokens.append_to(cache, fresh, layer));
    EXPECT_TRUE(same_content(cache.view(id, layer).value(), cache.view(fresh, layer).value()));
  }
}

/// One sequence with its models, one per layer.
struct Tracked {
  SequenceId id;
  std::int64_t capacity = 0;
  std::vector<LayerModel> models;
};

TEST(KVCacheRandom, ProgramsOnManySequencesFollowTheModel) {
  for (std::uint64_t seed = 0; seed < 60; ++seed) {
    Random random(seed);
    const CacheOptions options =
        placed(test::pick(random, {32, 64}), test::pick(random, {0, 1, 4, 17}),
               test::pick(random, {0, 1, 31, 64, 100}));
    CacheShape shape;
    Plan plan;
    for (int layer = 0; layer < 2; ++layer) {
      const LayerShape own{random.between(1, 2), 8 * random.between(1, 5), 8 * random.between(1, 5),
                           0};
      shape.layers.push_back(own);
      plan.recipes.push_back({{test::random_format(random, own.key_dim, options.page_tokens),
                               test::random_format(random, own.value_dim, options.page_tokens)}});
    }
    KVCache cache = test::make_cache(shape, plan, options);
    std::vector<Tracked> sequences;
    for (int step = 0; step < 60; ++step) {
      SCOPED_TRACE("seed " + std::to_string(seed) + ", step " + std::to_string(step));
      while (sequences.size() < 3) {
        Tracked fresh{cache.open().value(), 0, {}};
        for (std::size_t layer = 0; layer < 2; ++layer)
          fresh.models.push_back(model_of(shape.layers[layer], plan.recipes[layer], options));
        sequences.push_back(fresh);
      }
      Tracked& own = sequences[static_cast<std::size_t>(random.between(0, 2))];
      const int layer = random.between(0, 1);
      LayerModel& model = own.models[static_cast<std::size_t>(layer)];
      switch (random.between(0, 7)) {
        case 0:
          own.capacity = std::max<std::int64_t>(own.capacity, random.between(1, 400));
          KVTILT_EXPECT_OK(cache.reserve(own.id, own.capacity));
          break;
        case 1: {
          const int length = random.between(0, static_cast<int>(model.length()) + 2);
          KVTILT_EXPECT_OK(cache.truncate(own.id, length));
          for (LayerModel& each : own.models) each.truncate(length);
          break;
        }
        case 2:
          if (!random.chance(3)) break;
          KVTILT_EXPECT_OK(cache.close(own.id));
          own = sequences.back();
          sequences.pop_back();
          continue;
        default: {
          const int room = static_cast<int>(own.capacity - model.length());
          const Tokens tokens(random, shape.layers[static_cast<std::size_t>(layer)],
                              random.between(0, room));
          const test::Snapshot before(cache.view(own.id, layer).value());
          const Status status = tokens.append_to(cache, own.id, layer);
          if (!status.ok()) {  // a shortened sealed page takes a whole page of the reservation
            EXPECT_EQ(status.code(), ErrorCode::OutOfCapacity);
            EXPECT_TRUE(test::unchanged(before, cache.view(own.id, layer).value()));
            KVTILT_EXPECT_OK(cache.reserve(own.id, own.capacity));
            KVTILT_EXPECT_OK(tokens.append_to(cache, own.id, layer));
          }
          model.append(tokens.keys, tokens.values);
        }
      }
      for (int each = 0; each < 2; ++each)
        ASSERT_TRUE(
            own.models[static_cast<std::size_t>(each)].matches(cache.view(own.id, each).value()));
    }
    for (const Tracked& own : sequences)
      for (int layer = 0; layer < 2; ++layer)
        ASSERT_TRUE(
            own.models[static_cast<std::size_t>(layer)].matches(cache.view(own.id, layer).value()));
  }
}

}  // namespace
}  // namespace kvtilt
