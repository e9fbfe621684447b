// SPDX-License-Identifier: MIT
/// A separate project with CUDA kernels: creates a cache, decodes one step and checks for errors
/// that the device recorded. examples/gpu_engine.cu is a complete engine.
#include <kvtilt/kvtilt.cuh>

#include <cstddef>
#include <cstdio>
#include <span>
#include <utility>

namespace {

constexpr int kv_heads = 2, query_heads = 8, head_dim = 128;

/// Zeroed device memory, never freed.
template <class T>
T* device_array(std::size_t count) {
  void* memory = nullptr;
  if (cudaMalloc(&memory, count * sizeof(T)) != cudaSuccess) return nullptr;
  cudaMemset(memory, 0, count * sizeof(T));
  return static_cast<T*>(memory);
}

kvtilt::Status decode() {
  using namespace kvtilt;
  const CacheShape shape = CacheShape::uniform(2, kv_heads, head_dim);
  Result<cuda::KVCache> cache = cuda::KVCache::create(shape, Plan::uniform(shape, presets::k4v2));
  if (!cache) return std::move(cache).take_status();
  using Kernels = cuda::AttendKernels<cuda::PageTraits<4, 2, head_dim>>;
  Result<cuda::Attention> attention =
      cuda::Attention::create<Kernels>(shape.layers[0], presets::k4v2);
  if (!attention) return std::move(attention).take_status();
  const std::size_t bytes = attention->workspace_bytes();
  const std::span<std::byte> workspace(device_array<std::byte>(bytes), bytes);
  KVTILT_RETURN_IF_ERROR(attention->prepare(workspace, nullptr));

  Result<SequenceId> chat = cache->open();
  if (!chat) return std::move(chat).take_status();
  KVTILT_RETURN_IF_ERROR(cache->reserve(*chat, 1000));
  Result<cuda::SequenceBatch> batch = cache->batch(*chat);
  if (!batch) return std::move(batch).take_status();
  const F16* rows = device_array<F16>(query_heads * head_dim);
  F16* out = device_array<F16>(query_heads * head_dim);
  for (int layer = 0; layer < cache->layers(); ++layer) {
    const TensorView keys(rows, 1, kv_heads, head_dim);
    KVTILT_RETURN_IF_ERROR(cache->append(*batch, layer, keys, keys));
    KVTILT_RETURN_IF_ERROR(attention->attend(
        *cache->view(layer), batch->device, nullptr, TensorView(rows, 1, query_heads, head_dim),
        MutableTensorView(out, 1, query_heads, head_dim), nullptr, {}, workspace, nullptr));
  }
  return cache->poll(nullptr);
}

}  // namespace

int main() {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::puts("no CUDA device: the program was compiled and not run");
    return 77;
  }
  const kvtilt::Status status = decode();
  if (!status.ok()) std::printf("%s\n", status.message().data());
  return status.ok() ? 0 : 1;
}
