// SPDX-License-Identifier: MIT
// Layers whose values are in their keys. The random programs of tests/cache have such layers, too.
#include <kvtilt/attention/attend.hpp>
#include <kvtilt/attention/attend_memory.hpp>
#include <kvtilt/attention/attend_prefill.hpp>

#include "support/caches.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace kvtilt {
namespace {

using test::attended;
using test::Output;
using test::Random;
using test::random_queries;
using test::random_rows;
using test::Rows;
using testing::HasSubstr;

/// The latents of some tokens in a cache whose values are in its keys, and in one that stores them
/// a second time, in the same format.
struct Twins {
  LayerShape shape;
  KVCache once;
  KVCache twice;
  SequenceId in_once;
  SequenceId in_twice;

  Twins(const LayerShape& latent, const std::string& recipe, const CacheOptions& options)
      : shape(latent),
        once(test::make_cache(latent, parse_recipe(recipe).value(), options)),
        twice(test::make_cache(apart(latent), doubled(parse_recipe(recipe).value()), options)),
        in_once(test::open_reserved(once, 500)),
        in_twice(test::open_reserved(twice, 500)) {}

  void append(const Rows<float>& keys) {
    KVTILT_EXPECT_OK(once.append(in_once, 0, keys.view(), {}));
    KVTILT_EXPECT_OK(twice.append(in_twice, 0, keys.view(), values_of(keys)));
  }
  [[nodiscard]] TensorView values_of(const Rows<float>& keys) const {
    TensorView values = keys.view();
    values.dim = shape.value_dim;
    return values;
  }
  [[nodiscard]] LayerView once_view() const { return once.view(in_once, 0).value(); }
  [[nodiscard]] LayerView twice_view() const { return twice.view(in_twice, 0).value(); }

