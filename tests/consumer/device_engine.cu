// SPDX-License-Identifier: MIT
/// The loop of an engine on a GPU, as README shows it: two prompts, chunk by chunk, then a step of
/// decoding for both.
#include <kvtilt/kvtilt.cuh>

#include <cstdint>
#include <cstdio>
#include <span>
#include <vector>

namespace {

constexpr int layers = 2;
constexpr int kv_heads = 2;
constexpr int query_heads = 8;
constexpr int head_dim = 128;

int fail(const kvtilt::Status& status) {
  std::printf("%s\n", status.message().data());
  return 1;
}

/// Device memory until the program ends.
template <class T>
T* device_array(std::size_t count) {
  void* memory = nullptr;
  if (cudaMalloc(&memory, count * sizeof(T)) != cudaSuccess) return nullptr;
  cudaMemset(memory, 0, count * sizeof(T));
  return static_cast<T*>(memory);
}

kvtilt::Status decode(const kvtilt::F16* rows, kvtilt::F16* out, std::int32_t* slots,
                      cudaStream_t stream) {
  using namespace kvtilt;
  const CacheShape shape = CacheShape::uniform(layers, kv_heads, head_dim);
  Result<cuda::KVCache> cache =
      cuda::KVCache::create(shape, Plan::uniform(shape, presets::k4v2), {}, stream);
  if (!cache) return std::move(cache).take_status();
  // The kernels of this engine and no others.
  using Kernels = cuda::AttendKernels<cuda::PageTraits<4, 2, head_dim>>;
  Result<cuda::Attention> attention =
      cuda::Attention::create<Kernels>(shape.layers[0], presets::k4v2);
  if (!attention) return std::move(attention).take_status();
  Result<cuda::PrefillAttention> prefill =
      cuda::PrefillAttention::create<Kernels>(shape.layers[0], presets::k4v2);
  if (!prefill) return std::move(prefill).take_status();
  constexpr int chunk = 128;
  const std::size_t prefill_bytes = prefill->workspace_bytes(1, chunk, query_heads);
  const std::span<std::byte> prefill_workspace(device_array<std::byte>(prefill_bytes),
                                               prefill_bytes);
  KVTILT_RETURN_IF_ERROR(prefill->prepare(prefill_workspace, stream));

  std::vector<SequenceId> chats;
  for (const int prompt : {300, 20}) {
    Result<SequenceId> chat = cache->open(stream);
    if (!chat) return std::move(chat).take_status();
    chats.push_back(*chat);
    KVTILT_RETURN_IF_ERROR(cache->reserve(*chat, 1000, stream));
    Result<cuda::SequenceBatch> alone = cache->batch(*chat);
    if (!alone) return std::move(alone).take_status();
    for (int first = 0; first < prompt; first += chunk) {
      const int tokens = prompt - first < chunk ? prompt - first : chunk;
      const TensorView keys(rows, tokens, kv_heads, head_dim);
      for (int layer = 0; layer < layers; ++layer) {
        KVTILT_RETURN_IF_ERROR(
            prefill->attend_prefill(*cache->view(layer), alone->device, nullptr,
                                    TensorView(rows, tokens, query_heads, head_dim), keys, keys,
                                    MutableTensorView(out, tokens, query_heads, head_dim), nullptr,
                                    {}, prefill_workspace, stream));
        KVTILT_RETURN_IF_ERROR(cache->append(*chat, layer, keys, keys, stream));
      }
    }
  }
  Result<cuda::SequenceBatch> batch = cache->batch(chats, {slots, 2}, stream);
  if (!batch) return std::move(batch).take_status();
  const std::size_t bytes = attention->workspace_bytes(2, 1, query_heads);
  const std::span<std::byte> workspace(device_array<std::byte>(bytes), bytes);
  KVTILT_RETURN_IF_ERROR(attention->prepare(workspace, stream));
  for (int layer = 0; layer < layers; ++layer) {
    KVTILT_RETURN_IF_ERROR(cache->append(*batch, layer, TensorView(rows, 2, kv_heads, head_dim),
                                         TensorView(rows, 2, kv_heads, head_dim), stream));
    KVTILT_RETURN_IF_ERROR(attention->attend(
        *cache->view(layer), batch->device, TensorView(rows, 2, query_heads, head_dim),
        MutableTensorView(out, 2, query_heads, head_dim), nullptr, {}, workspace, stream));
  }
  return cache->poll(stream);
}

}  // namespace

int main() {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::puts("no CUDA device: the program was compiled and not run");
    return 77;
  }
  const std::size_t elements = 300 * query_heads * head_dim;
  const kvtilt::F16* rows = device_array<kvtilt::F16>(elements);
  kvtilt::F16* out = device_array<kvtilt::F16>(elements);
  std::int32_t* slots = device_array<std::int32_t>(2);
  const kvtilt::Status status = decode(rows, out, slots, nullptr);
  if (!status.ok()) return fail(status);
  std::puts("two sequences decoded");
  return 0;
}
