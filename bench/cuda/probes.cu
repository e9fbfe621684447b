// SPDX-License-Identifier: MIT
//
// What this GPU gives: bandwidth, launch costs, the tensor cores' treatment of subnormal operands
// and issue rates. Each figure is one line "name value unit", and an entry of the JSON file named
// by the first argument.
//
//   nvcc -O3 -std=c++20 -arch=sm_90 -o probes bench/cuda/probes.cu && ./probes probes.json

#include "bandwidth.cuh"
#include "mma_numerics.cuh"
#include "probe_support.cuh"
#include "rates.cuh"

namespace kvtilt::bench {
namespace {

int attribute(cudaDeviceAttr which) {
  int value = 0;
  KVTILT_CHECK(cudaDeviceGetAttribute(&value, which, 0));
  return value;
}

void describe_device(Report& report) {
  cudaDeviceProp properties;
  KVTILT_CHECK(cudaGetDeviceProperties(&properties, 0));
  report.add_text("device.name", properties.name);
  report.add("device.sms", attribute(cudaDevAttrMultiProcessorCount), "SMs");
  report.add("device.l2", attribute(cudaDevAttrL2CacheSize), "bytes");
  report.add("device.sm_clock_max", attribute(cudaDevAttrClockRate) * 1e-3, "MHz");
  report.add("device.memory_clock_max", attribute(cudaDevAttrMemoryClockRate) * 1e-3, "MHz");
  report.add("device.memory_bus", attribute(cudaDevAttrGlobalMemoryBusWidth), "bits");
  report.add("device.shared_per_sm", attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor),
             "bytes");
  int driver = 0, runtime = 0;
  KVTILT_CHECK(cudaDriverGetVersion(&driver));
  KVTILT_CHECK(cudaRuntimeGetVersion(&runtime));
  report.add("device.driver", driver, "version");
  report.add("device.runtime", runtime, "version");
}

__global__ void do_nothing() {}

double graph_seconds(int nodes, int replays) {
  cudaStream_t stream;
  KVTILT_CHECK(cudaStreamCreate(&stream));
  cudaGraph_t graph;
  KVTILT_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  for (int node = 0; node < nodes; ++node) do_nothing<<<1, 32, 0, stream>>>();
  KVTILT_CHECK(cudaStreamEndCapture(stream, &graph));
  cudaGraphExec_t replay;
  KVTILT_CHECK(cudaGraphInstantiate(&replay, graph, 0));
  // Replays go to the default stream, where the events are.
  const double seconds = median_seconds(21, [&] {
    for (int i = 0; i < replays; ++i) KVTILT_CHECK(cudaGraphLaunch(replay, nullptr));
  });
  KVTILT_CHECK(cudaGraphExecDestroy(replay));
  KVTILT_CHECK(cudaGraphDestroy(graph));
  KVTILT_CHECK(cudaStreamDestroy(stream));
  return seconds / replays;
}

void time_launches(Report& report) {
  constexpr int launches = 1000;
  const double stream = median_seconds(21, [] {
    for (int i = 0; i < launches; ++i) do_nothing<<<1, 32>>>();
  });
  report.add("launch.stream", stream / launches * 1e6, "us");
  report.add("launch.graph64_per_node", graph_seconds(64, 20) / 64 * 1e6, "us");
  report.add("launch.graph2_per_replay", graph_seconds(2, 100) * 1e6, "us");
  report.add("launch.graph1_per_replay", graph_seconds(1, 100) * 1e6, "us");
}

}  // namespace
}  // namespace kvtilt::bench

int main(int argc, char** argv) {
  using namespace kvtilt::bench;
  Report report;
  const int sms = attribute(cudaDevAttrMultiProcessorCount);
  describe_device(report);
  MmaNumerics(report).run();
  Rates(report, sms).run();
  time_launches(report);
  Bandwidth(report, sms).run();
  if (argc > 1 && !report.write(argv[1], argc, argv)) {
    std::fprintf(stderr, "cannot write %s\n", argv[1]);
    return 1;
  }
}
