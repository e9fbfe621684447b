// SPDX-License-Identifier: MIT
/// What the GPU benches and probes share: error checks, the report, device arrays, timing.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <exception>
#include <stdexcept>
#include <string>
#include <vector>

namespace kvtilt::bench {

/// Throws if a CUDA call failed; Report::row catches it.
inline void check_cuda(cudaError_t status, const char* call, int line) {
  if (status == cudaSuccess) return;
  throw std::runtime_error("line " + std::to_string(line) + ": " + call + ": " +
                           cudaGetErrorString(status));
}

#define KVTILT_CHECK(call) ::kvtilt::bench::check_cuda((call), #call, __LINE__)

/// Thrown by a row that does not fit this device, which is not a failure.
struct LeftOut : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// An attribute of the current device.
inline int attribute(cudaDeviceAttr which) {
  int value = 0;
  KVTILT_CHECK(cudaDeviceGetAttribute(&value, which, 0));
  return value;
}

/// Bytes to read between two uses of the same buffer so that the second finds nothing in the L2.
inline std::size_t rotated_bytes() {
  return 4 * static_cast<std::size_t>(attribute(cudaDevAttrL2CacheSize));
}

/// Collects a bench's figures. Prints each one as it is measured and rewrites the JSON file of
/// argument 1, if given, with all so far, so that a bench that is killed or crashes leaves them.
/// One entry a line, with the day, the device and the command that reproduces it.
class Report {
 public:
  Report(int argc, char** argv) {
    char day[16] = "";
    const std::time_t now = std::time(nullptr);
    std::strftime(day, sizeof day, "%Y-%m-%d", std::gmtime(&now));
    std::string command;
    for (int i = 0; i < argc; ++i) {
      if (i > 0) command += ' ';
      command += argv[i];
    }
    append("date", quoted(day), "text");
    append("command", quoted(command), "text");
    const char* commit = std::getenv("KVTILT_COMMIT");  // of run_device.sh
    append("commit", quoted(commit != nullptr ? commit : "unknown"), "text");
    cudaDeviceProp properties;
    KVTILT_CHECK(cudaGetDeviceProperties(&properties, 0));
    append("device", quoted(properties.name), "text");
    if (argc > 1) path_ = argv[1];
  }

  void add(const std::string& name, double value, const char* unit) {
    std::printf("%s %.7g %s\n", name.c_str(), value, unit);
    char number[40];
    // %g may print inf or nan, which JSON lacks.
    std::snprintf(number, sizeof number, value - value == 0 ? "%.9g" : "null", value);
    append(name, number, unit);
    write();
  }

  void add_text(const std::string& name, const std::string& text) {
    std::printf("%s %s text\n", name.c_str(), text.c_str());
    append(name, quoted(text), "text");
    write();
  }

  /// Reports an error or a failed measurement: the bench continues, and fails at the end.
  void fail(const std::string& name, const std::string& why) {
    failed_ = true;
    add_text(name, "FAILED: " + why);
  }

  /// Runs measure() and reports its failure; the next row continues, unless the device is lost.
  template <class Measure>
  void row(const std::string& name, Measure measure) {
    try {
      measure();
      return;
    } catch (const LeftOut& reason) {
      add_text(name, std::string("left out: ") + reason.what());
      return;
    } catch (const std::exception& error) {
      fail(name, error.what());
    }
    (void)cudaGetLastError();
    if (const cudaError_t lost = cudaDeviceSynchronize(); lost != cudaSuccess) {
      fail("device", cudaGetErrorString(lost));
      std::exit(1);
    }
  }

  [[nodiscard]] int exit_code() const { return failed_ ? 1 : 0; }

 private:
  static std::string quoted(std::string text) {
    for (char& c : text)
      if (c == '"' || c == '\\' || static_cast<unsigned char>(c) < ' ') c = '\'';
    return '"' + text + '"';
  }

  void append(const std::string& name, const std::string& value, const char* unit) {
    if (!json_.empty()) json_ += ",\n";
    json_ += "  \"" + name + "\": {\"value\": " + value + ", \"unit\": \"" + unit + "\"}";
  }

  /// Writes to another name and renames, so that no reader sees half a file.
  void write() {
    std::fflush(stdout);
    if (path_.empty()) return;
    const std::string begun = path_ + ".begun";
    std::FILE* file = std::fopen(begun.c_str(), "w");
    const bool is_written = file && std::fprintf(file, "{\n%s\n}\n", json_.c_str()) > 0;
    if ((file && std::fclose(file) != 0) || !is_written ||
        std::rename(begun.c_str(), path_.c_str()) != 0) {
      std::fprintf(stderr, "cannot write %s\n", path_.c_str());
      failed_ = true;
    }
  }

  std::string path_;
  std::string json_;
  bool failed_ = false;
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

/// Waits for the device; throws if a launch was refused or faulted.
inline void finish() {
  KVTILT_CHECK(cudaGetLastError());
  KVTILT_CHECK(cudaDeviceSynchronize());
}

static __global__ void pass_time(std::uint64_t nanoseconds) {
  const auto now = [] {
    std::uint64_t time;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(time));
    return time;
  };
  for (const std::uint64_t start = now(); now() - start < nanoseconds;) {
  }
}

/// Keeps a stream busy for 300 us, so that the host can queue what is measured behind it: otherwise
/// the host's launch time would count.
inline void keep_busy(cudaStream_t stream) {
  pass_time<<<1, 1, 0, stream>>>(300'000);
  KVTILT_CHECK(cudaGetLastError());
}

/// Device time of what launch() queues, between two events.
template <class Launch>
double seconds_of(Launch launch) {
  cudaEvent_t start, stop;
  KVTILT_CHECK(cudaEventCreate(&start));
  KVTILT_CHECK(cudaEventCreate(&stop));
  keep_busy(nullptr);
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

/// Median device time. Two more launches warm up; prepare() runs before each launch, untimed.
template <class Launch, class Prepare>
double median_seconds(int launches, Launch launch, Prepare prepare) {
  std::vector<double> seconds;
  for (int i = -2; i < launches; ++i) {
    prepare();
    finish();
    const double taken = seconds_of(launch);
    if (i >= 0) seconds.push_back(taken);
  }
  std::sort(seconds.begin(), seconds.end());
  return seconds[seconds.size() / 2];
}

template <class Launch>
double median_seconds(int launches, Launch launch) {
  return median_seconds(launches, launch, [] {});
}

}  // namespace kvtilt::bench
