// SPDX-License-Identifier: MIT
// Attention over what a device cache holds after a life of its own, against float64.
#include "device_attend.hpp"
#include "support.cuh"
#include "support/device_attention.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

namespace kvtilt::test {
namespace {

TEST(DeviceCacheAttend, AfterForksAndTruncations) {
  KVTILT_SKIP_WITHOUT_GPU();
  constexpr int ratio = 4;
  Random random(21);
  for (const Recipe& recipe : {presets::k4v2, presets::k8v4, presets::k16v16}) {
    const CacheShape shape{{{2, 128, 128, 0}}};
    cuda::CacheOptions options;
    options.token_capacity = 16384;
    options.max_sequences = 4;
    BothCaches both(shape, Plan::uniform(shape, recipe), options);
    std::vector<BothIds> open = {both.open(3000)};
    both.append(open[0], random, 1500);
    open.push_back({both.gpu.fork(open[0].gpu, 2000).value(), both.cpu.fork(open[0].cpu).value()});
    KVTILT_EXPECT_OK(both.cpu.reserve(open[1].cpu, 2000));
    KVTILT_EXPECT_OK(both.gpu.truncate(open[1].gpu, 1000));
    KVTILT_EXPECT_OK(both.cpu.truncate(open[1].cpu, 1000));
    both.append(open[1], random, 300);
    both.append(open[0], random, 700);
    open.push_back(both.open(100));
    both.append(open[2], random, 1);

    std::vector<LayerView> views;
    DeviceAttendCall call{};
    for (const BothIds& id : open) {
      EXPECT_TRUE(both.same(id));
      views.push_back(both.cpu.view(id.cpu, 0).value());
      call.slots.push_back(static_cast<std::int32_t>(id.gpu.slot));
    }
    const Rows<float> queries =
        random_queries(random, shape.layers[0], static_cast<std::int64_t>(open.size()), ratio);
    call.shape = shape.layers[0];
    call.recipes = {recipe};
    call.layer = both.gpu.view(0).value();
    call.queries = queries.data;
    call.rows = static_cast<int>(queries.tokens);
    call.query_heads = queries.heads;
    const Result<DeviceAttendResult> result = device_attend(call);
    ASSERT_TRUE(result.ok()) << result.message();
    Output output(queries.tokens, queries.heads, 128);
    output.out.data = result->out;
    output.lse = result->lse;
    EXPECT_TRUE(is_close(views, queries, AttendOptions{}, output, 2e-3));
    KVTILT_EXPECT_OK(both.gpu.poll(nullptr));
  }
}

}  // namespace
}  // namespace kvtilt::test
