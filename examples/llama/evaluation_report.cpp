// SPDX-License-Identifier: MIT
#include "evaluation_report.hpp"

#include "table.hpp"

#include <cmath>
#include <numbers>

namespace llama {
namespace {

std::string scientific(double value) { return value == 0 ? "0" : format_scientific(value, 2); }

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
                    scientific(r.kld_mean), scientific(r.kld_p99), scientific(r.kld_max),
                    format_number(r.top1, 2), format_number(r.tokens_per_s, 0)});
  }
  return format_table(rows);
}

nlohmann::ordered_json evaluation_json(const std::vector<RecipeReport>& reports) {
  auto array = nlohmann::ordered_json::array();
  for (const RecipeReport& r : reports) {
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
  return array;
}

}  // namespace llama
