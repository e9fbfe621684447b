// SPDX-License-Identifier: MIT
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <string>
#include <vector>

namespace kvtilt::bench {

inline void check_cuda(cudaError_t status, const char* call, int line) {
  if (status == cudaSuccess) return;
  std::fprintf(stderr, "line %d: %s: %s\n", line, call, cudaGetErrorString(status));
  std::exit(1);
}

#define KVTILT_CHECK(call) ::kvtilt::bench::check_cuda((call), #call, __LINE__)

/// Prints each figure as it is found, and keeps all of them for the JSON file.
class Report {
 public:
  void add(const std::string& name, double value, const char* unit) {
    std::printf("%s %.7g %s\n", name.c_str(), value, unit);
    std::fflush(stdout);
    char number[40];
    // %g may print inf or nan, which JSON lacks.
    std::snprintf(number, sizeof number, value - value == 0 ? "%.9g" : "null", value);
    append(name, number, unit);
  }

  void add_text(const std::string& name, const std::string& text) {
    std::printf("%s %s text\n", name.c_str(), text.c_str());
    std::fflush(stdout);
    append(name, '"' + text + '"', "text");
  }

  /// With the day, the device and the command that reproduces it.
  bool write(const char* path, int argc, char** argv) {
    char day[16] = "";
    const std::time_t now = std::time(nullptr);
    std::strftime(day, sizeof day, "%Y-%m-%d", std::gmtime(&now));
    std::string command;
    for (int i = 0; i < argc; ++i) {
      if (i > 0) command += ' ';
      command += argv[i];
    }
    cudaDeviceProp properties;
    KVTILT_CHECK(cudaGetDeviceProperties(&properties, 0));
    append("date", '"' + std::string(day) + '"', "text");
    append("device", '"' + std::string(properties.name) + '"', "text");
    append("command", '"' + command + '"', "text");
    std::FILE* file = std::fopen(path, "w");
    if (!file) return false;
    const bool is_written = std::fprintf(file, "{\n%s\n}\n", json_.c_str()) > 0;
    return std::fclose(file) == 0 && is_written;
  }

 private:
  void append(const std::string& name, const std::string& value, const char* unit) {
    if (!json_.empty()) json_ += ",\n";
    json_ += "  \"" + name + "\": {\"value\": " + value + ", \"unit\": \"" + unit + "\"}";
  }

  std::string json_;
};

template <class Item>
class DeviceArray {
 public:
  explicit DeviceArray(std::size_t count) : count_(count) {
    KVTILT_CHECK(cudaMalloc(&items_, count * sizeof(Item)));
  }
  explicit DeviceArray(const std::vector<Item>& items) : DeviceArray(items.size()) {
    KVTILT_CHECK(cudaMemcpy(items_, items.data(), count_ * sizeof(Item), cudaMemcpyHostToDevice));
  }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;
  ~DeviceArray() { cudaFree(items_); }

  Item* data() const { return items_; }

  std::vector<Item> read() const {
    std::vector<Item> items(count_);
    KVTILT_CHECK(cudaMemcpy(items.data(), items_, count_ * sizeof(Item), cudaMemcpyDeviceToHost));
    return items;
  }

 private:
  Item* items_ = nullptr;
  std::size_t count_;
};

/// Fails on a launch that was refused and on one that faulted.
inline void finish() {
  KVTILT_CHECK(cudaGetLastError());
  KVTILT_CHECK(cudaDeviceSynchronize());
}

/// Seconds on the device between events around launch().
template <class Launch>
double seconds_of(Launch launch) {
  cudaEvent_t start, stop;
  KVTILT_CHECK(cudaEventCreate(&start));
  KVTILT_CHECK(cudaEventCreate(&stop));
  KVTILT_CHECK(cudaEventRecord(start));
  launch();
  KVTILT_CHECK(cudaEventRecord(stop));
  finish();
  float milliseconds = 0;
  KVTILT_CHECK(cudaEventElapsedTime(&milliseconds, start, stop));
  KVTILT_CHECK(cudaEventDestroy(start));
  KVTILT_CHECK(cudaEventDestroy(stop));
  return milliseconds * 1e-3;
}

/// The first two launches only warm up.
template <class Launch>
double median_seconds(int launches, Launch launch) {
  std::vector<double> seconds;
  for (int i = -2; i < launches; ++i) {
    const double taken = seconds_of(launch);
    if (i >= 0) seconds.push_back(taken);
  }
  std::sort(seconds.begin(), seconds.end());
  return seconds[seconds.size() / 2];
}

}  // namespace kvtilt::bench
