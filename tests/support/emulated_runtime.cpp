// SPDX-License-Identifier: MIT
// The part of the CUDA runtime that the library uses, on the host: device memory is host memory, a
// launch runs the kernel's body in the emulator, a graph is a list of launches. Linked in place of
// cudart, it runs the tests of tests/cuda/device without a GPU: host code, arguments and kernel
// bodies, but no code of the device compiler.
#include "support/emulated_runtime.hpp"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace kvtilt::test {
namespace {

struct Stream {
  std::vector<Launch>* graph = nullptr;  ///< while capturing
};

Stream default_stream;
Stream& stream_of(cudaStream_t stream) {
  return stream == nullptr ? default_stream : *reinterpret_cast<Stream*>(stream);
}

std::map<const void*, std::string>& kernel_names() {
  static std::map<const void*, std::string> names;
  return names;
}

cudaError_t last_error = cudaSuccess;
/// Every error is also kept until cudaGetLastError().
cudaError_t fail(cudaError_t error) { return last_error = error; }

// Device n has 1 / 2^n of an H100's shared memory per block.
constexpr int devices = 6;
int current_device = 0;
constexpr int shared_per_block(int device) { return 227 << 10 >> device; }
constexpr int shared_per_multiprocessor(int device) { return shared_per_block(device) + 1024; }

/// Pinned memory: size by start address.
std::map<const char*, std::size_t>& pinned() {
  static std::map<const char*, std::size_t> memory;
  return memory;
}

/// Streams being captured; meanwhile calls that allocate, free or wait for the device are refused.
int captures = 0;

/// Waiting for a stream ends its capture; so must every test that does it.
cudaError_t waited(cudaStream_t stream) {
  return stream_of(stream).graph == nullptr ? cudaSuccess : fail(cudaErrorStreamCaptureUnsupported);
}

/// Dynamic shared memory that a kernel may be launched with, on the current device.
std::size_t& allowed_shared(const void* kernel) {
  static std::map<std::pair<std::string, int>, std::size_t> allowed;
  return allowed.try_emplace({kernel_name(kernel), current_device}, std::size_t{48} << 10)
      .first->second;
}

}  // namespace

const std::string& kernel_name(const void* kernel) { return kernel_names()[kernel]; }

}  // namespace kvtilt::test

using kvtilt::test::stream_of;

