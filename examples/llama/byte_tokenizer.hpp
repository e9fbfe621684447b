// SPDX-License-Identifier: MIT
// A tokenizer whose tokens are single bytes.
#pragma once

#include "tokenizer.hpp"

namespace llama {

class ByteTokenizer final : public Tokenizer {
 public:
  /// Throws if the vocabulary has fewer than 256 tokens.
  explicit ByteTokenizer(const ModelConfig& config);

  [[nodiscard]] std::vector<int> encode(std::string_view text) const override;
  [[nodiscard]] std::string decode(int previous, int token) const override;
  [[nodiscard]] bool byte_level() const override { return true; }
  [[nodiscard]] std::optional<int> begin_token() const override { return begin_token_; }

 private:
  std::optional<int> begin_token_;
};

}  // namespace llama
