// Degrees of harmonics, from the macros MAX_ELL and MESSAGE_ELL.

#pragma once

namespace {

constexpr int padded(int n, int to) { return (n + to - 1) / to * to; }
constexpr int square(int n) { return n * n; }

constexpr int LMAX = MAX_ELL, L_SENT = MESSAGE_ELL;
constexpr int M = square(LMAX + 1), ROWS_SENT = square(L_SENT + 1);

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
