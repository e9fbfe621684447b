// SPDX-License-Identifier: MIT
#include "checkpoint.hpp"

#include "fail.hpp"

namespace llama {

Checkpoint::Checkpoint(const std::filesystem::path& folder)
    : file_(kvtilt::Checkpoint::open(folder).value()) {}

Floats Checkpoint::load(const std::string& name, const std::vector<std::int64_t>& shape) {
  const kvtilt::StoredTensor& tensor = *file_.get(name).value();
  if (tensor.shape != shape) {
    fail(tensor.file, ": tensor '", name, "' has shape ", kvtilt::shape_text(tensor.shape),
         "; config.json asks for ", kvtilt::shape_text(shape));
  }
  Floats values(static_cast<std::size_t>(tensor.elements()));
  const kvtilt::Status status = kvtilt::read_floats(tensor, values);
  if (!status.ok()) fail(status.message());
  used_.insert(name);
  return values;
}

std::vector<std::string> Checkpoint::unused() const {
  std::vector<std::string> names;
  for (const std::string_view name : file_.names()) {
    if (!used_.contains(name)) names.emplace_back(name);
  }
  return names;
}

}  // namespace llama
