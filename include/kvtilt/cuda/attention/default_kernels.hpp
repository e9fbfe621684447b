// SPDX-License-Identifier: MIT
/// The kernels that attention has where nobody says which: an engine's own list is shorter, or has
/// its own head dimensions.
#pragma once

#include <kvtilt/cuda/attention/checks.hpp>
#include <kvtilt/cuda/attention/generic_page.hpp>
#include <kvtilt/cuda/attention/tile.hpp>

namespace kvtilt::cuda {

/// Any recipe of these head dimensions, multiples of 16; fast ones for the usual widths with default
/// granularities and groups, in pages of 64 tokens. For Attention::create<KernelsFor<96>>(...), or to
/// copy from. Cost: seven kernels for decode and as many for prefill, each about 2 s of nvcc per
/// architecture at 64 channels and more at 256.
template <int KeyDim, int ValueDim = KeyDim>
using KernelsFor =
    AttendKernels<HalfTraits<KeyDim, ValueDim>, PageTraits<8, 8, KeyDim, ValueDim>,
                  PageTraits<8, 4, KeyDim, ValueDim>, PageTraits<4, 4, KeyDim, ValueDim>,
                  PageTraits<4, 2, KeyDim, ValueDim>, PageTraits<2, 2, KeyDim, ValueDim>,
                  GenericTraits<KeyDim, ValueDim>>;

/// Any recipe of head dimensions 64 and 128; fast ones at 128, in pages of 64 tokens with default
/// groups, also with keys per token or values per channel, and where heads of a layer differ. A kernel
/// costs 1 to 2 s of nvcc and 150 KB of object file, code and PTX, per architecture; a mixed one of
/// decode that for each of its kinds.
using DefaultKernels =
    AttendKernels<HalfTraits<128>, PageTraits<8, 8, 128>, PageTraits<8, 4, 128>,
                  PageTraits<4, 4, 128>, PageTraits<4, 2, 128>, PageTraits<3, 2, 128>,
                  PageTraits<2, 2, 128>, TokenKeyTraits<8, 8, 128>, TokenKeyTraits<4, 4, 128>,
                  ChannelValueTraits<4, 2, 128>,
                  MixedTraits<PageTraits<8, 4, 128>, PageTraits<4, 4, 128>, PageTraits<4, 2, 128>,
                              PageTraits<3, 2, 128>>,
                  GenericTraits<64>, GenericTraits<128>>;

}  // namespace kvtilt::cuda
