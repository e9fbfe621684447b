// SPDX-License-Identifier: MIT
// The tokenizer of karpathy/llama2.c: byte pair merges in order of score, with raw bytes for what
// no piece covers.
//
// tokenizer.bin, little endian: int32 length of the longest piece, then for each of vocab_size
// pieces float32 score, int32 length, bytes. Piece 1 begins a text, pieces 3 to 258 are the 256
// bytes.
#pragma once

#include "tokenizer.hpp"

#include <cstddef>
#include <span>
#include <unordered_map>

namespace llama {

class Llama2cTokenizer final : public Tokenizer {
 public:
  /// Throws a sentence naming the file if it is damaged or does not have config.vocab pieces.
  Llama2cTokenizer(const std::filesystem::path& file, const ModelConfig& config);

  /// The tokens of " " + text: pieces include the space before a word, also that of the first word.
  /// Cost: O(n log n) in the text's length.
  [[nodiscard]] std::vector<int> encode(std::string_view text) const override;
  /// Drops the leading space of the text's first piece.
  [[nodiscard]] std::string decode(int previous, int token) const override;
  [[nodiscard]] bool byte_level() const override { return false; }
  [[nodiscard]] std::optional<int> begin_token() const override { return begin_token_; }

 private:
  struct Piece {
    std::string text;
    float score = 0;
  };

  void read(const std::string& name, std::span<const std::byte> bytes, int vocab);
  [[nodiscard]] std::vector<int> split(std::string_view text) const;
  [[nodiscard]] std::optional<int> find(const std::string& text) const;

  std::vector<Piece> pieces_;
  std::unordered_map<std::string, int> ids_;  // of the pieces that text can become
  int begin_token_ = 1;
};

}  // namespace llama