extern "C" {

void** __cudaRegisterFatBinary(void*) {
  static void* handle = nullptr;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
char __cudaInitModule(void**) { return 0; }  // host code of -O0 refers to it
void __cudaRegisterFunction(void**, const char* kernel, char*, const char* name, int, uint3*,
                            uint3*, dim3*, dim3*, int*) {
  kvtilt::test::kernel_names()[kernel] = name;
}
// Referenced by what nvcc generates for <<<>>>, which the library does not use.
cudaError_t __cudaPopCallConfiguration(dim3*, dim3*, std::size_t*, void*) {
  return cudaErrorNotSupported;
}
cudaError_t __cudaGetKernel(cudaKernel_t*, const void*) { return cudaErrorNotSupported; }
cudaError_t __cudaLaunchKernel(cudaKernel_t, dim3, dim3, void**, std::size_t, cudaStream_t) {
  return cudaErrorNotSupported;
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* kernel,
                                void** arguments) {
  using namespace kvtilt::test;
  const Binder* bind = emulated_kernel(kernel_name(kernel));
  const dim3& grid = config->gridDim;
  const dim3& block = config->blockDim;
  const bool pdl = config->numAttrs == 1 &&
                     config->attrs->id == cudaLaunchAttributeProgrammaticStreamSerialization &&
                     config->attrs->val.programmaticStreamSerializationAllowed == 1;
  const bool valid = bind != nullptr && pdl && grid.x > 0 && grid.y == 1 && block.x > 0 &&
                     block.x <= 1024 && config->dynamicSmemBytes <= allowed_shared(kernel);
  if (!valid) return fail(cudaErrorInvalidConfiguration);
  const Launch launch = (*bind)({grid.x, block.x, config->dynamicSmemBytes}, arguments);
  if (stream_of(config->stream).graph != nullptr)
    stream_of(config->stream).graph->push_back(launch);
  else
    launch();
  return cudaSuccess;
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  attributes->ptxVersion = 90;
  return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) { return *version = CUDART_VERSION, cudaSuccess; }

cudaError_t cudaGetDeviceCount(int* count) { return *count = kvtilt::test::devices, cudaSuccess; }
cudaError_t cudaGetDevice(int* device) {
  return *device = kvtilt::test::current_device, cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= kvtilt::test::devices)
    return kvtilt::test::fail(cudaErrorInvalidDevice);
  return kvtilt::test::current_device = device, cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      return *value = 2, cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      return *value = kvtilt::test::shared_per_block(device), cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      return *value = kvtilt::test::shared_per_multiprocessor(device), cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      return *value = 9, cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      return *value = 0, cudaSuccess;
    default:
      return kvtilt::test::fail(cudaErrorInvalidValue);
  }
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void*,
                                                                   int threads, std::size_t shared,
                                                                   unsigned) {
  using namespace kvtilt::test;
  const int by_shared =
      shared_per_multiprocessor(current_device) / (static_cast<int>(shared) + 1024);
  return *blocks = std::min(by_shared, 384 / threads), cudaSuccess;  // at 168 registers per thread
}
cudaError_t cudaGetLastError() { return std::exchange(kvtilt::test::last_error, cudaSuccess); }
const char* cudaGetErrorName(cudaError_t error) { return error == 0 ? "ok" : "emulated error"; }
const char* cudaGetErrorString(cudaError_t error) { return error == 0 ? "ok" : "emulated error"; }
cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  const bool valid = attribute == cudaFuncAttributeMaxDynamicSharedMemorySize &&
                     value <= kvtilt::test::shared_per_block(kvtilt::test::current_device);
  if (!valid) return kvtilt::test::fail(cudaErrorInvalidValue);
  kvtilt::test::allowed_shared(kernel) = static_cast<std::size_t>(value);
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** memory, std::size_t bytes) {
  if (kvtilt::test::captures > 0) return kvtilt::test::fail(cudaErrorStreamCaptureUnsupported);
  const std::size_t padded = (bytes + 255) / 256 * 256;
  *memory = std::aligned_alloc(256, padded);
  std::memset(*memory, 0xff, padded);
  return cudaSuccess;
}
cudaError_t cudaFree(void* memory) {
  if (kvtilt::test::captures > 0) return kvtilt::test::fail(cudaErrorStreamCaptureUnsupported);
  return std::free(memory), cudaSuccess;
}
cudaError_t cudaMallocHost(void** memory, std::size_t bytes) {
  const cudaError_t error = cudaMalloc(memory, bytes);
  if (error == cudaSuccess) kvtilt::test::pinned()[static_cast<char*>(*memory)] = bytes;
  return error;
}
cudaError_t cudaFreeHost(void* memory) {
  kvtilt::test::pinned().erase(static_cast<char*>(memory));
  return cudaFree(memory);
}
/// All memory that is not pinned counts as the engine's own.
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
  *attributes = {};
  const char* at = static_cast<const char*>(pointer);
  const auto& pinned = kvtilt::test::pinned();
  const auto behind = pinned.upper_bound(at);
  if (behind == pinned.begin()) return cudaSuccess;
  const auto& [start, bytes] = *std::prev(behind);
  if (at >= start + bytes) return cudaSuccess;
  attributes->type = cudaMemoryTypeHost;
  attributes->devicePointer = const_cast<char*>(at);
  attributes->hostPointer = const_cast<char*>(at);
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind,
                            cudaStream_t stream) {
  if (stream_of(stream).graph != nullptr)
    return kvtilt::test::fail(cudaErrorStreamCaptureUnsupported);
  if (bytes > 0) std::memcpy(to, from, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) {
  return cudaMemcpyAsync(to, from, bytes, kind, nullptr);
}
cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t stream) {
  if (stream_of(stream).graph != nullptr)
    return kvtilt::test::fail(cudaErrorStreamCaptureUnsupported);
  std::memset(to, value, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemset(void* to, int value, std::size_t bytes) {
  return cudaMemsetAsync(to, value, bytes, nullptr);
}
cudaError_t cudaDeviceSynchronize() {
  return kvtilt::test::captures > 0 ? kvtilt::test::fail(cudaErrorStreamCaptureUnsupported)
                                    : cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) { return kvtilt::test::waited(stream); }

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = reinterpret_cast<cudaStream_t>(new kvtilt::test::Stream);
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  delete reinterpret_cast<kvtilt::test::Stream*>(stream);
  return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  *status = stream_of(stream).graph == nullptr ? cudaStreamCaptureStatusNone
                                               : cudaStreamCaptureStatusActive;
  return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  stream_of(stream).graph = new std::vector<kvtilt::test::Launch>;
  ++kvtilt::test::captures;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  *graph = reinterpret_cast<cudaGraph_t>(std::exchange(stream_of(stream).graph, nullptr));
  --kvtilt::test::captures;
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* replay, cudaGraph_t graph, unsigned long long) {
  const auto* launches = reinterpret_cast<std::vector<kvtilt::test::Launch>*>(graph);
  *replay = reinterpret_cast<cudaGraphExec_t>(new std::vector<kvtilt::test::Launch>(*launches));
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t replay, cudaStream_t) {
  for (const auto& launch : *reinterpret_cast<std::vector<kvtilt::test::Launch>*>(replay)) launch();
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete reinterpret_cast<std::vector<kvtilt::test::Launch>*>(graph);
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t replay) {
  delete reinterpret_cast<std::vector<kvtilt::test::Launch>*>(replay);
  return cudaSuccess;
}

}  // extern "C"
