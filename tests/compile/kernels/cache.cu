// SPDX-License-Identifier: MIT
// The kernels that append tokens to a device cache and those that read tokens back.
#include <kvtilt/cuda/cache/append.cuh>
#include <kvtilt/cuda/cache/pack_pages.cuh>
#include <kvtilt/cuda/cache/saved_layer.cuh>
#include <kvtilt/cuda/cache/unpack.cuh>

cudaError_t append_and_unpack(const kvtilt::cuda::AppendArguments& append,
                              const kvtilt::cuda::UnpackArguments& unpack) {
  (void)kvtilt::cuda::launch_append(append, nullptr);
  (void)kvtilt::cuda::launch_pack(append, 1, nullptr);
  return kvtilt::cuda::launch_unpack(unpack, nullptr);
}

bool pack_an_engines_pages(const kvtilt::cuda::LayerView& layer) {
  return kvtilt::cuda::pack_pages(layer, {}, {}, {}, nullptr, nullptr, 1).ok();
}

bool save_and_load(const kvtilt::cuda::SaveArguments& save,
                   const kvtilt::cuda::LoadArguments& load) {
  return kvtilt::cuda::launch_save_layer(save, nullptr).ok() &&
         kvtilt::cuda::launch_load_tables(load, nullptr).ok() &&
         kvtilt::cuda::launch_load_layer(load, nullptr).ok();
}
