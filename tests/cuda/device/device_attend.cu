// SPDX-License-Identifier: MIT
#include <kvtilt/cuda/attention/attend.cuh>

#include "device_attend.hpp"

#include <cstddef>
#include <cstring>
#include <utility>

namespace kvtilt::test {
namespace {

/// Device memory for the length of a call.
class Bytes {
 public:
  explicit Bytes(std::size_t size, int fill = 0xff) : size_(size) {
    if (cudaMalloc(&data_, size) == cudaSuccess) cudaMemset(data_, fill, size);
  }
  template <class T>
  explicit Bytes(const std::vector<T>& items) : Bytes(items.size() * sizeof(T)) {
    cudaMemcpy(data_, items.data(), size_, cudaMemcpyHostToDevice);
  }
  Bytes(const Bytes&) = delete;
  Bytes& operator=(const Bytes&) = delete;
  ~Bytes() { cudaFree(data_); }

  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  template <class T>
  std::vector<T> read() const {
    std::vector<T> items(size_ / sizeof(T));
    cudaMemcpy(items.data(), data_, size_, cudaMemcpyDeviceToHost);
    return items;
  }

 private:
  void* data_ = nullptr;
  std::size_t size_;
};

std::vector<std::uint16_t> narrowed(const std::vector<float>& values, ElementType type) {
  std::vector<std::uint16_t> bits;
  for (const float x : values)
    bits.push_back(type == ElementType::F16 ? to_f16(x).bits : to_bf16(x).bits);
  return bits;
}

}  // namespace

Status device_attention_status(const LayerShape& shape, const std::vector<Recipe>& recipes,
                               int page_tokens) {
  return cuda::Attention::create(shape, recipes, page_tokens).take_status();
}

Result<DeviceAttendResult> device_attend(const DeviceAttendCall& call) {
  Result<cuda::Attention> attention =
      cuda::Attention::create(call.shape, call.recipes, call.layer.page_tokens);
  if (!attention) return std::move(attention).take_status();
  const int count = static_cast<int>(call.slots.size());
  const std::size_t outputs = static_cast<std::size_t>(call.rows * call.query_heads) *
                              static_cast<std::size_t>(call.shape.value_dim);
  const Bytes slots(call.slots);
  const Bytes queries(call.queries);
  const Bytes narrow(narrowed(call.queries, call.type));
  const Bytes out(outputs * element_bytes(call.type));
  const Bytes lse(static_cast<std::size_t>(call.rows * call.query_heads) * 4);
  const Bytes workspace(attention->workspace_bytes(count, call.rows / count, call.query_heads), 0);
  const std::vector<float>& sinks = call.sink_logits;
  const Bytes device_sinks(sinks);
  const Bytes trees(call.tree_mask);

  TensorView query_view(queries.as<float>(), call.rows, call.query_heads, call.shape.key_dim);
  query_view.type = call.type;
  if (call.type != ElementType::F32) query_view.data = narrow.as<void>();
  MutableTensorView out_view(out.as<float>(), call.rows, call.query_heads, call.shape.value_dim);
  out_view.type = call.type;
  cuda::DeviceAttendOptions options;
  options.soft_cap = call.soft_cap;
  if (!sinks.empty()) options.sink_logits = device_sinks.as<float>();
  if (!call.tree_mask.empty()) options.tree_mask = trees.as<std::uint64_t>();

  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t replay;
  cudaStreamCreate(&stream);
  cudaDeviceSynchronize();
  cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal);
  KVTILT_RETURN_IF_ERROR(attention->attend(call.layer, {slots.as<std::int32_t>(), count},
                                           query_view, out_view, lse.as<float>(), options,
                                           workspace.as<void>(), stream));
  cudaStreamEndCapture(stream, &graph);
  cudaGraphInstantiate(&replay, graph, 0);
  for (int i = 0; i < call.launches; ++i) cudaGraphLaunch(replay, stream);
  const cudaError_t error = cudaStreamSynchronize(stream);
  cudaGraphExecDestroy(replay);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
  if (error != cudaSuccess)
    return Status::error(ErrorCode::Unsupported, "CUDA: %s", cudaGetErrorString(error));

  DeviceAttendResult result;
  result.generic = attention->is_generic();
  result.lse = lse.read<float>();
  if (call.type == ElementType::F32) {
    result.out = out.read<float>();
  } else {
    for (const std::uint16_t bits : out.read<std::uint16_t>())
      result.out.push_back(call.type == ElementType::F16 ? to_float(F16{bits})
                                                         : to_float(BF16{bits}));
  }
  return result;
}

}  // namespace kvtilt::test
