// SPDX-License-Identifier: MIT
#include "support.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <llama/byte_tokenizer.hpp>
#include <llama/pieces.hpp>
#include <llama/text_file.hpp>

namespace llama {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using Pieces = std::vector<std::vector<int>>;

/// The pieces as text; '^' stands for a begin token.
std::vector<std::string> cut(std::string_view text, int context, bool with_begin = false) {
  ModelConfig config;
  config.vocab = 256;
  if (with_begin) config.begin_token = '^';
  std::vector<std::string> pieces;
  for (const auto& piece : cut_pieces(text, ByteTokenizer(config), context)) {
    pieces.emplace_back(piece.begin(), piece.end());
  }
  return pieces;
}

TEST(Pieces, AreCutAtMarkersAndStripped) {
  EXPECT_THAT(cut("one <|endoftext|>\n two\t\n<|endoftext|>", 9), ElementsAre("one", "two"));
  EXPECT_THAT(cut("<|endoftext|>a<|endoftext|> \n <|endoftext|>bcd", 9), ElementsAre("bcd"));
  EXPECT_THAT(cut("longer than that<|endoftext|>next", 6), ElementsAre("longer", "next"));
  EXPECT_THAT(cut("<|endoftext|>", 9), IsEmpty());
}

TEST(Pieces, AreAsLongAsTheContextWhenThereAreNoMarkers) {
  EXPECT_THAT(cut(" abcdefgh\n", 3), ElementsAre("abc", "def", "gh"));
  EXPECT_THAT(cut("abcdefg", 3), ElementsAre("abc", "def"));  // "g" predicts nothing
  EXPECT_THAT(cut("", 3), IsEmpty());
}

TEST(Pieces, StartWithTheBeginTokenAndCountIt) {
  EXPECT_THAT(cut("ab<|endoftext|>cdef", 4, true), ElementsAre("^ab", "^cde"));
  EXPECT_THAT(cut("abcdefg", 4, true), ElementsAre("^abc", "^def", "^g"));
  EXPECT_THAT(cut("abc", 1, true), IsEmpty());
}

TEST(Pieces, StopAfterTheWantedPredictions) {
  const Pieces pieces{{1, 2, 3}, {4, 5}, {6, 7, 8, 9}};  // 2, 1 and 3 predictions
  const auto limited = [&](long limit) {
    Pieces copy = pieces;
    limit_predictions(copy, limit);
    return copy;
  };
  EXPECT_EQ(limited(1), (Pieces{{1, 2}}));
  EXPECT_EQ(limited(2), (Pieces{{1, 2, 3}}));
  EXPECT_EQ(limited(3), (Pieces{{1, 2, 3}, {4, 5}}));
  EXPECT_EQ(limited(4), (Pieces{{1, 2, 3}, {4, 5}, {6, 7}}));
  EXPECT_EQ(limited(6), pieces);
  EXPECT_EQ(limited(7), pieces);
}

TEST(PiecesGolden, TheStoriesAskForTheKnownNumberOfPredictions) {
  const auto folder = data_folder("models/stories260K");
  const auto config = read_config(folder);
  const auto tokenizer = load_tokenizer(folder, config);
  const auto pieces = cut_pieces(read_text_file(data_folder("text/tinystories_317.txt")),
                                 *tokenizer, config.context);
  ASSERT_EQ(pieces.size(), 317U);
  std::size_t predictions = 0;
  std::size_t of_155 = 0;
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    predictions += pieces[i].size() - 1;
    if (i < 155) of_155 += pieces[i].size() - 1;
    EXPECT_EQ(pieces[i][0], 1);
  }
  EXPECT_EQ(predictions, 127847U);
  EXPECT_EQ(of_155, 60188U);
}

TEST(Pieces, WhatOneCommandReadsAnotherSkips) {
  const auto parts = [](std::string_view text, double share) {
    const auto [first, rest] = split_text(text, share);
    return std::string(first) + "|" + std::string(rest);
  };
  EXPECT_EQ(parts("abcdefgh", 0.25), "ab|cdefgh");
  EXPECT_EQ(parts("abcdefgh", 0), "|abcdefgh");
  EXPECT_EQ(parts("abcdefgh", 1), "abcdefgh|");
  EXPECT_EQ(parts("a\xc3\xa4"
                  "bc",
                  0.5),
            "a\xc3\xa4|bc")
      << "within a character";
  EXPECT_EQ(parts("one<|endoftext|>two<|endoftext|>three", 0.25),
            "one<|endoftext|>two|<|endoftext|>three");
  EXPECT_EQ(parts("one<|endoftext|>two", 0.9), "one<|endoftext|>two|");
  EXPECT_EQ(parts("one<|endoftext|>two", 0), "|one<|endoftext|>two");
}

TEST(Pieces, AreSpreadOverTheTextWhenThereAreTooMany) {
  const auto spread = [](int count, long limit) {
    Pieces pieces;
    for (int i = 0; i < count; ++i) pieces.push_back({i, i, i});  // two predictions each
    spread_predictions(pieces, limit);
    std::vector<int> first;
    for (const auto& piece : pieces) first.push_back(piece[0]);
    return first;
  };
  EXPECT_THAT(spread(6, 100), ElementsAre(0, 1, 2, 3, 4, 5));
  EXPECT_THAT(spread(6, 6), ElementsAre(0, 2, 4));
  EXPECT_THAT(spread(7, 4), ElementsAre(0, 4));
  EXPECT_THAT(spread(6, 1), ElementsAre(0));
  EXPECT_THAT(spread(0, 5), IsEmpty());
}

}  // namespace
}  // namespace llama
