// SPDX-License-Identifier: MIT
#include <kvtilt/plan/captured_losses.hpp>

#include "support/random.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

namespace kvtilt {
namespace {

using testing::HasSubstr;

constexpr int heads = 2;
constexpr int dim = 16;
constexpr int tokens = 128;
constexpr int page_tokens = 64;
constexpr int query_count = 64;
const CacheShape shape = CacheShape::uniform(1, heads, dim);
const FormatChoices choices{{key_format(4), key_format(6), key_format(8)},
                            {value_format(4), value_format(6), value_format(8)}};

/// Random keys and values, and queries that attend to all of them.
struct Scene {
  CapturedLayer layer;
  std::vector<double> queries;  ///< [query_count][heads][dim]

  explicit Scene(std::uint64_t seed) {
    test::Random random(seed);
    layer.tokens = tokens;
    layer.kv_heads = heads;
    layer.key_dim = layer.value_dim = dim;
    std::vector<double> sizes(dim);
    for (double& size : sizes) size = std::exp(random.uniform(-1.5, 1.5));
    for (int i = 0; i < tokens * heads * dim; ++i) {
      const std::size_t channel = static_cast<std::size_t>(i % dim);
      layer.keys.push_back(static_cast<float>(random.normal() * sizes[channel]));
      layer.values.push_back(static_cast<float>(2 + random.normal() * (i / dim % heads + 1)));
    }
    for (int i = 0; i < query_count * heads * dim; ++i)
      queries.push_back(random.normal() / sizes[static_cast<std::size_t>(i % dim)]);
  }

  [[nodiscard]] double key(int token, int head, int channel) const {
    return static_cast<double>(
        layer.keys[static_cast<std::size_t>((token * heads + head) * dim + channel)]);
  }
  [[nodiscard]] double value(int token, int head, int channel) const {
    return static_cast<double>(
        layer.values[static_cast<std::size_t>((token * heads + head) * dim + channel)]);
  }
  [[nodiscard]] double query(int index, int head, int channel) const {
    return queries[static_cast<std::size_t>((index * heads + head) * dim + channel)];
  }

  [[nodiscard]] std::vector<double> probabilities(int index, int head) const {
    std::vector<double> p(tokens);
    double sum = 0;
    for (int token = 0; token < tokens; ++token) {
      double logit = 0;
      for (int channel = 0; channel < dim; ++channel)
        logit += query(index, head, channel) * key(token, head, channel);
      sum += p[static_cast<std::size_t>(token)] = std::exp(logit / std::sqrt(double{dim}));
    }
    for (double& x : p) x /= sum;
    return p;
  }

  [[nodiscard]] std::vector<double> output(int index, int head) const {
    const std::vector<double> p = probabilities(index, head);
    std::vector<double> o(dim);
    for (int token = 0; token < tokens; ++token)
      for (int channel = 0; channel < dim; ++channel)
        o[static_cast<std::size_t>(channel)] +=
            p[static_cast<std::size_t>(token)] * value(token, head, channel);
    return o;
  }

