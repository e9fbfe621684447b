// SPDX-License-Identifier: MIT
// Integer dot products (Arithmetic::Fast): their error is small beside that of quantization, and
// they give float32's bits wherever no kernel with integers exists.
#include "support/caches.hpp"
#include "support/float_modes.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <string>
#include <vector>

namespace kvtilt {
namespace {

using test::Random;

double rms(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double difference = static_cast<double>(a[i]) - static_cast<double>(b[i]);
    sum += difference * difference;
  }
  return std::sqrt(sum / static_cast<double>(a.size()));
}

/// Keys and values like those of trained models: every 37th key channel is `outlier` times as large
/// as the others, with the same sign for all tokens.
struct Data {
  test::Rows<float> keys;
  test::Rows<float> values;

  Data(Random& random, const LayerShape& shape, std::int64_t tokens, float outlier)
      : keys(test::random_rows(random, tokens, shape.kv_heads, shape.key_dim)),
        values(test::random_rows(random, tokens, shape.kv_heads, shape.value_dim)) {
    for (std::int64_t t = 0; t < tokens; ++t)
      for (int head = 0; head < shape.kv_heads; ++head)
        for (int channel = 3; channel < shape.key_dim; channel += 37)
          keys.at(t, head, channel) = outlier * (2.0f + 0.3f * keys.at(t, head, channel));
  }
};

struct Filled {
  KVCache cache;
  SequenceId id;

  Filled(const LayerShape& shape, const Recipe& recipe, Isa isa, const Data& data)
      : cache(test::make_cache(shape, recipe, {.sink_tokens = 0, .recent_tokens = 0, .isa = isa})),
        id(test::open_reserved(cache, data.keys.tokens)) {
    KVTILT_EXPECT_OK(cache.append(id, 0, data.keys.view(), data.values.view()));
  }
  [[nodiscard]] std::vector<float> attended(const test::Rows<float>& queries,
                                            Arithmetic arithmetic) const {
    AttendOptions options;
    options.arithmetic = arithmetic;
    return test::attended(cache.view(id, 0).value(), queries, options).out.data;
  }
};

class AttendFast : public testing::TestWithParam<int> {};

TEST_P(AttendFast, AddsLessThanAFifthOfTheErrorOfTheCodes) {
  const int bits = GetParam();
  Random random(static_cast<std::uint64_t>(bits));
  for (const LayerShape shape : {LayerShape{2, 128, 128, 0}, LayerShape{1, 80, 64, 0}})
    for (const float outlier : {1.0f, 5.0f, 30.0f})
      for (const float peak : {0.2f, 1.0f, 3.0f})
        for (const Granularity granularity : {Granularity::PerChannel, Granularity::PerToken}) {
          const Data data(random, shape, 640, outlier);
          test::Rows<float> queries = test::random_queries(random, shape, 1, 4, peak);
          // Trained models keep logits bounded: queries are small in channels whose keys are large.
          for (int head = 0; head < queries.heads; ++head)
            for (int channel = 3; channel < shape.key_dim; channel += 37)
              queries.at(0, head, channel) /= outlier;
          const Format format{bits, granularity, 0, default_rule(bits)};
          for (const Recipe& recipe : {Recipe{format, {}}, Recipe{{}, format}}) {
            const Filled truth(shape, Recipe{}, test::usable_isas().back(), data);
            const std::vector<float> expected = truth.attended(queries, Arithmetic::Exact);
            for (const Isa isa : test::usable_isas()) {
              const Filled filled(shape, recipe, isa, data);
              const std::vector<float> exact = filled.attended(queries, Arithmetic::Exact);
              const std::vector<float> fast = filled.attended(queries, Arithmetic::Fast);
              EXPECT_LE(rms(fast, exact), 0.2 * rms(exact, expected))
                  << to_string(recipe) << " on " << to_string(isa) << ", outliers " << outlier
                  << ", queries " << peak;
            }
          }
        }
}

/// Logits and values with which a bias of the weights' rounding shows: every `period`-th token (a
/// delimiter) outweighs the others by e^gap, and all channels of the others have means of their own, as
/// large as their spread. The mean of lost weights is lost in every group, and no length averages it
/// out.
struct Delimiters {
  float gap;
  float spread;  ///< standard deviation of the other tokens' logits
  int period;

