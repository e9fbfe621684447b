// SPDX-License-Identifier: MIT
// The program `generate`: writes a text with a quantized cache and reports what the cache cost.
#include <kvtilt/io/mapped_file.hpp>

#include "fail.hpp"
#include "finite.hpp"
#include "generation.hpp"
#include "linear.hpp"
#include "make_cache.hpp"
#include "output_files.hpp"
#include "table.hpp"

#include <CLI/CLI.hpp>

#include <cstddef>
#include <iostream>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <vector>

namespace {

struct Arguments {
  std::string model;
  std::string prompt;
  std::string recipe = "k4v2";
  int tokens = 256;
  int draft = 0;
  std::uint64_t seed = 1;
  double temperature = 0;
  llama::CacheSettings cache;
  std::optional<int> keep;
  std::string load;
  std::string save;
};

/// Text that is safe for a terminal: a model can produce any byte, also those that move cursors.
std::string printable(std::string_view text) {
  std::string clean;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if ((byte >= 0x20 && byte != 0x7F) || c == '\n' || c == '\t') clean += c;
  }
  return clean;
}

std::vector<std::string> table_row(const std::string& name, const llama::Generation& generation) {
  return {name, llama::format_number(generation.tokens_kept, 0),
          llama::format_number(static_cast<double>(generation.usage.bytes), 0),
          llama::format_number(generation.usage.effective_bits, 2),
          llama::format_number(generation.tokens_per_s(), 0)};
}

/// States up to which token two texts are the same.
std::string compare(const std::string& recipe, const std::vector<int>& tokens,
                    const std::vector<int>& baseline) {
  const auto different =
      std::mismatch(tokens.begin(), tokens.end(), baseline.begin(), baseline.end());
  if (different.first == tokens.end() && different.second == baseline.end()) {
    return recipe + " and 16 bits wrote the same text.";
  }
  return recipe + " and 16 bits wrote the same first " +
         std::to_string(different.first - tokens.begin()) + " of " + std::to_string(tokens.size()) +
         " tokens.";
}

void run(Arguments& arguments) {
  llama::check_outputs({{"--save", arguments.save}});
  const llama::Model model(arguments.model);
  if (!arguments.load.empty() || !arguments.save.empty()) {
    arguments.cache.fingerprint = model.fingerprint();
  }
  const auto tokenizer = llama::load_tokenizer(arguments.model, model.config());
  std::unique_ptr<const kvtilt::MappedFile> before;
  if (!arguments.load.empty()) {
    before = std::make_unique<kvtilt::MappedFile>(kvtilt::MappedFile::open(arguments.load).value());
  }
  std::vector<std::byte> after;
  llama::SavedPrompt saved;
  if (before) saved.before = before->bytes();
  if (!arguments.save.empty()) saved.after = &after;
  std::optional<llama::ContextShift> shift;
  if (arguments.keep) shift = {*arguments.keep, arguments.cache};
  const auto write = [&](const std::string& recipe, const auto& on_text,
                         const llama::SavedPrompt& saved_prompt) {
    const auto cache = llama::make_cache(model.config(), recipe, arguments.cache);
    const llama::Sampler sampler(arguments.temperature, arguments.seed);
    return llama::generate(model, *tokenizer, arguments.prompt, arguments.tokens, arguments.draft,
                           sampler, *cache, on_text, saved_prompt, shift);
  };

  bool started = false;
  const auto result = write(
      arguments.recipe,
      [&](std::string_view text) {
        // Printed with the first token only, so that a run that fails leaves no half text behind.
        if (!started) std::cout << printable(arguments.prompt);
        started = true;
        std::cout << printable(text) << std::flush;
      },
      saved);
  std::cout << "\n\n";
  if (result.context_full) {
    std::cout << "The model's context of " << model.config().context << " tokens is full.\n\n";
  }

  std::vector<std::vector<std::string>> rows{
      {"recipe", "tokens kept", "cache bytes", "eff. bits", "tokens/s"},
      table_row(arguments.recipe, result)};
  std::string verdict;
  // The baseline cannot continue a loaded prompt: only the quantized cache has read it.
  if (arguments.recipe != llama::baseline_recipe && !before) {
    const auto baseline = write(llama::baseline_recipe, [](std::string_view) {}, {});
    rows.push_back(table_row("16 bits", baseline));
    verdict = compare(arguments.recipe, result.tokens, baseline.tokens) + '\n';
  }
  std::cout << llama::format_table(rows) << verdict;
  if (!arguments.save.empty()) {
    const std::span<const std::byte> bytes(after);
    const auto written = kvtilt::write_file(arguments.save, std::span(&bytes, 1));
    if (!written.ok()) llama::fail(written.message());
    std::cout << after.size() << " bytes of cache saved in " << kvtilt::shown_path(arguments.save)
              << ".\n";
  }
  if (arguments.draft > 0) {
    std::cout << result.accepted << " of " << result.drafted << " drafted tokens accepted; "
              << result.steps << " tokens in " << result.passes << " forward passes.\n";
  }
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"Continues a prompt with a quantized cache, then prints what the cache cost."};
  Arguments arguments;
  app.add_option("--model", arguments.model, "folder with config.json and model.safetensors")
      ->required();
  app.add_option("--prompt", arguments.prompt, "text to continue (default: none)");
  app.add_option("--recipe", arguments.recipe, "kvtilt's, or f16 for the 16-bit baseline alone")
      ->capture_default_str();
  app.add_option("--tokens", arguments.tokens, "tokens to write, at most")
      ->check(CLI::Range(1, std::numeric_limits<int>::max()))
      ->capture_default_str();
  app.add_option(
         "--draft", arguments.draft,
         "tokens guessed from the text so far and verified together, at most 15; changes the "
         "speed, never the text")
      ->check(CLI::Range(0, llama::same_bits_tokens - 1))
      ->capture_default_str();
  app.add_option("--seed", arguments.seed, "of the random choices")->capture_default_str();
  app.add_option("--temperature", arguments.temperature,
                 "0 always takes the likeliest token; 1 samples the model's distribution")
      ->check(CLI::Range(0.0, 100.0))
      ->check(llama::finite)
      ->capture_default_str();
  app.add_option("--page", arguments.cache.page_tokens, "tokens per page")->capture_default_str();
  app.add_option("--tail", arguments.cache.recent_tokens, "newest tokens kept in 16 bits, at least")
      ->capture_default_str();
  app.add_option("--sinks", arguments.cache.sink_tokens, "first tokens kept in 16 bits")
      ->capture_default_str();
  app.add_option("--keep", arguments.keep,
                 "go on when the model's context is full: the older half of its tokens is removed, "
                 "except the first so many, rounded up to a page's end")
      ->check(CLI::Range(0, 1 << 30));
  app.add_option("--save", arguments.save,
                 "file to keep the prompt in, read as it is: others can go on from there");
  app.add_option("--load", arguments.load,
                 "saved file that the prompt goes on from; of this model, recipe, page, tail and "
                 "sinks");
  CLI11_PARSE(app, argc, argv);
  try {
    run(arguments);
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << '\n';
    return 1;
  }
  return 0;
}
