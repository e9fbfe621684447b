// SPDX-License-Identifier: MIT
//
// Probes this GPU: bandwidth, launch costs, the tensor cores' treatment of subnormal operands
// and issue rates. Each figure is one line "name value unit", and an entry of the JSON file named
// by the first argument.
//
//   nvcc -O3 -std=c++20 -arch=sm_90 -o probes bench/cuda/probes.cu && ./probes probes.json

#include "bandwidth.cuh"
#include "mma_numerics.cuh"
#include "probe_support.cuh"
#include "rates.cuh"
#include "replay.cuh"

#include <algorithm>
#include <vector>

namespace kvtilt::bench {
namespace {

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

/// Seconds of one replay of a graph of empty kernels, one after the other.
double graph_seconds(int nodes, int replays) {
  Graph graph([&](cudaStream_t stream) {
    for (int node = 0; node < nodes; ++node) do_nothing<<<1, 32, 0, stream>>>();
  });
  std::vector<double> seconds;
  graph.seconds(replays);
  for (int i = 0; i < 21; ++i) seconds.push_back(graph.seconds(replays));
  std::sort(seconds.begin(), seconds.end());
  return seconds[seconds.size() / 2] / replays;
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
  Report report(argc, argv);
  const int sms = attribute(cudaDevAttrMultiProcessorCount);
  // First the figures that the benches are compared with.
  report.row("device", [&] { describe_device(report); });
  report.row("launch", [&] { time_launches(report); });
  report.row("bandwidth", [&] { Bandwidth(report, sms).run(); });
  report.row("numerics", [&] { MmaNumerics(report).run(); });
  report.row("rates", [&] { Rates(report, sms).run(); });
  return report.exit_code();
}
