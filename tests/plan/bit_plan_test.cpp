// SPDX-License-Identifier: MIT
#include <kvtilt/plan/bit_plan.hpp>
#include <kvtilt/plan/group_plan.hpp>
#include <kvtilt/quant/presets.hpp>

#include "support/random.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstdio>
#include <limits>
#include <string>

namespace kvtilt {
namespace {

using testing::HasSubstr;

FormatChoices default_choices(std::initializer_list<int> widths) {
  FormatChoices choices;
  for (const int bits : widths) {
    choices.keys.push_back(bits == half_bits ? Format{} : key_format(bits));
    choices.values.push_back(bits == half_bits ? Format{} : value_format(bits));
  }
  return choices;
}

/// Losses that fall by about 4 per bit, differ by up to e^6 between heads, and sometimes tie.
ModelLosses random_losses(test::Random& random, const CacheShape& shape,
                          const FormatChoices& choices, bool per_head) {
  ModelLosses losses;
  for (const LayerShape& layer : shape.layers) {
    auto& entries = losses.layers.emplace_back();
    for (int head = 0; head < (per_head ? layer.kv_heads : 1); ++head) {
      if (!entries.empty() && random.chance(3)) {
        entries.push_back(entries.back());
        continue;
      }
      const double keys = std::exp(random.uniform(-3, 3));
      const double values = std::exp(random.uniform(-3, 3));
      HeadLosses& entry = entries.emplace_back();
      for (const Format& format : choices.keys)
        entry.keys.push_back(keys * std::pow(4.0, -format.bits) * random.uniform(0.8, 1.2));
      for (const Format& format : choices.values)
        entry.values.push_back(values * std::pow(4.0, -format.bits) * random.uniform(0.8, 1.2));
    }
  }
  return losses;
}

/// The least loss within the budget, then the fewest bytes, found by trying everything.
struct BruteForce {
  double loss = std::numeric_limits<double>::infinity();
  std::size_t bytes = 0;

  BruteForce(const CacheShape& shape, int page_tokens, const FormatChoices& choices,
             const ModelLosses& losses, std::size_t bytes_allowed, const BitBudget& floors) {
    visit(shape, page_tokens, choices, losses, bytes_allowed, floors, 0, 0, 0, 0.0);
  }

