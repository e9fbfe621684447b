// SPDX-License-Identifier: MIT
// Compares plans with the allocations of the paper's reference implementation, on the norms that it
// publishes for 12 models. KVTILT_PRINT_TABLE=1 in the environment prints the comparison.
#include <kvtilt/plan/bit_plan.hpp>
#include <kvtilt/plan/norm_losses.hpp>

#include "support/reference_allocator.hpp"

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

namespace kvtilt {
namespace {

using Json = nlohmann::json;

Json read(const std::filesystem::path& file) {
  const std::filesystem::path root =
      std::filesystem::path(__FILE__).parent_path().parent_path().parent_path();
  std::ifstream in(root / file);
  EXPECT_TRUE(in) << file;
  return Json::parse(in);
}

struct PublishedModel {
  std::string name;
  std::vector<double> keys[2];  ///< [Norm][layer]
  std::vector<double> values[2];
  Json answers;
  CacheShape shape;

  /// The norms in the order K0, V0, K1, V1, ...
  [[nodiscard]] std::vector<double> interleaved(Norm norm) const {
    const std::size_t which = static_cast<std::size_t>(norm);
    std::vector<double> list;
    for (std::size_t layer = 0; layer < keys[which].size(); ++layer) {
      list.push_back(keys[which][layer]);
      list.push_back(values[which][layer]);
    }
    return list;
  }

