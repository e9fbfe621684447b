// SPDX-License-Identifier: MIT
/// Any bytes give a GGUF file or an error; of a file, every value and every tensor is read.
#include <kvtilt/io/gguf.hpp>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t size) {
  using kvtilt::ErrorCode;
  const auto file = kvtilt::GgufFile::parse(std::as_bytes(std::span(bytes, size)), "f");
  if (!file) {
    const bool expected =
        file.code() == ErrorCode::Corrupt || file.code() == ErrorCode::Unsupported;
    if (!expected || file.message().empty()) std::abort();
    return 0;
  }
  std::size_t total = 0;
  for (const auto& [name, tensor] : file->tensors()) {
    total += tensor.bytes.size();
    const auto floats = kvtilt::read_floats(tensor);
    const bool readable = tensor.type.encoding != kvtilt::Encoding::None;
    if (floats.ok() != readable) std::abort();
    if (floats && floats->size() != static_cast<std::size_t>(tensor.elements())) std::abort();
  }
  if (total > size) std::abort();
  const kvtilt::GgufMetadata& metadata = file->metadata();
  for (const auto& [key, value] : metadata.values()) {
    if (!metadata.contains(key)) std::abort();
    const auto integers = metadata.integers(key);
    if (integers && integers->size() != value.count) std::abort();
    if (metadata.integer(key).ok() && !metadata.number(key).ok()) std::abort();
    const auto text = metadata.string(key);
    if (text.ok() != (value.type == kvtilt::GgufType::String && !value.array)) std::abort();
    if (text && text->size() + 8 != value.bytes.size()) std::abort();
    (void)metadata.boolean(key);
  }
  return 0;
}