 private:
  void visit(const CacheShape& shape, int page_tokens, const FormatChoices& choices,
             const ModelLosses& losses, std::size_t bytes_allowed, const BitBudget& floors,
             std::size_t layer, std::size_t entry, std::size_t used, double loss_so_far) {
    if (used > bytes_allowed) return;
    if (layer == shape.layers.size()) {
      if (loss_so_far < loss || (loss_so_far == loss && used < bytes)) {
        loss = loss_so_far;
        bytes = used;
      }
      return;
    }
    if (entry == losses.layers[layer].size()) {
      visit(shape, page_tokens, choices, losses, bytes_allowed, floors, layer + 1, 0, used,
            loss_so_far);
      return;
    }
    const LayerShape& layer_shape = shape.layers[layer];
    for (std::size_t k = 0; k < choices.keys.size(); ++k) {
      if (choices.keys[k].bits < floors.key_floor) continue;
      for (std::size_t v = 0; v < choices.values.size(); ++v) {
        if (choices.values[v].bits < floors.value_floor) continue;
        const Recipe recipe =
            *resolve_recipe({choices.keys[k], choices.values[v]}, layer_shape, page_tokens);
        const std::size_t heads =
            losses.layers[layer].size() == 1 ? static_cast<std::size_t>(layer_shape.kv_heads) : 1;
        const std::size_t bytes_used =
            heads *
            head_layout(recipe, layer_shape.key_dim, layer_shape.value_dim, page_tokens, 0).bytes();
        const HeadLosses& one = losses.layers[layer][entry];
        visit(shape, page_tokens, choices, losses, bytes_allowed, floors, layer, entry + 1,
              used + bytes_used, loss_so_far + (one.keys[k] + one.values[v]));
      }
    }
  }
};

std::size_t bytes_of(const Plan& plan, const CacheShape& shape, int page_tokens) {
  std::size_t bytes = 0;
  for (std::size_t layer = 0; layer < shape.layers.size(); ++layer)
    bytes += PageLayout::make(shape.layers[layer], plan.recipes[layer], page_tokens).bytes;
  return bytes;
}

TEST(BitPlanProperty, EqualsBruteForce) {
  test::Random random(1);
  int compared = 0;
  for (int round = 0; round < 300; ++round) {
    CacheShape shape;
    const bool per_head = random.chance(2);
    const int layers = per_head ? 2 : 3;
    for (int layer = 0; layer < layers; ++layer) {
      const int dims[] = {8, 64, 72, 128};
      shape.layers.push_back({per_head ? 1 + random.below(2) : 1 + random.below(3),
                              dims[random.below(4)], dims[random.below(4)]});
    }
    const int page_tokens = 32 << random.below(3);
    const FormatChoices choices =
        random.chance(2) ? default_choices({2, 3, 4}) : default_choices({4, 1, 16});
    const ModelLosses losses = random_losses(random, shape, choices, per_head);
    const BitBudget budget{random.uniform(1.2, 8), random.chance(3) ? 3 : 0,
                           random.chance(3) ? 2 : 0};
    const auto plan = plan_bits(shape, page_tokens, choices, losses, budget);
    const double elements = detail::page_elements(shape, page_tokens);
    const BruteForce best(shape, page_tokens, choices, losses,
                          static_cast<std::size_t>(budget.page_bits * elements / 8), budget);
    ASSERT_EQ(plan.ok(), best.loss < 1e300) << plan.message();
    if (!plan.ok()) continue;
    ++compared;
    EXPECT_NEAR(plan->loss, best.loss, 1e-12 * best.loss) << "round " << round;
    EXPECT_LE(plan->page_bits, budget.page_bits);
    EXPECT_EQ(plan->page_bytes, bytes_of(plan->plan, shape, page_tokens));
    EXPECT_EQ(plan->page_bytes, best.bytes) << "round " << round;
  }
  EXPECT_GT(compared, 150);
}

TEST(BitPlanProperty, ScalingLossesChangesNothing) {
  test::Random random(2);
  const CacheShape shape = CacheShape::uniform(12, 4, 128);
  const FormatChoices choices = default_choices({1, 2, 3, 4, 5, 6, 8});
  for (int round = 0; round < 20; ++round) {
    ModelLosses losses = random_losses(random, shape, choices, round % 2 == 0);
    const BitBudget budget{random.uniform(2, 6)};
    const auto plan = plan_bits(shape, 64, choices, losses, budget);
    ASSERT_TRUE(plan.ok()) << plan.message();
    for (const double scale : {3.0, 1e-250, 1e250, 0.1}) {
      ModelLosses scaled = losses;
      for (auto& layer : scaled.layers)
        for (HeadLosses& entry : layer)
          for (std::vector<double>* list : {&entry.keys, &entry.values})
            for (double& loss : *list) loss *= scale;
      const auto again = plan_bits(shape, 64, choices, scaled, budget);
      ASSERT_TRUE(again.ok()) << again.message();
      EXPECT_EQ(again->plan.recipes, plan->plan.recipes) << "round " << round << ", " << scale;
    }
  }
}

TEST(BitPlanProperty, MoreBudgetNeverLosesMore) {
  test::Random random(3);
  const CacheShape shape = CacheShape::uniform(7, 2, 64);
  const FormatChoices choices = default_choices({1, 2, 3, 4, 5, 6, 7, 8, 16});
  for (const bool per_head : {false, true}) {
    const ModelLosses losses = random_losses(random, shape, choices, per_head);
    double last = std::numeric_limits<double>::infinity();
    for (double bits = 1.5; bits < 17; bits += 0.11) {
      const auto plan = plan_bits(shape, 64, choices, losses, {bits});
      ASSERT_TRUE(plan.ok()) << plan.message();
      EXPECT_LE(plan->loss, last);
      EXPECT_LE(plan->page_bits, bits * (1 + 1e-12));
      last = plan->loss;
    }
    EXPECT_LT(last, 1e-6);
  }
}

TEST(BitPlan, TiesGoToFewerBytesThenToEarlierLayersThenToEarlierFormats) {
  const CacheShape shape = CacheShape::uniform(3, 1, 128);
  // Two key formats of the same size and loss; the wider value format gains nothing.
  FormatChoices choices;
  choices.keys = {key_format(2), Format{2, Granularity::PerChannel, 0, RangeRule::MinMax},
                  key_format(4)};
  choices.values = {value_format(2), value_format(4)};
  const HeadLosses entry{{3, 3, 1}, {5, 5}};
  const ModelLosses losses{{{entry}, {entry}, {entry}}};
  const auto least = plan_bits(shape, 64, choices, losses, {16});
  ASSERT_TRUE(least.ok());
  for (const auto& recipes : least->plan.recipes) {
    EXPECT_EQ(recipes[0].key.bits, 4);
    EXPECT_EQ(recipes[0].value.bits, 2) << "more bytes for the same loss";
  }
  // The budget holds one wider key, which goes to the first layer.
  Plan one = Plan::uniform(shape, presets::k2v2);
  one.recipes[0][0] = presets::k4v2;
  BitBudget budget;
  one = *resolve_plan(one, shape, 64);
  budget.page_bytes = bytes_of(one, shape, 64);
  const auto plan = plan_bits(shape, 64, choices, losses, budget);
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ(plan->plan.recipes, one.recipes);
  EXPECT_EQ(plan->plan.recipes[1][0].key.rule, RangeRule::MinMse) << "the earlier of two equals";
}

TEST(BitPlan, BuysWhatItsOwnPageBitsSay) {
  test::Random random(4);
  const CacheShape shape = CacheShape::uniform(5, 3, 80);
  const FormatChoices choices = default_choices({2, 3, 4, 6});
  const ModelLosses losses = random_losses(random, shape, choices, false);
  for (double bits = 3; bits < 6; bits += 0.1) {
    const auto plan = plan_bits(shape, 64, choices, losses, {bits});
    ASSERT_TRUE(plan.ok());
    const auto again = plan_bits(shape, 64, choices, losses, {plan->page_bits});
    ASSERT_TRUE(again.ok());
    EXPECT_EQ(again->plan.recipes, plan->plan.recipes);
    EXPECT_EQ(again->loss, plan->loss);
  }
}

TEST(BitPlan, BuysWhatItsOwnPageBitsSayWhereTheyAreRoundedDown) {
  const CacheShape shape = CacheShape::uniform(3, 3, 176);
  const ModelLosses losses{std::vector(3, std::vector{HeadLosses{{1}, {1}}})};
  const auto plan = plan_bits(shape, 64, default_choices({2}), losses, {3});
  ASSERT_TRUE(plan.ok()) << plan.message();
  ASSERT_LT(plan->page_bits * detail::page_elements(shape, 64) / 8,
            static_cast<double>(plan->page_bytes));
  const auto again = plan_bits(shape, 64, default_choices({2}), losses, {plan->page_bits});
  EXPECT_TRUE(again.ok()) << again.message();
}

TEST(BitPlan, SkipsLayersWithoutCache) {
  CacheShape shape = CacheShape::uniform(3, 2, 64);
  shape.layers[1] = LayerShape{};
  const FormatChoices choices = default_choices({2, 4});
  const HeadLosses entry{{4, 1}, {2, 1}};
  const auto plan = plan_bits(shape, 64, choices, {{{entry}, {}, {entry}}}, {4});
  ASSERT_TRUE(plan.ok()) << plan.message();
  ASSERT_EQ(plan->plan.recipes.size(), 3u);
  EXPECT_TRUE(resolve_plan(plan->plan, shape, 64).ok());
  EXPECT_LE(plan->page_bits, 4);
}

TEST(BitPlan, ChoosesKeysAloneWhereValuesAreInThem) {
  const CacheShape shape{{LayerShape::latent(64, 16), {1, 64, 64}, LayerShape::latent(64, 16)}};
  const FormatChoices choices = default_choices({2, 4, 8});
  const ModelLosses losses{{{HeadLosses{{9, 3, 1}, {}}},
                            {HeadLosses{{4, 2, 1}, {4, 2, 1}}},
                            {HeadLosses{{90, 30, 10}, {}}}}};
  const BitBudget budget{.page_bits = 4.5, .value_floor = 4};
  const auto plan = plan_bits(shape, 64, choices, losses, budget);
  ASSERT_TRUE(plan.ok()) << plan.message();
  EXPECT_LE(plan->page_bits, 4.5);
  // The best of the 3 x 6 x 3 that fit: the third layer's keys lose ten times as much.
  double best = std::numeric_limits<double>::infinity();
  for (int first = 0; first < 3; ++first)
    for (int key = 0; key < 3; ++key)
      for (int value = 1; value < 3; ++value)
        for (int third = 0; third < 3; ++third) {
          Plan tried{{{{choices.keys[static_cast<std::size_t>(first)], in_keys}},
                      {{choices.keys[static_cast<std::size_t>(key)],
                        choices.values[static_cast<std::size_t>(value)]}},
                      {{choices.keys[static_cast<std::size_t>(third)], in_keys}}}};
          tried = resolve_plan(tried, shape, 64).value();
          std::size_t bytes = 0;
          for (std::size_t layer = 0; layer < 3; ++layer)
            bytes += PageLayout::make(shape.layers[layer], tried.recipes[layer], 64).bytes;
          if (static_cast<double>(bytes) * 8 > 4.5 * 64 * (80 + 128 + 80)) continue;
          const double loss = losses.layers[0][0].keys[static_cast<std::size_t>(first)] +
                              losses.layers[1][0].keys[static_cast<std::size_t>(key)] +
                              losses.layers[1][0].values[static_cast<std::size_t>(value)] +
                              losses.layers[2][0].keys[static_cast<std::size_t>(third)];
          best = std::min(best, loss);
        }
  EXPECT_EQ(plan->loss, best);
  EXPECT_TRUE(resolve_plan(plan->plan, shape, 64).ok());
  EXPECT_EQ(plan->plan.recipes[2][0].value, in_keys);
  const CacheShape latents{{shape.layers[0]}};
  EXPECT_TRUE(
      plan_bits(latents, 64, {choices.keys, {}}, {{{HeadLosses{{9, 3, 1}, {}}}}}, budget).ok());
}

TEST(BitPlan, KeepsTheFloorsAndSaysWhatWouldDo) {
  const CacheShape shape = CacheShape::uniform(2, 2, 128);
  const FormatChoices choices = default_choices({1, 2, 3, 4});
  const HeadLosses entry{{4, 3, 2, 1}, {400, 300, 200, 100}};
  const ModelLosses losses{{{entry}, {entry}}};
  const auto plan = plan_bits(shape, 64, choices, losses, {3.0, 3});
  ASSERT_TRUE(plan.ok()) << plan.message();
  for (const auto& recipes : plan->plan.recipes) EXPECT_GE(recipes[0].key.bits, 3);

  const auto small = plan_bits(shape, 64, choices, losses, {2.0, 3});
  EXPECT_EQ(small.code(), ErrorCode::InvalidArgument);
  EXPECT_THAT(std::string(small.message()),
              HasSubstr("with keys of at least 3 bits and values of at least 0 "
                        "the smallest that works is 2.3750 page bits"));
  EXPECT_TRUE(plan_bits(shape, 64, choices, losses, {2.375, 3}).ok());
  EXPECT_FALSE(plan_bits(shape, 64, choices, losses, {2.3749, 3}).ok());
  const auto wide = plan_bits(shape, 64, choices, losses, {8, 5});
  EXPECT_THAT(std::string(wide.message()),
              HasSubstr("keys must have at least 5 bits, but the widest format to choose from has "
                        "4"));

  const ModelLosses keys{
      {{{{400, 300, 200, 100}, {4, 3, 2, 1}}}, {{{400, 300, 200, 100}, {4, 3, 2, 1}}}}};
  const auto values = plan_bits(shape, 64, choices, keys, {3.4, 0, 2});
  ASSERT_TRUE(values.ok()) << values.message();
  for (const auto& recipes : values->plan.recipes) EXPECT_EQ(recipes[0].value.bits, 2);
  EXPECT_THAT(std::string(plan_bits(shape, 64, choices, keys, {1.5, 1, 2}).message()),
              HasSubstr("with keys of at least 1 bits and values of at least 2"));
  EXPECT_THAT(std::string(plan_bits(shape, 64, choices, keys, {8, 0, 5}).message()),
              HasSubstr("values must have at least 5 bits"));
}

TEST(BitPlanHostile, RefusesWhatCannotBeMeant) {
  const CacheShape shape = CacheShape::uniform(2, 2, 64);
  const FormatChoices choices = default_choices({2, 4});
  const HeadLosses entry{{2, 1}, {2, 1}};
  const ModelLosses losses{{{entry}, {entry}}};
  const auto message = [](const Result<BitPlan>& plan) { return std::string(plan.message()); };
  ASSERT_TRUE(plan_bits(shape, 64, choices, losses, {3}).ok());

  EXPECT_THAT(message(plan_bits({}, 64, choices, losses, {3})), HasSubstr("no layers"));
  EXPECT_THAT(message(plan_bits(shape, 48, choices, losses, {3})), HasSubstr("page_tokens is 48"));
  EXPECT_THAT(message(plan_bits(shape, 64, {}, {{{{}}, {{}}}}, {3})),
              HasSubstr("0 key formats, 0 value formats"));
  EXPECT_THAT(message(plan_bits(shape, 64, choices, {{{entry}}}, {3})),
              HasSubstr("losses of 1 layers for a shape of 2"));
  EXPECT_THAT(message(plan_bits(shape, 64, choices, {{{entry}, {entry, entry, entry}}}, {3})),
              HasSubstr("layer 1: losses of 3 heads for 2 kv heads"));
  EXPECT_THAT(message(plan_bits(shape, 64, choices, {{{entry}, {{{1}, {2, 1}}}}}, {3})),
              HasSubstr("layer 1, entry 0: 1 losses of keys for 2 formats"));
  for (const double bad : {std::numeric_limits<double>::quiet_NaN(), -1.0,
                           std::numeric_limits<double>::infinity(), 1e301}) {
    const auto plan = plan_bits(shape, 64, choices, {{{entry}, {{{2, 1}, {2, bad}}}}}, {3});
    EXPECT_EQ(plan.code(), ErrorCode::InvalidValue);
    EXPECT_THAT(message(plan), HasSubstr("layer 1, entry 0: the loss of values in format 1"));
  }
  for (const double bits : {0.0, -3.0, std::numeric_limits<double>::quiet_NaN(),
                            std::numeric_limits<double>::infinity()})
    EXPECT_THAT(message(plan_bits(shape, 64, choices, losses, {bits})), HasSubstr("page bits"));
  FormatChoices broken = choices;
  broken.keys[1].group = 48;
  EXPECT_THAT(message(plan_bits(shape, 64, broken, losses, {3})),
              HasSubstr("layer 0: keys: 4 bits, group 48"));
  EXPECT_THAT(message(plan_bits(CacheShape{{LayerShape{}}}, 64, choices, {{{}}}, {3})),
              HasSubstr("no layer of the shape keeps a cache"));
}

TEST(BitPlan, TakesLossesOfZeroAndOfEverySize) {
  const CacheShape shape = CacheShape::uniform(2, 1, 64);
  const FormatChoices choices = default_choices({2, 4, 8});
  const HeadLosses none{{0, 0, 0}, {0, 0, 0}};
  const auto plan = plan_bits(shape, 64, choices, {{{none}, {none}}}, {16});
  ASSERT_TRUE(plan.ok());
  for (const auto& recipes : plan->plan.recipes) {
    EXPECT_EQ(recipes[0].key.bits, 2);
    EXPECT_EQ(recipes[0].value.bits, 2);
  }
  const HeadLosses big{{1e300, 1e299, 1}, {1e300, 1e299, 1}};
  const auto wide = plan_bits(shape, 64, choices, {{{big}, {big}}}, {16});
  ASSERT_TRUE(wide.ok());
  EXPECT_EQ(wide->plan.recipes[1][0].key.bits, 8);
}

// The largest case of the documentation must stay fast.
TEST(BitPlan, PlansEveryHeadOfALargeModel) {
  test::Random random(5);
  const CacheShape shape = CacheShape::uniform(80, 8, 128);
  const int widths[] = {1, 2, 3, 4, 5, 6, 8, 16};
  const auto choices = format_choices(shape, 64, widths, widths, {32, false});
  ASSERT_TRUE(choices.ok());
  ASSERT_GE(choices->keys.size() * choices->values.size(), 200u);
  const ModelLosses losses = random_losses(random, shape, *choices, true);
  const auto start = std::chrono::steady_clock::now();
  const auto plan = plan_bits(shape, 64, *choices, losses, {3.3});
  ASSERT_TRUE(plan.ok()) << plan.message();
  std::printf("%zu recipes: %.3f s\n", choices->keys.size() * choices->values.size(),
              std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  EXPECT_GT(plan->page_bits, 3.299);
}

}  // namespace
}  // namespace kvtilt
