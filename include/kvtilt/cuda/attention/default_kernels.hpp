// SPDX-License-Identifier: MIT
/// The lists of kernels that attention is compiled with by default. An engine may pass its own list,
/// to compile fewer kernels or for other head dimensions.
#pragma once

#include <kvtilt/cuda/attention/checks.hpp>
#include <kvtilt/cuda/attention/generic_page.hpp>
#include <kvtilt/cuda/attention/latent_page.hpp>
#include <kvtilt/cuda/attention/tile.hpp>

#include <type_traits>

namespace kvtilt::cuda {

/// Serves any recipe at these head dimensions, multiples of 16; has fast kernels for the usual bit
/// widths with default granularities and groups, in pages of 64 tokens. 2 bits have them at multiples
/// of 32 alone: elsewhere their codes do not fill 16 bytes a lane, and the generic kernel reads them.
/// Use it as Attention::create<KernelsFor<96>>(...), or copy from it.
///
/// Cost  seven kernels for decode and as many for prefill, each about 2 s of nvcc per architecture at
///       64 channels, more at 256
template <int KeyDim, int ValueDim = KeyDim>
using KernelsFor = std::conditional_t<
    KeyDim % 32 == 0 && ValueDim % 32 == 0,
    AttendKernels<HalfTraits<KeyDim, ValueDim>, PageTraits<8, 8, KeyDim, ValueDim>,
                  PageTraits<8, 4, KeyDim, ValueDim>, PageTraits<4, 4, KeyDim, ValueDim>,
                  PageTraits<4, 2, KeyDim, ValueDim>, PageTraits<2, 2, KeyDim, ValueDim>,
                  GenericTraits<KeyDim, ValueDim>>,
    AttendKernels<HalfTraits<KeyDim, ValueDim>, PageTraits<8, 8, KeyDim, ValueDim>,
                  PageTraits<8, 4, KeyDim, ValueDim>, PageTraits<4, 4, KeyDim, ValueDim>,
                  GenericTraits<KeyDim, ValueDim>>>;

/// Serves any recipe of layers whose values are in their keys (LayerShape::latent), for decode: with
/// multi-head latent attention prompts take attention of another shape. Generic: a block decodes a page
/// anew for each 8 query heads.
///
/// Cost  one kernel, about 4 s of nvcc per architecture at 576 and 512 channels
template <int KeyDim = 576, int ValueDim = 512>
using LatentKernels = AttendKernels<LatentTraits<KeyDim, ValueDim>>;

/// Serves any recipe at head dimensions 64 and 128. At 128 it has fast kernels, in pages of 64 tokens
/// with default groups, also for keys per token, values per channel and heads with different recipes.
///
/// Cost  1 to 2 s of nvcc and 150 KB of object file (code and PTX) per kernel and architecture; a
///       mixed decode kernel costs that for each of its PageTraits
using DefaultKernels =
    AttendKernels<HalfTraits<128>, PageTraits<8, 8, 128>, PageTraits<8, 4, 128>,
                  PageTraits<4, 4, 128>, PageTraits<4, 2, 128>, PageTraits<3, 2, 128>,
                  PageTraits<2, 2, 128>, TokenKeyTraits<8, 8, 128>, TokenKeyTraits<4, 4, 128>,
                  ChannelValueTraits<4, 2, 128>,
                  MixedTraits<PageTraits<8, 4, 128>, PageTraits<4, 4, 128>, PageTraits<4, 2, 128>,
                              PageTraits<3, 2, 128>>,
                  GenericTraits<64>, GenericTraits<128>>;

}  // namespace kvtilt::cuda
