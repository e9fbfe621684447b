// SPDX-License-Identifier: MIT
#include "planning_report.hpp"

#include <kvtilt/io/format_name.hpp>

#include "output_files.hpp"
#include "table.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>

namespace llama {
namespace {

using kvtilt::Format;
using kvtilt::Recipe;
using nlohmann::ordered_json;

/// The shortest name that still determines the format.
std::string short_name(const Format& format, int dim, int page_tokens) {
  Format plain = format;
  plain.group = 0;
  plain.rule = kvtilt::default_rule(format.bits);
  const auto usual = kvtilt::resolve_format(plain, "", dim, page_tokens);
  const bool default_group = format.group == 0 || (usual && usual->group == format.group);
  std::string name = std::to_string(format.bits);
  if (!format.quantized()) return name;
  name += format.granularity == kvtilt::Granularity::PerChannel ? 'c' : 't';
  if (!default_group) name += "g" + std::to_string(format.group);
  if (plain.rule != format.rule) name += std::string(":") + kvtilt::to_string(format.rule);
  return name;
}

/// The formats of all heads of a layer; only one if they are all the same.
std::string head_formats(const std::vector<Recipe>& recipes, Format Recipe::*tensor, int dim,
                         int page_tokens) {
  std::vector<std::string> names;
  for (const Recipe& recipe : recipes) {
    names.push_back(short_name(recipe.*tensor, dim, page_tokens));
  }
  if (std::adjacent_find(names.begin(), names.end(), std::not_equal_to<>()) == names.end()) {
    return names.front();
  }
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : " ") + name;
  return text;
}

std::string gap_text(const std::optional<double>& gap) {
  if (!gap || !std::isfinite(*gap)) return "-";
  char text[32];
  std::snprintf(text, sizeof text, "%+.2f", *gap);
  return text;
}

/// Appends a layer's norms and gaps as table cells.
void add_norms(const Planning& planning, std::size_t layer, std::vector<std::string>& row) {
  const kvtilt::LayerNorms& norms = planning.norms[layer];
  const kvtilt::LayerReport& report = planning.reports[layer];
  row.insert(row.end(),
             {format_number(norms.keys.frobenius, 2), format_number(norms.values.frobenius, 2),
              report.theorem_holds ? "holds" : "fails",
              gap_text(report.gain_gap.value_or(report.frobenius_gap))});
  if (planning.one_norm) return;
  row.insert(row.end(), {format_number(norms.keys.spectral, 2),
                         format_number(norms.values.spectral, 2), gap_text(report.spectral_gap)});
}

std::string layer_table(const Planning& planning) {
  std::vector<std::string> columns{"layer"};
  if (!planning.norms.empty()) {
    columns.insert(columns.end(), {"|W_K|", "|W_V|", "theorem 1", "gap |W|"});
    if (!planning.one_norm) columns.insert(columns.end(), {"s_K", "s_V", "gap s"});
  }
  if (!planning.measured_gaps.empty()) columns.emplace_back("gap measured");
  columns.insert(columns.end(), {"keys", "values"});
  std::vector<std::vector<std::string>> rows{columns};
  for (std::size_t i = 0; i < planning.shape.layers.size(); ++i) {
    const kvtilt::LayerShape& shape = planning.shape.layers[i];
    std::vector<std::string>& row = rows.emplace_back();
    row.push_back(std::to_string(i));
    if (shape.kv_heads == 0) {
      row.resize(columns.size(), "-");
      row.back() = "no cache";
      continue;
    }
    if (!planning.norms.empty()) add_norms(planning, i, row);
    if (!planning.measured_gaps.empty()) row.push_back(gap_text(planning.measured_gaps[i]));
    const auto& recipes = planning.best.plan.recipes[i];
    row.push_back(head_formats(recipes, &Recipe::key, shape.key_dim, planning.page_tokens));
    row.push_back(head_formats(recipes, &Recipe::value, shape.value_dim, planning.page_tokens));
  }
  return format_table(rows);
}

std::string uniform_name(const Planning& planning) {
  const auto& shape = planning.shape.layers.front();
  const Recipe& recipe = planning.uniform->recipe;
  return short_name(recipe.key, shape.key_dim, planning.page_tokens) + "/" +
         short_name(recipe.value, shape.value_dim, planning.page_tokens);
}

/// " of keys with 3+ and values with 2+ bits"
std::string floors_text(const Planning& planning) {
  std::string text;
  if (planning.key_floor > 0) text += " of keys with " + std::to_string(planning.key_floor) + "+";
  if (planning.value_floor > 0) {
    text += text.empty() ? " of" : " and";
    text += " values with " + std::to_string(planning.value_floor) + "+";
  }
  return text + " bits";
}

ordered_json layer_json(const Planning& planning, std::size_t i) {
  ordered_json layer{{"layer", i}};
  if (planning.shape.layers[i].kv_heads == 0) return layer;
  if (!planning.norms.empty()) {
    const kvtilt::LayerNorms& norms = planning.norms[i];
    const kvtilt::LayerReport& report = planning.reports[i];
    for (const auto& [name, tensor] : {std::pair("w_k", &norms.keys), {"w_v", &norms.values}}) {
      if (planning.one_norm) {
        layer[name] = {{"norm", tensor->frobenius}};
        continue;
      }
      layer[name] = {{"frobenius", tensor->frobenius},
                     {"spectral", tensor->spectral},
                     {"head_frobenius", tensor->head_frobenius},
                     {"head_spectral", tensor->head_spectral},
                     {"bias", tensor->bias}};
    }
    if (planning.one_norm) {
      layer["theorem_1"] = {{"norm", report.theorem_holds}};
      layer["gap"] = {{"norm", report.frobenius_gap}};
    } else {
      layer["theorem_1"] = {{"frobenius", report.theorem_holds},
                            {"spectral", report.spectral_holds}};
      layer["qk_norm"] = report.key_norm;
      layer["gap"] = {{"frobenius", report.frobenius_gap},
                      {"spectral", report.spectral_gap},
                      {"gains", json_number(report.gain_gap)}};
    }
  }
  if (!planning.measured_gaps.empty()) {
    layer["measured_gap"] = json_number(planning.measured_gaps[i]);
  }
  const auto& recipes = planning.best.plan.recipes[i];
  layer["key_bits"] = mean_bits(recipes, kvtilt::Role::Keys);
  layer["value_bits"] = mean_bits(recipes, kvtilt::Role::Values);
  for (const Recipe& recipe : recipes) {
    layer["keys"].push_back(kvtilt::to_string(recipe.key));
    layer["values"].push_back(kvtilt::to_string(recipe.value));
  }
  return layer;
}

}  // namespace

