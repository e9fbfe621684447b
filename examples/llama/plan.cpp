// SPDX-License-Identifier: MIT
// The program `plan`: decides how many bits each layer's keys and values get.
#include <kvtilt/io/recipe_file.hpp>

#include "fail.hpp"
#include "finite.hpp"
#include "output_files.hpp"
#include "planner.hpp"
#include "planning_report.hpp"
#include "progress.hpp"

#include <CLI/CLI.hpp>

#include <algorithm>
#include <cstdio>
#include <initializer_list>
#include <iostream>
#include <string>
#include <thread>

namespace {

constexpr const char* description =
    R"(Chooses a format for the keys and the values of every layer (and kv head) within a budget of
page bits: 8 x bytes of a full page of all layers / its numbers, scales and minima included. What the
choices cost is taken from one of four sources:

  frobenius, spectral  norms of W_K and W_V (the default without a text: spectral)
  statistics           errors on captured keys and values, weighed by the queries and the attention
                       that meet them
  measured             KL divergence when one tensor at a time is lowered (the default with a text)

`evaluate --plan` shows what the plan is worth.)";

struct Arguments {
  llama::PlanRequest request;
  std::string model;
  std::string norms;
  std::string capture;
  std::string text;
  std::string from;
  int key_floor = 0;
  int value_floor = 0;
  bool per_head = false;
  std::string out;
  std::string json;
};

llama::LossSource source_of(const std::string& name) {
  using llama::LossSource;
  for (const LossSource source :
       {LossSource::Frobenius, LossSource::Spectral, LossSource::Statistics}) {
    if (name == llama::to_string(source)) return source;
  }
  return LossSource::Measured;
}

std::string number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%g", value);
  return text;
}

/// The recipe files to write, one per budget, or none; {} in `out` stands for the budget.
std::vector<std::string> recipe_files(const std::string& out, const std::vector<double>& budgets) {
  std::vector<std::string> names;
  if (out.empty()) return names;
  const std::size_t place = out.find("{}");
  if (budgets.size() > 1 && place == std::string::npos) {
    llama::fail("--out ", out, " is one file for ", budgets.size(),
                " budgets: write {} where the budget goes, as in plan_{}.json");
  }
  for (const double budget : budgets) {
    std::string name = out;
    if (place != std::string::npos) name.replace(place, 2, number(budget));
    if (std::find(names.begin(), names.end(), name) != names.end()) {
      llama::fail("--out ", out, ": ", name, " would be written for several of the budgets");
    }
    names.push_back(name);
  }
  return names;
}

/// Throws for options that would have no effect.
void check_used(const CLI::App& app, const Arguments& arguments) {
  const auto refuse = [&](std::initializer_list<const char*> options, const char* use) {
    for (const char* option : options) {
      if (app.count(option) > 0) llama::fail(option, " is only for ", use);
    }
  };
  if (arguments.norms.empty()) refuse({"--kv-heads", "--head-dim"}, "a norm file (--norms)");
  if (arguments.text.empty()) {
    refuse({"--share", "--tokens", "--context", "--hadamard-keys", "--hadamard-values"},
           "a text (--text)");
  }
  if (arguments.text.empty() || (!arguments.from.empty() && arguments.from != "measured")) {
    refuse({"--probes", "--tail", "--sinks"},
           "measuring on a text (--text, without another --from)");
  }
}

