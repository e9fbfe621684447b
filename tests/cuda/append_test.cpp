// SPDX-License-Identifier: MIT
#include <kvtilt/cuda/append.hpp>

#include "support/device_program.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

namespace kvtilt::test {
namespace {

TEST(Append, OneTokenAtATimeEqualsTheCpu) {
  DeviceProgram program({.shape = LayerShape{2, 64, 64},
                         .recipe = {key_format(4), value_format(2)},
                         .page_tokens = 32,
                         .recent_tokens = 32},
                        1);
  for (int step = 0; step < 140 && !HasFailure(); ++step)
    program.append({0, 1}, {1, 1}, emulate_append);
}

TEST(Append, RaggedBatchesSealAnyNumberOfPages) {
  for (const ElementType type : {ElementType::F16, ElementType::BF16, ElementType::F32}) {
    DeviceProgram program({.shape = LayerShape{3, 80, 64},
                           .recipe = {key_format(4), value_format(4)},
                           .page_tokens = 64,
                           .recent_tokens = 70,
                           .sequences = 4,
                           .pages_each = 12,
                           .type = type},
                          2);
    program.append({2, 0, 3, 1}, {3, 0, 1, 500}, emulate_append);
    program.append({0, 2, 3}, {137, 64, 210}, emulate_append);
    program.append({1, 3}, {1, 63}, emulate_append);
    program.append({3, 2, 0, 1}, {2, 65, 1, 128}, emulate_append);
    if (HasFailure()) return;
  }
}

TEST(Append, WindowsFreeWhatTheCpuFrees) {
  for (const int window : {1, 40, 64, 100, 200}) {
    for (const int sinks : {0, 4}) {
      LayerShape shape{1, 64, 64, window};
      DeviceProgram program({.shape = shape,
                             .recipe = {key_format(4), value_format(4)},
                             .page_tokens = 32,
                             .sink_tokens = sinks,
                             .recent_tokens = 40,
                             .sequences = 2,
                             .pages_each = window / 32 + 2,
                             .capacity = 100000},
                            3);
      for (int step = 0; step < 25 && !HasFailure(); ++step)
        program.append({0, 1}, {program.random().below(60), program.random().below(200)},
                       emulate_append);
      if (HasFailure()) {
        ADD_FAILURE() << "window " << window << ", sinks " << sinks;
        return;
      }
    }
  }
}

TEST(Append, TheOrderOfBlocksDoesNotMatter) {
  for (const std::uint64_t seed : {1u, 2u, 3u}) {
    DeviceProgram program({.shape = LayerShape{4, 64, 64},
                           .recipe = {key_format(3), value_format(8)},
                           .page_tokens = 64,
                           .recent_tokens = 0},
                          4);
    LaunchOrder order;
    order = {LaunchOrder::Shuffled, static_cast<std::uint32_t>(seed)};
    program.append({1, 0}, {130, 70}, emulate_append, order);
  }
}

}  // namespace
}  // namespace kvtilt::test