  [[nodiscard]] std::vector<LayerNorms> layer_norms() const {
    std::vector<LayerNorms> norms(keys[0].size());
    for (std::size_t layer = 0; layer < norms.size(); ++layer) {
      norms[layer].keys.frobenius = keys[0][layer];
      norms[layer].keys.spectral = keys[1][layer];
      norms[layer].values.frobenius = values[0][layer];
      norms[layer].values.spectral = values[1][layer];
    }
    return norms;
  }
};

const std::vector<PublishedModel>& published_models() {
  static const std::vector<PublishedModel> models = [] {
    std::vector<PublishedModel> list;
    const Json golden = read("tests/golden/reference_allocations.json");
    for (const auto& [name, answers] : golden.at("models").items()) {
      PublishedModel model;
      model.name = name;
      model.answers = answers;
      for (const Norm norm : {Norm::Frobenius, Norm::Spectral}) {
        const Json norms =
            read(std::string("examples/data/norms/") + to_string(norm) + "_norm/" + name + ".json");
        model.keys[static_cast<std::size_t>(norm)] = norms.at("w_k").get<std::vector<double>>();
        model.values[static_cast<std::size_t>(norm)] = norms.at("w_v").get<std::vector<double>>();
      }
      // All twelve have 8 kv heads; Llama-3.2-1B has heads of 64 channels, the others of 128.
      model.shape = CacheShape::uniform(static_cast<int>(model.keys[0].size()), 8,
                                        name.find("3.2-1B") == std::string::npos ? 128 : 64);
      list.push_back(model);
    }
    return list;
  }();
  return models;
}

Norm norm_of(const Json& allocation) {
  return allocation.at("norm") == "frobenius" ? Norm::Frobenius : Norm::Spectral;
}

TEST(ReferenceGolden, BitsOfAllPublishedModels) {
  const Json golden = read("tests/golden/reference_allocations.json");
  int cases = 0;
  for (const PublishedModel& model : published_models())
    for (const Json& allocation : model.answers.at("bit_allocations")) {
      const std::vector<double> bits = test::reference_bits(
          model.interleaved(norm_of(allocation)),
          golden.at("bit_sets").at(allocation.at("bit_set").get<std::string>()),
          allocation.at("budget"));
      std::string text[2];
      for (std::size_t i = 0; i < bits.size(); ++i)
        for (const auto& [letter, level] : golden.at("bits").items())
          if (bits[i] == level) text[i % 2] += letter;
      EXPECT_EQ(text[0], allocation.at("k")) << model.name << " " << allocation;
      EXPECT_EQ(text[1], allocation.at("v")) << model.name << " " << allocation;
      ++cases;
    }
  EXPECT_EQ(cases, 12 * 24);
}

TEST(ReferenceGolden, GroupsOfAllPublishedModels) {
  int cases = 0;
  for (const PublishedModel& model : published_models())
    for (const Json& allocation : model.answers.at("group_allocations")) {
      const std::vector<int> groups = test::reference_groups(
          model.interleaved(norm_of(allocation)), {16, 32, 64, 128, 256}, allocation.at("budget"));
      std::string text[2];
      for (std::size_t i = 0; i < groups.size(); ++i)
        text[i % 2] += static_cast<char>('A' + std::lround(std::log2(groups[i])) - 4);
      EXPECT_EQ(text[0], allocation.at("k")) << model.name << " " << allocation;
      EXPECT_EQ(text[1], allocation.at("v")) << model.name << " " << allocation;
      ++cases;
    }
  EXPECT_EQ(cases, 12 * 6);
}

constexpr int reference_page = 64;

/// Every width from 1 to 8 with default groups: plans differ only in where the bits go.
FormatChoices default_choices() {
  FormatChoices choices;
  for (int bits = 1; bits <= 8; ++bits) {
    choices.keys.push_back(key_format(bits));
    choices.values.push_back(value_format(bits));
  }
  return choices;
}

struct Outcome {
  std::size_t bytes = 0;
  double loss = 0;
};

/// The bytes and the loss of an allocation of whole bits per layer.
Outcome outcome_of(const CacheShape& shape, const ModelLosses& losses,
                   const std::vector<int>& key_bits, const std::vector<int>& value_bits) {
  Outcome outcome;
  for (std::size_t layer = 0; layer < shape.layers.size(); ++layer) {
    const Recipe recipe =
        *resolve_recipe({key_format(key_bits[layer]), value_format(value_bits[layer])},
                        shape.layers[layer], reference_page);
    outcome.bytes += PageLayout::make(shape.layers[layer], {recipe}, reference_page).bytes;
    outcome.loss += losses.layers[layer][0].keys[static_cast<std::size_t>(key_bits[layer] - 1)] +
                    losses.layers[layer][0].values[static_cast<std::size_t>(value_bits[layer] - 1)];
  }
  return outcome;
}

/// Levels between our widths (a, b) count as the next width, which is also what they take in
/// memory.
std::vector<int> whole_bits(const std::string& letters) {
  std::vector<int> bits;
  for (const char letter : letters)
    bits.push_back(letter == 'a' ? 2 : letter == 'b' ? 4 : letter - '0');
  return bits;
}

Result<BitPlan> plan_within(const PublishedModel& model, const ModelLosses& losses,
                            std::size_t bytes) {
  BitBudget budget;
  budget.page_bytes = bytes;
  return plan_bits(model.shape, reference_page, default_choices(), losses, budget);
}

std::string widths(const BitPlan& plan, Role tensor) {
  double sum = 0;
  for (const auto& recipes : plan.plan.recipes)
    sum += tensor == Role::Keys ? recipes[0].key.bits : recipes[0].value.bits;
  char text[16];
  std::snprintf(text, sizeof text, "%.2f", sum / static_cast<double>(plan.plan.recipes.size()));
  return text;
}

TEST(Reference, PlansPredictNoMoreErrorThanTheReferenceOrUniform) {
  const bool print = std::getenv("KVTILT_PRINT_TABLE") != nullptr;
  if (print)
    std::printf(
        "squared error under the law of plan/error_law.hpp, at the stored size of k<b>v<b>\n"
        "%-15s %-9s %6s %5s | %10s %10s %10s | %9s %9s | plan's bits K, V\n",
        "model", "norm", "budget", "page", "plan", "reference", "uniform", "plan/ref", "plan/unif");
  for (const PublishedModel& model : published_models()) {
    const std::size_t layers = model.shape.layers.size();
    for (const Json& allocation : model.answers.at("bit_allocations")) {
      const Norm norm = norm_of(allocation);
      const auto losses = losses_from_norms(model.shape, reference_page, default_choices(),
                                            model.layer_norms(), norm);
      ASSERT_TRUE(losses.ok()) << losses.message();
      const std::string where = model.name + " " + allocation.dump();

      const Outcome reference = outcome_of(model.shape, *losses, whole_bits(allocation.at("k")),
                                           whole_bits(allocation.at("v")));
      const auto plan = plan_within(model, *losses, reference.bytes);
      ASSERT_TRUE(plan.ok()) << where << plan.message();
      EXPECT_LE(plan->page_bytes, reference.bytes) << where;
      EXPECT_LE(plan->loss, reference.loss * (1 + 1e-12)) << where;

      const int budget = allocation.at("budget");
      const std::vector<int> same(layers, budget);
      const Outcome uniform = outcome_of(model.shape, *losses, same, same);
      const auto beside_uniform = plan_within(model, *losses, uniform.bytes);
      ASSERT_TRUE(beside_uniform.ok()) << where;
      EXPECT_LE(beside_uniform->loss, uniform.loss * (1 + 1e-12)) << where;

      if (!print || allocation.at("bit_set") != "integers_1_8") continue;
      ASSERT_LE(reference.bytes, uniform.bytes) << where;
      std::printf("%-15s %-9s %6d %5.3f | %10.4g %10.4g %10.4g | %9.3f %9.3f | %s %s\n",
                  model.name.c_str(), to_string(norm), budget, beside_uniform->page_bits,
                  beside_uniform->loss, reference.loss, uniform.loss,
                  beside_uniform->loss / reference.loss, beside_uniform->loss / uniform.loss,
                  widths(*beside_uniform, Role::Keys).c_str(),
                  widths(*beside_uniform, Role::Values).c_str());
    }
  }
}

// With the default floor of plans from norms, no layer's keys get the widths that broke every model
// in the paper's tables.
TEST(Reference, PlansKeepTheFloorOfKeys) {
  for (const PublishedModel& model : published_models()) {
    const auto losses = losses_from_norms(model.shape, reference_page, default_choices(),
                                          model.layer_norms(), Norm::Frobenius);
    ASSERT_TRUE(losses.ok());
    const auto plan =
        plan_bits(model.shape, reference_page, default_choices(), *losses, {3.375, 3});
    ASSERT_TRUE(plan.ok()) << plan.message();
    for (const auto& recipes : plan->plan.recipes) EXPECT_GE(recipes[0].key.bits, 3);
  }
}

}  // namespace
}  // namespace kvtilt
