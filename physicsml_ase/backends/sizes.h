// Sizes that are compiled in, from macros: CHANNELS, RADIAL (functions), DENSITY (channels of neighbours' elements),
// MAX_ELL, CORRELATION, MESSAGE_ELL, LAYERS, HIDDEN.

#pragma once

#include "degrees.h"
#include "vectors.h"

namespace {

constexpr int C = CHANNELS, K = RADIAL, W = DENSITY, NU = CORRELATION;
constexpr int Q = W * K;
constexpr int Q_PAD = padded(Q, 16), H_PAD = padded(HIDDEN, 16);  // as Python pads weights
constexpr int M_PAD = padded(M, LANES), K_PAD = padded(K, LANES);
constexpr int RADII = (L_SENT + 1) * C;
constexpr int BLOCK = 8;
constexpr int AC = BLOCK * C, AQ = BLOCK * Q_PAD;  // from row to row of a block

}  // namespace
