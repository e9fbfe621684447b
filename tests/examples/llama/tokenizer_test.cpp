// SPDX-License-Identifier: MIT
#include "support.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <llama/tokenizer.hpp>

#include <random>

namespace llama {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::unique_ptr<Tokenizer> stories_tokenizer() {
  const auto folder = data_folder("models/stories260K");
  return load_tokenizer(folder, read_config(folder));
}

std::unique_ptr<Tokenizer> novels_tokenizer() {
  const auto folder = data_folder("models/novels-3M");
  return load_tokenizer(folder, read_config(folder));
}

std::string round_trip(const Tokenizer& tokenizer, const std::string& text) {
  std::string decoded;
  int previous = tokenizer.begin_token().value_or(-1);
  for (const int token : tokenizer.encode(text)) {
    decoded += tokenizer.decode(previous, token);
    previous = token;
  }
  return decoded;
}

const std::vector<std::string> texts{
    "Once upon a time, there was a little girl named Lily.",
    "  two spaces, a tab\t and\n\nlines \n",
    "caf\xC3\xA9 \xE2\x82\xAC \xF0\x9F\x90\xB1",  // two, three and four bytes of UTF-8
    "<s></s><unk><0x41>",                         // how control pieces are spelled
    "\xFF\xC3 broken \xE2\x82",
    std::string("zero\0byte", 9),
    " ",
    ""};

TEST(Tokenizer, RoundTripsEveryText) {
  const auto pieces = stories_tokenizer();
  const auto bytes = novels_tokenizer();
  for (const auto& text : texts) {
    EXPECT_EQ(round_trip(*pieces, text), text);
    EXPECT_EQ(round_trip(*bytes, text), text);
  }
  std::mt19937 random(7);
  std::string noise(5000, '\0');
  for (char& c : noise) c = static_cast<char>(random());
  EXPECT_TRUE(round_trip(*pieces, noise) == noise);  // EXPECT_EQ would print the noise
}

TEST(Tokenizer, TakesTheBestMerges) {
  const auto tokenizer = stories_tokenizer();
  EXPECT_EQ(tokenizer->begin_token(), 1);
  EXPECT_FALSE(tokenizer->byte_level());
  EXPECT_THAT(tokenizer->encode("Once upon a time"), ElementsAre(403, 407, 261, 378));
  EXPECT_THAT(tokenizer->encode("\n"), ElementsAre(410, 13));  // a space, then byte 10
  EXPECT_THAT(tokenizer->encode(""), ElementsAre());
}

/// llama2.c's loop: merges the best pair of the whole text until there is none.
std::vector<int> merge_by_scanning(const std::vector<std::string>& pieces,
                                   const std::vector<float>& scores, const std::string& text) {
  std::vector<int> tokens;
  const auto find = [&](const std::string& piece) {
    const auto found = std::find(pieces.begin() + 259, pieces.end(), piece);
    return found == pieces.end() ? -1 : static_cast<int>(found - pieces.begin());
  };
  for (const char c : text) {
    const int id = find(std::string(1, c));
    tokens.push_back(id >= 0 ? id : 3 + static_cast<unsigned char>(c));
  }
  while (true) {
    float best = -1e10F;
    int best_id = -1;
    std::size_t place = 0;
    for (std::size_t i = 0; i + 1 < tokens.size(); ++i) {
      const int id = find(pieces[static_cast<std::size_t>(tokens[i])] +
                          pieces[static_cast<std::size_t>(tokens[i + 1])]);
      if (id >= 0 && scores[static_cast<std::size_t>(id)] > best) {
        best = scores[static_cast<std::size_t>(id)];
        best_id = id;
        place = i;
      }
    }
    if (best_id < 0) return tokens;
    tokens[place] = best_id;
    tokens.erase(tokens.begin() + static_cast<std::ptrdiff_t>(place) + 1);
  }
}

TEST(TokenizerAgreement, QueueAndScanFindTheSameMerges) {
  const TemporaryFolder folder;
  // Few letters and scores with many ties make overlapping merges and equal scores common.
  std::mt19937 random(11);
  std::vector<std::string> pieces{"<unk>", "\n<s>\n", "\n</s>\n"};
  for (int byte = 0; byte < 256; ++byte) pieces.push_back("<byte " + std::to_string(byte) + ">");
  for (const char* letter : {" ", "a", "b", "c"}) pieces.emplace_back(letter);
  while (pieces.size() < 300) {
    const auto pick = [&] { return pieces[259 + random() % (pieces.size() - 259)]; };
    const std::string merged = pick() + pick();
    if (std::find(pieces.begin(), pieces.end(), merged) == pieces.end()) pieces.push_back(merged);
  }
  std::vector<float> scores;
  std::string file(4, '\0');
  for (const auto& piece : pieces) {
    scores.push_back(-static_cast<float>(random() % 8));
    const auto length = static_cast<std::int32_t>(piece.size());
    file.append(reinterpret_cast<const char*>(&scores.back()), 4);
    file.append(reinterpret_cast<const char*>(&length), 4);
    file += piece;
  }
  folder.write("tokenizer.bin", file);
  ModelConfig config;
  config.vocab = static_cast<int>(pieces.size());
  const auto tokenizer = load_tokenizer(folder.path(), config);
  for (int round = 0; round < 200; ++round) {
    std::string text;
    for (std::size_t i = 0; i < 1 + random() % 60; ++i) text += " abcd"[random() % 5];
    EXPECT_EQ(tokenizer->encode(text), merge_by_scanning(pieces, scores, " " + text)) << text;
  }
}

TEST(TokenizerHostile, RefusesDamagedFiles) {
  const TemporaryFolder folder;
  const std::string whole = [] {
    std::ifstream stream(data_folder("models/stories260K/tokenizer.bin"), std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(stream), {});
  }();
  ModelConfig config;
  config.vocab = 512;
  const auto load = [&](const std::string& bytes) {
    folder.write("tokenizer.bin", bytes);
    return error_of([&] { (void)load_tokenizer(folder.path(), config); });
  };
  EXPECT_EQ(load(whole), "");
  EXPECT_THAT(load(""), HasSubstr("ends inside piece 0 of 512"));
  EXPECT_THAT(load(whole.substr(0, whole.size() - 1)), HasSubstr("ends inside piece 511 of 512"));
  EXPECT_THAT(load(whole + "x"), HasSubstr("1 bytes follow the last of 512 pieces"));
  std::string negative = whole;
  negative[11] = '\x80';  // the length of piece 0
  EXPECT_THAT(load(negative), HasSubstr("piece 0 has a length of -"));
  std::string huge = whole;
  huge[11] = '\x7F';
  EXPECT_THAT(load(huge), HasSubstr("piece 0 has a length of 21"));
  std::string nan = whole;
  nan.replace(4, 4, "\xFF\xFF\xFF\xFF");
  EXPECT_THAT(load(nan), HasSubstr("piece 0 has no finite score"));
  config.vocab = 511;
  EXPECT_THAT(load(whole), HasSubstr("bytes follow the last of 511 pieces"));
  config.vocab = 200;
  EXPECT_THAT(load(whole), HasSubstr("no room for the 256 byte pieces"));
}

TEST(TokenizerHostile, SaysWhenThereIsNoTokenizer) {
  const TemporaryFolder folder;
  ModelConfig config;
  config.vocab = 255;
  EXPECT_THAT(error_of([&] { (void)load_tokenizer(folder.path(), config); }),
              HasSubstr("no tokenizer"));
  config.byte_tokens = true;
  EXPECT_THAT(error_of([&] { (void)load_tokenizer(folder.path(), config); }),
              HasSubstr("needs 256 tokens"));
}

}  // namespace
}  // namespace llama
