// SPDX-License-Identifier: MIT
// The cache's kernels, with the bodies that the emulator runs for them: see emulated_runtime.cpp.
#include <kvtilt/cuda/attention/merge_outputs.cuh>
#include <kvtilt/cuda/cache/kv_cache.cuh>
#include <kvtilt/cuda/cache/pack_pages.cuh>
#include <kvtilt/cuda/cache/page_tables.cuh>

#include "support/emulated_kernels.hpp"
#include "support/emulated_runtime.hpp"
#include "support/emulated_threads.hpp"

#include <string>

namespace kvtilt::test {
namespace {

#define KVTILT_EMULATED(kernel, body)                                             \
  emulated(cuda::kernel, [](EmulatedThreads& threads, const auto&... arguments) { \
    cuda::body(threads, arguments...);                                            \
  })

EmulatedKernels all_kernels() {
  using cuda::FitRules;
  using cuda::detail::small_block;
  EmulatedKernels kernels = {
      KVTILT_EMULATED(detail::give_pages_kernel<small_block>, give_pages_body),
      KVTILT_EMULATED(detail::drop_shared_kernel<small_block>, drop_shared_body),
      KVTILT_EMULATED(detail::reset_kernel<small_block>, reset_body),
      KVTILT_EMULATED(detail::truncate_kernel<small_block>, truncate_body),
      KVTILT_EMULATED(detail::remove_kernel<small_block>, remove_body),
      KVTILT_EMULATED(detail::fork_kernel<small_block>, fork_body),
      KVTILT_EMULATED(detail::fork_blocks_kernel<256>, fork_blocks_body),
      KVTILT_EMULATED(append_kernel<cuda::DeviceThreads>, append),
      KVTILT_EMULATED(pack_kernel<FitRules::All>, pack<FitRules::All>),
      KVTILT_EMULATED(pack_kernel<FitRules::MinMax>, pack<FitRules::MinMax>),
      KVTILT_EMULATED(detail::pack_pages_kernel<FitRules::All>, pack_pages<FitRules::All>),
      KVTILT_EMULATED(detail::pack_pages_kernel<FitRules::MinMax>, pack_pages<FitRules::MinMax>),
      KVTILT_EMULATED(unpack_kernel<cuda::DeviceThreads>, unpack),
      KVTILT_EMULATED(detail::save_layer_kernel<cuda::saved_threads>, save_layer_body),
      KVTILT_EMULATED(detail::load_tables_kernel<cuda::detail::saved_table_threads>,
                      load_tables_body),
      KVTILT_EMULATED(detail::load_layer_kernel<cuda::saved_threads>, load_layer_body),
      KVTILT_EMULATED(merge_kernel<cuda::DeviceThreads>, merge_outputs),
      KVTILT_EMULATED(detail::import_tables_kernel<128>, import_tables_body),
      KVTILT_EMULATED(detail::export_tables_kernel<256>, export_tables_body),
      KVTILT_EMULATED(detail::write_slots_kernel<small_block>, detail::write_slots_body),
  };
  kernels.merge(emulated_attention());
  return kernels;
}

}  // namespace

const Binder* emulated_kernel(const std::string& name) {
  static const EmulatedKernels kernels = all_kernels();
  const auto found = kernels.find(name);
  return found == kernels.end() ? nullptr : &found->second;
}

}  // namespace kvtilt::test
