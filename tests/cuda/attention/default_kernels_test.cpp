// SPDX-License-Identifier: MIT
#include <kvtilt/cuda/attention/default_kernels.hpp>
#include <kvtilt/quant/presets.hpp>
#include <kvtilt/quant/recipe.hpp>

#include <gtest/gtest.h>

#include <vector>

namespace kvtilt::cuda {
namespace {

struct Found {
  int fast = 0;
  int generic = 0;
};

template <class... Kernels>
Found count(AttendKernels<Kernels...>, int dim, const std::vector<Recipe>& recipes, int page) {
  const LayerShape shape{2, dim, dim};
  const std::vector<Recipe> resolved = resolve_recipes(recipes, shape, page).value();
  Found found;
  ((fits<Kernels>(shape, resolved, page) ? void(++(Kernels::generic ? found.generic : found.fast))
                                         : void()),
   ...);
  return found;
}

TEST(DefaultKernels, TheUsualRecipesHaveOneOfTheirOwn) {
  for (const char* name :
       {"k16v16", "k8v8", "k8v4", "k4v4", "k4v2", "k3v2", "k2v2", "k8tv8", "k4tv4", "k4v2c"})
    EXPECT_GE(count(DefaultKernels{}, 128, {parse_recipe(name).value()}, 64).fast, 1) << name;
  EXPECT_EQ(count(DefaultKernels{}, 128, {presets::k8v4, presets::k3v2}, 64).fast, 1);
}

template <int Dim>
void expect_kernels() {
  for (const char* name : {"k4v2", "k2v2"})
    EXPECT_EQ(count(KernelsFor<Dim>{}, Dim, {parse_recipe(name).value()}, 64).fast,
              Dim % 32 == 0 ? 1 : 0)
        << name << ", " << Dim;
  for (const char* name : {"k16v16", "k8v8", "k8v4", "k4v4"})
    EXPECT_EQ(count(KernelsFor<Dim>{}, Dim, {parse_recipe(name).value()}, 64).fast, 1)
        << name << ", " << Dim;
  for (const char* name : {"k16v16", "k5v3", "k4tv2", "k4v2c"})
    EXPECT_EQ(count(KernelsFor<Dim>{}, Dim, {parse_recipe(name).value()}, 128).generic, 1)
        << name << ", " << Dim;
}

TEST(KernelsFor, EveryHeadDimensionHasFastOnesAndAGenericOne) {
  expect_kernels<64>();
  expect_kernels<80>();
  expect_kernels<96>();
  expect_kernels<128>();
  expect_kernels<192>();
  expect_kernels<256>();
}

TEST(DefaultKernels, AllOthersHaveAGenericOne) {
  for (const int dim : {64, 128})
    for (const int page : {32, 64, 128})
      for (int key = 1; key <= 8; ++key)
        for (int value = 1; value <= 8; ++value)
          for (const Granularity granularity : {Granularity::PerChannel, Granularity::PerToken})
            EXPECT_EQ(
                count(DefaultKernels{}, dim,
                      {{key_format(key, granularity), value_format(value, granularity)}}, page)
                    .generic,
                supports_order({page, dim}, key) && supports_order({dim, page}, value) ? 1 : 0);
}

}  // namespace
}  // namespace kvtilt::cuda
