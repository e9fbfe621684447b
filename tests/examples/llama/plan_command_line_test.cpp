// SPDX-License-Identifier: MIT
// The program `plan`, and what `evaluate` does with its files.
#include "programs.hpp"

#include <llama/statistics_file.hpp>

namespace llama {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

const std::string no_tail = "--tail 0 --sinks 0 --chunk 64 ";

class PlanCommandLine : public testing::Test {
 protected:
  TemporaryFolder folder_;

  [[nodiscard]] std::string file(const std::string& name) const {
    return (folder_.path() / name).string();
  }
  [[nodiscard]] nlohmann::json json(const std::string& name) const {
    return nlohmann::json::parse(folder_.read(name));
  }
};

TEST_F(PlanCommandLine, MeasuresAndTheCacheLoadsThePlan) {
  const Outcome planned =
      plan(stories_model + stories_text + "--budget 5 --tokens 600 --probes 1 --page 32 --out " +
           file("p.json") + " --json " + file("figures.json"));
  ASSERT_EQ(planned.status, 0) << planned.output;
  EXPECT_THAT(planned.output, AllOf(HasSubstr("theorem 1"), HasSubstr("gap measured"),
                                    HasSubstr("best uniform"), HasSubstr("written to")));
  const auto figures = json("figures.json").at(0);
  EXPECT_EQ(figures["source"], "measured");
  EXPECT_LE(figures["page_bits"], 5);
  EXPECT_GT(figures["page_bits"], 4.5);
  EXPECT_LE(figures["loss"], figures["uniform"]["loss"]);

  const Outcome judged = evaluate(stories_model + stories_text + no_tail +
                                  "--tokens 600 --skip 0.5 --recipes k2v2 --plan " +
                                  file("p.json") + " --json " + file("rows.json"));
  ASSERT_EQ(judged.status, 0) << judged.output;
  EXPECT_THAT(judged.output, AllOf(HasSubstr("page 32, tail 0"), HasSubstr("\nplan ")));
  const auto rows = json("rows.json");
  ASSERT_EQ(rows.size(), 3U);
  EXPECT_EQ(rows[2]["recipe"], "plan");
  EXPECT_EQ(rows[2]["page_bits"], figures["page_bits"]);
}

TEST_F(PlanCommandLine, APlanSaysWhatItExpectsToBeTransformed) {
  const std::string values = " --hadamard-values ";
  const std::string text = stories_model + stories_text + "--tokens 600 --page 32 ";
  const std::string judge = text + "--recipes k8v8 --plan ";
  ASSERT_EQ(plan(text + values + "--budget 5 --probes 1 --out " + file("p.json")).status, 0);
  EXPECT_EQ(json("p.json")["hadamard"], nlohmann::json::array({"values"}));
  EXPECT_EQ(evaluate(judge + file("p.json") + values).status, 0);
  expect_error(evaluate(judge + file("p.json")),
               "was made for Hadamard transforms of values, not of nothing");

  ASSERT_EQ(evaluate(text + "--hadamard-keys --capture " + file("c")).status, 0);
  ASSERT_EQ(plan("--capture " + file("c") + " --page 32 --budget 5 --out " + file("q.json")).status,
            0);
  EXPECT_EQ(json("q.json")["hadamard"], nlohmann::json::array({"keys"}));
  expect_error(evaluate(judge + file("q.json") + values),
               "was made for Hadamard transforms of keys, not of values");
}

TEST_F(PlanCommandLine, PlansForSeveralBudgetsFromOneMeasurement) {
  const Outcome planned = plan(stories_model + "--budget 5,6.5 --out " + file("p_{}.json"));
  ASSERT_EQ(planned.status, 0) << planned.output;
  EXPECT_THAT(planned.output, Not(HasSubstr("gap measured")));
  const Outcome judged =
      evaluate(stories_model + stories_text + no_tail + "--tokens 200 --recipes k8v8 --plan " +
               file("p_5.json") + " --plan " + file("p_6.5.json") + " --json " + file("rows.json"));
  ASSERT_EQ(judged.status, 0) << judged.output;
  const auto rows = json("rows.json");
  ASSERT_EQ(rows.size(), 4U);
  EXPECT_EQ(rows[2]["recipe"], "plan:p_5.json");
  EXPECT_EQ(rows[3]["recipe"], "plan:p_6.5.json");
  EXPECT_LT(rows[3]["kld_mean"], rows[2]["kld_mean"]);
}

TEST_F(PlanCommandLine, StatisticsOutliveTheRunThatCapturedThem) {
  const Outcome captured =
      evaluate(stories_model + stories_text + "--tokens 1000 --page 32 --recipes k8v8 --capture " +
               file("capture.safetensors"));
  ASSERT_EQ(captured.status, 0) << captured.output;
  EXPECT_THAT(captured.output, testing::ContainsRegex("captured [0-9]+ tokens of every layer"));
  const std::string capture = "--capture " + file("capture.safetensors") + " --page 32 ";
  const Outcome planned = plan(capture + "--budget 5 --per-head --json " + file("alone.json"));
  ASSERT_EQ(planned.status, 0) << planned.output;
  EXPECT_THAT(planned.output, Not(HasSubstr("|W_K| |W_V|")));
  ASSERT_EQ(
      plan(capture + stories_model + "--budget 5 --per-head --json " + file("both.json")).status,
      0);
  EXPECT_EQ(json("alone.json")[0]["loss"], json("both.json")[0]["loss"]);
  EXPECT_EQ(json("alone.json")[0]["source"], "statistics");
  EXPECT_EQ(json("both.json")[0]["layers"][0]["keys"].size(), 4U) << "one format per kv head";
  EXPECT_TRUE(json("both.json")[0]["layers"][0].contains("w_k"));
  expect_error(plan("--capture " + file("capture.safetensors") + " --budget 5"),
               "was captured for pages of 32 tokens; --page is 64");
}

/// Writes a capture of zeros for layers of this shape.
void write_capture(const std::filesystem::path& path, const kvtilt::CacheShape& shape) {
  StatisticsFile file;
  file.page_tokens = 32;
  for (const kvtilt::LayerShape& layer : shape.layers) {
    const auto heads = static_cast<std::size_t>(layer.kv_heads);
    const auto keys = heads * static_cast<std::size_t>(layer.key_dim);
    const auto values = heads * static_cast<std::size_t>(layer.value_dim);
    kvtilt::CapturedLayer& captured = file.layers.emplace_back();
    captured.tokens = 32;
    captured.kv_heads = layer.kv_heads;
    captured.key_dim = layer.key_dim;
    captured.value_dim = layer.value_dim;
    captured.keys.resize(32 * keys);
    captured.values.resize(32 * values);
    captured.query_square.resize(keys);
    captured.attention.resize(32 * heads);
    captured.key_attention.resize(32 * heads);
    captured.output_square.resize(values);
    captured.weight = 1;
  }
  write_statistics(path, file);
}

TEST_F(PlanCommandLine, CapturesOfOtherHeadsAreRefused) {
  const auto refused = [&](const kvtilt::LayerShape& odd, const std::string& sentence) {
    auto shape = kvtilt::CacheShape::uniform(5, 4, 8);
    shape.layers[3] = odd;
    write_capture(file("c"), shape);
    const Outcome outcome =
        plan(stories_model + "--capture " + file("c") + " --page 32 --budget 5");
    expect_error(outcome, "/c: layer 3 has " + sentence + " channels (keys, values), ");
    EXPECT_THAT(outcome.output, HasSubstr("has 4 of 8 and 8"));
  };
  refused({8, 8, 8}, "8 kv heads of 8 and 8");
  refused({4, 16, 8}, "4 kv heads of 16 and 8");
  refused({4, 8, 16}, "4 kv heads of 8 and 16");
  write_capture(file("c"), kvtilt::CacheShape::uniform(4, 4, 8));
  expect_error(plan(stories_model + "--capture " + file("c") + " --page 32 --budget 5"),
               "/c: has 4 layers, ");
}

TEST_F(PlanCommandLine, TextsOnWhichNothingReadsCodesAreRefused) {
  const std::string text = stories_model + stories_text + "--probes 1 --budget 5 ";
  expect_error(plan(text + "--tokens 63"),
               "the longest piece has 64 tokens (of --tokens 63 and a "
               "context of 512), 65 are needed");
  expect_error(
      plan(text + "--tokens 67 --tail 32 --sinks 4 --page 32"),
      "with pages of 32 tokens, a tail of 32 and 4 sinks: the longest piece has 68 tokens");
  const Outcome beyond =
      plan(text + "--tokens 68 --tail 32 --sinks 4 --page 32 --json " + file("beyond.json"));
  ASSERT_EQ(beyond.status, 0) << beyond.output;
  EXPECT_GT(json("beyond.json")[0]["loss"], 1e-6);
  expect_error(plan(text + "--tokens 2000 --context 60"),
               "the longest piece has 60 tokens (of --tokens 2000 and a context of 60), 65 are");
  expect_error(plan(text + "--tokens 31 --page 32"), "with pages of 32 tokens, a tail of 0");
  folder_.write("short.txt", "Once there was a cat.<|endoftext|>It was red.<|endoftext|>");
  expect_error(plan(stories_model + "--text " + file("short.txt") + " --share 1 --budget 5"),
               "short.txt: nothing can be measured with pages of 64 tokens");
  const Outcome least = plan(text + "--tokens 32 --page 32 --json " + file("least.json"));
  ASSERT_EQ(least.status, 0) << least.output;
  EXPECT_GT(json("least.json")[0]["loss"], 1e-6);
}

TEST_F(PlanCommandLine, BudgetsBeyondAllWidthsGetTheWidest) {
  const Outcome planned = plan(stories_model + stories_text + "--page 32 --tokens 100 --probes 1 " +
                               "--budget 5,11 --json " + file("figures.json"));
  ASSERT_EQ(planned.status, 0) << planned.output;
  const auto layers = json("figures.json").at(1)["layers"];
  ASSERT_EQ(layers.size(), 5U);
  for (const auto& layer : layers) {
    EXPECT_EQ(layer["key_bits"], 8);
    EXPECT_EQ(layer["value_bits"], 8);
  }
  EXPECT_EQ(
      plan(stories_model + stories_text + "--page 32 --tokens 100 --probes 1 --budget 11").status,
      0);
}

TEST_F(PlanCommandLine, WorksFromPublishedNormsAlone) {
  folder_.write("norms.json", R"({"w_k": [40, 30, 9], "w_v": [10, 12, 11]})");
  const Outcome outcome = plan("--norms " + file("norms.json") + " --kv-heads 4 --head-dim 64 " +
                               "--budget 3.5 --json " + file("figures.json"));
  ASSERT_EQ(outcome.status, 0) << outcome.output;
  EXPECT_THAT(outcome.output, AllOf(HasSubstr("holds"), HasSubstr("fails"),
                                    HasSubstr("warning: layer 2: W_V"), Not(HasSubstr("s_K  "))));
  const auto layers = json("figures.json")[0]["layers"];
  ASSERT_EQ(layers.size(), 3U);
  for (const auto& layer : layers) {
    EXPECT_GE(layer["key_bits"], 3) << "the floors of norm plans";
    EXPECT_GE(layer["value_bits"], 2);
  }
  const Outcome free = plan("--norms " + file("norms.json") + " --kv-heads 4 --head-dim 64 " +
                            "--budget 3 --value-floor 0");
  EXPECT_THAT(free.output, HasSubstr("layer 0: values get 1 bit"));
}

TEST_F(PlanCommandLine, RowsSkipTheTextThatThePlanHasSeen) {
  const std::string novels = "--model " + data_folder("models/novels-3M").string() + " --text " +
                             data_folder("text/novels_heldout.txt").string() + " ";
  const Outcome outcome =
      evaluate(novels + "--skip 0.25 --tokens 50 --context 60 --recipes k4v4:g32,32,3c:min-max/2t");
  ASSERT_EQ(outcome.status, 0) << outcome.output;
  EXPECT_THAT(outcome.output, AllOf(HasSubstr("from byte 175970 on: 50 predictions"),
                                    HasSubstr("\nk4v4:g32,32 "), HasSubstr("\n3c:min-max/2t ")));
}

TEST_F(PlanCommandLine, OptionsThatNothingReadsAreRefused) {
  folder_.write("norms.json", R"({"w_k": [40], "w_v": [10]})");
  const std::string model = stories_model + "--budget 5 ";
  const std::string norms = "--norms " + file("norms.json") + " --budget 5 ";
  expect_error(plan(model + stories_text + "--from spectral"),
               "--from spectral looks at weights alone: it cannot go with --text");
  expect_error(plan(model + "--capture /nowhere/c --from frobenius"),
               "--from frobenius looks at weights alone: it cannot go with --capture");
  expect_error(plan(model + "--kv-heads 4"), "--kv-heads is only for a norm file");
  expect_error(plan(model + "--head-dim 64"), "--head-dim is only for a norm file");
  expect_error(plan(model + "--share 0.5"), "--share is only for a text");
  expect_error(plan(norms + "--tokens 100"), "--tokens is only for a text");
  expect_error(plan("--capture /nowhere/c --budget 5 --context 100"), "--context is only for a");
  expect_error(plan(model + "--hadamard-values"), "--hadamard-values is only for a text");
  expect_error(plan(model + "--probes 2"), "--probes is only for measuring");
  expect_error(plan(model + "--tail 128"), "--tail is only for measuring");
  expect_error(plan(model + stories_text + "--from statistics --sinks 4"),
               "--sinks is only for measuring");
  expect_error(plan(model + stories_text + "--from statistics --probes 2"),
               "--probes is only for measuring");
}

TEST_F(PlanCommandLine, OldFilesStayWhereItFails) {
  folder_.write("norms.json", R"({"w_k": [40], "w_v": [10]})");
  folder_.write("old.json", "old");
  const std::string norms = "--norms " + file("norms.json") + " --json " + file("old.json") + " ";
  expect_error(plan(norms + "--budget 2"), "the smallest that works");
  expect_error(plan(norms + "--budget 3 --out /nowhere/p.json"),
               "--out: /nowhere/p.json: cannot be");
  expect_error(plan(norms + "--budget 3 --out " + folder_.path().string()), "not a regular file");
  expect_error(plan(norms + "--budget 3 --out " + folder_.path().string() + "/./old.json"),
               "--json and --out would write the same file, ");
  expect_error(plan(norms + "--budget 3,4 --out /nowhere/p_{}.json"),
               "--out: /nowhere/p_3.json: cannot be written");
  EXPECT_EQ(folder_.read("old.json"), "old");
  ASSERT_EQ(plan(norms + "--budget 3").status, 0);
  EXPECT_EQ(json("old.json").size(), 1U);
}

TEST_F(PlanCommandLine, NamesNeedNotBeUtf8) {
  std::filesystem::create_directory_symlink(data_folder("models/stories260K"), file("m\xff"));
  const std::string model = "--model " + file("m\xff") + " ";
  const std::string recipe = file("p\xff.json");
  const Outcome planned = plan(model + "--budget 5 --out " + recipe);
  ASSERT_EQ(planned.status, 0) << planned.output;
  EXPECT_THAT(json("p\xff.json")["made_by"].get<std::string>(),
              AllOf(HasSubstr("/m? --budget 5 --out "), HasSubstr("/p?.json")));
  std::filesystem::copy_file(recipe, file("\xc3\xa4.json"));
  const Outcome judged =
      evaluate(model + stories_text + "--tokens 100 --recipes k8v8 --plan " + recipe + " --plan " +
               file("\xc3\xa4.json") + " --capture " + file("c") + " --json " + file("rows.json"));
  ASSERT_EQ(judged.status, 0) << judged.output;
  EXPECT_EQ(json("rows.json")[2]["recipe"], "plan:p?.json");
  EXPECT_EQ(json("rows.json")[3]["recipe"], "plan:\xc3\xa4.json");
}

TEST_F(PlanCommandLine, SaysWhatIsWrong) {
  folder_.write("norms.json", R"({"w_k": [40], "w_v": [10]})");
  const std::string norms = "--norms " + file("norms.json") + " ";
  expect_error(plan("--budget 3"), "give --model, --norms or --capture");
  expect_error(plan("--budget 3 " + stories_text), "needs a model that reads it");
  expect_error(plan(stories_model + "--budget 3 --from measured"), "give --text");
  expect_error(plan(stories_model + stories_text + "--budget 3 --capture " + file("c")),
               "give one of them");
  expect_error(plan(stories_model + "--budget 3 --from statistics"), "--text or --capture");
  expect_error(plan(norms + stories_model + "--budget 3"), "--norms stands alone");
  expect_error(plan(norms + "--budget 3 --per-head"), "norms of each head");
  expect_error(plan(norms + "--budget 2"), "values of at least 2 the smallest that works is 2.875");
  expect_error(plan(norms + "--budget 3 --formats 2,4 --key-floor 5"), "at least 5 bits");
  expect_error(plan(norms + "--budget 3 --formats 2,x4"), "format 'x4' does not exist");
  expect_error(plan(norms + "--budget 3,4 --out " + file("p.json")), "write {} where the budget");
  expect_error(plan(norms + "--budget 4.5,5,4.5000001 --out " + file("p_{}.json")),
               "/p_4.5.json would be written for several of the budgets");
  expect_error(plan(norms + "--budget 3 --out /nowhere/p.json"),
               "--out: /nowhere/p.json: cannot be written");
  expect_error(plan(norms + "--budget 3 --json /nowhere/p.json"), "cannot be written");
  expect_error(plan("--norms /nowhere/n.json --budget 3"), "/nowhere/n.json");
  expect_error(plan("--model /nowhere --budget 3"), "/nowhere");
  expect_error(plan(stories_model + stories_text + "--budget 3 --context 513"),
               "beyond the model's 512");
  expect_error(plan(stories_model + stories_text + "--budget 3 --share 0"),
               "too short to plan from");
  EXPECT_NE(plan(stories_model).status, 0);
  EXPECT_NE(plan(norms + "--budget -3").status, 0);
  EXPECT_NE(plan(norms + "--budget nothing").status, 0);
  for (const std::string none : {"nan", "-nan", "inf"}) {
    EXPECT_THAT(plan(norms + "--budget 3," + none).output, HasSubstr("--budget: Value " + none));
    EXPECT_THAT(plan(stories_model + stories_text + "--budget 3 --share " + none).output,
                HasSubstr("--share: Value " + none));
    EXPECT_THAT(evaluate(stories_model + stories_text + "--skip " + none).output,
                HasSubstr("--skip: Value " + none));
    EXPECT_THAT(generate(stories_model + "--temperature " + none).output,
                HasSubstr("--temperature: Value " + none));
  }
  EXPECT_NE(plan(norms + "--budget 3 --from guesses").status, 0);
  EXPECT_NE(plan(norms + "--budget 3 --page 48").status, 0);
  EXPECT_NE(plan(norms + "--budget 3 --share 1.5").status, 0);

  ASSERT_EQ(plan(norms + "--budget 4 --out " + file("other.json")).status, 0);
  expect_error(evaluate(stories_model + stories_text + "--plan " + file("other.json")),
               "was made for 1 layers, the model has 5");
  ASSERT_EQ(plan(stories_model + "--budget 5 --out " + file("good.json")).status, 0);
  expect_error(evaluate(stories_model + stories_text + "--page 32 --plan " + file("good.json")),
               "made for pages of 64 tokens, the cache has 32");
  folder_.write("broken.json", "{\"kvtilt_recipe\": 2}");
  expect_error(evaluate(stories_model + stories_text + "--plan " + file("broken.json")),
               "broken.json:1");
  expect_error(evaluate(stories_model + stories_text + "--plan /nowhere/p.json"),
               "/nowhere/p.json");
  expect_error(evaluate(stories_model + stories_text + "--skip 1"), "too short");
  EXPECT_NE(evaluate(stories_model + stories_text + "--skip 1.5").status, 0);
  EXPECT_NE(evaluate(stories_model + stories_text + "--chunk 0").status, 0);
}

}  // namespace
}  // namespace llama
