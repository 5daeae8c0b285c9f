// Products of matrices: out = x w, or out += x w. x is (rows, depth) with any strides, w (depth, n LANES) and out are
// row by row. Whoever includes this has TILE_ROWS before.

#pragma once

#include <cstddef>

#include "lanes.h"

namespace {

// Of R rows and N vectors of columns. Loops are unrolled whole, so that sums stay in registers: where GCC does not see to
// that itself, they are in memory, and everything takes half as long again.
template <int R, int N>
inline void tile(const real* x, ptrdiff_t row, ptrdiff_t step, const real* w, ptrdiff_t w_row, int depth,
                 real* out, ptrdiff_t out_row, bool add) {
    constexpr int CHAINS = R * N >= 6 ? 1 : R * N >= 3 ? 2 : 4;  // sums at once, to hide the latency of one
    V c[CHAINS][R][N] = {};
    if (add)
#pragma GCC unroll 16
        for (int r = 0; r < R; r++)
#pragma GCC unroll 2
            for (int n = 0; n < N; n++) c[0][r][n] = load(out + r * out_row + n * LANES);
    int k = 0;
    for (; k + CHAINS <= depth; k += CHAINS)
#pragma GCC unroll 4
        for (int chain = 0; chain < CHAINS; chain++) {
            V wk[N];
#pragma GCC unroll 2
            for (int n = 0; n < N; n++) wk[n] = load(w + (k + chain) * w_row + n * LANES);
#pragma GCC unroll 16
            for (int r = 0; r < R; r++) {
                const V xk = all(x[r * row + (k + chain) * step]);
#pragma GCC unroll 2
                for (int n = 0; n < N; n++) c[chain][r][n] += xk * wk[n];
            }
        }
    for (; k < depth; k++)
#pragma GCC unroll 16
        for (int r = 0; r < R; r++)
#pragma GCC unroll 2
            for (int n = 0; n < N; n++) c[0][r][n] += all(x[r * row + k * step]) * load(w + k * w_row + n * LANES);
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 2
        for (int n = 0; n < N; n++) {
            V total = c[0][r][n];
#pragma GCC unroll 4
            for (int chain = 1; chain < CHAINS; chain++) total += c[chain][r][n];
            store(out + r * out_row + n * LANES, total);
        }
}

template <int N, int R>
inline void some_rows(int rows, const real* x, ptrdiff_t row, ptrdiff_t step, const real* w, ptrdiff_t w_row,
                      int depth, real* out, ptrdiff_t out_row, bool add) {
    if (rows == R) return tile<R, N>(x, row, step, w, w_row, depth, out, out_row, add);
    if constexpr (R > 1) some_rows<N, R - 1>(rows, x, row, step, w, w_row, depth, out, out_row, add);
}
template <int N>
void columns(int rows, const real* x, ptrdiff_t row, ptrdiff_t step, const real* w, ptrdiff_t w_row, int depth,
             real* out, ptrdiff_t out_row, bool add) {
    for (; rows >= TILE_ROWS; rows -= TILE_ROWS, x += TILE_ROWS * row, out += TILE_ROWS * out_row)
        tile<TILE_ROWS, N>(x, row, step, w, w_row, depth, out, out_row, add);
    if (rows) some_rows<N, TILE_ROWS - 1>(rows, x, row, step, w, w_row, depth, out, out_row, add);
}
template <int WIDTH>
inline void multiply(int rows, const real* x, ptrdiff_t row, ptrdiff_t step, const real* w, ptrdiff_t w_row,
                     int depth, real* out, ptrdiff_t out_row, bool add = false) {
    constexpr int N = WIDTH / LANES;
    int n = 0;
    for (; n + 2 <= N; n += 2)
        columns<2>(rows, x, row, step, w + n * LANES, w_row, depth, out + n * LANES, out_row, add);
    if (n < N) columns<1>(rows, x, row, step, w + n * LANES, w_row, depth, out + n * LANES, out_row, add);
}

}  // namespace
