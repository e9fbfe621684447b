// SPDX-License-Identifier: MIT
// Members of SequenceBook that fork a sequence or load a saved one; included by sequence_book.hpp.

namespace kvtilt::cuda {

inline Result<std::int64_t> SequenceBook::common_length(SequenceId id, const char* verb) const {
  KVTILT_RETURN_IF_ERROR(check(id));
  std::int64_t length = -1;
  for (std::size_t layer = 0; layer < layers_.size(); ++layer) {
    if (!cached(layer)) continue;
    const std::int64_t own = state(id.slot, static_cast<int>(layer)).length;
    if (length >= 0 && own != length)
      return Status::error(ErrorCode::InvalidArgument,
                           "cannot %s: layer %zu holds %lld tokens, an earlier one %lld; "
                           "truncate to the shorter length first",
                           verb, layer, static_cast<long long>(own),
                           static_cast<long long>(length));
    length = own;
  }
  return std::max<std::int64_t>(length, 0);
}

inline Result<SequenceId> SequenceBook::fork(SequenceId id, std::int64_t tokens,
                                             ForkRequest& request, std::vector<PageRun>& given) {
  Result<std::int64_t> length = common_length(id, "fork");
  if (!length) return std::move(length).take_status();
  Sequence& parent = sequences_[id.slot];
  KVTILT_RETURN_IF_ERROR(check_tokens(tokens, parent.layers));
  tokens = std::max(tokens, *length);
  KVTILT_RETURN_IF_ERROR(check_tokens(tokens, parent.layers));
  Result<std::uint32_t> slot = free_slot();
  if (!slot) return std::move(slot).take_status();

  const auto in_use = [&](std::size_t layer) {
    const SequenceState& state = parent.layers[layer].state;
    return state.page_end - state.first_page;
  };
  const auto missing = [&](std::size_t layer) {
    SequenceState shared = parent.layers[layer].state;
    shared.page_capacity = shared.shared_end = shared.page_end;
    return missing_pages(layer, shared, nullptr, tokens);
  };
  for (std::size_t layer = 0; layer < layers_.size(); ++layer)
    if (cached(layer))
      KVTILT_RETURN_IF_ERROR(
          check_room(layer, missing(layer), in_use(layer), parent.layers[layer], tokens));

  request.from = static_cast<std::int32_t>(id.slot);
  request.to = static_cast<std::int32_t>(*slot);
  request.length = *length;
  for (std::size_t layer = 0; layer < layers_.size(); ++layer) {
    if (!cached(layer)) continue;
    const std::int64_t count = missing(layer);
    Layer& from = parent.layers[layer];
    std::uint64_t pages = 0;
    for (std::int32_t i = 0; i < in_use(layer); ++i)
      pages +=
          ForkLayer::page_term(i, from.table[static_cast<std::size_t>(from.state.first_page + i)]);
    request.layers[layer] = ForkLayer(from.state, pages);
    Layer& to = sequences_[*slot].layers[layer];
    to.state = empty_state(layers_[layer].placement, 0);
    to.table.resize(static_cast<std::size_t>(in_use(layer)));
    share_pages(SingleThread{}, from.state, from.table.data(), to.state, to.table.data());
    for (const PageSlot& entry : to.table) pages_[layer].share(entry.page);
    give(layer, to, count, given);
  }
  return occupy(*slot);
}

inline Result<SequenceId> SequenceBook::load(const SavedReader& saved, std::int64_t tokens,
                                             std::vector<PageRun>& given) {
  // Tables without page indices at first, to see how many pages each layer needs.
  std::vector<Layer> loaded(layers_.size());
  for (std::size_t layer = 0; layer < layers_.size(); ++layer) {
    if (!cached(layer)) continue;
    const SavedLayer from = saved.layer(layer);
    const SavedPlaces places = saved.places(layer, layers_[layer].layouts);
    Layer& own = loaded[layer];
    own.state = loaded_state(from, saved.length(), from.pages);
    for (std::int32_t i = 0; i < from.pages; ++i) {
      const SavedPage page = saved.page(places, i);
      own.table.push_back({page.first_position, 0, page.tokens});
    }
  }
  KVTILT_RETURN_IF_ERROR(check_tokens(tokens, loaded));
  tokens = std::max(tokens, saved.length());
  KVTILT_RETURN_IF_ERROR(check_tokens(tokens, loaded));
  Result<std::uint32_t> slot = free_slot();
  if (!slot) return std::move(slot).take_status();
  std::vector<std::int64_t> missing(layers_.size());
  for (std::size_t layer = 0; layer < layers_.size(); ++layer) {
    if (!cached(layer)) continue;
    const Layer& own = loaded[layer];
    missing[layer] = own.state.page_end + missing_pages(layer, own.state, own.table.data(), tokens);
    KVTILT_RETURN_IF_ERROR(check_room(layer, missing[layer], 0, own, tokens));
  }
  for (std::size_t layer = 0; layer < layers_.size(); ++layer) {
    Layer& own = sequences_[*slot].layers[layer];
    own = {empty_state(layers_[layer].placement, 0), {}};
    if (!cached(layer)) continue;
    give(layer, own, missing[layer], given);
    const std::vector<PageSlot>& positions = loaded[layer].table;
    for (std::size_t i = 0; i < positions.size(); ++i)
      own.table[i] = {positions[i].first_position, own.table[i].page, positions[i].tokens};
    own.state = loaded[layer].state;
    own.state.page_capacity = static_cast<std::int32_t>(missing[layer]);
  }
  return occupy(*slot);
}

}  // namespace kvtilt::cuda
