// SPDX-License-Identifier: MIT
#include <kvtilt/attention/attend.hpp>

#include "support/caches.hpp"

#include <gtest/gtest.h>

#include <vector>

namespace kvtilt {
namespace {

using test::Random;
using test::Rows;

struct TwoTokens {
  KVCache cache = test::make_cache(LayerShape{1, 64, 64, 0}, presets::k16v16);
  SequenceId id = test::open_reserved(cache, 2);
  Rows<float> queries{1, 1, 64};

  TwoTokens() {
    Random random(1);
    const Rows<float> keys = test::random_rows(random, 2, 1, 64);
    const Rows<float> values = test::random_rows(random, 2, 1, 64);
    KVTILT_EXPECT_OK(cache.append(id, 0, keys.view(), values.view()));
    queries = test::random_rows(random, 1, 1, 64);
  }
  [[nodiscard]] LayerView view() const { return cache.view(id, 0).value(); }
};

TEST(AttendScale, IsTheInverseRootOfTheKeyDimensionUnlessGiven) {
  const TwoTokens layer;
  const test::Output implied = test::attended(layer.view(), layer.queries);
  const test::Output given = test::attended(layer.view(), layer.queries, {0.125f});
  EXPECT_EQ(implied.out.data, given.out.data);
  EXPECT_EQ(implied.lse, given.lse);
}

TEST(AttendScale, MultipliesTheLogits) {
  const TwoTokens layer;
  for (const float scale : {0.01f, 0.3f, 2.0f, 1e-30f})
    EXPECT_TRUE(test::attends_within_bound(layer.view(), layer.queries, {scale})) << scale;
  EXPECT_FALSE(test::keeps_bound(layer.view(), layer.queries, {0.3f},
                                 test::attended(layer.view(), layer.queries, {0.31f})));
}

TEST(AttendScaleHostile, AScaleThatIsNoPositiveNumberIsRefused) {
  const TwoTokens layer;
  std::vector<std::byte> workspace(attend_workspace_bytes(layer.view()));
  for (const std::uint32_t bits :
       {0xbf800000u, 0x7f800000u, 0xff800000u, 0x7fc00000u, 0xffc00000u, 0x80000001u}) {
    test::Output output(1, 1, 64);
    const Status status = attend(layer.view(), layer.queries.view(), output.view(),
                                 {bit_cast<float>(bits)}, workspace);
    EXPECT_EQ(status.code(), ErrorCode::InvalidArgument) << std::hex << bits;
    EXPECT_NE(status.message().find("scale is"), std::string_view::npos) << status.message();
    for (const float x : output.out.data) ASSERT_EQ(x, 77.0f);
  }
}

}  // namespace
}  // namespace kvtilt
