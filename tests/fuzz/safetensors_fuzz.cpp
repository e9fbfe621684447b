// SPDX-License-Identifier: MIT
/// Any bytes give a safetensors file or an error; of a file, every readable tensor is read, and
/// what is written again reads the same.
#include <kvtilt/io/safetensors_writer.hpp>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <span>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t size) {
  const auto file = kvtilt::SafetensorsFile::parse(std::as_bytes(std::span(bytes, size)), "f");
  if (!file) {
    if (file.code() != kvtilt::ErrorCode::Corrupt || file.message().empty()) std::abort();
    return 0;
  }
  std::vector<kvtilt::TensorToWrite> tensors;
  std::size_t total = 0;
  for (const auto& [name, tensor] : file->tensors()) {
    total += tensor.bytes.size();
    tensors.push_back({name, tensor.type.name, tensor.shape, tensor.bytes});
    const auto floats = kvtilt::read_floats(tensor);
    const bool readable = tensor.type.encoding != kvtilt::Encoding::None;
    if (floats.ok() != readable) std::abort();
    if (floats && floats->size() != static_cast<std::size_t>(tensor.elements())) std::abort();
  }
  if (total > size) std::abort();
  const auto header = kvtilt::detail::safetensors_header(tensors, file->metadata());
  if (!header) std::abort();
  std::string written = *header;
  for (const kvtilt::TensorToWrite& tensor : tensors)
    written.append(reinterpret_cast<const char*>(tensor.bytes.data()), tensor.bytes.size());
  const auto again =
      kvtilt::SafetensorsFile::parse(std::as_bytes(std::span(written.data(), written.size())), "f");
  if (!again || again->tensors().size() != tensors.size()) std::abort();
  if (again->metadata() != file->metadata()) std::abort();
  for (const kvtilt::TensorToWrite& tensor : tensors) {
    const kvtilt::StoredTensor& found = again->tensors().at(tensor.name);
    if (found.shape != tensor.shape || found.bytes.size() != tensor.bytes.size()) std::abort();
    if (!found.bytes.empty() &&
        std::memcmp(found.bytes.data(), tensor.bytes.data(), tensor.bytes.size()) != 0)
      std::abort();
  }
  return 0;
}
