// SPDX-License-Identifier: MIT
/// What a cache refuses: the message names the numbers at fault, and nothing changes.
#include <kvtilt/cache/kv_cache.hpp>

#include "support/all_formats.hpp"
#include "support/cache_bytes.hpp"
#include "support/caches.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <optional>
#include <string>
#include <vector>

namespace kvtilt {
namespace {

using test::Random;
using test::random_rows;
using test::Rows;
using testing::HasSubstr;

/// Three layers; the second keeps no cache, the others hold 70 tokens.
class KVCacheHostile : public testing::Test {
 protected:
  KVCacheHostile() {
    id_ = test::open_reserved(cache_, 100);
    for (const int layer : {0, 2}) {
      const LayerShape& own = shape_.layers[static_cast<std::size_t>(layer)];
      KVTILT_EXPECT_OK(cache_.append(id_, layer,
                                     random_rows(random_, 70, own.kv_heads, own.key_dim).view(),
                                     random_rows(random_, 70, own.kv_heads, own.value_dim).view()));
    }
  }

  [[nodiscard]] LayerView view(int layer) const { return cache_.view(id_, layer).value(); }

  /// Expects the call to fail with `code` and a message holding every word, and to change nothing.
  template <class Call>
  void refuses(ErrorCode code, const std::vector<std::string>& words, Call call) {
    const test::Snapshot first(view(0));
    const test::Snapshot last(view(2));
    const std::size_t reserved = cache_.memory().reserved_bytes;
    const Status status = call();
    EXPECT_EQ(status.code(), code) << status.message();
    for (const std::string& word : words)
      EXPECT_THAT(std::string(status.message()), HasSubstr(word));
    EXPECT_TRUE(test::unchanged(first, view(0)));
    EXPECT_TRUE(test::unchanged(last, view(2)));
    EXPECT_EQ(cache_.memory().reserved_bytes, reserved);
  }
  /// The same for an append of 5 tokens to layer 0 with `value` at token 3, head 1, channel 17.
  template <class T>
  void refuses_value(T value, const std::string& word) {
    const Rows<T> good(5, 2, 32);
    Rows<T> bad = good;
    bad.at(3, 1, 17) = value;
    const std::vector<std::string> words = {"layer 0", "token 3", "kv head 1", "channel 17", word};
    refuses(ErrorCode::InvalidValue, words,
            [&] { return cache_.append(id_, 0, bad.view(), good.view()); });
    refuses(ErrorCode::InvalidValue, words,
            [&] { return cache_.append(id_, 0, good.view(), bad.view()); });
  }

  CacheShape shape_{{{2, 32, 32, 0}, {0, 0, 0, 0}, {1, 48, 16, 0}}};
  KVCache cache_ = test::make_cache(
      shape_, Plan{{{presets::k4v2}, {}, {parse_recipe("k1v16").value()}}}, options());
  SequenceId id_;
  Random random_{1};

