// SPDX-License-Identifier: MIT
#include <kvtilt/cuda/cache/unpack.hpp>

#include "support/device_program.hpp"

#include <gtest/gtest.h>

#include <vector>

namespace kvtilt::test {
namespace {

/// Rows of one tensor, each followed by a gap of `pad` elements, in memory filled with 0xaa.
template <class T>
struct Rows {
  Rows(std::int64_t tokens, int heads, int dim, std::int64_t pad)
      : bytes(static_cast<std::size_t>(tokens * heads * (dim + pad)) * sizeof(T) + 16,
              std::byte{0xaa}),
        view(MutableTensorView(reinterpret_cast<T*>(bytes.data()), tokens, heads, dim)
                 .with_strides((dim + pad) * heads, dim + pad)) {}
  std::vector<std::byte> bytes;
  MutableTensorView view;
};

template <class T>
void expect_unpacked(DeviceProgram& program, const LayerShape& shape, int sequence,
                     std::int64_t first, std::int64_t tokens, std::int64_t pad) {
  Rows<T> keys(tokens, shape.kv_heads, shape.key_dim, pad);
  Rows<T> values(tokens, shape.kv_heads, shape.value_dim, pad);
  ASSERT_TRUE(program.cpu().unpack(program.id(sequence), 0, first, keys.view, values.view).ok());
  Rows<T> device_keys(tokens, shape.kv_heads, shape.key_dim, pad);
  Rows<T> device_values(tokens, shape.kv_heads, shape.value_dim, pad);
  cuda::UnpackArguments arguments{program.device().view(), sequence,          first, tokens,
                                  device_keys.view,        device_values.view};
  const auto launch = [](const cuda::UnpackArguments& own) {
    const int blocks = cuda::unpack_units(own.layer, own.tokens) * own.layer.kv_heads;
    ASSERT_TRUE(emulate(blocks, cuda::unpack_threads, cuda::unpack_shared_bytes,
                        [&](EmulatedThreads& threads) { cuda::unpack(threads, own); }));
  };
  if (shape.values_in_keys) {
    launch(cuda::values_as_keys(arguments));
    arguments.values = {};
  }
  launch(arguments);
  EXPECT_EQ(program.device().record().fault, cuda::DeviceFault::None);
  EXPECT_TRUE(device_keys.bytes == keys.bytes)
      << "keys of " << tokens << " tokens from " << first << ", pad " << pad;
  EXPECT_TRUE(device_values.bytes == values.bytes)
      << "values of " << tokens << " tokens from " << first << ", pad " << pad;
}

void expect_all_types(DeviceProgram& program, const LayerShape& shape, int sequence,
                      std::int64_t first, std::int64_t tokens, std::int64_t pad) {
  expect_unpacked<F16>(program, shape, sequence, first, tokens, pad);
  expect_unpacked<BF16>(program, shape, sequence, first, tokens, pad);
  expect_unpacked<float>(program, shape, sequence, first, tokens, pad);
}

class Unpack : public testing::TestWithParam<int> {};

TEST_P(Unpack, GivesTheBitsOfTheCpu) {
  const int bits = GetParam();
  const Granularity other = bits % 2 == 0 ? Granularity::PerToken : Granularity::PerChannel;
  for (const int dim : {64, 112, 128}) {
    const LayerShape shape{2, dim, dim};
    const Recipe recipe =
        bits == half_bits
            ? Recipe{}
            : Recipe{key_format(bits, other),
                     value_format(bits, dim == 128 ? other : Granularity::PerToken, 32)};
    DeviceProgram program({.shape = shape, .recipe = recipe, .recent_tokens = 10}, 11);
    program.append({0}, {230}, emulate_append);
    expect_all_types(program, shape, 0, 0, 230, 0);
    expect_all_types(program, shape, 0, 1, 100, 1);
    expect_all_types(program, shape, 0, 70, 1, 4);
    if (HasFailure()) return;
  }
}

INSTANTIATE_TEST_SUITE_P(Bits, Unpack, testing::Values(1, 2, 3, 4, 5, 6, 7, 8, 16),
                         testing::PrintToStringParamName());

TEST(UnpackShapes, KeysAndValuesDiffer) {
  const LayerShape shape{1, 192, 80};
  DeviceProgram program({.shape = shape, .recipe = {key_format(4), value_format(8)}}, 12);
  program.append({1}, {400}, emulate_append);
  expect_unpacked<F16>(program, shape, 1, 3, 397, 0);
}

TEST(UnpackShapes, ValuesInKeys) {
  for (const Format& format : {key_format(4), key_format(3, Granularity::PerToken), Format{}})
    for (const LayerShape& shape : {LayerShape::latent(64, 64), LayerShape::latent(112, 0)}) {
      DeviceProgram program({.shape = shape, .recipe = {format, in_keys}, .recent_tokens = 10}, 17);
      program.append({0}, {216}, emulate_append);
      expect_all_types(program, shape, 0, 0, 216, 0);
      expect_all_types(program, shape, 0, 5, 130, 3);
    }
}

TEST(UnpackShapes, WholePages) {
  struct Case {
    int bits;
    int key_group;
    int value_group;
    int dim;
    int page_tokens;
  };
  for (const Case& c :
       {Case{2, 0, 0, 128, 64}, Case{4, 0, 0, 128, 64}, Case{8, 0, 0, 128, 64},
        Case{2, 32, 32, 64, 64}, Case{4, 64, 64, 256, 128}, Case{8, 32, 96, 192, 64},
        Case{2, 32, 0, 256, 128}, Case{4, 0, 0, 80, 32}}) {
    const LayerShape shape{2, c.dim, c.dim};
    DeviceProgram program({.shape = shape,
                           .recipe = {key_format(c.bits, Granularity::PerChannel, c.key_group),
                                      value_format(c.bits, Granularity::PerToken, c.value_group)},
                           .page_tokens = c.page_tokens,
                           .recent_tokens = 10},
                          14);
    program.append({0}, {3 * c.page_tokens + 20}, emulate_append);
    expect_all_types(program, shape, 0, 0, 3 * c.page_tokens + 20, 0);
    expect_all_types(program, shape, 0, 5, 2 * c.page_tokens, 4);
    EXPECT_FALSE(HasFailure()) << c.bits << " bits, " << c.dim << " channels";
  }
}

TEST(UnpackErrors, TokensThatAreNotThere) {
  const LayerShape shape{1, 64, 64, 40};
  DeviceProgram program({.shape = shape,
                         .recipe = {key_format(4), value_format(4)},
                         .page_tokens = 32,
                         .recent_tokens = 32,
                         .capacity = 10000},
                        13);
  program.append({0}, {400}, emulate_append);
  struct Range {
    std::int64_t first;
    std::int64_t tokens;
  };
  // The last two ranges are so far behind the tail that a page index does not fit into 32 bits.
  const std::int64_t tail = program.device().state(0).tail_start;
  constexpr std::int64_t one = 1;
  for (const Range& range : {Range{390, 11},
                             {4, 10},
                             {-1, 3},
                             {400, 1},
                             {2, 5},
                             {tail + (one << 36), 1},
                             {tail + (one << 37), 1}}) {
    Rows<F16> keys(range.tokens, 1, 64, 0);
    program.device().forget_record();
    const cuda::UnpackArguments arguments{
        program.device().view(), 0, range.first, range.tokens, keys.view, {}};
    ASSERT_TRUE(emulate(cuda::unpack_units(arguments.layer, range.tokens), cuda::unpack_threads,
                        cuda::unpack_shared_bytes,
                        [&](EmulatedThreads& threads) { cuda::unpack(threads, arguments); }));
    EXPECT_EQ(program.device().record().fault, cuda::DeviceFault::UnpackRefused);
    EXPECT_EQ(program.device().record().count, 1u);
  }
}

}  // namespace
}  // namespace kvtilt::test
