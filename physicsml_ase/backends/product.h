// Powers on the sphere of a block, [M][BLOCK][C] to [(L + 1)^2][BLOCK][NU C], and their gradient.
//
// The grid's points come in orbits under reflections x -> -x, y -> -y, z -> -z, and each harmonic is even or odd under
// each of them, that is, of one of eight kinds. So harmonics are summed by kind at one point of an orbit, and their
// values at all its points differ by signs: half of the work. A kind is a number with a bit for each coordinate
// under whose reflection it is odd; orbits are sorted by which coordinates are zero, and of two antipodes one is there.

#pragma once

#include <cstdint>

#include "sizes.h"

namespace {

struct Grid {
    const float *inward, *outward;  // (orbits, M), (points, (L + 1)^2)
    int64_t orbits[7];              // number for each of ZEROS
};

struct Kinds {
    int of_row[M] = {};
    constexpr Kinds() {
        for (int l = 0; l <= LMAX; l++)
            for (int m = l, row = FELT.first[l]; m >= 0; m--) {  // Legendre in z times (x + iy)^m
                const int z = (l - m) % 2 ? 4 : 0, odd = m % 2;
                of_row[row++] = z + odd;
                if (m) of_row[row++] = z + 2 + (1 - odd);
            }
    }
};
constexpr Kinds KINDS;

constexpr int NUM_ZEROS = 7, ZEROS[NUM_ZEROS] = {0, 1, 2, 4, 3, 5, 6};  // bits of the coordinates that are zero

template <int ZERO>
struct Orbit {
    static constexpr int FREE = 7 - ZERO, U = FREE & -FREE, UV = FREE;
    static constexpr int IMAGES = FREE == 7 ? 4 : FREE == U ? 1 : 2;

    // Values of the even and the odd part at all images, by flips of nothing, x, y, z or of nothing, U.
    static void spread(const V* kinds, V* even, V* odd) {
        if constexpr (IMAGES == 4) {
            const V a = kinds[0] + kinds[3], b = kinds[0] - kinds[3], c = kinds[5] + kinds[6], d = kinds[5] - kinds[6];
            even[0] = a + c, even[1] = b - d, even[2] = b + d, even[3] = a - c;
            const V p = kinds[1] + kinds[2], q = kinds[1] - kinds[2], r = kinds[4] + kinds[7], s = kinds[4] - kinds[7];
            odd[0] = p + r, odd[1] = s - q, odd[2] = s + q, odd[3] = p - r;
        } else if constexpr (IMAGES == 2) {
            even[0] = kinds[0] + kinds[UV], even[1] = kinds[0] - kinds[UV];
            odd[0] = kinds[UV - U] + kinds[U], odd[1] = kinds[UV - U] - kinds[U];
        } else {
            even[0] = kinds[0], odd[0] = kinds[U];
        }
    }
    // The transpose.
    static void gather(const V* even, const V* odd, V* kinds) {
        if constexpr (IMAGES == 4) {
            const V a = even[0] + even[3], b = even[0] - even[3], c = even[1] + even[2], d = even[1] - even[2];
            kinds[0] = a + c, kinds[3] = a - c, kinds[5] = b - d, kinds[6] = b + d;
            const V p = odd[0] + odd[3], q = odd[0] - odd[3], r = odd[1] + odd[2], s = odd[1] - odd[2];
            kinds[1] = p - s, kinds[2] = p + s, kinds[4] = q + r, kinds[7] = q - r;
        } else if constexpr (IMAGES == 2) {
            kinds[0] = even[0] + even[1], kinds[UV] = even[0] - even[1];
            kinds[UV - U] = odd[0] + odd[1], kinds[U] = odd[0] - odd[1];
        } else {
            kinds[0] = even[0], kinds[U] = odd[0];
        }
    }
};

template <int L>
struct Product {
    static constexpr int OUT = square(L + 1), EVEN = FELT.num_even, EVEN_OUT = Degrees(L).num_even;
    static constexpr int ROW = BLOCK * NU * C, POWERS = NU > 1 ? NU - 1 : 1;

