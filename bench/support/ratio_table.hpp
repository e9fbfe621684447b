// SPDX-License-Identifier: MIT
/// Prints the figures of a run side by side: only ratios inside one run are meaningful.
#pragma once

#include <benchmark/benchmark.h>

#include <map>
#include <string>
#include <vector>

namespace kvtilt::bench {

/// Prints one table at the end of the run, sorted by name.
class RatioTable : public benchmark::ConsoleReporter {
 public:
  RatioTable() : ConsoleReporter(OO_None) {}
  void ReportRuns(const std::vector<Run>& runs) override;
  void Finalize() override;

 private:
  struct Row {
    double seconds = 0;  ///< the median, or the only measurement
    std::map<std::string, double> counters;
  };
  [[nodiscard]] double seconds(const std::string& name) const;

  std::map<std::string, Row> rows_;
};

}  // namespace kvtilt::bench
