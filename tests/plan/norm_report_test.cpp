// SPDX-License-Identifier: MIT
#include <kvtilt/plan/norm_report.hpp>

#include <gtest/gtest.h>

#include <vector>

namespace kvtilt {
namespace {

const LayerShape report_shape{2, 4 * 8, 32};

LayerNorms norms_of(double key_frobenius, double key_spectral, double value_frobenius,
                    double value_spectral) {
  LayerNorms layer;
  layer.keys.frobenius = key_frobenius;
  layer.keys.spectral = key_spectral;
  layer.values.frobenius = value_frobenius;
  layer.values.spectral = value_spectral;
  return layer;
}

TEST(NormReport, TheoremAndGapsHaveTheSignOfTheLargerNorm) {
  const LayerReport llama = layer_report(norms_of(40, 8, 10, 1), report_shape);
  EXPECT_TRUE(llama.theorem_holds);
  EXPECT_TRUE(llama.spectral_holds);
  EXPECT_DOUBLE_EQ(llama.frobenius_gap, 2);
  EXPECT_DOUBLE_EQ(llama.spectral_gap, 3);
  EXPECT_FALSE(llama.contradicted);
  EXPECT_FALSE(llama.measured_gap.has_value());
  const LayerReport qwen = layer_report(norms_of(20, 4, 40, 2), report_shape);
  EXPECT_FALSE(qwen.theorem_holds);
  EXPECT_TRUE(qwen.spectral_holds);
  EXPECT_DOUBLE_EQ(qwen.frobenius_gap, -1);
  EXPECT_EQ(layer_report(norms_of(20, 0, 40, 2), report_shape).spectral_gap, 0) << "unknown";
}

// The gap, in bits, that makes key and value losses equal is log4 of their ratio at one width.
TEST(NormReport, TheMeasuredGapEqualisesLosses) {
  const FormatChoices choices{{key_format(2), key_format(4)}, {value_format(4), value_format(3)}};
  const std::vector<HeadLosses> entries{{{9, 48}, {2, 7}}, {{9, 16}, {2, 7}}};
  EXPECT_DOUBLE_EQ(*measured_gap(entries, choices, 4), 2);
  EXPECT_FALSE(measured_gap(entries, choices, 3).has_value()) << "no keys of 3 bits";
  EXPECT_FALSE(measured_gap(entries, choices, 8).has_value());
  EXPECT_FALSE(measured_gap(std::vector<HeadLosses>{{{1, 0}, {1, 1}}}, choices, 4).has_value());
  EXPECT_FALSE(measured_gap({}, choices, 4).has_value());
}

TEST(NormReport, WarnsWhereNormsContradictMeasurement) {
  const LayerNorms qwen = norms_of(20, 4, 40, 2);
  EXPECT_TRUE(layer_report(qwen, report_shape, 1.5).contradicted) << "other sign";
  EXPECT_FALSE(layer_report(qwen, report_shape, -0.5).contradicted);
  EXPECT_TRUE(layer_report(norms_of(20, 4, 10, 2), report_shape, 2.5).contradicted)
      << "over a bit apart";
  EXPECT_FALSE(layer_report(norms_of(20, 4, 10, 2), report_shape, 1.5).contradicted);
}

TEST(NormReport, GainsSpeakForNormedKeys) {
  LayerNorms layer = norms_of(20, 4, 32, 2);
  layer.key_norm = true;
  EXPECT_TRUE(layer_report(layer, report_shape).key_norm);
  EXPECT_FALSE(layer_report(layer, report_shape).gain_gap.has_value());
  layer.key_gains.assign(32, 8.0f);  // 2 heads x 32 channels x 64 = 64^2
  const LayerReport report = layer_report(layer, report_shape, 1.5);
  ASSERT_TRUE(report.gain_gap.has_value());
  EXPECT_DOUBLE_EQ(*report.gain_gap, 1);
  EXPECT_LT(report.frobenius_gap, 0);
  EXPECT_FALSE(report.contradicted) << "the gains agree with what was measured";
}

TEST(NormReportHostile, GainsOfAnotherShapeSayNothing) {
  LayerNorms layer = norms_of(20, 4, 10, 2);
  layer.key_norm = true;
  for (const int gains : {0, 1, 16, 31, 33, 63, 65}) {
    layer.key_gains = std::vector<float>(static_cast<std::size_t>(gains), 8.0f);
    const LayerReport report = layer_report(layer, report_shape, 1.5);
    EXPECT_FALSE(report.gain_gap.has_value()) << gains;
    EXPECT_FALSE(report.contradicted) << "the weights' own gap is 1";
  }
}

}  // namespace
}  // namespace kvtilt
