// SPDX-License-Identifier: MIT
// Attention on a GPU against float64. Tests that need no GPU are in tests/cuda.
#include <kvtilt/quant/recipe.hpp>

#include "device_attend.hpp"
#include "support/device_prefill.hpp"

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace kvtilt::test {
namespace {

/// A copy of an array in device memory.
template <class T>
std::shared_ptr<T> on_device(const T* items, std::size_t count) {
  void* copy = nullptr;
  EXPECT_EQ(cudaMalloc(&copy, count * sizeof(T)), cudaSuccess);
  EXPECT_EQ(cudaMemcpy(copy, items, count * sizeof(T), cudaMemcpyHostToDevice), cudaSuccess);
  return {static_cast<T*>(copy), [](T* memory) { cudaFree(memory); }};
}

struct UploadedLayer {
  cuda::LayerView layer;
  std::vector<std::shared_ptr<void>> memory;

  explicit UploadedLayer(const DeviceLayer& host) : layer(host.layer()) {
    for (int kind = 0; kind < page_kinds; ++kind) {
      layer.pool[kind] = move(host.layer().pool[kind], host.pool_bytes(kind));
      layer.heads[kind] = move(host.layer().heads[kind], static_cast<std::size_t>(layer.kv_heads));
    }
    layer.states = move(host.layer().states, static_cast<std::size_t>(host.batch().count));
    layer.tables = move(host.layer().tables,
                        static_cast<std::size_t>(host.batch().count * layer.table_stride));
  }

 private:
  template <class T>
  T* move(T* items, std::size_t count) {
    auto copy = on_device<std::remove_const_t<T>>(items, count);
    memory.push_back(copy);
    return copy.get();
  }
};

class DeviceAttend : public testing::Test {
 protected:
  void SetUp() override {
    int devices = 0;
    const cudaError_t error = cudaGetDeviceCount(&devices);
    if (error != cudaSuccess || devices == 0)
      GTEST_SKIP() << "no CUDA device: " << cudaGetErrorString(error);
  }
};

/// A layer of two kv heads, and the kernel expected.
struct Attended {
  std::vector<Recipe> recipes;
  int dim = 128;
  int page_tokens = 64;
  bool generic = false;  ///< by the generic kernel
  int latent = 0;        ///< values, if they are in the keys

  [[nodiscard]] LayerShape shape() const {
    LayerShape shape{2, dim, latent > 0 ? latent : dim, 0};
    shape.values_in_keys = latent > 0;
    return shape;
  }
};

void expect_close(const Attended& attended, const std::vector<std::int64_t>& lengths, int tokens,
                  int gqa_ratio, ElementType type = ElementType::F32, double tolerance = 2e-3,
                  bool options_on = false) {
  const std::vector<Recipe>& recipes = attended.recipes;
  const int dim = attended.dim;
  Random random(static_cast<std::uint64_t>(recipes[0].key.bits * 10 + tokens));
  const LayerShape shape = attended.shape();
  CacheOptions cache_options;
  cache_options.page_tokens = attended.page_tokens;
  KVCache cache = make_cache(CacheShape{{shape}}, Plan{{recipes}}, cache_options);
  std::vector<LayerView> views;
  for (const std::int64_t length : lengths) {
    const SequenceId id = open_reserved(cache, length);
    const Rows<float> keys = random_rows(random, length, 2, dim, 1, 0.5f);
    const Rows<float> values = random_rows(random, length, 2, dim);
    KVTILT_EXPECT_OK(cache.append(id, 0, keys.view(), stored_apart(shape, values.view())));
    views.push_back(cache.view(id, 0).value());
  }
  const DeviceLayer host(views, recipes, cache_options);
  const UploadedLayer uploaded(host);
  const int count = static_cast<int>(lengths.size());
  Rows<float> queries = random_queries(random, shape, count * tokens, gqa_ratio);
  if (type != ElementType::F32)
    for (float& x : queries.data)
      x = type == ElementType::F16 ? to_float(to_f16(x)) : to_float(to_bf16(x));

  DeviceAttendCall call{shape,          recipes,
                        uploaded.layer, {host.batch().slots, host.batch().slots + count},
                        queries.data,   count * tokens,
                        queries.heads,  type};
  call.launches = 3;
  AttendOptions options;
  if (options_on) {
    call.soft_cap = options.soft_cap = 8.0f;
    for (int head = 0; head < queries.heads; ++head)
      call.sink_logits.push_back(static_cast<float>(random.normal()));
    std::vector<std::uint64_t> tree;
    for (int i = 0; i < tokens; ++i) tree.push_back((random.next() | random.next()) | 1u << i);
    for (int i = 0; i < count; ++i)
      call.tree_mask.insert(call.tree_mask.end(), tree.begin(), tree.end());
    options.sink_logits = call.sink_logits;
    options.tree_mask = {call.tree_mask.data(), static_cast<std::size_t>(tokens)};
    const Result<DeviceAttendResult> result = device_attend(call);
    ASSERT_TRUE(result.ok()) << result.message();
    Output output(queries.tokens, queries.heads, shape.value_dim);
    output.out.data = result->out;
    output.lse = result->lse;
    EXPECT_TRUE(is_close(views, queries, options, output, tolerance));
    return;
  }
  const Result<DeviceAttendResult> result = device_attend(call);
  ASSERT_TRUE(result.ok()) << result.message();
  Output output(queries.tokens, queries.heads, shape.value_dim);
  output.out.data = result->out;
  output.lse = result->lse;
  EXPECT_TRUE(is_close(views, queries, options, output, tolerance)) << to_string(recipes[0]);
  EXPECT_EQ(result->generic, attended.generic) << to_string(recipes[0]);
  const Result<DeviceAttendResult> again = device_attend(call);
  EXPECT_EQ(result->out, again->out) << "the order of sums is not fixed";
}

TEST_F(DeviceAttend, EveryKernelIsCloseToFloat64) {
  for (const char* name :
       {"k16v16", "k8v8", "k8v4", "k4v4", "k4v2", "k3v2", "k2v2", "k8tv8", "k4tv4", "k4v2c"}) {
    const Recipe recipe = parse_recipe(name).value();
    expect_close({{recipe}}, {1}, 1, 4);
    expect_close({{recipe}}, {700, 3, 0, 131, 2000}, 1, 4);
    expect_close({{recipe}}, {900, 300}, 5, 4, ElementType::F32, 2e-3, true);
  }
}

TEST_F(DeviceAttend, AnyOtherRecipeIsCloseToFloat64) {
  const auto per_token = [](int bits) { return key_format(bits, Granularity::PerToken); };
  const auto per_channel = [](int bits) { return key_format(bits, Granularity::PerChannel); };
  const Recipe recipes[] = {presets::per_channel_keys(3, 6),
                            presets::k6v4,
                            presets::kivi2,
                            presets::per_channel_keys(5, 5),
                            presets::per_channel_keys(7, 1),
                            presets::per_channel_keys(16, 4),
                            {per_token(4), value_format(2)},
                            {per_token(8), value_format(7)},
                            {per_token(1), per_channel(3)},
                            {key_format(6, Granularity::PerChannel, 16), Format{}}};
  for (const Recipe& recipe : recipes) {
    expect_close({{recipe}, 128, 64, true}, {1}, 1, 4);
    expect_close({{recipe}, 128, 64, true}, {700, 3, 0, 131, 2000}, 1, 4);
    expect_close({{recipe}, 64, 64, true}, {700, 131}, 2, 8);
    expect_close({{recipe}, 128, 32, true}, {700, 131}, 1, 1);
    expect_close({{recipe}, 128, 128, true}, {700, 131}, 5, 4, ElementType::F32, 2e-3, true);
  }
  expect_close({{presets::k4v2}, 128, 32, true}, {900, 40}, 1, 4);
  expect_close({{presets::k3v2}, 64, 64, true}, {20000}, 1, 4);
  expect_close({{presets::k4v2, presets::kivi2}, 128, 64, true}, {900, 40}, 1, 4);
}

TEST_F(DeviceAttend, LatentsAreCloseToFloat64) {
  for (const char* name : {"k8", "k4t:g64", "k3", "k16"}) {
    const Recipe recipe = parse_recipe(name).value();
    expect_close({{recipe}, 576, 64, true, 512}, {700, 3, 0, 131}, 1, 16);
    expect_close({{recipe}, 576, 64, true, 512}, {900}, 5, 4, ElementType::F32, 2e-3, true);
  }
}

TEST_F(DeviceAttend, HeadsWithRecipesOfTheirOwnAreCloseToFloat64) {
  expect_close({{presets::k4v2, presets::k8v4}}, {900, 40, 0}, 1, 4);
  expect_close({{presets::k3v2, presets::k4v4}}, {20000, 300}, 2, 8);
}

TEST_F(DeviceAttend, SeveralQueriesAndHeads) {
  for (const int tokens : {1, 2, 7})
    for (const int gqa_ratio : {1, 8, 12})
      expect_close({{presets::k4v2}}, {900, 40}, tokens, gqa_ratio);
}

TEST_F(DeviceAttend, OptionsAndTypes) {
  expect_close({{presets::k4v2}}, {900, 300}, 5, 4, ElementType::F32, 2e-3, true);
  expect_close({{presets::k4v2}}, {900, 300}, 1, 4, ElementType::F16);
  expect_close({{presets::k4v2}}, {900, 300}, 1, 4, ElementType::BF16, 6e-3);
}

TEST_F(DeviceAttend, LongSequencesAreSplitOverAllBlocks) {
  expect_close({{presets::k4v2}}, {20000}, 1, 4);
  expect_close({{presets::k16v16}}, {9000, 64}, 1, 4);
}

/// The chunks have random element types.
void expect_prefill_close(const Attended& attended, const std::vector<std::int64_t>& pasts,
                          const std::vector<int>& chunk_lengths, int gqa_ratio) {
  Random random(static_cast<std::uint64_t>(attended.recipes[0].key.bits * 10 + gqa_ratio));
  const LayerShape shape{2, attended.dim, attended.dim, 0};
  CacheOptions cache_options;
  cache_options.page_tokens = attended.page_tokens;
  KVCache cache = make_cache(CacheShape{{shape}}, Plan{{attended.recipes}}, cache_options);
  std::vector<LayerView> views;
  for (const std::int64_t past : pasts) {
    const SequenceId id = open_reserved(cache, past);
    const Rows<float> keys = random_rows(random, past, 2, attended.dim, 1, 0.5f);
    const Rows<float> values = random_rows(random, past, 2, attended.dim);
    KVTILT_EXPECT_OK(cache.append(id, 0, keys.view(), values.view()));
    views.push_back(cache.view(id, 0).value());
  }
  const DeviceLayer host(views, attended.recipes, cache_options);
  const UploadedLayer uploaded(host);
  const Chunks chunks(random, shape, chunk_lengths, gqa_ratio);
  const auto rows = [](const RandomInput& input) {
    return HostRows{&input.rows().data, input.view().type};
  };
  DevicePrefillCall call{shape,
                         attended.recipes,
                         uploaded.layer,
                         {host.batch().slots, host.batch().slots + pasts.size()},
                         chunks.indptr,
                         rows(chunks.queries),
                         rows(chunks.keys),
                         rows(chunks.values),
                         2 * gqa_ratio};
  call.launches = 3;
  const Result<DeviceAttendResult> result = device_prefill(call);
  ASSERT_TRUE(result.ok()) << result.message();
  Output output(chunks.indptr.back(), 2 * gqa_ratio, attended.dim);
  output.out.data = result->out;
  output.lse = result->lse;
  EXPECT_TRUE(is_close(views, chunks, {}, output)) << to_string(attended.recipes[0]);
  EXPECT_EQ(result->generic, attended.generic) << to_string(attended.recipes[0]);
  EXPECT_EQ(result->out, device_prefill(call)->out) << "the order of sums is not fixed";
}

TEST_F(DeviceAttend, ChunksOverQuantizedPagesAreCloseToFloat64) {
  for (const char* name : {"k16v16", "k8v8", "k8v4", "k4v4", "k4v2", "k3v2", "k8tv8", "k4v2c"}) {
    const Recipe recipe = parse_recipe(name).value();
    expect_prefill_close({{recipe}}, {700, 3, 0, 131}, {30, 1, 200, 64}, 4);
    expect_prefill_close({{recipe}}, {9000}, {33}, 8);
  }
  for (const int gqa_ratio : {1, 7, 16})
    expect_prefill_close({{presets::k4v2}}, {300, 0}, {150, 20}, gqa_ratio);
  expect_prefill_close({{presets::k3v2, presets::k8v4}}, {700, 3, 0}, {30, 1, 70}, 4);
  expect_prefill_close({{presets::k6v4}, 128, 64, true}, {700, 3, 0}, {30, 1, 70}, 4);
  expect_prefill_close({{presets::kivi2}, 64, 128, true}, {700, 3, 0}, {30, 1, 70}, 2);
}

TEST(DeviceAttention, NamesWhatTheListLacks) {
  const auto refusal = [](int dim, const std::vector<Recipe>& recipes, int page_tokens) {
    const Status status = device_attention_status({2, dim, dim, 0}, recipes, page_tokens);
    return std::string(status.message());
  };
  EXPECT_NE(refusal(96, {presets::k4v2}, 64).find("KernelsFor<"), std::string::npos);
  EXPECT_NE(refusal(96, {presets::k4v2, presets::k3v2}, 64).find("other heads"), std::string::npos);
  EXPECT_NE(refusal(72, {presets::k4v2}, 64).find("do not fill"), std::string::npos);
  EXPECT_NE(refusal(128, {presets::k4v2}, 48).find("32, 64 or 128"), std::string::npos);
  EXPECT_NE(refusal(128, std::vector<Recipe>(3), 64).find("3 recipes"), std::string::npos);
  EXPECT_NE(refusal(128, {presets::per_channel_keys(9, 2)}, 64).find("bits"), std::string::npos);
  // These can only fail for want of a device.
  for (const std::vector<Recipe>& recipes :
       {std::vector<Recipe>{presets::k4v2}, {presets::k3v2}, {presets::k4v2, presets::k3v2}})
    for (const int dim : {64, 128})
      EXPECT_EQ(refusal(dim, recipes, 64).find("kernel for"), std::string::npos);
}

}  // namespace
}  // namespace kvtilt::test
