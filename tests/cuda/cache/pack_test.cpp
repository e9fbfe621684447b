// SPDX-License-Identifier: MIT
#include <kvtilt/cuda/cache/pack.hpp>

#include "support/device_program.hpp"

#include <gtest/gtest.h>

#include <algorithm>

namespace kvtilt::test {
namespace {

void emulate_pack(const cuda::AppendArguments& arguments, LaunchOrder order) {
  std::int64_t most = 0;
  for (int i = 0; i < arguments.batch.count; ++i) most = std::max(most, arguments.rows.count(i));
  const int units = cuda::pack_units(arguments.layer, most);
  EXPECT_TRUE(emulate(
      cuda::pack_blocks(arguments, units), cuda::pack_threads,
      cuda::pack_shared_bytes(arguments.layer),
      [&](EmulatedThreads& threads) { cuda::pack(threads, arguments, units); }, order));
}

TEST(Pack, EqualsAppendOfTheCpu) {
  for (const ElementType type : {ElementType::F16, ElementType::BF16, ElementType::F32}) {
    DeviceProgram program({.shape = LayerShape{3, 80, 64},
                           .recipe = {key_format(4), value_format(4)},
                           .recent_tokens = 70,
                           .sequences = 4,
                           .pages_each = 20,
                           .type = type},
                          2);
    program.append({2, 0, 3, 1}, {3, 0, 1, 500}, emulate_pack);
    program.append({0, 2, 3}, {137, 640, 210}, emulate_pack);
    program.append({1, 3}, {1, 1}, emulate_append);
    program.append({1, 3}, {64, 63}, emulate_pack);
    program.append({3, 2, 0, 1}, {2, 65, 1, 328}, emulate_pack, {LaunchOrder::Backward});
    if (HasFailure()) return;
  }
}

TEST(Pack, Windows) {
  for (const int window : {1, 100, 200}) {
    const LayerShape shape{2, 64, 64, window};
    DeviceProgram program({.shape = shape,
                           .recipe = {key_format(4), value_format(8)},
                           .page_tokens = 32,
                           .recent_tokens = 40,
                           .pages_each = window / 32 + 2,
                           .capacity = 100000},
                          3);
    for (int step = 0; step < 8 && !HasFailure(); ++step)
      program.append({0, 1}, {program.random().below(60), program.random().below(500)},
                     emulate_pack, {LaunchOrder::Shuffled, static_cast<std::uint32_t>(step)});
  }
}

TEST(Pack, FormatsAndShapes) {
  struct Case {
    int key_dim;
    int value_dim;
    Recipe recipe;
    int page_tokens;
  };
  const Format per_token{3, Granularity::PerToken, 64, RangeRule::MinMse};
  const Format per_channel{5, Granularity::PerChannel, 32, RangeRule::MinMax};
  for (const Case& one : {Case{128, 128, {key_format(1), value_format(1)}, 128},
                          {112, 96, {per_token, {}}, 64},
                          {192, 128, {per_channel, per_token}, 64},
                          {256, 256, {key_format(8), value_format(6)}, 32},
                          {576, 512, {key_format(4), value_format(4)}, 32},
                          {64, 64, {{}, per_channel}, 64}}) {
    DeviceProgram program({.shape = LayerShape{1, one.key_dim, one.value_dim},
                           .recipe = one.recipe,
                           .page_tokens = one.page_tokens,
                           .recent_tokens = 0,
                           .sequences = 1},
                          5);
    program.append({0}, {2 * one.page_tokens + 5}, emulate_pack);
    program.append({0}, {one.page_tokens}, emulate_pack);
    if (HasFailure()) return;
  }
}

}  // namespace
}  // namespace kvtilt::test
