// SPDX-License-Identifier: MIT
/// Between the two halves of the emulated CUDA runtime: launches (emulated_launches.cu, which nvcc
/// must see) and the rest (emulated_runtime.cpp, which it must not).
#pragma once

#include <cstddef>
#include <functional>
#include <map>
#include <string>

namespace kvtilt::test {

struct LaunchShape {
  unsigned blocks;
  unsigned threads;
  std::size_t shared;
};
/// A launch with copies of its arguments.
using Launch = std::function<void()>;
using Binder = std::function<Launch(const LaunchShape&, void**)>;

/// By name.
using EmulatedKernels = std::map<std::string, Binder>;

/// Those of attention, which each program has its own of.
EmulatedKernels emulated_attention();

/// What stands for the kernel of this name; null if there is no body for it.
const Binder* emulated_kernel(const std::string& name);

/// Its name. Each file that is linked has another address for a kernel, all have the same name.
const std::string& kernel_name(const void* kernel);

}  // namespace kvtilt::test
