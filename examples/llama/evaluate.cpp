// SPDX-License-Identifier: MIT
// The program `evaluate`: measures what each recipe costs in memory and quality on a text.
#include <kvtilt/io/recipe_file.hpp>

#include "context_shift.hpp"
#include "evaluation_report.hpp"
#include "fail.hpp"
#include "finite.hpp"
#include "kvtilt_cache.hpp"
#include "output_files.hpp"
#include "pieces.hpp"
#include "progress.hpp"
#include "statistics.hpp"
#include "statistics_file.hpp"
#include "text_file.hpp"

#include <CLI/CLI.hpp>

#include <algorithm>
#include <iostream>
#include <limits>
#include <optional>
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
  tokens/s     predictions per second of one thread's forward passes  (tokens_per_s)
The row of --plan is called plan, those of several plans plan:FILE. A second table has the ratio of
each plan's mean kld to that of the best recipe of at most its page bits.

Behind +- stands the standard error, with whole pieces as the independent units because the tokens
of a piece are correlated (kld_mean_error, top1_error, kld_ratio_error). That of a ratio is paired,
as both sides are measured on the same tokens. It takes two pieces, is rough below about ten, and
says nothing about other texts or models.)";

struct Arguments {
  std::string model;
  std::string text;
  std::string json;
  std::string capture;
  std::vector<std::string> recipes{"k16v16", "k8v8", "k4v4", "k4v2", "k2v4", "k2v2"};
  std::vector<std::string> plans;
  double skip = 0;  // share of the text
  long tokens = 0;  // 0: the whole text
  int context = 0;  // 0: the model's
  int threads = 0;  // 0: one per core
  int page = 0;     // 0: that of the plans, or the default
  int chunk = 1;
  std::optional<int> keep;
  std::string arithmetic = "fast";
  llama::Transforms transforms;
  llama::CacheSettings cache;
};

bool is_number(const std::string& text) {
  return !text.empty() && text.find_first_not_of("0123456789") == std::string::npos;
}

/// The recipes without repetitions and without the baseline, which runs anyway. A comma inside a
/// name (k4v2:g64,32) is told from one between names by what follows it: a bare number is no
/// recipe.
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

/// Reads the plan files. They must fit the model and what it transforms, and have one page size: that
/// of `page_tokens`, or any if that is 0; it is then set.
std::vector<llama::NamedPlan> read_plans(const std::vector<std::string>& paths,
                                         const llama::Model& model, llama::Transforms transforms,
                                         int& page_tokens) {
  std::vector<llama::NamedPlan> plans;
  for (const std::string& path : paths) {
    const auto file = kvtilt::read_recipe_file(path).value();
    if (page_tokens == 0) page_tokens = file.page_tokens;
    const auto fits = kvtilt::check_fits(file, llama::cache_shape(model.config()), page_tokens);
    if (!fits.ok()) llama::fail(path, ": ", fits.message());
    const llama::Transforms planned{file.hadamard_keys, file.hadamard_values};
    if (planned != transforms) {
      llama::fail(path, ": was made for Hadamard transforms of ", to_string(planned), ", not of ",
                  to_string(transforms), ": see --hadamard-keys and --hadamard-values");
    }
    const std::string name = std::filesystem::path(path).filename().string();
    plans.push_back({paths.size() == 1 ? "plan" : "plan:" + llama::json_text(name), file.plan});
  }
  return plans;
}

/// Captures the statistics for planning, on the same pieces that are evaluated.
void capture(const Arguments& arguments, const llama::Model& model,
             const std::vector<std::vector<int>>& pieces, int threads, llama::Progress& progress) {
  llama::StatisticsOptions options;
  options.page_tokens = arguments.cache.page_tokens;
  options.threads = threads;
  options.progress = [&](double share) { progress.show("capturing", share); };
  const auto layers = llama::capture_statistics(model, pieces, options);
  progress.clear();
  llama::write_statistics(arguments.capture,
                          {layers, options.page_tokens, llama::json_text(arguments.model),
                           llama::json_text(arguments.text), arguments.transforms});
  std::cout << "captured " << layers.front().tokens << " tokens of every layer in "
            << arguments.capture << std::endl;
}

