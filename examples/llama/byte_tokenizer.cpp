// SPDX-License-Identifier: MIT
#include "byte_tokenizer.hpp"

#include "fail.hpp"

namespace llama {

ByteTokenizer::ByteTokenizer(const ModelConfig& config) : begin_token_(config.begin_token) {
  if (config.vocab < 256) {
    fail("a byte tokenizer needs 256 tokens, but the model has ", config.vocab);
  }
}

std::vector<int> ByteTokenizer::encode(std::string_view text) const {
  std::vector<int> tokens;
  tokens.reserve(text.size());
  for (const char byte : text) tokens.push_back(static_cast<unsigned char>(byte));
  return tokens;
}

std::string ByteTokenizer::decode(int /*previous*/, int token) const {
  // Tokens from 256 on, if a model has them, are control tokens without text.
  return token >= 0 && token < 256 ? std::string(1, static_cast<char>(token)) : std::string();
}

}  // namespace llama
