// SPDX-License-Identifier: MIT
// The interface of tokenizers.
#pragma once

#include "config.hpp"

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace llama {

class Tokenizer {
 public:
  Tokenizer() = default;
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;
  virtual ~Tokenizer() = default;

  /// The tokens at the start of a text, without the begin token.
  [[nodiscard]] virtual std::vector<int> encode(std::string_view text) const = 0;

  /// The bytes that `token` adds to a text after `previous`.
  [[nodiscard]] virtual std::string decode(int previous, int token) const = 0;

  /// Whether each token is one byte, so that a loss per token is a loss per byte.
  [[nodiscard]] virtual bool byte_level() const = 0;

  /// The token that starts every text, if the model has one.
  [[nodiscard]] virtual std::optional<int> begin_token() const = 0;
};

/// Loads the byte tokenizer if config.json says so, else llama2.c's tokenizer.bin in the model's
/// folder. Throws if there is neither, or the file is damaged.
std::unique_ptr<Tokenizer> load_tokenizer(const std::filesystem::path& folder,
                                          const ModelConfig& config);

}  // namespace llama