  /// Computes the statistics that a capture collects.
  void collect() {
    layer.query_square.assign(heads * dim, 0);
    layer.attention.assign(heads * tokens, 0);
    layer.key_attention.assign(heads * tokens, 0);
    for (int head = 0; head < heads; ++head)
      for (int index = 0; index < query_count; ++index) {
        const std::vector<double> p = probabilities(index, head);
        const std::vector<double> o = output(index, head);
        for (int channel = 0; channel < dim; ++channel)
          layer.query_square[static_cast<std::size_t>(head * dim + channel)] +=
              query(index, head, channel) * query(index, head, channel) / query_count;
        for (int token = 0; token < tokens; ++token) {
          const double weight = p[static_cast<std::size_t>(token)];
          double distance = 0;
          for (int channel = 0; channel < dim; ++channel) {
            const double d = value(token, head, channel) - o[static_cast<std::size_t>(channel)];
            distance += d * d;
          }
          const std::size_t at = static_cast<std::size_t>(head * tokens + token);
          layer.attention[at] += weight * weight;
          layer.key_attention[at] += weight * weight * distance;
        }
      }
  }
};

/// Replaces a head's keys or values with what a format decodes to.
void quantize(Scene& scene, Role tensor, int head, const Format& format) {
  std::vector<float>& data = tensor == Role::Keys ? scene.layer.keys : scene.layer.values;
  const bool per_channel = format.granularity == Granularity::PerChannel;
  const int along = per_channel ? tokens : dim;
  const int across = per_channel ? dim : tokens;
  for (int entry = 0; entry < across; ++entry)
    for (int first = 0; first < along; first += format.group) {
      std::vector<F16> group;
      const auto at = [&](int i) -> float& {
        const int token = per_channel ? first + i : entry;
        const int channel = per_channel ? entry : first + i;
        return data[static_cast<std::size_t>((token * heads + head) * dim + channel)];
      };
      const int count = std::min(format.group, along - first);
      for (int i = 0; i < count; ++i) group.push_back(to_f16(at(i)));
      const Affine affine = fit({group.data(), count, 1}, format.bits, format.rule);
      for (int i = 0; i < count; ++i)
        at(i) = decode(encode(group[static_cast<std::size_t>(i)], affine, reciprocal(affine.scale),
                              format.bits, format.rule),
                       affine);
    }
}

// The header's formulas against attention in double over decoded keys or values.
TEST(CapturedLossesAgreement, PredictTheErrorOfAttention) {
  double predicted[2] = {};
  double measured[2] = {};
  for (std::uint64_t seed = 61; seed < 69; ++seed) {
    Scene scene(seed);
    scene.collect();
    const auto losses = losses_from_statistics(shape, page_tokens, choices,
                                               std::vector{scene.layer}, RecipePer::Head);
    ASSERT_TRUE(losses.ok()) << losses.message();
    for (const Role tensor : {Role::Keys, Role::Values})
      for (int head = 0; head < heads; ++head) {
        const bool keys = tensor == Role::Keys;
        Scene changed = scene;
        quantize(changed, tensor, head,
                 *resolve_format(keys ? choices.keys[1] : choices.values[1], "", dim, page_tokens));
        double sum = 0;
        for (int index = 0; index < query_count; ++index) {
          const std::vector<double> exact = scene.output(index, head);
          const std::vector<double> rough = changed.output(index, head);
          for (std::size_t channel = 0; channel < dim; ++channel)
            sum += (rough[channel] - exact[channel]) * (rough[channel] - exact[channel]);
        }
        const HeadLosses& entry = losses->layers[0][static_cast<std::size_t>(head)];
        const double loss = (keys ? entry.keys : entry.values)[1];
        EXPECT_NEAR(loss, sum, 0.4 * sum) << to_string(tensor) << ", head " << head;
        predicted[keys ? 0 : 1] += loss;
        measured[keys ? 0 : 1] += sum;
      }
  }
  for (int i = 0; i < 2; ++i) EXPECT_NEAR(predicted[i], measured[i], 0.1 * measured[i]) << i;
}

TEST(CapturedLosses, HeadsAddUpToTheLayer) {
  Scene scene(71);
  scene.collect();
  const std::vector captured{scene.layer};
  const auto layer = losses_from_statistics(shape, page_tokens, choices, captured);
  const auto each = losses_from_statistics(shape, page_tokens, choices, captured, RecipePer::Head);
  ASSERT_TRUE(layer.ok() && each.ok());
  ASSERT_EQ(layer->layers[0].size(), 1u);
  ASSERT_EQ(each->layers[0].size(), 2u);
  for (std::size_t i = 0; i < choices.keys.size(); ++i) {
    EXPECT_DOUBLE_EQ(layer->layers[0][0].keys[i],
                     each->layers[0][0].keys[i] + each->layers[0][1].keys[i]);
    EXPECT_DOUBLE_EQ(layer->layers[0][0].values[i],
                     each->layers[0][0].values[i] + each->layers[0][1].values[i]);
  }
}

TEST(CapturedLosses, WithoutWeightsAreTheErrorsThemselves) {
  Scene scene(72);
  const auto losses = losses_from_statistics(shape, page_tokens, choices, std::vector{scene.layer},
                                             RecipePer::Head);
  ASSERT_TRUE(losses.ok()) << losses.message();
  for (int head = 0; head < heads; ++head) {
    const HeadLosses& entry = losses->layers[0][static_cast<std::size_t>(head)];
    const TensorView values(scene.layer.values.data(), tokens, heads, dim);
    EXPECT_DOUBLE_EQ(entry.values[2], *measure_error(values, head, choices.values[2], page_tokens));
    // Key losses also grow with the scatter of the values: (head + 1)^2 in each of 16 channels,
    // times 1/16.
    const TensorView keys(scene.layer.keys.data(), tokens, heads, dim);
    const double error = *measure_error(keys, head, choices.keys[2], page_tokens);
    const double spread = (head + 1) * (head + 1);
    EXPECT_NEAR(entry.keys[2], error * spread, 0.1 * error * spread);
  }
}

TEST(CapturedLosses, WeighByQueriesAttentionScaleAndLayer) {
  Scene scene(73);
  scene.collect();
  const auto loss_of = [](const CapturedLayer& layer, Role tensor) {
    const auto losses = losses_from_statistics(shape, page_tokens, choices, std::vector{layer});
    EXPECT_TRUE(losses.ok()) << losses.message();
    return (tensor == Role::Keys ? losses->layers[0][0].keys : losses->layers[0][0].values)[0];
  };
  const double keys = loss_of(scene.layer, Role::Keys);
  const double values = loss_of(scene.layer, Role::Values);
  CapturedLayer other = scene.layer;
  for (double& square : other.query_square) square *= 9;
  EXPECT_NEAR(loss_of(other, Role::Keys), 9 * keys, 1e-9 * keys);
  EXPECT_EQ(loss_of(other, Role::Values), values);
  other = scene.layer;
  other.logit_scale = 0.5;  // twice the default, 1 / sqrt(16)
  EXPECT_NEAR(loss_of(other, Role::Keys), 4 * keys, 1e-9 * keys);
  other = scene.layer;
  other.weight = 3;
  EXPECT_NEAR(loss_of(other, Role::Values), 3 * values, 1e-9 * values);
  EXPECT_NEAR(loss_of(other, Role::Keys), 3 * keys, 1e-9 * keys);
  other = scene.layer;
  for (double& weight : other.attention) weight *= 2;
  EXPECT_NEAR(loss_of(other, Role::Values), 2 * values, 1e-9 * values);
  EXPECT_EQ(loss_of(other, Role::Keys), keys) << "keys have weights of their own";
  other.key_attention.clear();
  EXPECT_GT(loss_of(other, Role::Keys), keys) << "twice the attention, values from their mean";
  EXPECT_LT(loss_of(other, Role::Keys), 4 * keys);
  other.output_square.assign(heads * dim, 4);
  EXPECT_NEAR(loss_of(other, Role::Values), 8 * values, 1e-9 * values);
  const double spread = loss_of(other, Role::Keys);
  other.output_square.assign(heads * dim, 1);
  EXPECT_NEAR(loss_of(other, Role::Keys), spread / 4, 1e-9 * spread);
  other.output_square[3] = 1000;
  EXPECT_GT(loss_of(other, Role::Values), 10 * values) << "one channel counts above all others";
}

TEST(CapturedLossesHostile, NameTheLayerAndWhatIsWrong) {
  Scene scene(74);
  scene.collect();
  const auto message = [](const CapturedLayer& layer) {
    return std::string(
        losses_from_statistics(shape, page_tokens, choices, std::vector{layer}).message());
  };
  EXPECT_EQ(message(scene.layer), "");
  CacheShape latents = shape;
  latents.layers[0].values_in_keys = true;
  EXPECT_THAT(
      std::string(losses_from_statistics(latents, page_tokens, choices, std::vector{scene.layer})
                      .message()),
      HasSubstr("layer 0, keys: values are in them"));
  CapturedLayer layer = scene.layer;
  layer.keys[(100 * heads + 1) * dim + 5] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_THAT(message(layer), HasSubstr("layer 0, keys: token 100, head 1, channel 5"));
  layer = scene.layer;
  layer.keys.pop_back();
  EXPECT_THAT(message(layer), HasSubstr("layer 0, keys: 4095 keys"));
  layer = scene.layer;
  layer.attention.pop_back();
  EXPECT_THAT(message(layer), HasSubstr("255 attention weights, must be 256 for 128 tokens"));
  layer = scene.layer;
  layer.output_square.assign(31, 1);
  EXPECT_THAT(message(layer), HasSubstr("31 output squares, must be 32"));
  layer = scene.layer;
  layer.query_square[3] = -1;
  EXPECT_THAT(message(layer), HasSubstr("layer 0, keys: -1 cannot be a mean square"));
  layer = scene.layer;
  layer.weight = std::numeric_limits<double>::infinity();
  EXPECT_THAT(message(layer), HasSubstr("layer 0, keys: weight inf"));
  layer = scene.layer;
  layer.logit_scale = -0.5;
  EXPECT_THAT(message(layer), HasSubstr("layer 0, keys: weight 1, logit scale -0.5"));
  layer = scene.layer;
  layer.value_dim = 8;
  EXPECT_THAT(message(layer), HasSubstr("captured 2 kv heads of 16 and 8 channels"));
  layer = CapturedLayer{};
  layer.kv_heads = heads;
  layer.key_dim = layer.value_dim = dim;
  EXPECT_THAT(message(layer), HasSubstr("0 tokens in pages of 64"));
  EXPECT_THAT(std::string(losses_from_statistics(shape, page_tokens, choices, {}).message()),
              HasSubstr("captured 0 layers for a shape of 1"));
}

}  // namespace
}  // namespace kvtilt
