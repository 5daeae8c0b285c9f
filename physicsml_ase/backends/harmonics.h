// What harmonics are made of, as `nn/sphere.py` defines them.

#pragma once

#include "degrees.h"
#include "lanes.h"

namespace {

constexpr double constant_root(double x) {
    double y = x > 1 ? x : 1;
    for (int k = 0; k < 80; k++) y = (y + x / y) / 2;
    return y;
}
struct Norms {  // of the harmonics of degree l and order m
    real at[LMAX + 1][LMAX + 1] = {};
    constexpr Norms() {
        for (int l = 0; l <= LMAX; l++)
            for (int m = 0; m <= l; m++) {
                double ratio = m ? 2 : 1;
                for (int k = l - m + 1; k <= l + m; k++) ratio /= k;
                at[l][m] = real(constant_root((2 * l + 1) * ratio));
            }
    }
};
constexpr Norms NORMS;

struct Angular {  // (x + iy)^m, and the m-th derivative of the Legendre polynomial of degree l at z
    V re[LMAX + 1], im[LMAX + 1], legendre[LMAX + 1][LMAX + 2];
    explicit Angular(const V* u) {
        re[0] = all(1);
        im[0] = V{};
        for (int m = 1; m <= LMAX; m++) {
            re[m] = re[m - 1] * u[0] - im[m - 1] * u[1];
            im[m] = re[m - 1] * u[1] + im[m - 1] * u[0];
        }
        real diagonal = 1;
        for (int m = 0; m <= LMAX; m++) {
            legendre[m][m] = all(diagonal);
            legendre[m][m + 1] = V{};
            if (m < LMAX) legendre[m + 1][m] = (2 * m + 1) * diagonal * u[2];
            for (int l = m + 2; l <= LMAX; l++)
                legendre[l][m] = (real(2 * l - 1) / (l - m)) * u[2] * legendre[l - 1][m] -
                                 (real(l + m - 1) / (l - m)) * legendre[l - 2][m];
            diagonal *= 2 * m + 1;
        }
    }
};

}  // namespace
