// SPDX-License-Identifier: MIT
// Runs the planner: from the options of `plan` to one plan per budget.
#pragma once

#include "model.hpp"
#include "planning.hpp"
#include "transforms.hpp"

#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace llama {

/// What a plan is made from. At least one of model, norms and capture must be given.
struct PlanRequest {
  std::filesystem::path model;    // a folder or a GGUF file; run only if there is a text
  std::filesystem::path norms;    // a published norm file
  std::filesystem::path capture;  // written by evaluate --capture
  std::filesystem::path text;
  std::optional<LossSource> source;  // absent: the best for what is given
  std::vector<double> budgets;       // page bits; measured once for all of them
  std::optional<int> key_floor;      // absent: 3 for norms, none for anything measured
  std::optional<int> value_floor;    // absent: 2 for norms, none for anything measured
  std::vector<std::string> formats;  // as parse_formats takes them; empty: all that fit the source
  kvtilt::RecipePer per = kvtilt::RecipePer::Layer;
  int page_tokens = 64;

  // If there is a text:
  double share = 0.25;  // read from its beginning
  long tokens = 8192;   // predictions, in pieces spread evenly over that share
  int context = 0;      // tokens per piece; 0: the model's
  int probes = 0;       // widths measured per tensor, the others scaled; 0: all, nothing is scaled
  int tail = 0;   // newest tokens in 16 bits while measuring; 0: all that fill a page are codes
  int sinks = 0;  // first tokens in 16 bits while measuring
  Transforms transforms;

  // If there is a norm file:
  int kv_heads = 8;
  int head_dim = 128;

  int threads = 1;
  std::function<void(const char* what, double share)> progress;
};

/// Reads and measures what the request needs, and plans once per budget. Throws a sentence
/// for anything that is missing, contradictory or out of reach.
std::vector<Planning> run_planner(const PlanRequest& request);

}  // namespace llama