    static constexpr int direct(int out) { return out < EVEN_OUT ? out : EVEN + out - EVEN_OUT; }

    // f at the images of one orbit; `y` holds all harmonics at one of its points
    template <class O, int ZERO>
    static inline __attribute__((always_inline)) void values(const float* y, const V* f, V* even, V* odd) {
        V kinds[8] = {};
        unroll<M>([&](auto m) {
            if constexpr ((KINDS.of_row[m] & ZERO) == 0) kinds[KINDS.of_row[m]] += y[m] * f[m];
        });
        O::spread(kinds, even, odd);
    }

    static void forward(const float* a, const Grid& grid, float* out) {
        for (int column = 0; column < AC; column += LANES) {
            float* to = out + column / C * (NU * C) + column % C;
            V f[M], powers[POWERS][OUT] = {};
            for (int m = 0; m < M; m++) f[m] = load(a + m * AC + column);
            for (int k = 0; k < OUT; k++) store(to + k * ROW, f[direct(k)]);
            if (NU == 1) continue;
            const float *y = grid.inward, *w = grid.outward;
            unroll<NUM_ZEROS>([&](auto which) {
                constexpr int ZERO = ZEROS[which];
                using O = Orbit<ZERO>;
                for (int64_t k = 0; k < grid.orbits[which]; k++, y += M, w += O::IMAGES * OUT) {
                    V e[O::IMAGES], o[O::IMAGES];
                    values<O, ZERO>(y, f, e, o);
                    unroll<O::IMAGES>([&](auto image) {
                        V even = e[image], odd = o[image];
                        for (int p = 0; p < NU - 1; p++) {
                            const V next = even * e[image] + odd * o[image];
                            odd = even * o[image] + odd * e[image];
                            even = next;
                            for (int k = 0; k < OUT; k++)
                                powers[p][k] += w[image * OUT + k] * (k < EVEN_OUT ? even : odd);
                        }
                    });
                }
            });
            for (int p = 0; p < NU - 1; p++)
                for (int k = 0; k < OUT; k++) store(to + k * ROW + (p + 1) * C, powers[p][k]);
        }
    }

    static void reverse(const float* a, const Grid& grid, const float* g, float* g_a) {
        for (int column = 0; column < AC; column += LANES) {
            const float* from = g + column / C * (NU * C) + column % C;
            V f[M], g_f[M] = {}, g_powers[POWERS][OUT] = {};
            for (int m = 0; m < M; m++) f[m] = load(a + m * AC + column);
            for (int k = 0; k < OUT; k++) g_f[direct(k)] = load(from + k * ROW);
            for (int p = 0; p < NU - 1; p++)
                for (int k = 0; k < OUT; k++) g_powers[p][k] = float(p + 2) * load(from + k * ROW + (p + 1) * C);
            const float *y = grid.inward, *w = grid.outward;
            unroll<NU == 1 ? 0 : NUM_ZEROS>([&](auto which) {
                constexpr int ZERO = ZEROS[which];
                using O = Orbit<ZERO>;
                for (int64_t k = 0; k < grid.orbits[which]; k++, y += M, w += O::IMAGES * OUT) {
                    V e[O::IMAGES], o[O::IMAGES], kinds[8] = {};
                    values<O, ZERO>(y, f, e, o);
                    unroll<O::IMAGES>([&](auto image) {
                        V even = {}, odd = {};
                        for (int p = NU - 2; p >= 0; p--) {  // Horner's rule
                            for (int k = 0; k < OUT; k++)
                                (k < EVEN_OUT ? even : odd) += w[image * OUT + k] * g_powers[p][k];
                            const V next = even * e[image] + odd * o[image];
                            odd = even * o[image] + odd * e[image];
                            even = next;
                        }
                        e[image] = even, o[image] = odd;
                    });
                    O::gather(e, o, kinds);
                    unroll<M>([&](auto m) {
                        if constexpr ((KINDS.of_row[m] & ZERO) == 0) g_f[m] += y[m] * kinds[KINDS.of_row[m]];
                    });
                }
            });
            for (int m = 0; m < M; m++) store(g_a + m * AC + column, g_f[m]);
        }
    }
};

}  // namespace
