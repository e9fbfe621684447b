// SPDX-License-Identifier: MIT
// What the programs print, what they refuse, and their exit status.
#include "programs.hpp"

namespace llama {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

TEST(CommandLine, GenerateWritesTextAndTable) {
  const Outcome outcome = generate(
      stories_model + "--prompt 'Once upon a time' --recipe k4v2 --tokens 120 --page 32 --tail 32");
  EXPECT_EQ(outcome.status, 0);
  EXPECT_THAT(outcome.output,
              AllOf(testing::StartsWith("Once upon a time, there was"), HasSubstr("cache bytes"),
                    HasSubstr("\nk4v2 "), HasSubstr("\n16 bits "), HasSubstr("wrote the same")));
}

TEST(CommandLine, GenerateSaysWhatDraftsWereWorth) {
  const std::string arguments =
      stories_model + "--prompt 'Once upon a time' --recipe k4v2 --tokens 120 --page 32 --tail 0";
  const std::string plain = generate(arguments).output;
  const Outcome drafted = generate(arguments + " --draft 6");
  EXPECT_EQ(drafted.status, 0);
  EXPECT_THAT(drafted.output, testing::ContainsRegex(
                                  "[0-9]+ of [0-9]+ drafted tokens accepted; 119 tokens in [0-9]+ "
                                  "forward passes"));
  const auto story = plain.substr(0, plain.find("\n\nrecipe"));
  EXPECT_THAT(drafted.output, testing::StartsWith(story + "\n\nrecipe"));
  EXPECT_THAT(plain, Not(HasSubstr("drafted")));
}

TEST(CommandLine, GenerateRunsTheBaselineAlone) {
  const Outcome outcome =
      generate(stories_model + "--recipe f16 --tokens 20 --temperature 0.7 --seed 3");
  EXPECT_EQ(outcome.status, 0);
  EXPECT_THAT(outcome.output, AllOf(HasSubstr("\nf16 "), Not(HasSubstr("16 bits "))));
}

TEST(CommandLine, GenerateGoesOnFromASavedPrompt) {
  const TemporaryFolder folder;
  const std::string file = (folder.path() / "prompt").string();
  const std::string common = stories_model + "--recipe k4v2 --tokens 30 --page 32 --tail 32 ";
  const Outcome saved = generate(common + "--prompt 'Once upon a time, there was' --save " + file);
  EXPECT_EQ(saved.status, 0);
  EXPECT_THAT(saved.output, HasSubstr("bytes of cache saved in "));
  const Outcome loaded = generate(common + "--prompt ' a little dog' --load " + file);
  EXPECT_EQ(loaded.status, 0);
  EXPECT_THAT(loaded.output,
              AllOf(testing::StartsWith(" a little dog"), Not(HasSubstr("16 bits "))));
  const Outcome other =
      generate(stories_model + "--recipe k4v4 --prompt x --load " + file + " --page 32 --tail 32");
  EXPECT_NE(other.status, 0);
  EXPECT_THAT(other.output, HasSubstr("of another cache: layer 0, kv head 0: values have 2 bits"));

  const TemporaryFolder tuned;  // the same shapes, another number
  for (const auto& entry : std::filesystem::directory_iterator(data_folder("models/stories260K"))) {
    std::filesystem::copy(entry.path(), tuned.path());
  }
  std::string weights = tuned.read("model.safetensors");
  weights[weights.size() - 2] ^= 1;
  tuned.write("model.safetensors", weights);
  expect_error(generate("--model " + tuned.path().string() +
                        " --recipe k4v2 --page 32 --tail 32 --prompt x --load " + file),
               "of another model: the fingerprint is ");
  folder.write("prompt", "");
  EXPECT_THAT(generate(common + "--prompt x --load " + file).output,
              HasSubstr("0 bytes are no saved sequence"));
}

TEST(CommandLine, KeepGoesOnWhenTheContextIsFull) {
  const std::string context = "--page 32 --tail 32 ";
  const std::string novels = "--model " + data_folder("models/novels-3M").string() + " ";
  const std::string text =
      novels + context + "--recipe k8v8 --tokens 60 --prompt " + std::string(1000, 'x') + " ";
  EXPECT_THAT(generate(text).output, HasSubstr("context of 1024 tokens is full"));
  const Outcome story = generate(text + "--keep 40");
  EXPECT_EQ(story.status, 0);
  EXPECT_THAT(story.output, Not(HasSubstr("is full")));
  EXPECT_EQ(story.output.find("\n\nrecipe"), 1060U);  // every token is a byte
  const Outcome outcome = evaluate(stories_model + stories_text + context +
                                   "--keep 40 --context 700 --tokens 900 --recipes k4v2");
  EXPECT_EQ(outcome.status, 0);
  EXPECT_THAT(outcome.output,
              HasSubstr("a full context of 512 loses its older half, except the first 68 tokens"));
  expect_error(generate(stories_model + "--keep 490"), "holds no page of 64 to remove");
  expect_error(generate(stories_model + "--recipe f16 --keep 4 --page 0"), "page_tokens is 0");
  expect_error(evaluate(stories_model + stories_text + "--keep 490"), "holds no page");
  EXPECT_NE(evaluate(stories_model + stories_text + "--keep -1").status, 0);
  EXPECT_NE(generate(stories_model + "--keep -1").status, 0);
  EXPECT_NE(evaluate(stories_model + stories_text + "--keep 4 --capture x").status, 0);
}

TEST(CommandLine, EvaluatePrintsATableAndWritesJson) {
  const TemporaryFolder folder;
  const auto json_path = (folder.path() / "figures.json").string();
  const Outcome outcome =
      evaluate(stories_model + stories_text + "--tokens 600 --page 32 --tail 32 " +
               "--recipes k8v8,f16,k2v4,k8v8 --json " + json_path);
  EXPECT_EQ(outcome.status, 0);
  EXPECT_THAT(outcome.output, AllOf(HasSubstr("600 predictions in 2 pieces"),
                                    HasSubstr("perplexity"), HasSubstr("\nf16 ")));
  const auto json = nlohmann::ordered_json::parse(folder.read("figures.json"));
  ASSERT_EQ(json.size(), 3U);
  const std::vector<std::string> recipes{"f16", "k8v8", "k2v4"};
  const std::vector<std::string> keys{
      "recipe", "page_bits",  "effective_bits", "cache_bytes", "quantized_share",
      "nll",    "kld_mean",   "kld_mean_error", "kld_p99",     "kld_max",
      "top1",   "top1_error", "tokens_per_s"};
  for (std::size_t i = 0; i < json.size(); ++i) {
    EXPECT_EQ(json[i]["recipe"], recipes[i]);
    std::vector<std::string> found;
    for (const auto& [key, value] : json[i].items()) found.push_back(key);
    EXPECT_EQ(found, keys);
  }
  EXPECT_LT(json[1]["kld_mean"], json[2]["kld_mean"]);
}

TEST(CommandLine, EvaluatePrintsBitsPerByteForByteModels) {
  const std::string novels = "--model " + data_folder("models/novels-3M").string() + " --text " +
                             data_folder("text/novels_heldout.txt").string();
  const Outcome outcome = evaluate(novels + " --tokens 100 --context 60 --recipes k8v8");
  EXPECT_EQ(outcome.status, 0);
  EXPECT_THAT(outcome.output, AllOf(HasSubstr("100 predictions in 2 pieces of at most 60 tokens"),
                                    HasSubstr("bits/byte"), Not(HasSubstr("perplexity"))));
}

TEST(CommandLine, EvaluateTakesAnArithmetic) {
  const TemporaryFolder folder;
  std::vector<double> divergences;
  for (const std::string arithmetic : {"fast", "exact"}) {
    const auto path = (folder.path() / arithmetic).string();
    const Outcome outcome =
        evaluate(stories_model + stories_text + "--tokens 400 --page 32 --tail 0 " +
                 "--recipes k4v2 --arithmetic " + arithmetic + " --json " + path);
    EXPECT_EQ(outcome.status, 0);
    EXPECT_THAT(outcome.output, HasSubstr(arithmetic + " arithmetic\n"));
    divergences.push_back(
        nlohmann::json::parse(folder.read(arithmetic)).at(1).at("kld_mean").get<double>());
  }
  EXPECT_NEAR(divergences[0], divergences[1], 0.2 * divergences[1]);
}

TEST(CommandLine, HelpExplainsTheColumns) {
  EXPECT_THAT(evaluate("--help").output,
              AllOf(HasSubstr("quantized_share"), HasSubstr("weighted by their tokens"),
                    HasSubstr("{fast,exact}")));
  EXPECT_EQ(generate("--help").status, 0);
}

TEST(CommandLineHostile, GenerateSaysWhatIsWrong) {
  expect_error(generate(stories_model + "--recipe k9v2"), "k9v2");
  expect_error(generate(stories_model + "--recipe nonsense"), "nonsense");
  expect_error(generate("--model /nowhere"), "/nowhere/config.json: no such file");
  expect_error(generate(stories_model + "--page 48"), "48");
  expect_error(generate(stories_model + "--sinks -1"), "-1");
  EXPECT_NE(generate("").status, 0);
  EXPECT_NE(generate(stories_model + "--tokens 0").status, 0);
  EXPECT_NE(generate(stories_model + "--tokens ten").status, 0);
  EXPECT_NE(generate(stories_model + "--temperature -1").status, 0);
  EXPECT_NE(generate(stories_model + "--draft 16").status, 0);
  EXPECT_NE(generate(stories_model + "--draft -1").status, 0);
  EXPECT_NE(generate(stories_model + "--unknown").status, 0);
  const TemporaryFolder damaged("llama_f32");
  damaged.write("model.safetensors", damaged.read("model.safetensors").substr(0, 5000));
  expect_error(generate("--model " + damaged.path().string()), "truncated");
}

TEST(CommandLineHostile, NumbersThatAreNoneAreReported) {
  const TemporaryFolder folder;
  for (const std::string file : {"config.json", "tokenizer.bin", "model.safetensors"}) {
    std::filesystem::copy(data_folder("models/stories260K") / file, folder.path());
  }
  std::string weights = folder.read("model.safetensors");
  std::uint64_t header = 0;
  std::memcpy(&header, weights.data(), sizeof header);
  weights.replace(8 + header + 131072, 4, "\xFF\xFF\xFF\x7F");  // in the last norm: a NaN
  folder.write("model.safetensors", weights);
  const std::string broken = "--model " + folder.path().string() + " ";
  expect_error(generate(broken + "--recipe f16"), "logits are not finite at position 0");
  const Outcome outcome = evaluate(broken + stories_text + "--tokens 9");
  EXPECT_EQ(outcome.status, 1);
  EXPECT_THAT(outcome.output, HasSubstr("error: the model's logits are not finite"));
}

TEST(CommandLineHostile, EvaluateKeepsOldFilesWhereItFails) {
  const TemporaryFolder folder;
  folder.write("figures.json", "old");
  folder.write("capture", "old");
  const std::string json = "--json " + (folder.path() / "figures.json").string() + " ";
  const std::string capture = "--capture " + (folder.path() / "capture").string() + " ";
  const std::string few = stories_model + stories_text + "--tokens 5 ";
  // The text is shorter than a page, so there is nothing to capture.
  EXPECT_EQ(evaluate(few + json + capture).status, 1);
  expect_error(evaluate(few + json + "--capture /nowhere/c"), "--capture: /nowhere/c: cannot be");
  expect_error(evaluate(few + json + "--capture " + folder.path().string() + "/./figures.json"),
               "--capture and --json would write the same file, ");
  EXPECT_EQ(folder.read("figures.json"), "old");
  EXPECT_EQ(folder.read("capture"), "old");
  EXPECT_EQ(evaluate(few + json + "--recipes k8v8").status, 0);
  EXPECT_EQ(nlohmann::json::parse(folder.read("figures.json")).size(), 2U);
}

TEST(CommandLineHostile, EvaluateSaysWhatIsWrong) {
  const TemporaryFolder folder;
  folder.write("empty.txt", "");
  expect_error(evaluate(stories_model + "--text /nowhere/text"), "/nowhere/text: cannot be opened");
  expect_error(evaluate(stories_model + stories_text + "--recipes k4v2,k4w2"), "k4w2");
  expect_error(evaluate(stories_model + stories_text + "--tokens 5 --json /nowhere/file"),
               "cannot be written");
  expect_error(evaluate(stories_model + stories_text + "--context 513"), "beyond the model's 512");
  expect_error(evaluate(stories_model + "--text " + (folder.path() / "empty.txt").string()),
               "too short");
  EXPECT_NE(evaluate(stories_model + stories_text + "--tokens 0").status, 0);
  EXPECT_NE(evaluate(stories_model + stories_text + "--tokens -4").status, 0);
  EXPECT_NE(evaluate(stories_model).status, 0);
  EXPECT_NE(evaluate(stories_model + stories_text + "--tokens 5 --arithmetic quick").status, 0);
  EXPECT_NE(evaluate(stories_model + stories_text + "--tokens 5 --arithmetic 7").status, 0);
}

}  // namespace
}  // namespace llama
