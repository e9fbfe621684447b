// SPDX-License-Identifier: MIT
/// Checks kernels against budgets of instructions: a text file with one rule per line.
///
///     # machine  kernel           demands
///     *          *                LDL=0 STL=0
///     sm_90      attend<4,2>      instructions<=900 HMMA>=16 LDG=LDG.16
///     sm_90      two<4> - one<4>  instructions<=300
///
/// A machine is a part of the cubin's file name, a kernel a part of its demangled name without
/// spaces; * is any. For two kernels, the rule applies to the differences of their counters.
/// Counters are those of CubinKernel; the right side is a number or a counter.
#pragma once

#include "cubin.hpp"

#include <cctype>
#include <cstddef>
#include <cstdlib>
#include <sstream>
#include <string>
#include <vector>

namespace kvtilt::test {

struct CubinRule {
  int line = 0;
  std::string machine;
  std::string kernel;
  std::string without;  ///< kernel whose counters are subtracted; empty: none
  std::vector<std::string> demands;
  int matches = 0;
};

inline std::vector<CubinRule> parse_budget(const std::string& text) {
  std::vector<CubinRule> rules;
  std::istringstream lines(text);
  std::string line;
  for (int number = 1; std::getline(lines, line); ++number) {
    std::istringstream words(line.substr(0, line.find('#')));
    CubinRule rule;
    rule.line = number;
    std::string demand;
    if (!(words >> rule.machine >> rule.kernel)) continue;
    while (words >> demand)
      if (demand != "-" || !(words >> rule.without)) rule.demands.push_back(demand);
    rules.push_back(std::move(rule));
  }
  return rules;
}

/// The counters of `kernel` minus those of `other`.
inline CubinKernel difference(CubinKernel kernel, const CubinKernel& other) {
  kernel.name += " - " + other.name;
  for (const auto& [what, count] : other.counts) kernel.counts[what] -= count;
  return kernel;
}

/// Empty if the kernel meets the demand, else what is wrong.
inline std::string broken_demand(const CubinKernel& kernel, const std::string& demand) {
  const std::size_t at = demand.find_first_of("<>=");
  const std::size_t end = demand.find_first_not_of("<>=", at);
  if (at == std::string::npos || at == 0 || end == std::string::npos)
    return "'" + demand + "' is not <counter><=, = or >=><number or counter>";
  const std::string left = demand.substr(0, at);
  const std::string relation = demand.substr(at, end - at);
  const std::string right = demand.substr(end);
  const int found = kernel.count(left);
  const int limit = std::isdigit(static_cast<unsigned char>(right[0])) != 0
                        ? std::atoi(right.c_str())
                        : kernel.count(right);
  bool kept = false;
  if (relation == "=")
    kept = found == limit;
  else if (relation == "<=")
    kept = found <= limit;
  else if (relation == ">=")
    kept = found >= limit;
  else
    return "'" + relation + "' is none of <=, = and >=";
  if (kept) return "";
  return kernel.name + ": " + demand + ", but " + left + " is " + std::to_string(found) +
         (std::isdigit(static_cast<unsigned char>(right[0])) != 0
              ? ""
              : " and " + right + " is " + std::to_string(limit));
}

/// Every broken demand of one cubin's kernels; counts what each rule matched.
inline std::vector<std::string> check_budget(std::vector<CubinRule>& rules,
                                             const std::string& file_name,
                                             const std::vector<CubinKernel>& kernels) {
  std::vector<std::string> broken;
  const auto part_of = [](const std::string& pattern, const std::string& name) {
    return pattern == "*" || name.find(pattern) != std::string::npos;
  };
  const auto check = [&](CubinRule& rule, const CubinKernel& kernel) {
    ++rule.matches;
    for (const std::string& demand : rule.demands)
      if (std::string what = broken_demand(kernel, demand); !what.empty())
        broken.push_back("line " + std::to_string(rule.line) + ": " + what);
  };
  for (CubinRule& rule : rules) {
    if (!part_of(rule.machine, file_name)) continue;
    for (const CubinKernel& kernel : kernels) {
      if (!part_of(rule.kernel, kernel.name)) continue;
      if (rule.without.empty()) {
        check(rule, kernel);
        continue;
      }
      for (const CubinKernel& other : kernels)
        if (part_of(rule.without, other.name)) check(rule, difference(kernel, other));
    }
  }
  return broken;
}

}  // namespace kvtilt::test
