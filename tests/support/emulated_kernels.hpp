// SPDX-License-Identifier: MIT
/// Makes emulated kernels from kernel bodies; nvcc must compile it. See emulated_runtime.cpp.
#pragma once

#include <kvtilt/cuda/attention/attend.cuh>
#include <kvtilt/cuda/attention/attend_prefill.cuh>

#include "support/emulated_runtime.hpp"
#include "support/emulated_threads.hpp"

#include <cstddef>
#include <memory>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

namespace kvtilt::test {

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

/// The emulated attention kernels.
template <class... Pages>
EmulatedKernels emulated_attention(cuda::AttendKernels<Pages...>) {
  EmulatedKernels kernels;
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
  return kernels;
}

}  // namespace kvtilt::test
