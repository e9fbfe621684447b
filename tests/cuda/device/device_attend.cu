// SPDX-License-Identifier: MIT
#include <kvtilt/cuda/attention/attend.cuh>
#include <kvtilt/cuda/attention/attend_prefill.cuh>

#include "device_attend.hpp"

#include <cstddef>
#include <span>
#include <utility>

namespace kvtilt::test {
namespace {

/// Device memory, freed at the end of its scope.
class Bytes {
 public:
  explicit Bytes(std::size_t size) : size_(size) {
    if (cudaMalloc(&data_, size) == cudaSuccess) cudaMemset(data_, 0xff, size);
  }
  template <class T>
  explicit Bytes(const std::vector<T>& items) : Bytes(items.size() * sizeof(T)) {
    cudaMemcpy(data_, items.data(), size_, cudaMemcpyHostToDevice);
  }
  Bytes(const Bytes&) = delete;
  Bytes& operator=(const Bytes&) = delete;
  Bytes(Bytes&& other) noexcept : data_(other.data_), size_(other.size_) { other.data_ = nullptr; }
  ~Bytes() { cudaFree(data_); }

  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  [[nodiscard]] std::span<std::byte> span() const { return {as<std::byte>(), size_}; }
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

/// A copy of contiguous rows on the device, of any type.
class DeviceRows {
 public:
  DeviceRows(const std::vector<float>& values, ElementType type, std::int64_t rows, int heads,
             int dim)
      : bytes_(type == ElementType::F32 ? Bytes(values) : Bytes(narrowed(values, type))),
        view_(bytes_.as<float>(), rows, heads, dim) {
    view_.type = type;
  }
  [[nodiscard]] const TensorView& view() const { return view_; }

 private:
  Bytes bytes_;
  TensorView view_;
};

/// Captures one call in a graph and replays it `launches` times.
template <class Call>
Status replay(int launches, Call call) {
  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t replay;
  cudaStreamCreate(&stream);
  cudaDeviceSynchronize();
  cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal);
  KVTILT_RETURN_IF_ERROR(call(stream));
  cudaStreamEndCapture(stream, &graph);
  cudaGraphInstantiate(&replay, graph, 0);
  for (int i = 0; i < launches; ++i) cudaGraphLaunch(replay, stream);
  const cudaError_t error = cudaStreamSynchronize(stream);
  cudaGraphExecDestroy(replay);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
  if (error == cudaSuccess) return {};
  return Status::error(ErrorCode::Unsupported, "CUDA: %s", cudaGetErrorString(error));
}

/// Output and log-sum-exps on the device.
struct DeviceOutput {
  ElementType type;
  Bytes out;
  Bytes lse;
  MutableTensorView view;

  DeviceOutput(ElementType type_, std::int64_t rows, int heads, int dim)
      : type(type_),
        out(static_cast<std::size_t>(rows * heads * dim) * element_bytes(type)),
        lse(static_cast<std::size_t>(rows * heads) * 4),
        view(out.as<float>(), rows, heads, dim) {
    view.type = type;
  }
  [[nodiscard]] DeviceAttendResult read(bool generic) const {
    DeviceAttendResult result;
    result.generic = generic;
    result.lse = lse.read<float>();
    if (type == ElementType::F32) {
      result.out = out.read<float>();
    } else {
      for (const std::uint16_t bits : out.read<std::uint16_t>())
        result.out.push_back(type == ElementType::F16 ? to_float(F16{bits}) : to_float(BF16{bits}));
    }
    return result;
  }
};

}  // namespace

Status device_attention_status(const LayerShape& shape, const std::vector<Recipe>& recipes,
                               int page_tokens) {
  return cuda::Attention::create(shape, recipes, page_tokens).take_status();
}

Result<DeviceAttendResult> device_attend(const DeviceAttendCall& call) {
  const int page_tokens = call.layer.page_tokens;
  Result<cuda::Attention> attention =
      call.shape.values_in_keys
          ? cuda::Attention::create<cuda::LatentKernels<>>(call.shape, call.recipes, page_tokens)
          : cuda::Attention::create(call.shape, call.recipes, page_tokens);
  if (!attention) return std::move(attention).take_status();
  const int count = static_cast<int>(call.slots.size());
  const Bytes slots(call.slots);
  const DeviceRows queries(call.queries, call.type, call.rows, call.query_heads,
                           call.shape.key_dim);
  const DeviceOutput output(call.type, call.rows, call.query_heads, call.shape.value_dim);
  const Bytes workspace(attention->workspace_bytes());
  KVTILT_RETURN_IF_ERROR(attention->prepare(workspace.span(), nullptr));
  const Bytes sinks(call.sink_logits);
  const Bytes trees(call.tree_mask);
  cuda::DeviceAttendOptions options;
  options.soft_cap = call.soft_cap;
  if (!call.sink_logits.empty()) options.sink_logits = sinks.as<float>();
  if (!call.tree_mask.empty()) options.tree_mask = trees.as<std::uint64_t>();
  KVTILT_RETURN_IF_ERROR(replay(call.launches, [&](cudaStream_t stream) {
    return attention->attend(call.layer, {slots.as<std::int32_t>(), count}, nullptr, queries.view(),
                             output.view, output.lse.as<float>(), options, workspace.span(),
                             stream);
  }));
  return output.read(attention->is_generic());
}

Result<DeviceAttendResult> device_prefill(const DevicePrefillCall& call) {
  Result<cuda::PrefillAttention> attention =
      cuda::PrefillAttention::create(call.shape, call.recipes, call.layer.page_tokens);
  if (!attention) return std::move(attention).take_status();
  const int count = static_cast<int>(call.slots.size());
  const std::int64_t rows = call.indptr.back();
  const Bytes slots(call.slots);
  const Bytes indptr(call.indptr);
  const auto on_device = [&](const HostRows& host, int heads, int dim) {
    return DeviceRows(*host.data, host.type, rows, heads, dim);
  };
  const DeviceRows queries = on_device(call.queries, call.query_heads, call.shape.key_dim);
  const DeviceRows keys = on_device(call.keys, call.shape.kv_heads, call.shape.key_dim);
  const DeviceRows values = on_device(call.values, call.shape.kv_heads, call.shape.value_dim);
  const DeviceOutput output(ElementType::F32, rows, call.query_heads, call.shape.value_dim);
  const Bytes workspace(attention->workspace_bytes());
  KVTILT_RETURN_IF_ERROR(attention->prepare(workspace.span(), nullptr));
  KVTILT_RETURN_IF_ERROR(replay(call.launches, [&](cudaStream_t stream) {
    return attention->attend_prefill(call.layer, {slots.as<std::int32_t>(), count},
                                     indptr.as<std::int32_t>(), queries.view(), keys.view(),
                                     values.view(), output.view, output.lse.as<float>(), {},
                                     workspace.span(), stream);
  }));
  return output.read(attention->is_generic());
}

}  // namespace kvtilt::test
