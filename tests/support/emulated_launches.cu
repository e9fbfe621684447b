// SPDX-License-Identifier: MIT
// Kernels, and the bodies that the emulator runs for them: see emulated_runtime.cpp.
#include <kvtilt/cuda/attention/attend.cuh>
#include <kvtilt/cuda/attention/attend_prefill.cuh>
#include <kvtilt/cuda/attention/merge_outputs.cuh>
#include <kvtilt/cuda/cache/kv_cache.cuh>
#include <kvtilt/cuda/cache/page_tables.cuh>

#include "support/emulated_runtime.hpp"
#include "support/emulated_threads.hpp"
#include "support/some_kernels.hpp"

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

namespace kvtilt::test {
namespace {

template <class... Arguments, std::size_t... Index>
std::tuple<std::remove_cv_t<Arguments>...> copied(void (*)(Arguments...), void** arguments,
                                                  std::index_sequence<Index...>) {
  return {*static_cast<const std::remove_cv_t<Arguments>*>(arguments[Index])...};
}

template <class... Arguments, class Body>
std::pair<const std::string, Binder> emulated(void (*kernel)(Arguments...), Body body) {
  return {kernel_name(reinterpret_cast<const void*>(kernel)),
          [kernel, body](const LaunchShape& shape, void** arguments) -> Launch {
            const auto values = std::make_shared<std::tuple<std::remove_cv_t<Arguments>...>>(
                copied(kernel, arguments, std::index_sequence_for<Arguments...>{}));
            return [shape, body, values] {
              emulate(static_cast<int>(shape.blocks), static_cast<int>(shape.threads), shape.shared,
                      [&](EmulatedThreads& threads) {
                        std::apply([&](const auto&... each) { body(threads, each...); }, *values);
                      });
            };
          }};
}

#define KVTILT_EMULATED(kernel, body)                                             \
  emulated(cuda::kernel, [](EmulatedThreads& threads, const auto&... arguments) { \
    cuda::body(threads, arguments...);                                            \
  })

template <class... Pages>
void add_attention(std::map<std::string, Binder>& kernels, cuda::AttendKernels<Pages...>) {
  const auto decode = [](EmulatedThreads& threads, auto pages, const auto& arguments) {
    cuda::attend_block<decltype(pages)>(threads, arguments);
  };
  const auto prefill = [](EmulatedThreads& threads, auto pages, const auto& arguments) {
    cuda::attend_prefill_block<cuda::PrefillTraits<decltype(pages)>>(threads, arguments);
  };
  const auto with = [](auto pages, auto body) {
    return
        [=](EmulatedThreads& threads, const auto& arguments) { body(threads, pages, arguments); };
  };
  (kernels.insert(emulated(cuda::attend_kernel<Pages>, with(Pages{}, decode))), ...);
  (kernels.insert(emulated(cuda::attend_prefill_kernel<Pages>, with(Pages{}, prefill))), ...);
}

std::map<std::string, Binder> all_kernels() {
  using cuda::detail::small_block;
  std::map<std::string, Binder> kernels = {
      KVTILT_EMULATED(detail::give_pages_kernel<small_block>, give_pages_body),
      KVTILT_EMULATED(detail::let_go_kernel<small_block>, let_go_body),
      KVTILT_EMULATED(detail::reset_kernel<small_block>, reset_body),
      KVTILT_EMULATED(detail::truncate_kernel<small_block>, truncate_body),
      KVTILT_EMULATED(detail::remove_kernel<small_block>, remove_body),
      KVTILT_EMULATED(detail::fork_kernel<small_block>, fork_body),
      KVTILT_EMULATED(detail::fork_blocks_kernel<256>, fork_blocks_body),
      KVTILT_EMULATED(append_kernel<cuda::DeviceThreads>, append),
      KVTILT_EMULATED(pack_kernel<cuda::DeviceThreads>, pack),
      KVTILT_EMULATED(unpack_kernel<cuda::DeviceThreads>, unpack),
      KVTILT_EMULATED(merge_kernel<cuda::DeviceThreads>, merge_outputs),
      KVTILT_EMULATED(detail::import_tables_kernel<128>, import_tables_body),
      KVTILT_EMULATED(detail::export_tables_kernel<256>, export_tables_body),
      KVTILT_EMULATED(detail::write_slots_kernel<small_block>, detail::write_slots_body),
  };
  add_attention(kernels, SomeKernels{});
  return kernels;
}

}  // namespace

const Binder* emulated_kernel(const std::string& name) {
  static const std::map<std::string, Binder> kernels = all_kernels();
  const auto found = kernels.find(name);
  return found == kernels.end() ? nullptr : &found->second;
}

}  // namespace kvtilt::test
