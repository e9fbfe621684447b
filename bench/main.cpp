// SPDX-License-Identifier: MIT
#include "support/ratio_table.hpp"
#include "support/vnni_rate.hpp"

#include <benchmark/benchmark.h>

#include <cstdio>

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  if (const double rate = kvtilt::bench::vnni_rate(); rate > 0)
    std::printf("vpdpbusd, 512 bits, one core: %.2f G/s\n", rate * 1e-9);
  kvtilt::bench::RatioTable table;
  benchmark::RunSpecifiedBenchmarks(&table);
  benchmark::Shutdown();
}