 private:
  static CacheOptions options() {
    CacheOptions options;
    options.page_tokens = 32;
    options.recent_tokens = 16;
    return options;
  }
};

TEST_F(KVCacheHostile, RefusesNumbersItCannotStore) {
  refuses_value(bit_cast<float>(0x7fc00000u), "is nan");
  refuses_value(bit_cast<float>(0x7f800001u), "is nan");
  refuses_value(bit_cast<float>(0xff800000u), "is -inf");
  refuses_value(bit_cast<float>(0x7f800000u), "is inf");
  refuses_value(65505.0f, "is 65505");
  refuses_value(-1e30f, "up to 65504");
  refuses_value(F16{0x7c00}, "is inf");
  refuses_value(F16{0xfe00}, "nan");
  refuses_value(BF16{0x7fc0}, "is nan");
  refuses_value(to_bf16(70000.0f), "up to 65504");
  // 1-bit keys take half of fp16's range; the 16-bit values beside them take all of it.
  const Rows<float> values(3, 1, 16);
  Rows<float> keys(3, 1, 48);
  keys.at(2, 0, 47) = -32753.0f;
  refuses(ErrorCode::InvalidValue, {"layer 2", "key", "token 2", "-32753", "1-bit", "32752"},
          [&] { return cache_.append(id_, 2, keys.view(), values.view()); });
}

TEST_F(KVCacheHostile, KeepsTheLargestAndTheSmallestNumbersItAccepts) {
  constexpr float extremes[] = {65504.0f, -65504.0f, 0.0f, -0.0f,     0x1p-24f,
                                0x1p-25f, 1e-40f,    1.0f, -0x1p-14f, 32752.0f};
  const SequenceId id = test::open_reserved(cache_, 200);
  Rows<float> keys(200, 2, 32);
  for (std::size_t i = 0; i < keys.data.size(); ++i) keys.data[i] = extremes[i * 7 % 10];
  KVTILT_EXPECT_OK(cache_.append(id, 0, keys.view(), keys.view()));
  const LayerView filled = cache_.view(id, 0).value();
  Rows<float> queries = test::random_queries(random_, shape_.layers[0], 3, 2);
  for (float& x : queries.data) x *= 1e-3f;
  for (const float x : test::attended(filled, queries).out.data) EXPECT_TRUE(test::is_finite(x));
  for (int head = 0; head < 2; ++head)
    for (const float x : test::stored_head(filled, head).keys) {
      EXPECT_TRUE(test::is_finite(x));
      EXPECT_LE(std::abs(x), 140000.0f);
    }
}

TEST_F(KVCacheHostile, KeepsConstantGroupsExactly) {
  for (const float constant : {0.0f, 1.0f, -65504.0f, 0.1f, 0x1p-24f}) {
    const SequenceId id = test::open_reserved(cache_, 200);
    Rows<float> rows(200, 2, 32);
    for (float& x : rows.data) x = constant;
    KVTILT_EXPECT_OK(cache_.append(id, 0, rows.view(), rows.view()));
    const test::StoredHead stored = test::stored_head(cache_.view(id, 0).value(), 1);
    for (const float x : stored.keys) EXPECT_EQ(x, to_float(to_f16(constant)));
    for (const float x : stored.values) EXPECT_EQ(x, to_float(to_f16(constant)));
    KVTILT_EXPECT_OK(cache_.close(id));
  }
}

TEST_F(KVCacheHostile, RefusesShapesThatAreNotTheLayers) {
  const Rows<float> rows(30, 2, 48);
  const float* data = rows.data.data();
  const auto append = [&](const TensorView& keys, const TensorView& values,
                          const std::vector<std::string>& words) {
    refuses(ErrorCode::InvalidArgument, words, [&] { return cache_.append(id_, 0, keys, values); });
  };
  const TensorView good(data, 5, 2, 32);
  append({data, 5, 1, 32}, good, {"layer 0", "keys are [5, 1, 32]", "expected [n, 2, 32]"});
  append({data, 5, 2, 40}, good, {"keys are [5, 2, 40]"});
  append(good, {data, 5, 2, 24}, {"values [5, 2, 24]"});
  append(good, {data, 5, 3, 32}, {"values [5, 3, 32]"});
  append(good, {data, 4, 2, 32}, {"keys are [5, 2, 32] and values [4, 2, 32]"});
  append({data, -1, 2, 32}, {data, -1, 2, 32}, {"keys are [-1, 2, 32]"});
  append({static_cast<const float*>(nullptr), 5, 2, 32}, good, {"null"});
  append(good, {static_cast<const float*>(nullptr), 5, 2, 32}, {"null"});
  append({}, {}, {"keys are [0, 0, 0]"});
}

TEST_F(KVCacheHostile, AcceptsEmptyAppendsAndDoesNothing) {
  const test::Snapshot before(view(0));
  const TensorView nothing(static_cast<const float*>(nullptr), 0, 2, 32);
  KVTILT_EXPECT_OK(cache_.append(id_, 0, nothing, nothing));
  EXPECT_TRUE(test::unchanged(before, view(0)));
}

TEST_F(KVCacheHostile, RefusesMoreThanWasReserved) {
  const Rows<float> rows(31, 2, 32);
  refuses(ErrorCode::OutOfCapacity, {"layer 0 holds 70 tokens of 100 reserved", "31 more"},
          [&] { return cache_.append(id_, 0, rows.view(), rows.view()); });
  for (const std::int64_t tokens :
       {std::numeric_limits<std::int64_t>::max(), std::numeric_limits<std::int64_t>::max() - 60}) {
    const TensorView huge(rows.data.data(), tokens, 2, 32);
    refuses(ErrorCode::OutOfCapacity, {std::to_string(tokens) + " more do not fit"},
            [&] { return cache_.append(id_, 0, huge, huge); });
  }
  KVTILT_EXPECT_OK(cache_.append(id_, 0, rows.view(0, 30), rows.view(0, 30)));
}

TEST_F(KVCacheHostile, RefusesLayersThatDoNotExistOrKeepNothing) {
  const Rows<float> rows(1, 2, 32);
  for (const int layer : {-1, 3, 2147483647, -2147483647 - 1}) {
    const std::string words = "layer " + std::to_string(layer) + " does not exist: the cache has 3";
    refuses(ErrorCode::InvalidArgument, {words},
            [&] { return cache_.append(id_, layer, rows.view(), rows.view()); });
    refuses(ErrorCode::InvalidArgument, {words},
            [&] { return cache_.view(id_, layer).take_status(); });
    refuses(ErrorCode::InvalidArgument, {words},
            [&] { return cache_.length(id_, layer).take_status(); });
  }
  refuses(ErrorCode::InvalidArgument, {"layer 1 keeps no cache"},
          [&] { return cache_.append(id_, 1, rows.view(), rows.view()); });
  EXPECT_THAT(std::string(cache_.view(id_, 1).message()), HasSubstr("layer 1 keeps no cache"));
}

TEST_F(KVCacheHostile, RefusesNegativeAndAbsurdCounts) {
  refuses(ErrorCode::InvalidArgument, {"truncate to -1"}, [&] { return cache_.truncate(id_, -1); });
  refuses(ErrorCode::InvalidArgument, {"reserve -5"}, [&] { return cache_.reserve(id_, -5); });
  refuses(ErrorCode::InvalidArgument, {"reserve 9223372036854775807"},
          [&] { return cache_.reserve(id_, std::numeric_limits<std::int64_t>::max()); });
  const test::Snapshot before(view(0));
  KVTILT_EXPECT_OK(cache_.truncate(id_, std::numeric_limits<std::int64_t>::max()));
  EXPECT_TRUE(test::unchanged(before, view(0)));
}

Status creation(const CacheShape& shape, const Plan& plan, const CacheOptions& options = {}) {
  return std::move(KVCache::create(shape, plan, options)).take_status();
}

void expect_refusal(const Status& status, ErrorCode code, const std::string& words) {
  EXPECT_EQ(status.code(), code);
  EXPECT_THAT(std::string(status.message()), HasSubstr(words));
}

TEST(KVCacheCreationHostile, ShapesAndPlansThatDoNotFitAreRefused) {
  constexpr ErrorCode invalid = ErrorCode::InvalidArgument;
  for (const int dim : {8, 72, 80, 576}) {
    const CacheShape shape = CacheShape::uniform(1, 1, dim);
    EXPECT_TRUE(creation(shape, Plan::uniform(shape, presets::k4v2)).ok()) << dim;
  }
  for (const int dim : {12, 584, 0, -8, 4}) {
    const CacheShape shape = CacheShape::uniform(1, 1, dim);
    expect_refusal(creation(shape, Plan::uniform(shape, presets::k4v2)), invalid,
                   "layer 0: head dimensions are key " + std::to_string(dim));
  }
  expect_refusal(creation({}, {}), invalid, "no layers");
  const CacheShape two = CacheShape::uniform(2, 4, 64);
  expect_refusal(creation(two, {}), invalid, "the plan has 0 layers, the shape 2");
  const std::vector<Recipe> three(3, presets::k4v2);
  expect_refusal(creation(two, Plan{{{presets::k4v2}, three}}), invalid,
                 "layer 1: 3 recipes for 4 kv heads");
  Recipe nine = presets::k4v2;
  nine.key.bits = 9;
  expect_refusal(creation(two, Plan{{{presets::k4v2}, {nine}}}), invalid, "layer 1: keys: 9 bits");
  Recipe group = presets::k4v2;
  group.key.group = 48;
  expect_refusal(creation(two, Plan::uniform(two, group)), invalid, "group 48");
  const Result<Recipe> unknown = parse_recipe("q4_0");
  EXPECT_EQ(unknown.code(), invalid);
  EXPECT_THAT(std::string(unknown.message()), HasSubstr("'q4_0' does not exist"));
  EXPECT_THAT(std::string(unknown.message()), HasSubstr("for example k4v2"));
  expect_refusal(
      std::move(KVCache::create<test::FewFormats>(two, Plan::uniform(two, presets::k8v4)))
          .take_status(),
      ErrorCode::Unsupported, "keys of 8 bits");
}

TEST(KVCacheCreationHostile, OptionsOutOfRangeAreRefused) {
  const CacheShape shape = CacheShape::uniform(1, 1, 64);
  CacheOptions options;
  options.page_tokens = 48;
  expect_refusal(creation(shape, Plan::uniform(shape, presets::k4v2), options),
                 ErrorCode::InvalidArgument, "page_tokens is 48, must be 32, 64 or 128");
}

/// Sets KVTILT_ISA for the duration of a scope.
class IsaInEnvironment {
 public:
  explicit IsaInEnvironment(const char* value) {
    if (const char* name = std::getenv("KVTILT_ISA")) before_ = name;
    ::setenv("KVTILT_ISA", value, 1);
  }
  ~IsaInEnvironment() {
    if (before_)
      ::setenv("KVTILT_ISA", before_->c_str(), 1);
    else
      ::unsetenv("KVTILT_ISA");
  }
  IsaInEnvironment(const IsaInEnvironment&) = delete;
  IsaInEnvironment& operator=(const IsaInEnvironment&) = delete;

 private:
  std::optional<std::string> before_;
};

TEST(KVCacheCreationHostile, AnUnknownInstructionSetIsRefusedNotReplaced) {
  const CacheShape shape = CacheShape::uniform(1, 1, 64);
  const Plan plan = Plan::uniform(shape, presets::k4v2);
  for (const char* nonsense : {"avx9000", "AVX2", " ", "avx2 "}) {
    const IsaInEnvironment environment(nonsense);
    expect_refusal(creation(shape, plan), ErrorCode::InvalidArgument,
                   std::string("KVTILT_ISA is '") + nonsense + "', expected scalar, avx2, ");
    CacheOptions options;
    options.isa = test::usable_isas().front();  // an explicit choice: the environment is ignored
    EXPECT_TRUE(creation(shape, plan, options).ok());
  }
  const IsaInEnvironment environment("");
  EXPECT_TRUE(creation(shape, plan).ok());
  for (const Isa isa : all_isas) {
    if (check_isa(isa).ok()) continue;
    CacheOptions options;
    options.isa = isa;
    expect_refusal(creation(shape, plan, options), ErrorCode::Unsupported, to_string(isa));
  }
}

}  // namespace
}  // namespace kvtilt