std::string planning_legend() {
  return R"(|W_K|, |W_V|: norms of the weights; s_K, s_V: their largest singular values
theorem 1: |W_K| > |W_V|, as "Quantize What Counts" expects
gap: bits that keys need beyond values, from |W_K|/|W_V|, from s_K/s_V, and from losses on a text
formats: bits, c per channel or t per token; g<group> and range rule where not the default
)";
}

std::string planning_text(const Planning& planning) {
  std::string text = layer_table(planning) + "\n";
  std::vector<std::vector<std::string>> rows{{"", "page bits", "bytes a page", "expected loss"}};
  rows.push_back({"plan", format_number(planning.best.page_bits, 3),
                  format_number(static_cast<double>(planning.best.page_bytes), 0),
                  format_scientific(planning.best.loss, 3)});
  if (planning.uniform) {
    const std::string floors = planning.floors_cost ? floors_text(planning) : "";
    rows.push_back({"best uniform" + floors + ": " + uniform_name(planning),
                    format_number(planning.uniform->page_bits, 3),
                    format_number(static_cast<double>(planning.uniform->page_bytes), 0),
                    format_scientific(planning.uniform->loss, 3)});
  }
  text += format_table(rows);
  for (const std::string& warning : planning.warnings) text += "warning: " + warning + "\n";
  return text;
}

ordered_json planning_json(const Planning& planning) {
  ordered_json json{{"source", planning.one_norm ? "norms" : to_string(planning.source)},
                    {"budget", planning.budget},
                    {"key_floor", planning.key_floor},
                    {"value_floor", planning.value_floor},
                    {"page_tokens", planning.page_tokens},
                    {"page_bits", planning.best.page_bits},
                    {"page_bytes", planning.best.page_bytes},
                    {"loss", planning.best.loss}};
  if (planning.uniform) {
    json["uniform"] = {{"keys", kvtilt::to_string(planning.uniform->recipe.key)},
                       {"values", kvtilt::to_string(planning.uniform->recipe.value)},
                       {"page_bits", planning.uniform->page_bits},
                       {"loss", planning.uniform->loss}};
  }
  json["layers"] = ordered_json::array();
  for (std::size_t i = 0; i < planning.shape.layers.size(); ++i) {
    json["layers"].push_back(layer_json(planning, i));
  }
  json["warnings"] = planning.warnings;
  return json;
}

}  // namespace llama
