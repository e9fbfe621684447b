// SPDX-License-Identifier: MIT
// Runs the programs from their command line.
#pragma once

#include "support.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <array>
#include <cstdio>
#include <string>

namespace llama {

/// Arguments that choose the small model and its text.
inline const std::string stories_model =
    "--model " + data_folder("models/stories260K").string() + " ";
inline const std::string stories_text =
    "--text " + data_folder("text/tinystories_317.txt").string() + " ";

struct Outcome {
  int status = -1;
  std::string output;  // stdout and stderr
};

inline Outcome run(const std::string& program, const std::string& arguments) {
  Outcome outcome;
  const std::string command = program + " " + arguments + " 2>&1";
  FILE* pipe = ::popen(command.c_str(), "r");
  if (pipe == nullptr) return outcome;
  std::array<char, 4096> buffer{};
  for (std::size_t size = 0; (size = std::fread(buffer.data(), 1, buffer.size(), pipe)) > 0;) {
    outcome.output.append(buffer.data(), size);
  }
  outcome.status = WEXITSTATUS(::pclose(pipe));
  return outcome;
}

inline Outcome generate(const std::string& arguments) {
  return run(KVTILT_TEST_GENERATE, arguments);
}
inline Outcome evaluate(const std::string& arguments) {
  return run(KVTILT_TEST_EVALUATE, arguments);
}
inline Outcome plan(const std::string& arguments) { return run(KVTILT_TEST_PLAN, arguments); }

/// The program must end with status 1 and one line that starts with "error: " and holds `sentence`.
inline void expect_error(const Outcome& outcome, const std::string& sentence) {
  EXPECT_EQ(outcome.status, 1);
  EXPECT_THAT(outcome.output,
              testing::AllOf(testing::StartsWith("error: "), testing::HasSubstr(sentence)));
  EXPECT_EQ(outcome.output.find('\n'), outcome.output.size() - 1) << outcome.output;
}

}  // namespace llama