  /// Fills `data` for a query that is `peak` in channel 0 and 0 in all others.
  void fill(Random& random, Data& data, float peak) const {
    std::vector<float> means(static_cast<std::size_t>(data.values.dim));
    for (float& mean : means) mean = static_cast<float>(random.sampled_normal());
    const float unit = std::sqrt(static_cast<float>(data.keys.dim)) / peak;  // one logit
    for (std::int64_t t = 0; t < data.keys.tokens; ++t) {
      const bool delimiter = t % period == period / 2;
      const float logit = static_cast<float>(random.sampled_normal()) * spread;
      data.keys.at(t, 0, 0) = unit * (delimiter ? gap : logit);
      for (int c = 0; c < data.values.dim; ++c) {
        const float x = static_cast<float>(random.sampled_normal());
        data.values.at(t, 0, c) = delimiter ? 0.3f * x : x + means[static_cast<std::size_t>(c)];
      }
    }
  }
};

TEST_P(AttendFast, LosesNothingBesideTokensThatOutweighTheirGroup) {
  const int bits = GetParam();
  const Isa isa = test::usable_isas().back();
  Random random(static_cast<std::uint64_t>(100 + bits));
  const LayerShape shape{1, 128, 128, 0};
  for (const Delimiters& pattern :
       {Delimiters{0, 3, 128}, Delimiters{6, 0.2f, 128}, Delimiters{7, 0.5f, 64},
        Delimiters{8, 0.5f, 128}, Delimiters{10, 0.3f, 128}}) {
    Data data(random, shape, 8192, 1.0f);
    test::Rows<float> queries(1, 1, shape.key_dim);
    queries.at(0, 0, 0) = 20.0f;
    pattern.fill(random, data, 20.0f);
    const Filled truth(shape, Recipe{}, isa, data);
    const std::vector<float> expected = truth.attended(queries, Arithmetic::Exact);
    for (const Granularity granularity : {Granularity::PerChannel, Granularity::PerToken}) {
      const Recipe recipe{{}, Format{bits, granularity, 0, default_rule(bits)}};
      const Filled filled(shape, recipe, isa, data);
      const std::vector<float> exact = filled.attended(queries, Arithmetic::Exact);
      const std::vector<float> fast = filled.attended(queries, Arithmetic::Fast);
      EXPECT_LE(rms(fast, exact), 0.2 * rms(exact, expected))
          << to_string(recipe) << ", gap " << pattern.gap << ", spread " << pattern.spread
          << ", period " << pattern.period;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Widths, AttendFast, testing::Range(1, 9));

/// Fast has the bits of Exact where, and only where, the width has no integer kernel.
TEST(AttendFastAgreement, DiffersFromExactOnlyWhereThereAreIntegerDots) {
  Random random(11);
  const LayerShape shape{1, 64, 64, 0};
  const Data data(random, shape, 320, 1.0f);
  const test::Rows<float> queries = test::random_queries(random, shape, 1, 4);
  for (const Isa isa : test::usable_isas())
    for (const int bits : test::storage_widths) {
      const Format format = bits == half_bits
                                ? Format{}
                                : Format{bits, Granularity::PerChannel, 0, default_rule(bits)};
      const Filled filled(shape, {format, {}}, isa, data);
      const bool integers =
          filled.cache.view(filled.id, 0)->kernels->integer_dot[cpu::width_slot(bits)] != nullptr;
      EXPECT_EQ(
          filled.attended(queries, Arithmetic::Fast) == filled.attended(queries, Arithmetic::Exact),
          !integers)
          << bits << " bits on " << to_string(isa);
    }
}

/// A row's bits do not depend on which tokens the other rows of its tile see (window, causality).
TEST(AttendFastAgreement, GivesARowTheSameBitsWhateverSharesItsCall) {
  Random random(13);
  const LayerShape shape{1, 64, 64, 50};
  const Data data(random, shape, 320, 5.0f);
  const test::Rows<float> queries = test::random_queries(random, shape, 7, 2);
  for (const Isa isa : test::usable_isas())
    for (const char* name : {"k4v2", "k8v8", "k5tv6c", "k1v1"}) {
      const Filled filled(shape, parse_recipe(name).value(), isa, data);
      const std::vector<float> together = filled.attended(queries, Arithmetic::Fast);
      test::Rows<float> last(1, 2, 64);
      std::copy_n(&queries.at(6, 0, 0), last.data.size(), last.data.begin());
      EXPECT_EQ(filled.attended(last, Arithmetic::Fast),
                std::vector<float>(together.end() - 2 * 64, together.end()))
          << name << " on " << to_string(isa);
    }
}

/// Constant tensors and zero queries have scale 0: nothing divides by it.
TEST(AttendFastAgreement, TakesTensorsWithoutARange) {
  Random random(12);
  const LayerShape shape{1, 64, 64, 0};
  for (const float value : {0.0f, 3.25f, -60000.0f}) {
    Data data(random, shape, 192, 1.0f);
    for (float& x : data.keys.data) x = 0.0f;
    for (float& x : data.values.data) x = value;
    const test::Rows<float> queries(1, 4, 64);
    for (const Isa isa : test::usable_isas()) {
      const Filled filled(shape, presets::k4v2, isa, data);
      for (const float x : filled.attended(queries, Arithmetic::Fast))
        EXPECT_NEAR(x, value, 1e-5f * std::abs(value)) << to_string(isa);
    }
  }
}

/// Engines may set another rounding mode: the largest weight must still fit into a byte.
TEST(AttendFastAgreement, SurvivesEveryFloatMode) {
  Random random(12);
  const LayerShape shape{1, 128, 128, 0};
  const Data data(random, shape, 2000, 1.0f);
  const test::Rows<float> queries = test::random_queries(random, shape, 1, 4);
  for (const Isa isa : test::usable_isas())
    for (const Recipe& recipe : {presets::k4v2, presets::k8v8}) {
      const Filled filled(shape, recipe, isa, data);
      const std::vector<float> expected = filled.attended(queries, Arithmetic::Exact);
      const double size = rms(expected, std::vector<float>(expected.size()));
      for (const test::FloatMode mode : test::all_float_modes) {
        std::vector<float> fast;
        {
          const test::FloatModeGuard guard(mode);
          fast = filled.attended(queries, Arithmetic::Fast);
        }
        EXPECT_LT(rms(fast, expected), 0.1 * size) << to_string(recipe) << " on " << to_string(isa)
                                                   << ", mode " << static_cast<unsigned>(mode);
      }
    }
}

}  // namespace
}  // namespace kvtilt