void run(Arguments& arguments) {
  llama::check_outputs({{"--capture", arguments.capture}, {"--json", arguments.json}});
  const llama::Model model(arguments.model, arguments.transforms);
  const auto tokenizer = llama::load_tokenizer(arguments.model, model.config());
  if (arguments.context > model.config().context && !arguments.keep) {
    llama::fail("--context ", arguments.context, " is beyond the model's ", model.config().context,
                "; --keep goes on behind it");
  }
  const int context = arguments.context > 0 ? arguments.context : model.config().context;
  const std::string text = llama::read_text_file(arguments.text);
  const auto rest = llama::split_text(text, arguments.skip).second;
  auto pieces = llama::cut_pieces(rest, *tokenizer, context);
  if (arguments.tokens > 0) llama::limit_predictions(pieces, arguments.tokens);

  std::size_t predictions = 0;
  for (const auto& piece : pieces) predictions += piece.size() - 1;
  if (predictions == 0) llama::fail(arguments.text, ": too short: there is nothing to predict");

  llama::EvaluationOptions options;
  options.recipes = clean_recipes(arguments.recipes);
  options.plans = read_plans(arguments.plans, model, arguments.transforms, arguments.page);
  if (arguments.page > 0) arguments.cache.page_tokens = arguments.page;
  options.cache = arguments.cache;
  options.chunk = arguments.chunk;
  if (arguments.arithmetic == "exact") options.cache.arithmetic = llama::CacheArithmetic::Exact;
  if (arguments.keep) options.shift = {*arguments.keep, options.cache};
  const int cores = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  options.threads = std::min(arguments.threads > 0 ? arguments.threads : cores,
                             std::max(1, static_cast<int>(pieces.size())));
  if (options.shift) llama::check_shift(model.config(), *options.shift);
  for (const auto& recipe : options.recipes) {  // refuse a wrong name before the long run
    (void)llama::make_cache(model.config(), recipe, options.cache);
  }
  for (const auto& plan : options.plans) {
    (void)llama::make_cache(model.config(), plan.plan, options.cache);
  }

  std::cout << arguments.model << " on " << arguments.text;
  if (arguments.skip > 0) std::cout << " from byte " << text.size() - rest.size() << " on";
  std::cout << ": " << predictions << " predictions in " << pieces.size() << " pieces of at most "
            << context << " tokens\npage " << arguments.cache.page_tokens << ", tail "
            << arguments.cache.recent_tokens << ", sinks " << arguments.cache.sink_tokens << ", "
            << arguments.arithmetic << " arithmetic"
            << (arguments.transforms == llama::Transforms{}
                    ? ""
                    : ", Hadamard transforms of " + to_string(arguments.transforms));
  if (options.shift) {
    std::cout << "\na full context of " << model.config().context
              << " loses its older half, except the first " << llama::kept_tokens(*options.shift)
              << " tokens";
  }
  std::cout << std::endl;
  llama::Progress progress;
  if (!arguments.capture.empty()) capture(arguments, model, pieces, options.threads, progress);
  if (progress.visible()) {
    options.progress = [&](double share) { progress.show("evaluating", share); };
  }
  const auto reports = llama::evaluate(model, pieces, options);
  progress.clear();
  std::cout << llama::evaluation_text(reports, tokenizer->byte_level()) << std::flush;
  llama::write_json(arguments.json, llama::evaluation_json(reports));
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
                 "comma-separated; names (k4v2) or a key and a value format as recipe files write "
                 "them (3c:min-max/2t); the 16-bit baseline f16 is always run first")
      ->delimiter(',')
      ->capture_default_str();
  app.add_option("--plan", arguments.plans, "recipe file to judge as well; repeatable")
      ->allow_extra_args(false);
  app.add_option("--skip", arguments.skip, "begin after this share of the text (0 to 1)")
      ->check(CLI::Range(0.0, 1.0))
      ->check(llama::finite);
  app.add_option("--capture", arguments.capture,
                 "file to write keys, values and what meets them to, for plan --capture: 16384 "
                 "tokens at most, in pieces spread over those that are evaluated");
  app.add_flag("--hadamard-keys", arguments.transforms.keys,
               "give caches Hadamard transforms of the keys, and of the queries");
  app.add_flag("--hadamard-values", arguments.transforms.values,
               "give caches Hadamard transforms of the values, folded into the weights");
  app.add_option("--arithmetic", arguments.arithmetic,
                 "fast multiplies codes in integers where the machine can, exact in float32")
      ->check(CLI::IsMember({"fast", "exact"}))
      ->capture_default_str();
  const CLI::Range counts(1, 1 << 30);
  app.add_option("--page", arguments.page, "tokens per page (default: the plan's, else 64)")
      ->check(counts);
  app.add_option("--tail", arguments.cache.recent_tokens, "newest tokens kept in 16 bits, at least")
      ->capture_default_str();
  app.add_option("--sinks", arguments.cache.sink_tokens, "first tokens kept in 16 bits")
      ->capture_default_str();
  app.add_option("--context", arguments.context, "positions per piece (default: the model's)")
      ->check(counts);
  app.add_option(
         "--keep", arguments.keep,
         "go on in pieces that are longer than the model's context: when it is full, the older "
         "half of its tokens is removed, except the first so many, rounded up to a page's end")
      ->check(CLI::Range(0, 1 << 30))
      ->excludes("--capture");
  app.add_option("--chunk", arguments.chunk,
                 "predictions made in one pass, at most: more take less time, and tokens/s is then "
                 "no speed of decoding")
      ->check(CLI::Range(1, 128))
      ->capture_default_str();
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
