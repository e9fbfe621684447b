// SPDX-License-Identifier: MIT
#include <kvtilt/page/unpack.hpp>
#include <kvtilt/plan/measure_error.hpp>

#include "support/kernel_tables.hpp"
#include "support/page_data.hpp"
#include "support/random.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <string>
#include <vector>

namespace kvtilt {
namespace {

using testing::HasSubstr;

std::vector<float> random_floats(test::Random& random, std::size_t count) {
  std::vector<float> data(count);
  for (float& x : data) x = static_cast<float>(random.normal() * 3 + 1);
  return data;
}

/// The same sum over pages that this machine's kernels packed, decoded by unpack_value().
double error_of_pages(const std::vector<float>& data, int heads, int head, int dim, int tokens,
                      const Format& format, bool keys, const std::vector<double>& token_weights,
                      const std::vector<double>& channel_weights) {
  const cpu::Kernels* kernels = cpu::kernels<AllFormats>(*active_isa());
  const int page_tokens = tokens;
  double sum = 0;
  const HeadLayout half = head_layout({}, dim, dim, page_tokens, 0);
  const HeadLayout packed = head_layout({format, format}, dim, dim, page_tokens, 0);
  const TensorLayout& half_tensor = keys ? half.key : half.value;
  const TensorLayout& tensor = keys ? packed.key : packed.value;
  test::Block half_block(half.bytes());
  test::Block block(packed.bytes());
  const auto at = [&](int token, int channel) {
    return data[static_cast<std::size_t>((token * heads + head) * dim + channel)];
  };
  for (int token = 0; token < tokens; ++token)
    for (int channel = 0; channel < dim; ++channel)
      test::halves(half_block.data(), half_tensor)[half_position(
          half_tensor.matrix, keys ? token : channel, keys ? channel : token)] =
          to_f16(at(token, channel));
  kernels->pack[cpu::width_slot(format.bits)](half_tensor, half_block.data(), tensor, block.data());
  for (int token = 0; token < tokens; ++token)
    for (int channel = 0; channel < dim; ++channel) {
      const double error =
          static_cast<double>(at(token, channel)) -
          static_cast<double>(
              unpack_value(tensor, block.data(), keys ? token : channel, keys ? channel : token));
      sum += token_weights[static_cast<std::size_t>(token)] *
             channel_weights[static_cast<std::size_t>(channel)] * error * error;
    }
  return sum;
}

TEST(MeasureErrorAgreement, EqualsTheErrorOfPackedPages) {
  test::Random random(21);
  constexpr int heads = 2;
  for (const test::Extents extents : {test::Extents{64, 32}, {72, 64}, {128, 128}}) {
    const auto [dim, tokens] = extents;
    const std::vector<float> data =
        random_floats(random, static_cast<std::size_t>(tokens * heads * dim));
    std::vector<double> token_weights(static_cast<std::size_t>(tokens));
    std::vector<double> channel_weights(static_cast<std::size_t>(dim));
    for (double& weight : token_weights) weight = random.uniform();
    for (double& weight : channel_weights) weight = random.uniform();
    for (const int bits : {1, 2, 3, 4, 5, 6, 7, 8, 16})
      for (const Format& format : test::formats_of(bits, extents)) {
        const int head = random.below(heads);
        const TensorView view(data.data(), tokens, heads, dim);
        const auto error =
            measure_error(view, head, format, tokens, {token_weights, channel_weights});
        ASSERT_TRUE(error.ok()) << error.message();
        const double expected = error_of_pages(data, heads, head, dim, tokens, format,
                                               random.chance(2), token_weights, channel_weights);
        EXPECT_NEAR(*error, expected, 1e-9 * expected) << test::to_string(format, extents);
      }
  }
}

TEST(MeasureError, AddsUpPagesAndLeavesOutTheRest) {
  test::Random random(22);
  const std::vector<float> data = random_floats(random, 100 * 64);
  const Format format = *resolve_format(key_format(3), "keys", 64, 32);
  const auto all = measure_error(TensorView(data.data(), 100, 1, 64), 0, format, 32);
  double sum = 0;
  for (int page = 0; page < 3; ++page)
    sum += *measure_error(TensorView(&data[static_cast<std::size_t>(page) * 32 * 64], 32, 1, 64), 0,
                          format, 32);
  ASSERT_TRUE(all.ok());
  EXPECT_NEAR(*all, sum, 1e-12 * sum);
}

TEST(MeasureError, ReadsEveryTypeAndStride) {
  test::Random random(23);
  std::vector<float> floats(64 * 2 * 8);
  std::vector<F16> halves;
  std::vector<BF16> brains;
  for (float& x : floats) {
    x = to_float(to_bf16(static_cast<float>(random.normal())));
    halves.push_back(to_f16(x));
    brains.push_back(to_bf16(x));
  }
  const Format format = value_format(4, Granularity::PerToken, 8);
  const double expected = *measure_error(TensorView(floats.data(), 64, 2, 8), 1, format, 64);
  EXPECT_NEAR(*measure_error(TensorView(halves.data(), 64, 2, 8), 1, format, 64), expected,
              1e-5 * expected);
  EXPECT_EQ(*measure_error(TensorView(brains.data(), 64, 2, 8), 1, format, 64), expected);
  const TensorView reversed =
      TensorView(floats.data(), 64, 2, 8).with_strides(-16, 8);  // the last token first
  TensorView last = reversed;
  last.data = floats.data() + 63 * 16;
  EXPECT_NEAR(*measure_error(last, 1, format, 64), expected, 1e-9 * expected)
      << "per token, the order of tokens does not matter";
}

TEST(MeasureErrorHostile, RefusesWhatCannotBeStored) {
  std::vector<float> data(64 * 16, 1.0f);
  const TensorView view(data.data(), 64, 1, 16);
  const Format format = key_format(4, Granularity::PerChannel, 64);
  const auto message = [](const Result<double>& result) { return std::string(result.message()); };
  ASSERT_TRUE(measure_error(view, 0, format, 64).ok());
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), 65536.0f,
                          -std::numeric_limits<float>::infinity()}) {
    data[20 * 16 + 3] = bad;
    const auto error = measure_error(view, 0, format, 64);
    EXPECT_EQ(error.code(), ErrorCode::InvalidValue);
    EXPECT_THAT(message(error), HasSubstr("token 20, head 0, channel 3"));
  }
  data[20 * 16 + 3] = 40000;
  EXPECT_TRUE(measure_error(view, 0, format, 64).ok());
  EXPECT_THAT(message(measure_error(view, 0, key_format(1), 64)), HasSubstr("up to 32752"));
  data[20 * 16 + 3] = 0;

  EXPECT_THAT(message(measure_error(view, 1, format, 64)), HasSubstr("head 1 of 1"));
  EXPECT_THAT(message(measure_error(view, 0, format, 128)), HasSubstr("64 tokens in pages of 128"));
  EXPECT_THAT(message(measure_error(view, 0, format, 50)), HasSubstr("page_tokens is 50"));
  EXPECT_THAT(message(measure_error(view, 0, key_format(4, Granularity::PerChannel, 48), 64)),
              HasSubstr("group 48"));
  const std::vector<double> weights(17, 1.0);
  EXPECT_THAT(message(measure_error(view, 0, format, 64, {weights, {}})),
              HasSubstr("weights of 17 tokens"));
  EXPECT_THAT(message(measure_error(view, 0, format, 64, {{}, weights})),
              HasSubstr("17 channels for 64 tokens of 16"));
}

}  // namespace
}  // namespace kvtilt
