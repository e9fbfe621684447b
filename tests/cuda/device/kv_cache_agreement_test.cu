// SPDX-License-Identifier: MIT
#include "support.cuh"

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>
#include <vector>

namespace kvtilt::test {
namespace {

Recipe recipe_of(int key_bits, int value_bits, Granularity key, Granularity value) {
  Recipe recipe;
  recipe.key = {key_bits, key, 0, default_rule(key_bits)};
  recipe.value = {value_bits, value, 0, default_rule(value_bits)};
  if (key_bits == half_bits) recipe.key = {};
  if (value_bits == half_bits) recipe.value = {};
  return recipe;
}

TEST(DeviceKVCacheAgreement, BytesOfEveryWidth) {
  KVTILT_SKIP_WITHOUT_GPU();
  Random random(1);
  for (const int page_tokens : {32, 64, 128})
    for (const int bits : {1, 2, 3, 4, 5, 6, 7, 8, 16})
      for (const Granularity granularity : {Granularity::PerChannel, Granularity::PerToken}) {
        SCOPED_TRACE(std::to_string(bits) + " bits, pages of " + std::to_string(page_tokens));
        const CacheShape shape = two_layers();
        const Granularity other = granularity == Granularity::PerChannel ? Granularity::PerToken
                                                                         : Granularity::PerChannel;
        const Recipe recipe = recipe_of(bits, bits, granularity, other);
        if (!cuda::supports(shape.layers[0], recipe, page_tokens).ok() ||
            !cuda::supports(shape.layers[2], recipe, page_tokens).ok())
          continue;
        cuda::CacheOptions options = few_pages();
        options.page_tokens = page_tokens;
        BothCaches both(shape, Plan::uniform(shape, recipe), options);
        const BothIds id = both.open(600);
        for (const std::int64_t tokens : {1, 2, 3, 300, 1, 77, 40}) both.append(id, random, tokens);
        EXPECT_TRUE(both.same(id));
        KVTILT_EXPECT_OK(both.gpu.poll(nullptr));
        if (testing::Test::HasFailure()) return;
      }
}

TEST(DeviceKVCacheAgreement, BytesOfEveryShape) {
  KVTILT_SKIP_WITHOUT_GPU();
  Random random(2);
  struct Dims {
    int key;
    int value;
  };
  for (const Dims dims : {Dims{64, 64},
                          {80, 80},
                          {96, 96},
                          {112, 112},
                          {128, 128},
                          {192, 128},
                          {256, 256},
                          {576, 512},
                          {16, 16}})
    for (const Recipe& recipe :
         {presets::k4v2, recipe_of(8, 4, Granularity::PerToken, Granularity::PerToken)}) {
      SCOPED_TRACE(std::to_string(dims.key) + "/" + std::to_string(dims.value));
      const CacheShape shape = two_layers(dims.key, dims.value);
      BothCaches both(shape, Plan::uniform(shape, recipe), few_pages());
      const BothIds id = both.open(300);
      for (const std::int64_t tokens : {150, 1, 33, 64}) both.append(id, random, tokens);
      EXPECT_TRUE(both.same(id));
      if (testing::Test::HasFailure()) return;
    }
}

TEST(DeviceKVCacheAgreement, BytesOfLatents) {
  KVTILT_SKIP_WITHOUT_GPU();
  Random random(5);
  for (const char* recipe : {"k8", "k4t", "k16"}) {
    CacheShape shape{{LayerShape::latent(512, 64), LayerShape::latent(48, 16)}};
    BothCaches both(shape, Plan::uniform(shape, parse_recipe(recipe).value()), few_pages());
    const BothIds id = both.open(300);
    for (const std::int64_t tokens : {150, 1, 33, 64}) both.append(id, random, tokens);
    EXPECT_TRUE(both.same(id)) << recipe;
  }
}

TEST(DeviceKVCacheAgreement, EveryTypeAndStride) {
  KVTILT_SKIP_WITHOUT_GPU();
  Random random(3);
  const CacheShape shape{{{2, 64, 64, 0}}};
  const Plan plan = Plan::uniform(shape, presets::k4v2);
  const Rows<float> keys = random_rows(random, 200, 2, 64);
  const Rows<float> values = random_rows(random, 200, 2, 64);
  const auto check = [&](const auto& key_rows, const auto& value_rows) {
    BothCaches both(shape, plan, few_pages());
    const BothIds id = both.open(200);
    const DeviceRows gpu_keys(key_rows);
    const DeviceRows gpu_values(value_rows);
    KVTILT_EXPECT_OK(both.gpu.append(id.gpu, 0, gpu_keys.view(), gpu_values.view(), nullptr));
    KVTILT_EXPECT_OK(both.cpu.append(id.cpu, 0, key_rows.view(), value_rows.view()));
    EXPECT_TRUE(both.same(id));
    // The same numbers as [heads, tokens, dim] with odd strides: no row is aligned.
    BothCaches strided(shape, plan, few_pages());
    const BothIds other = strided.open(200);
    using T = std::remove_cvref_t<decltype(key_rows.data[0])>;
    std::vector<T> transposed(2 * 200 * 65 + 1);
    const auto transpose = [&](const auto& rows) {
      for (int token = 0; token < 200; ++token)
        for (int head = 0; head < 2; ++head)
          for (int c = 0; c < 64; ++c)
            transposed[static_cast<std::size_t>(1 + (head * 200 + token) * 65 + c)] =
                rows.at(token, head, c);
      return transposed;
    };
    const DeviceArray<T> k(transpose(key_rows));
    const DeviceArray<T> v(transpose(value_rows));
    KVTILT_EXPECT_OK(strided.gpu.append(
        other.gpu, 0, TensorView(k.data() + 1, 200, 2, 64).with_strides(65, 200 * 65),
        TensorView(v.data() + 1, 200, 2, 64).with_strides(65, 200 * 65), nullptr));
    KVTILT_EXPECT_OK(strided.cpu.append(other.cpu, 0, key_rows.view(), value_rows.view()));
    EXPECT_TRUE(strided.same(other));
  };
  check(keys, values);
  check(converted<F16>(keys, to_f16), converted<F16>(values, to_f16));
  check(converted<BF16>(keys, [](float x) { return to_bf16(x); }),
        converted<BF16>(values, [](float x) { return to_bf16(x); }));
}

TEST(DeviceKVCacheAgreement, UnpacksTheBitsOfTheCpu) {
  KVTILT_SKIP_WITHOUT_GPU();
  Random random(10);
  for (const Recipe& recipe :
       {presets::k4v2, recipe_of(3, 5, Granularity::PerToken, Granularity::PerChannel)}) {
    const CacheShape shape = two_layers();
    BothCaches both(shape, Plan::uniform(shape, recipe), few_pages());
    const BothIds id = both.open(400);
    for (const std::int64_t tokens : {130, 1, 200}) both.append(id, random, tokens);
    KVTILT_EXPECT_OK(both.gpu.truncate(id.gpu, 250));
    KVTILT_EXPECT_OK(both.cpu.truncate(id.cpu, 250));
    both.append(id, random, 30);
    const auto check = [&](auto zero, std::int64_t first, std::int64_t tokens) {
      using T = decltype(zero);
      for (const int layer : {0, 2}) {
        const LayerShape& of = both.layer(layer);
        const DeviceRows<T> keys(tokens, of.kv_heads, of.key_dim);
        const DeviceRows<T> values(tokens, of.kv_heads, of.value_dim);
        Rows<T> cpu_keys(tokens, of.kv_heads, of.key_dim);
        Rows<T> cpu_values(tokens, of.kv_heads, of.value_dim);
        KVTILT_EXPECT_OK(both.gpu.unpack(id.gpu, layer, first, keys.out(), values.out(), nullptr));
        KVTILT_EXPECT_OK(both.cpu.unpack(id.cpu, layer, first, cpu_keys.out(), cpu_values.out()));
        EXPECT_EQ(std::memcmp(keys.get().data.data(), cpu_keys.data.data(),
                              cpu_keys.data.size() * sizeof(T)),
                  0);
        EXPECT_EQ(std::memcmp(values.get().data.data(), cpu_values.data.data(),
                              cpu_values.data.size() * sizeof(T)),
                  0);
      }
    };
    check(float{}, 0, 280);
    check(F16{}, 3, 100);
    check(BF16{}, 77, 150);
    KVTILT_EXPECT_OK(both.gpu.poll(nullptr));
  }
}

/// A captured append gets token counts as a hint; each replay appends by the counts on the device.
TEST(DeviceKVCacheAgreement, ReplaysHaveTheirOwnNumbersOfTokens) {
  KVTILT_SKIP_WITHOUT_GPU();
  constexpr int rows = 600;
  Random random(13);
  const CacheShape shape{{{2, 64, 64, 0}}};
  BothCaches both(shape, Plan::uniform(shape, presets::k4v2), few_pages());
  std::vector<BothIds> open;
  std::vector<SequenceId> ids;
  for (int i = 0; i < 3; ++i) {
    open.push_back(both.open(700));
    ids.push_back(open.back().gpu);
  }
  const DeviceArray<std::int32_t> memory(3);
  const cuda::SequenceBatch batch = both.gpu.batch(ids, memory.span()).value();
  const std::vector<std::int32_t> told = {70, 1, 1};
  DeviceArray<std::int32_t> indptr(std::vector<std::int32_t>{0, 70, 71, 72});
  DeviceRows<float> keys(rows, 2, 64);
  DeviceRows<float> values(rows, 2, 64);
  cudaStream_t stream = nullptr;
  expect_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  expect_cuda(cudaDeviceSynchronize());
  cudaGraph_t graph = nullptr;
  expect_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  KVTILT_EXPECT_OK(
      both.gpu.append(batch, 0, keys.view(), values.view(), indptr.data(), told, stream));
  expect_cuda(cudaStreamEndCapture(stream, &graph));
  cudaGraphExec_t replay = nullptr;
  expect_cuda(cudaGraphInstantiate(&replay, graph, 0));
  for (const std::vector<std::int32_t>& counts :
       {told, std::vector<std::int32_t>{1, 560, 0}, {500, 1, 99}, {64, 0, 500}}) {
    const Rows<float> k = random_rows(random, rows, 2, 64);
    const Rows<float> v = random_rows(random, rows, 2, 64);
    keys.array.set(k.data);
    values.array.set(v.data);
    std::vector<std::int32_t> starts = {0};
    for (const std::int32_t count : counts) starts.push_back(starts.back() + count);
    indptr.set(starts);
    expect_cuda(cudaDeviceSynchronize());
    expect_cuda(cudaGraphLaunch(replay, stream));
    expect_cuda(cudaStreamSynchronize(stream));
    KVTILT_EXPECT_OK(both.gpu.note_appended(batch, counts, nullptr));
    for (std::size_t i = 0; i < open.size(); ++i) {
      KVTILT_EXPECT_OK(both.cpu.append(open[i].cpu, 0, k.view(starts[i], counts[i]),
                                       v.view(starts[i], counts[i])));
      EXPECT_TRUE(both.same(open[i])) << i;
    }
  }
  KVTILT_EXPECT_OK(both.gpu.poll(stream));
  expect_cuda(cudaGraphExecDestroy(replay));
  expect_cuda(cudaGraphDestroy(graph));
  expect_cuda(cudaStreamDestroy(stream));
}

}  // namespace
}  // namespace kvtilt::test
