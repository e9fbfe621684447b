// SPDX-License-Identifier: MIT
/// The interface between the halves of the emulated CUDA runtime: launches (emulated_launches.cu,
/// which nvcc must compile) and the rest (emulated_runtime.cpp, which it must not).
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

/// Kernels by name.
using EmulatedKernels = std::map<std::string, Binder>;

/// The attention kernels, of which each program has its own.
EmulatedKernels emulated_attention();

/// The emulated kernel of this name; null if it has no body.
const Binder* emulated_kernel(const std::string& name);

/// The kernel's name. Its address differs between linked files, its name does not.
const std::string& kernel_name(const void* kernel);

}  // namespace kvtilt::test
