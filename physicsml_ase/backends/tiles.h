// Products of matrices: out = x w, or out += x w. x is (rows, depth) with any strides, w (depth, n LANES) and out are
// row by row. Whoever includes this has TILE_ROWS before and defines `tile` after.

#pragma once

#include <cstddef>

#include "lanes.h"

namespace {

// Of R rows and N vectors of columns.
template <int R, int N>
inline void tile(const real* x, ptrdiff_t row, ptrdiff_t step, const real* w, ptrdiff_t w_row, int depth,
                 real* out, ptrdiff_t out_row, bool add);

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