 private:
  static LayerShape apart(LayerShape latent) {
    latent.values_in_keys = false;
    return latent;
  }
  static Recipe doubled(const Recipe& recipe) { return {recipe.key, recipe.key}; }
};

void expect_same_bits(const Output& a, const Output& b, const std::string& what) {
  EXPECT_EQ(a.out.data, b.out.data) << what;
  EXPECT_EQ(a.lse, b.lse) << what;
}

Output prefilled(const LayerView& past, const Rows<float>& queries, const Rows<float>& keys,
                 const TensorView& values) {
  Output output(queries.tokens, queries.heads, past.shape.value_dim);
  std::vector<std::byte> workspace(attend_prefill_workspace_bytes(past, queries.tokens));
  KVTILT_EXPECT_OK(attend_prefill(past, queries.view(), keys.view(), values, output.view(),
                                  test::exact_options(), workspace));
  return output;
}

void expect_agreement(const LayerShape& shape, const std::string& recipe, Isa isa,
                      int page_tokens) {
  CacheOptions options;
  options.isa = isa;
  options.page_tokens = page_tokens;
  options.recent_tokens = 20;
  options.sink_tokens = 5;
  Twins twins(shape, recipe, options);
  Random random(5);
  twins.append(random_rows(random, 201, shape.kv_heads, shape.key_dim));
  const std::string what =
      recipe + ", " + std::to_string(shape.key_dim) + " channels on " + to_string(isa);
  const Rows<float> queries = random_queries(random, shape, 3, 5);
  for (const Arithmetic arithmetic : {Arithmetic::Fast, Arithmetic::Exact}) {
    AttendOptions attend_options;
    attend_options.arithmetic = arithmetic;
    expect_same_bits(attended(twins.once_view(), queries, attend_options),
                     attended(twins.twice_view(), queries, attend_options), what);
  }
  const Rows<float> chunk = random_rows(random, 70, shape.kv_heads, shape.key_dim);
  const Rows<float> asked = random_queries(random, shape, 70, 2);
  expect_same_bits(prefilled(twins.once_view(), asked, chunk, {}),
                   prefilled(twins.twice_view(), asked, chunk, twins.values_of(chunk)), what);
}

// Groups that do not reach beyond the values have the same scales in both caches.
TEST(ValuesInKeysAgreement, AttentionHasTheBitsOfValuesStoredApart) {
  for (const Isa isa : test::usable_isas())
    for (const char* recipe :
         {"k16", "k8", "k7", "k6", "k5", "k4", "k3", "k2", "k1", "k4:g16", "k8t:g32", "k3t:g32"})
      for (LayerShape shape : {LayerShape{1, 80, 64}, LayerShape{2, 72, 72}}) {
        shape.values_in_keys = true;
        if (parse_recipe(recipe)->key.group == 32 && shape.value_dim % 32 != 0) continue;
        expect_agreement(shape, recipe, isa, 32);
      }
  for (const char* recipe : {"k16", "k7", "k4"})
    expect_agreement(LayerShape::latent(512, 64), recipe, active_isa().value(), 64);
}

TEST(ValuesInKeys, AreStoredOnce) {
  CacheOptions options;
  Twins twins(LayerShape::latent(512, 64), "k8", options);
  Random random(6);
  twins.append(random_rows(random, 400, 1, 576));
  const MemoryReport once = twins.once.memory();
  EXPECT_EQ(once.elements, 400 * 576);
  EXPECT_EQ(once.page_bytes, 4u * (64 * 576 + 576 * 4));  // 4 pages behind sinks and tail
  EXPECT_EQ(once.tail_bytes + once.sink_bytes, (400u - 4 * 64) * 576 * 2);
  EXPECT_EQ(twins.twice.memory().elements, 400 * (576 + 512));
  EXPECT_DOUBLE_EQ(twins.once.page_bits(), 8.5);
}

TEST(ValuesInKeys, TheWorkspaceIsKnownBeforehand) {
  CacheOptions options;
  options.sink_tokens = 1000;  // the largest block
  Twins twins(LayerShape::latent(512, 64), "k4", options);
  Random random(7);
  twins.append(random_rows(random, 50, 1, 576));
  const AttendStep step{.tokens = 500, .query_heads = 16};
  EXPECT_EQ(attend_workspace_bytes(twins.once_view()),
            attend_workspace_bytes(twins.shape, options, step).value());
  EXPECT_EQ(attend_workspace_bytes(twins.once_view()) - attend_workspace_bytes(twins.twice_view()),
            1008u * 512 * 2)
      << "room for the sinks' values";
}

TEST(ValuesInKeysHostile, AreNotAcceptedASecondTime) {
  Twins twins(LayerShape::latent(64, 16), "k4", {});
  Random random(8);
  const Rows<float> keys = random_rows(random, 10, 1, 80);
  const auto refusal = [&](const TensorView& k, const TensorView& v) {
    const Status status = twins.once.append(twins.in_once, 0, k, v);
    EXPECT_EQ(status.code(), ErrorCode::InvalidArgument);
    EXPECT_EQ(twins.once.length(twins.in_once).value(), 0);
    return std::string(status.message());
  };
  EXPECT_EQ(refusal(keys.view(), twins.values_of(keys)),
            "layer 0: values are given, [10, 1, 64], but are in this layer's keys: pass {}");
  EXPECT_EQ(refusal({keys.data.data(), 10, 1, 72}, {}),
            "layer 0: keys are [10, 1, 72]; expected [n, 1, 80]");
  EXPECT_EQ(refusal({static_cast<const float*>(nullptr), 10, 1, 80}, {}), "layer 0: keys are null");
  Rows<float> huge = keys;
  huge.at(7, 0, 79) = 70000.0f;
  EXPECT_THAT(std::string(twins.once.append(twins.in_once, 0, huge.view(), {}).message()),
              HasSubstr("layer 0: key of token 7, kv head 0, channel 79 is 70000"));
  EXPECT_EQ(twins.once.length(twins.in_once).value(), 0);

  const LayerView past = twins.once_view();
  Output output(10, 2, 64);
  std::vector<std::byte> workspace(attend_prefill_workspace_bytes(past, 10));
  EXPECT_THAT(
      std::string(attend_prefill(past, random_queries(random, twins.shape, 10, 2).view(),
                                 keys.view(), twins.values_of(keys), output.view(), {}, workspace)
                      .message()),
      HasSubstr("values are given"));
  EXPECT_EQ(output.out.at(0, 0, 0), 77.0f);
}

TEST(ValuesInKeysHostile, ShapeAndRecipeMustAgree) {
  LayerShape shape = LayerShape::latent(512, 64);
  EXPECT_EQ(shape, (LayerShape{1, 576, 512, 0, false, true}));
  EXPECT_TRUE(supports(shape, parse_recipe("k4").value()).ok());
  EXPECT_EQ(
      std::string(supports(shape, presets::k4v4).message()),
      "values of 4 bits: this layer's values are in its keys, which alone have a format (k4)");
  shape.values_in_keys = false;
  EXPECT_THAT(std::string(supports(shape, parse_recipe("k4").value()).message()),
              HasSubstr("values: 0 bits"));
  shape = {1, 64, 72};
  shape.values_in_keys = true;
  EXPECT_EQ(std::string(supports(shape, parse_recipe("k4").value()).message()),
            "values of 72 channels cannot be in keys of 64");
  using Keys4 = Formats<Keys<4>, Values<2>>;
  EXPECT_TRUE(supports<Keys4>(LayerShape::latent(64, 16), parse_recipe("k4").value()).ok());
  EXPECT_EQ(supports<Keys4>(LayerShape::latent(64, 16), parse_recipe("k5").value()).code(),
            ErrorCode::Unsupported);
}

}  // namespace
}  // namespace kvtilt
