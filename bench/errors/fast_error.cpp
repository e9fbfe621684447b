// SPDX-License-Identifier: MIT
// Measures the error that Arithmetic::Fast adds to that of the codes, on the same data.
#include "errors/sources.hpp"
#include "llama/fail.hpp"
#include "llama/kvtilt_cache.hpp"
#include "support/reference.hpp"

#include <CLI/CLI.hpp>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <exception>

namespace kvtilt::bench {

namespace {

constexpr int page_tokens = 64;
constexpr double allowed = 0.2;

constexpr const char* description =
    R"(Errors of attention over a cache, as shares of the output's rms (root mean square).

  codes  rms of (exact arithmetic on the codes - float64 on the 16-bit numbers): the format's own
  fast   rms of (fast arithmetic - exact arithmetic), both on the codes
  ratio  fast / codes; worst: of the layer and text where it is largest
All tokens are in sealed pages of 64. Of several layers and texts each has the same weight. Random
queries are stretched until logits have a standard deviation of 2 over the tokens, unless said
otherwise; captured models bring their own. A * marks a ratio above 0.2.)";

using Output = std::vector<double>;

void require(const Status& status) {
  if (!status.ok()) llama::fail(status.message());
}

/// Attention in float64 over keys and values rounded to fp16, [query_tokens, query_heads, dim].
Output reference(const Part& part) {
  const std::size_t dim = static_cast<std::size_t>(part.head_dim);
  const std::size_t heads = static_cast<std::size_t>(part.query_heads);
  const std::size_t kv_heads = static_cast<std::size_t>(part.kv_heads);
  const auto rounded = [](std::vector<float> numbers) {
    for (float& x : numbers) x = to_float(to_f16(x));
    return numbers;
  };
  const std::vector<float> keys = rounded(part.keys);
  const std::vector<float> values = rounded(part.values);
  Output out(part.queries.size());
  for (std::size_t row = 0; row < out.size() / dim; ++row) {
    const std::size_t kv_offset = row % heads / (heads / kv_heads) * dim;
    const std::size_t visible =
        static_cast<std::size_t>(part.tokens - part.query_tokens) + row / heads + 1;
    add_reference(
        ReferenceShape::square(dim, kv_heads * dim), &part.queries[row * dim], &keys[kv_offset],
        &values[kv_offset], visible, [](std::size_t) { return 1.0; }, &out[row * dim]);
  }
  return out;
}

Output attended(const LayerView& view, const Part& part, Arithmetic arithmetic) {
  std::vector<float> out(part.queries.size());
  std::vector<std::byte> workspace(attend_workspace_bytes(view));
  AttendOptions options;
  options.arithmetic = arithmetic;
  require(attend(
      view, TensorView(part.queries.data(), part.query_tokens, part.query_heads, part.head_dim),
      OutputView(out.data(), part.query_tokens, part.query_heads, part.head_dim), options,
      workspace));
  return {out.begin(), out.end()};
}

double mean_square(const Output& a, const Output& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += (a[i] - b[i]) * (a[i] - b[i]);
  return sum / static_cast<double>(a.size());
}

struct Errors {
  double codes = 0;
  double fast = 0;
  double worst = 0;  ///< the largest ratio

  [[nodiscard]] double ratio() const { return fast / codes; }
};

Errors part_errors(const Part& part, const Output& truth, const Recipe& recipe) {
  const CacheShape shape = CacheShape::uniform(1, part.kv_heads, part.head_dim);
  CacheOptions options;
  options.page_tokens = page_tokens;
  options.sink_tokens = options.recent_tokens = 0;
  KVCache cache = KVCache::create(shape, Plan::uniform(shape, recipe), options).value();
  const SequenceId id = cache.open().value();
  require(cache.reserve(id, part.tokens));
  require(cache.append(id, 0,
                       TensorView(part.keys.data(), part.tokens, part.kv_heads, part.head_dim),
                       TensorView(part.values.data(), part.tokens, part.kv_heads, part.head_dim)));
  const LayerView view = cache.view(id, 0).value();
  const Output exact = attended(view, part, Arithmetic::Exact);
  const Output fast = attended(view, part, Arithmetic::Fast);
  const double size = mean_square(truth, Output(truth.size()));
  return {std::sqrt(mean_square(exact, truth) / size), std::sqrt(mean_square(fast, exact) / size),
          0};
}

Errors source_errors(const Source& source, const std::vector<Output>& truths,
                     const Recipe& recipe) {
  Errors all;
  for (std::size_t i = 0; i < source.parts.size(); ++i) {
    const Errors part = part_errors(source.parts[i], truths[i], recipe);
    const double share = 1.0 / static_cast<double>(source.parts.size());
    all.codes += share * part.codes * part.codes;
    all.fast += share * part.fast * part.fast;
    all.worst = std::max(all.worst, part.ratio());
  }
  all.codes = std::sqrt(all.codes);
  all.fast = std::sqrt(all.fast);
  return all;
}

/// Prints one row. Returns how many ratios are above `allowed`.
int print_errors(const Errors& errors) {
  const auto mark = [](double ratio) { return ratio > allowed ? '*' : ' '; };
  std::printf(" | %8.2e %8.2e %5.3f%c %5.3f%c", errors.codes, errors.fast, errors.ratio(),
              mark(errors.ratio()), errors.worst, mark(errors.worst));
  return errors.worst > allowed || errors.ratio() > allowed ? 1 : 0;
}

void run(const std::string& data, const std::vector<std::string>& names) {
  std::vector<Recipe> recipes;
  for (const std::string& name : names) recipes.push_back(parse_recipe(name).value());
  const std::vector<Source> sources = make_sources(data, page_tokens);

  std::printf("%s\n\ninstruction set: %s\n\n", description, to_string(active_isa().value()));
  for (const Source& source : sources)
    std::printf("%-19s %s\n", source.name.c_str(), source.description.c_str());
  std::printf("\n%-19s %-7s", "", "");
  for (const char* part : {"keys and values", "keys only, values in 16 bits", "values only"})
    std::printf(" | %-31s", part);
  std::printf("\n%-19s %-7s", "source", "recipe");
  for (int i = 0; i < 3; ++i)
    std::printf(" | %8s %8s %6s %6s", "codes", "fast", "ratio ", "worst ");
  std::printf("\n");
  int rows = 0;
  int above = 0;
  for (const Source& source : sources) {
    std::vector<Output> truths;
    for (const Part& part : source.parts) truths.push_back(reference(part));
    for (std::size_t i = 0; i < recipes.size(); ++i) {
      std::printf("%-19s %-7s", source.name.c_str(), names[i].c_str());
      for (const Recipe& recipe :
           {recipes[i], Recipe{recipes[i].key, {}}, Recipe{{}, recipes[i].value}}) {
        above += print_errors(source_errors(source, truths, recipe));
        ++rows;
      }
      std::printf("\n");
      std::fflush(stdout);
    }
  }
  std::printf("\n%d of %d ratios, or the worst behind them, are above %.1f\n", above, rows,
              allowed);
}

}  // namespace

}  // namespace kvtilt::bench

int main(int argc, char** argv) {
  CLI::App app{kvtilt::bench::description};
  std::string data = KVTILT_EXAMPLE_DATA;
  std::vector<std::string> recipes{"k8v8", "k6v4", "k5v5", "k4v4", "k4tv4",
                                   "k4v2", "k3v2", "k2v2", "k1v1"};
  app.add_option("--recipes", recipes, "comma-separated")->delimiter(',')->capture_default_str();
  app.add_option("--data", data, "tensors, models and texts")->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  try {
    kvtilt::bench::run(data, recipes);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
}
