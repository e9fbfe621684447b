// SPDX-License-Identifier: MIT
/// The figures of a run side by side: only ratios inside one run mean anything.
#pragma once

#include <benchmark/benchmark.h>

#include <map>
#include <string>
#include <vector>

namespace kvtilt::bench {

/// Prints one table when all is measured, in order of names.
class RatioTable : public benchmark::ConsoleReporter {
 public:
  RatioTable() : ConsoleReporter(OO_None) {}
  void ReportRuns(const std::vector<Run>& runs) override;
  void Finalize() override;

 private:
  struct Row {
    double seconds = 0;  ///< median, or the only one
    std::map<std::string, double> counters;
  };
  [[nodiscard]] double seconds(const std::string& name) const;

  std::map<std::string, Row> rows_;
};

}  // namespace kvtilt::bench
