// SPDX-License-Identifier: MIT
/// Lists the instructions of every kernel in some cubins and fails if one exceeds its budget:
/// check_cubin <file.budget> <cubin>...
#include "support/cubin.hpp"
#include "support/cubin_budget.hpp"

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

namespace {

std::string read_file(const char* path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

}  // namespace

int main(int argc, char** argv) {
  using namespace kvtilt::test;
  if (argc < 3) {
    std::puts("usage: check_cubin <file.budget> <cubin>...");
    return 2;
  }
  std::vector<CubinRule> rules = parse_budget(read_file(argv[1]));
  bool failed = rules.empty();
  if (failed) std::printf("%s holds no rules\n", argv[1]);
  std::string machines;
  for (int i = 2; i < argc; ++i) {
    const std::string name = std::filesystem::path(argv[i]).filename().string();
    machines += name + " ";
    const std::string bytes = read_file(argv[i]);
    const std::vector<CubinKernel> kernels = read_cubin(bytes);
    if (kernels.empty()) {
      std::printf("%s holds no kernel that can be read\n", argv[i]);
      failed = true;
    }
    for (const CubinKernel& kernel : kernels) {
      std::printf("%s %s\n   ", name.c_str(), kernel.name.c_str());
      for (const auto& [what, count] : kernel.counts) std::printf(" %s=%d", what.c_str(), count);
      std::puts("");
    }
    for (const std::string& what : check_budget(rules, name, kernels)) {
      std::printf("%s: %s\n", argv[1], what.c_str());
      failed = true;
    }
  }
  // A rule that matches no kernel checks nothing, so it is an error, unless no cubin given is of
  // the rule's machine.
  for (const CubinRule& rule : rules)
    if (rule.matches == 0 &&
        (rule.machine == "*" || machines.find(rule.machine) != std::string::npos)) {
      std::printf("%s: line %d matches no kernel\n", argv[1], rule.line);
      failed = true;
    }
  return failed ? 1 : 0;
}
