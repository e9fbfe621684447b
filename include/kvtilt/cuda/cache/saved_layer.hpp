// SPDX-License-Identifier: MIT
/// Bodies of the kernels behind save and load: they copy one layer of a sequence from a device
/// cache to the blocks of a saved sequence (the image), and back. A block takes keys or values of
/// one kv head of one page, sink block or tail block at a time. The image may be pinned host
/// memory: see convert_tensor.hpp.
#pragma once

#include <kvtilt/core/half.hpp>
#include <kvtilt/cuda/cache/layer_view.hpp>
#include <kvtilt/cuda/cache/sequence_pieces.hpp>
#include <kvtilt/cuda/page/convert_tensor.hpp>
#include <kvtilt/cuda/page/fragments.hpp>
#include <kvtilt/cuda/unroll.hpp>
#include <kvtilt/page/saved_sequence.hpp>

#include <cstddef>
#include <cstdint>

namespace kvtilt::cuda {

/// The result of saving or loading a sequence. Zeros before.
struct SavedResult {
  std::uint64_t sum;       ///< saved_sum() of all blocks
  std::uint64_t refusals;  ///< layers that differ from what the host believes: left alone
};

/// Byte is std::byte to save, const std::byte to load.
template <class Byte>
struct SavedLayerArguments {
  LayerView layer;
  int sequence;  ///< slot
  Byte* image;   ///< the saved sequence, 16-byte aligned; device, managed or pinned memory
  std::int64_t length;
  SavedLayer saved;
  SavedPlaces places;
  SavedResult* result;  ///< device
};
using SaveArguments = SavedLayerArguments<std::byte>;
using LoadArguments = SavedLayerArguments<const std::byte>;

inline constexpr int saved_threads = 256;

KVTILT_HD constexpr std::size_t saved_shared_bytes(const LayerView& layer) {
  const int dim = layer.key_dim > layer.value_dim ? layer.key_dim : layer.value_dim;
  return convert_shared_bytes(layer.page_tokens * dim, saved_threads);
}

/// Blocks of a launch: one for each tensor, up to a limit; beyond it each takes several.
KVTILT_HD constexpr int saved_blocks(const LayerView& layer, const SavedPlaces& places) {
  constexpr std::int64_t most = 1 << 16;
  std::int64_t pieces = 0;
  for (const PageKind kind : {PageKind::Sinks, PageKind::Sealed, PageKind::Tail})
    pieces += places.count(kind);
  const std::int64_t tensors = pieces * layer.kv_heads * 2;
  return static_cast<int>(tensors < most ? tensors : most);
}

namespace detail {

/// Keys or values of one kv head of one page, sink block or tail block, as the device has them.
struct SavedTensor {
  Role role;
  const TensorLayout* layout;
  std::byte* device;  ///< the head's block
  int tokens;         ///< in 16 bits, slots from this one on hold no token
};

/// Calls body(tensor, host) for the tensors that fall to this block, and adds up their checksums.
/// Refuses a sequence that is not the saved one, and then does nothing.
template <class Threads, class Byte, class Body>
KVTILT_HD void for_each_saved_tensor(const Threads& threads,
                                     const SavedLayerArguments<Byte>& arguments, const Body& body) {
  const LayerView& layer = arguments.layer;
  const SavedPlaces& places = arguments.places;
  const SequenceState state = layer.states[arguments.sequence];
  const Pieces pieces{layer, state, arguments.sequence};
  const int pages = pieces.pages();
  const int count = pieces.count();
  if (pages != arguments.saved.pages || state.length != arguments.length ||
      state.tail_start != arguments.saved.tail_start) {
    if (threads.block() == 0 && threads.thread() == 0)
      (void)threads.atomic_add(&arguments.result->refusals, std::uint64_t{1});
    return;
  }
  const std::int64_t tensors = static_cast<std::int64_t>(count) * layer.kv_heads * 2;
  std::uint64_t sum = 0;
  KVTILT_DEVICE_LOOP
  for (std::int64_t i = threads.block(); i < tensors; i += threads.block_count()) {
    const Role role = i % 2 == 0 ? Role::Keys : Role::Values;
    const int index = static_cast<int>(i / 2 / layer.kv_heads);
    const int head = static_cast<int>(i / 2 - static_cast<std::int64_t>(index) * layer.kv_heads);
    const Piece piece = pieces[index];
    const int before = piece.kind == PageKind::Sinks    ? 0
                       : piece.kind == PageKind::Sealed ? 1
                                                        : 1 + pages;
    const HeadLayout& layout = layer.head(piece.kind, head);
    const std::uint64_t place = places.block(piece.kind, index - before) + layout.offset;
    HostBlock<Byte> host{arguments.image + place, place / sizeof(std::uint64_t)};
    body(SavedTensor{role, role == Role::Keys ? &layout.key : &layout.value,
                     const_cast<std::byte*>(piece.block) + layout.offset,  // pools are writable
                     piece.kind == PageKind::Sealed ? layer.page_tokens : piece.tokens},
         host);
    sum += host.sum;
  }
  for (int mask = warp_lanes / 2; mask > 0; mask /= 2) sum += threads.shuffle_xor(sum, mask);
  if (threads.lane() == 0) (void)threads.atomic_add(&arguments.result->sum, sum);
}

}  // namespace detail

/// Body of the kernel: any number of blocks of saved_threads threads, saved_shared_bytes(). Writes
/// all bytes of the layer's blocks to the image.
template <class Threads>
KVTILT_HD void save_layer_body(const Threads& threads, const SaveArguments& arguments) {
  detail::for_each_saved_tensor(
      threads, arguments, [&](const detail::SavedTensor& tensor, HostBlock<std::byte>& host) {
        tensor_to_host(threads, tensor.role, *tensor.layout, tensor.device, host, tensor.tokens,
                       threads.shared());
      });
}

/// The reverse of save_layer_body(), after load_tables_body() has set state and table.
template <class Threads>
KVTILT_HD void load_layer_body(const Threads& threads, const LoadArguments& arguments) {
  detail::for_each_saved_tensor(
      threads, arguments, [&](const detail::SavedTensor& tensor, HostBlock<const std::byte>& host) {
        tensor_to_device(threads, tensor.role, *tensor.layout, host, tensor.device,
                         threads.shared());
      });
}

/// Body of the kernel: any number of blocks. Sets state and table of an empty sequence, whose first
/// unused pages become the saved ones. Refuses a sequence that has too few pages.
template <class Threads>
KVTILT_HD void load_tables_body(const Threads& threads, const LoadArguments& arguments) {
  const LayerView& layer = arguments.layer;
  const SavedLayer& saved = arguments.saved;
  SequenceState& state = layer.states[arguments.sequence];
  // Racing with the store below, which does not change it.
  const std::int32_t capacity = threads.load_racing(&state.page_capacity);
  const int first = threads.block() * threads.thread_count() + threads.thread();
  if (capacity < saved.pages) {
    if (first == 0) (void)threads.atomic_add(&arguments.result->refusals, std::uint64_t{1});
    return;
  }
  const std::byte* pages = arguments.image + arguments.places.pages;
  PageSlot* const table = layer.table(arguments.sequence);
  for (std::int32_t i = first; i < saved.pages;
       i += threads.block_count() * threads.thread_count()) {
    const SavedPage from =
        bit_cast<SavedPage>(load_words(pages + static_cast<std::size_t>(i) * sizeof(SavedPage)));
    table[i].first_position = from.first_position;
    table[i].tokens = from.tokens;
  }
  if (first == 0) state = loaded_state(saved, arguments.length, capacity);
}

}  // namespace kvtilt::cuda
