// Sizes that are compiled in, from macros: CHANNELS, RADIAL (functions), DENSITY (channels of neighbours' elements),
// MAX_ELL, CORRELATION, MESSAGE_ELL, LAYERS, HIDDEN.

#pragma once

#include "vectors.h"

namespace {

constexpr int padded(int n, int to) { return (n + to - 1) / to * to; }
constexpr int square(int n) { return n * n; }

constexpr int C = CHANNELS, K = RADIAL, W = DENSITY, LMAX = MAX_ELL, NU = CORRELATION, L_SENT = MESSAGE_ELL;
constexpr int M = square(LMAX + 1), ROWS_SENT = square(L_SENT + 1);
constexpr int Q = W * K;
constexpr int Q_PAD = padded(Q, 16), H_PAD = padded(HIDDEN, 16);  // as Python pads weights
constexpr int M_PAD = padded(M, LANES), K_PAD = padded(K, LANES);
constexpr int RADII = (L_SENT + 1) * C;
constexpr int BLOCK = 8;
constexpr int AC = BLOCK * C, AQ = BLOCK * Q_PAD;  // from row to row of a block

// Degrees in the order of their rows, even ones first, and where the rows of each degree begin.

struct Degrees {
    int count = 0, at[8] = {}, first[8] = {}, row_degree[64] = {}, num_even = 0;
    constexpr explicit Degrees(int lmax) {
        int row = 0;
        for (int parity = 0; parity < 2; parity++)
            for (int l = parity; l <= lmax; l += 2) {
                at[count++] = l;
                first[l] = row;
                for (int m = 0; m < 2 * l + 1; m++) row_degree[row++] = l;
                if (parity == 0) num_even = row;
            }
    }
};
constexpr Degrees FELT(LMAX), SENT(L_SENT);

}  // namespace