void run(Arguments& arguments, const std::string& command) {
  llama::PlanRequest& request = arguments.request;
  request.model = arguments.model;
  request.norms = arguments.norms;
  request.capture = arguments.capture;
  request.text = arguments.text;
  if (!arguments.from.empty()) request.source = source_of(arguments.from);
  if (arguments.per_head) request.per = kvtilt::RecipePer::Head;
  if (request.threads == 0) {
    request.threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  }
  const std::vector<std::string> files = recipe_files(arguments.out, request.budgets);
  std::vector<llama::OutputFile> outputs{{"--json", arguments.json}};
  for (const std::string& name : files) outputs.push_back({"--out", name});
  llama::check_outputs(outputs);
  llama::Progress progress;
  if (progress.visible()) {
    request.progress = [&](const char* what, double share) { progress.show(what, share); };
  }
  const std::vector<llama::Planning> plannings = llama::run_planner(request);
  progress.clear();
  auto figures = nlohmann::ordered_json::array();
  std::cout << llama::planning_legend();
  for (std::size_t i = 0; i < plannings.size(); ++i) {
    const llama::Planning& planning = plannings[i];
    std::cout << '\n' << llama::planning_text(planning) << std::flush;
    figures.push_back(llama::planning_json(planning));
    if (files.empty()) continue;
    const auto written = kvtilt::write_recipe_file(
        files[i], {planning.best.plan, planning.shape, planning.page_tokens,
                   llama::json_text(command), number(planning.budget) + " page bits",
                   planning.transforms.keys, planning.transforms.values});
    if (!written.ok()) llama::fail(written.message());
    std::cout << "written to " << files[i] << '\n';
  }
  llama::write_json(arguments.json, figures);
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{description};
  Arguments arguments;
  llama::PlanRequest& request = arguments.request;
  app.add_option("--model", arguments.model,
                 "folder with config.json and safetensors, or a GGUF file (norms only)");
  app.add_option("--norms", arguments.norms, "file with w_k and w_v: one norm per layer");
  app.add_option("--capture", arguments.capture, "file that evaluate --capture wrote");
  app.add_option("--budget", request.budgets,
                 "page bits; several, comma-separated, cost little more")
      ->required()
      ->delimiter(',')
      ->check(CLI::PositiveNumber)
      ->check(llama::finite);
  app.add_option("--from", arguments.from, "where losses come from (default: see above)")
      ->check(CLI::IsMember({"frobenius", "spectral", "statistics", "measured"}));
  app.add_option("--formats", request.formats,
                 "comma-separated: widths (3) or formats (3c, 2t:g32:min-max), k or v in front for "
                 "one tensor alone (default: 1 to 8, or those within 2 of the budget if measured)")
      ->delimiter(',');
  const auto* key_floor = app.add_option("--key-floor", arguments.key_floor,
                                         "least bits of keys (default: 3 from norms, else none)")
                              ->check(CLI::Range(0, 16));
  const auto* value_floor =
      app.add_option("--value-floor", arguments.value_floor,
                     "least bits of values (default: 2 from norms, else none)")
          ->check(CLI::Range(0, 16));
  app.add_flag("--per-head", arguments.per_head, "a recipe for every kv head, not every layer");
  app.add_option("--page", request.page_tokens, "tokens per page")
      ->check(CLI::IsMember({32, 64, 128}))
      ->capture_default_str();
  app.add_option("--text", arguments.text, "text file to measure on");
  app.add_option("--share", request.share, "part of the text to read, from its beginning")
      ->check(CLI::Range(0.0, 1.0))
      ->check(llama::finite)
      ->capture_default_str();
  const CLI::Range counts(1, 1 << 30);
  app.add_option("--tokens", request.tokens, "predictions to measure on, spread over that part")
      ->check(counts)
      ->capture_default_str();
  app.add_option("--context", request.context, "positions per piece (default: the model's)")
      ->check(counts);
  app.add_option("--probes", request.probes,
                 "widths to measure per tensor, others are scaled by errors on captured tensors "
                 "(0: all)")
      ->check(CLI::Range(0, 8))
      ->capture_default_str();
  const CLI::Range kept(0, 1 << 30);
  app.add_option("--tail", request.tail, "newest tokens kept in 16 bits, at least, while measuring")
      ->check(kept)
      ->capture_default_str();
  app.add_option("--sinks", request.sinks, "first tokens kept in 16 bits while measuring")
      ->check(kept)
      ->capture_default_str();
  app.add_flag("--hadamard-keys", request.transforms.keys,
               "plan for caches that get Hadamard transforms of the keys");
  app.add_flag("--hadamard-values", request.transforms.values, "likewise of the values");
  app.add_option("--kv-heads", request.kv_heads, "of a norm file's model")
      ->check(CLI::Range(1, kvtilt::max_kv_heads))
      ->capture_default_str();
  app.add_option("--head-dim", request.head_dim, "of a norm file's model")
      ->check(CLI::Range(8, kvtilt::max_head_dim))
      ->capture_default_str();
  app.add_option("--threads", request.threads, "(default: cores)")->check(counts);
  app.add_option("--out", arguments.out, "recipe file to write; {} stands for the budget");
  app.add_option("--json", arguments.json, "file to write the figures to");
  CLI11_PARSE(app, argc, argv);
  if (key_floor->count() > 0) request.key_floor = arguments.key_floor;
  if (value_floor->count() > 0) request.value_floor = arguments.value_floor;
  request.threads = app.count("--threads") > 0 ? request.threads : 0;
  std::string command = "plan";
  for (int i = 1; i < argc; ++i) command += std::string(" ") + argv[i];
  try {
    check_used(app, arguments);
    run(arguments, command);
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << '\n';
    return 1;
  }
  return 0;
}
