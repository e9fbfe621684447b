// SPDX-License-Identifier: MIT
#include <kvtilt/cuda/page/input_task.hpp>

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>

namespace kvtilt::cuda {
namespace {

TEST(InputTask, PlacesAreThoseOfTheFragmentOrder) {
  constexpr int tokens = 48;
  constexpr int dim = 80;
  constexpr int slot = 5;
  alignas(16) static std::byte codes[tokens * dim * 2];
  for (const Role role : {Role::Keys, Role::Values}) {
    const bool keys = role == Role::Keys;
    const CodeMatrix matrix = keys ? CodeMatrix{tokens, dim} : CodeMatrix{dim, tokens};
    const InputTask task{role, {}, 0, f16_max, {}, matrix, codes, slot, tokens - slot};
    const auto offset = [&](int at, int channel) {
      return static_cast<std::ptrdiff_t>(
          half_offset(role, matrix, keys ? at : channel, keys ? channel : at));
    };
    EXPECT_EQ(task.dim(), dim);
    for (int channel = 0; channel < dim; ++channel)
      for (int token = 0; token < task.count; ++token) {
        ASSERT_EQ(reinterpret_cast<std::byte*>(task.half(token, channel)) - codes,
                  offset(slot + token, channel))
            << "token " << token << ", channel " << channel;
        ASSERT_EQ(task.tile(token / 16, channel / 16) - codes,
                  offset(token / 16 * 16, channel / 16 * 16));
      }
  }
}

TEST(InputTask, RowsGoByTheirStrides) {
  InputTask task{};
  task.rows = TensorView{}.with_strides(-1000, 7);
  task.first_row = 40;
  task.place.head = 3;
  EXPECT_EQ(task.row(2), -42 * 1000 + 3 * 7);
  task.rows = TensorView{}.with_strides(std::int64_t{1} << 30, 7);
  EXPECT_EQ(task.row(2), (std::int64_t{42} << 30) + 3 * 7);
}

}  // namespace
}  // namespace kvtilt::cuda
