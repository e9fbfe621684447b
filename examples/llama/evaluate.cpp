// SPDX-License-Identifier: MIT
// What each recipe costs in memory and in quality, on a text.
#include "evaluation.hpp"
#include "fail.hpp"
#include "mapped_file.hpp"
#include "pieces.hpp"
#include "table.hpp"

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <limits>
#include <numbers>
#include <set>
#include <thread>

namespace {

constexpr const char* description =
    R"(Compares cache recipes on a text, decoding it token by token with each of them.

The text is cut at <|endoftext|>, or every context-length of tokens when there is no such marker.
Columns of the table (keys of --json, where they differ):
  page bits    8 x bytes of a full page / its numbers            (page_bits)
  eff. bits    8 x bytes in use / numbers kept, at the ends of the pieces, weighted by their tokens;
               16-bit tail, sinks, metadata and tables included  (effective_bits)
  cache bytes  in use at the end of the piece that needs most    (cache_bytes)
  on codes     share of predictions whose attention read quantized pages  (quantized_share, 0 to 1)
  nll          nats per token
  perplexity or bits/byte, for models whose tokens are words or bytes
  kld          KL divergence from the 16-bit baseline, nats      (kld_mean, kld_p99, kld_max)
  top1 %       predictions with the baseline's most likely token (top1)
  tokens/s     predictions per second of one thread's forward passes  (tokens_per_s))";

struct Arguments {
  std::string model;
  std::string text;
  std::string json;
  std::vector<std::string> recipes{"k16v16", "k8v8", "k4v4", "k4v2", "k2v4", "k2v2"};
  long tokens = 0;  // 0: the whole text
  int context = 0;  // 0: the model's
  int threads = 0;  // 0: one per core
  std::string arithmetic = "fast";
  llama::CacheSettings cache;
};

std::string scientific(double value) {
  char buffer[32];
  std::snprintf(buffer, sizeof buffer, "%.2e", value);
  return value == 0 ? "0" : buffer;
}

void print_table(const std::vector<llama::RecipeReport>& reports, bool byte_level) {
  using llama::format_number;
  std::vector<std::vector<std::string>> rows{{"recipe", "page bits", "eff. bits", "cache bytes",
                                              "on codes", "nll",
                                              byte_level ? "bits/byte" : "perplexity", "kld mean",
                                              "kld p99", "kld max", "top1 %", "tokens/s"}};
  for (const auto& r : reports) {
    rows.push_back({r.recipe, format_number(r.page_bits, 2), format_number(r.effective_bits, 2),
                    format_number(static_cast<double>(r.cache_bytes), 0),
                    format_number(100 * r.quantized_share, 1) + " %", format_number(r.nll, 4),
                    format_number(byte_level ? r.nll / std::numbers::ln2 : std::exp(r.nll), 4),
                    scientific(r.kld_mean), scientific(r.kld_p99), scientific(r.kld_max),
                    format_number(r.top1, 2), format_number(r.tokens_per_s, 0)});
  }
  std::cout << llama::format_table(rows) << std::flush;
}

void write_json(std::ofstream& file, const std::vector<llama::RecipeReport>& reports) {
  auto array = nlohmann::ordered_json::array();
  for (const auto& r : reports) {
    array.push_back({{"recipe", r.recipe},
                     {"page_bits", r.page_bits},
                     {"effective_bits", r.effective_bits},
                     {"cache_bytes", r.cache_bytes},
                     {"quantized_share", r.quantized_share},
                     {"nll", r.nll},
                     {"kld_mean", r.kld_mean},
                     {"kld_p99", r.kld_p99},
                     {"kld_max", r.kld_max},
                     {"top1", r.top1},
                     {"tokens_per_s", r.tokens_per_s}});
  }
  file << array.dump(2) << '\n';
}

bool is_number(const std::string& text) {
  return !text.empty() && text.find_first_not_of("0123456789") == std::string::npos;
}

/// The recipes without the baseline, which is run anyway, and without repetitions. The comma inside
/// a name (k4v2:g64,32) is told from those between names by what follows: a bare number is no recipe.
std::vector<std::string> clean_recipes(const std::vector<std::string>& recipes) {
  std::vector<std::string> clean;
  std::set<std::string> seen{llama::baseline_recipe};
  for (std::size_t i = 0; i < recipes.size();) {
    std::string name = recipes[i++];
    for (; i < recipes.size() && is_number(recipes[i]); ++i) name += "," + recipes[i];
    if (seen.insert(name).second) clean.push_back(name);
  }
  return clean;
}

void run(const Arguments& arguments) {
  const llama::Model model(arguments.model);
  const auto tokenizer = llama::load_tokenizer(arguments.model, model.config());
  if (arguments.context > model.config().context) {
    llama::fail("--context ", arguments.context, " is beyond the model's ", model.config().context);
  }
  const int context = arguments.context > 0 ? arguments.context : model.config().context;
  auto pieces = llama::cut_pieces(llama::read_text_file(arguments.text), *tokenizer, context);
  if (arguments.tokens > 0) llama::limit_predictions(pieces, arguments.tokens);

  std::size_t predictions = 0;
  for (const auto& piece : pieces) predictions += piece.size() - 1;
  if (predictions == 0) llama::fail(arguments.text, ": too short: there is nothing to predict");

  llama::EvaluationOptions options;
  options.recipes = clean_recipes(arguments.recipes);
  options.cache = arguments.cache;
  if (arguments.arithmetic == "exact") options.cache.arithmetic = llama::CacheArithmetic::Exact;
  const int cores = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  options.threads = std::min(arguments.threads > 0 ? arguments.threads : cores,
                             std::max(1, static_cast<int>(pieces.size())));
  for (const auto& recipe : options.recipes) {  // a wrong name should not cost a minute first
    (void)llama::make_cache(model.config(), recipe, options.cache);
  }
  std::ofstream json;
  if (!arguments.json.empty()) {
    json.open(arguments.json);
    if (!json) llama::fail(arguments.json, ": cannot be written");
  }

  std::cout << arguments.model << " on " << arguments.text << ": " << predictions
            << " predictions in " << pieces.size() << " pieces of at most " << context
            << " tokens\npage " << arguments.cache.page_tokens << ", tail "
            << arguments.cache.recent_tokens << ", sinks " << arguments.cache.sink_tokens << ", "
            << arguments.arithmetic << " arithmetic" << std::endl;
  const bool terminal = ::isatty(STDERR_FILENO) == 1;
  if (terminal) {
    options.progress = [shown = -1](double share) mutable {
      const int percent = static_cast<int>(100 * share);
      if (percent == shown) return;
      shown = percent;
      std::fprintf(stderr, "\r%3d %%", percent);
    };
  }
  const auto reports = llama::evaluate(model, pieces, options);
  if (terminal) std::fputs("\r     \r", stderr);
  print_table(reports, tokenizer->byte_level());
  if (json.is_open()) {
    write_json(json, reports);
    json.close();
    if (!json) llama::fail(arguments.json, ": could not be written whole");
  }
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{description};
  Arguments arguments;
  app.add_option("--model", arguments.model, "folder with config.json and model.safetensors")
      ->required();
  app.add_option("--text", arguments.text, "text file to predict")->required();
  app.add_option("--tokens", arguments.tokens, "stop after so many predictions (default: all)")
      ->check(CLI::Range(1L, std::numeric_limits<long>::max()));
  app.add_option("--recipes", arguments.recipes,
                 "comma-separated; the 16-bit baseline f16 is always run first")
      ->delimiter(',')
      ->capture_default_str();
  app.add_option("--arithmetic", arguments.arithmetic,
                 "fast multiplies codes in integers where the machine can, exact in float32")
      ->check(CLI::IsMember({"fast", "exact"}))
      ->capture_default_str();
  const CLI::Range counts(1, 1 << 30);
  app.add_option("--page", arguments.cache.page_tokens, "tokens per page")->capture_default_str();
  app.add_option("--tail", arguments.cache.recent_tokens, "newest tokens kept in 16 bits, at least")
      ->capture_default_str();
  app.add_option("--sinks", arguments.cache.sink_tokens, "first tokens kept in 16 bits")
      ->capture_default_str();
  app.add_option("--context", arguments.context, "positions per piece (default: the model's)")
      ->check(counts);
  app.add_option("--threads", arguments.threads, "pieces run at the same time (default: cores)")
      ->check(counts);
  app.add_option("--json", arguments.json, "file to write the figures to");
  CLI11_PARSE(app, argc, argv);
  try {
    run(arguments);
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << '\n';
    return 1;
  }
  return 0;
}
