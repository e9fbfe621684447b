// SPDX-License-Identifier: MIT
#include "support/ratio_table.hpp"

#include <cmath>
#include <cstdio>
#include <limits>

namespace kvtilt::bench {

namespace {

/// The parts of a benchmark's name, <verb>/<recipe>/<rest>.
struct Name {
  explicit Name(const std::string& whole) {
    const std::size_t first = whole.find('/');
    const std::size_t second = whole.find('/', first + 1);
    verb = whole.substr(0, first);
    if (first != std::string::npos) recipe = whole.substr(first + 1, second - first - 1);
    if (second != std::string::npos) rest = whole.substr(second);
  }
  std::string verb;
  std::string recipe;
  std::string rest;
};

void print_ratio(double numerator, double denominator, int width) {
  if (std::isfinite(numerator / denominator))
    std::printf(" %*.2f", width, numerator / denominator);
  else
    std::printf(" %*s", width, "-");
}

}  // namespace

void RatioTable::ReportRuns(const std::vector<Run>& runs) {
  for (const Run& run : runs) {
    if (run.error_occurred) continue;
    if (run.run_type == Run::RT_Aggregate && run.aggregate_name != "median") continue;
    if (run.run_type != Run::RT_Aggregate && run.repetitions > 1) continue;
    std::string name = run.run_name.function_name;
    Row& row = rows_[name];
    row.seconds = run.real_accumulated_time / static_cast<double>(run.iterations);
    for (const auto& [key, counter] : run.counters) row.counters[key] = counter.value;
  }
}

double RatioTable::seconds(const std::string& name) const {
  const auto row = rows_.find(name);
  return row == rows_.end() ? std::numeric_limits<double>::quiet_NaN() : row->second.seconds;
}

void RatioTable::Finalize() {
  std::printf(
      "R: read/k16v16, an ideal memory-bound 16-bit kernel; roof: the read/ row of the same "
      "bytes,\n"
      "of unpack: write/rows, of save and load: copy/, of hadamard: scale/; x16: the same verb at\n"
      "k16v16 (latent: k16), of ggml: attend, prefill or latent.\n"
      "ns: per token and kv head, or per element (append, unpack, save, load, hadamard).\n\n");
  std::printf("%-50s %12s %8s %6s %6s %6s %6s %9s %9s\n", "benchmark", "us", "ns", "/ R", "roof %",
              "x16", "bits", "error", "fast err");
  for (const auto& [whole, row] : rows_) {
    const Name name(whole);
    const auto counter = [&](const char* key) {
      const auto found = row.counters.find(key);
      return found == row.counters.end() ? std::numeric_limits<double>::quiet_NaN() : found->second;
    };
    const double ns = row.counters.count("ns_per_element") != 0 ? counter("ns_per_element")
                                                                : counter("ns_per_token_head");
    std::printf("%-50s %12.1f", whole.c_str(), row.seconds * 1e6);
    print_ratio(ns, 1.0, 8);
    print_ratio(row.seconds, seconds("read/k16v16" + name.rest), 6);
    const bool bytes = name.verb == "save" || name.verb == "load";
    print_ratio(name.verb == "attend"     ? 100 * seconds("read/" + name.recipe + name.rest)
                : name.verb == "unpack"   ? 100 * seconds("write/rows" + name.rest)
                : bytes                   ? 100 * seconds("copy/" + name.recipe + name.rest)
                : name.verb == "hadamard" ? 100 * seconds("scale/" + name.recipe + name.rest)
                                          : std::numeric_limits<double>::quiet_NaN(),
                row.seconds, 6);
    const std::string ours = name.verb.starts_with("ggml_prefill")           ? "prefill"
                             : name.verb.find("latent") != std::string::npos ? "latent"
                             : name.verb.starts_with("ggml")                 ? "attend"
                                                                             : name.verb;
    print_ratio(row.seconds, seconds(ours + (ours == "latent" ? "/k16" : "/k16v16") + name.rest),
                6);
    print_ratio(counter("bits"), 1.0, 6);
    for (const char* key : {"error", "arithmetic_error"})
      std::isfinite(counter(key)) ? std::printf(" %9.2e", counter(key)) : std::printf(" %9s", "-");
    std::printf("\n");
  }
}

}  // namespace kvtilt::bench
