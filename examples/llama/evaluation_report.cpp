// SPDX-License-Identifier: MIT
#include "evaluation_report.hpp"

#include "metrics.hpp"
#include "output_files.hpp"
#include "table.hpp"

#include <cmath>
#include <numbers>
#include <optional>

namespace llama {
namespace {

using nlohmann::ordered_json;

/// A plan beside a recipe that treats all layers and heads alike.
struct Comparison {
  std::string recipe;
  double ratio = 0;  // of the mean divergences
  std::optional<double> error;
};

/// Compares with the recipe of least mean divergence among those of at most the plan's page bits,
/// to the two digits printed; `named` leaves out recipes written as two formats. Nothing if there
/// is no such recipe with a divergence.
std::optional<Comparison> compare_with_best(const std::vector<RecipeReport>& reports,
                                            const RecipeReport& plan, bool named) {
  const RecipeReport* best = nullptr;
  for (const RecipeReport& r : reports) {
    if (r.is_plan || r.kld_mean == 0 || r.page_bits >= plan.page_bits + 0.005) continue;
    if (named && r.recipe.find('/') != std::string::npos) continue;
    if (best == nullptr || r.kld_mean < best->kld_mean) best = &r;
  }
  if (best == nullptr) return std::nullopt;
  return Comparison{best->recipe, plan.kld_mean / best->kld_mean,
                    ratio_standard_error(plan.kld_sums, best->kld_sums)};
}

std::string scientific(double value) { return value == 0 ? "0" : format_scientific(value, 2); }

std::string kld_mean(const RecipeReport& r) {
  return r.kld_mean == 0 ? "0" : format_scientific(r.kld_mean, r.kld_mean_error, 2);
}

std::string number(double value, std::optional<double> error) {
  return format_number(value, 2) + " +- " + (error ? format_number(*error, 2) : "-");
}

/// One line per plan; empty without plans.
std::string plans_text(const std::vector<RecipeReport>& reports) {
  std::vector<std::vector<std::string>> rows{
      {"", "best named recipe", "kld ratio", "best recipe", "kld ratio"}};
  for (const RecipeReport& r : reports) {
    if (!r.is_plan) continue;
    rows.push_back({r.recipe});
    for (const bool named : {true, false}) {
      const auto best = compare_with_best(reports, r, named);
      rows.back().push_back(best ? best->recipe : "-");
      rows.back().push_back(best ? number(best->ratio, best->error) : "-");
    }
  }
  return rows.size() == 1 ? "" : "\n" + format_table(rows);
}

ordered_json comparison_json(const std::optional<Comparison>& best) {
  if (!best) return {};
  return {{"recipe", best->recipe},
          {"kld_ratio", best->ratio},
          {"kld_ratio_error", json_number(best->error)}};
}

}  // namespace

std::string evaluation_text(const std::vector<RecipeReport>& reports, bool byte_level) {
  std::vector<std::vector<std::string>> rows{{"recipe", "page bits", "eff. bits", "cache bytes",
                                              "on codes", "nll",
                                              byte_level ? "bits/byte" : "perplexity", "kld mean",
                                              "kld p99", "kld max", "top1 %", "tokens/s"}};
  for (const RecipeReport& r : reports) {
    rows.push_back({r.recipe, format_number(r.page_bits, 2), format_number(r.effective_bits, 2),
                    format_number(static_cast<double>(r.cache_bytes), 0),
                    format_number(100 * r.quantized_share, 1) + " %", format_number(r.nll, 4),
                    format_number(byte_level ? r.nll / std::numbers::ln2 : std::exp(r.nll), 4),
                    kld_mean(r), scientific(r.kld_p99), scientific(r.kld_max),
                    number(r.top1, r.top1_error), format_number(r.tokens_per_s, 0)});
  }
  return format_table(rows) + plans_text(reports);
}

ordered_json evaluation_json(const std::vector<RecipeReport>& reports) {
  auto array = ordered_json::array();
  for (const RecipeReport& r : reports) {
    array.push_back({{"recipe", r.recipe},
                     {"page_bits", r.page_bits},
                     {"effective_bits", r.effective_bits},
                     {"cache_bytes", r.cache_bytes},
                     {"quantized_share", r.quantized_share},
                     {"nll", r.nll},
                     {"kld_mean", r.kld_mean},
                     {"kld_mean_error", json_number(r.kld_mean_error)},
                     {"kld_p99", r.kld_p99},
                     {"kld_max", r.kld_max},
                     {"top1", r.top1},
                     {"top1_error", json_number(r.top1_error)},
                     {"tokens_per_s", r.tokens_per_s}});
    if (!r.is_plan) continue;
    array.back()["best_named"] = comparison_json(compare_with_best(reports, r, true));
    array.back()["best_recipe"] = comparison_json(compare_with_best(reports, r, false));
  }
  return array;
}

}  // namespace llama
