// SPDX-License-Identifier: MIT
#include "tokenizer.hpp"

#include "byte_tokenizer.hpp"
#include "fail.hpp"
#include "llama2c_tokenizer.hpp"

namespace llama {

std::unique_ptr<Tokenizer> load_tokenizer(const std::filesystem::path& folder,
                                          const ModelConfig& config) {
  if (config.byte_tokens) return std::make_unique<ByteTokenizer>(config);
  const auto file = folder / "tokenizer.bin";
  if (!std::filesystem::exists(file)) {
    fail(folder.string(), ": no tokenizer: this engine reads llama2.c's tokenizer.bin, or takes ",
         "bytes as tokens when config.json says \"tokenizer\": \"bytes\"");
  }
  return std::make_unique<Llama2cTokenizer>(file, config);
}

}  // namespace llama
