// Functions of vectors, and products of matrices by them.

#pragma once

#include <cmath>
#include <cstddef>
#include <utility>

#include "lanes.h"

namespace {

#if defined(__AVX512F__)
constexpr int TILE_ROWS = 12;
#else
constexpr int TILE_ROWS = 6;
#endif

}  // namespace

#include "tiles.h"

namespace {

template <class F, int... k>
inline __attribute__((always_inline)) void unrolled(F&& f, std::integer_sequence<int, k...>) {
    (f(std::integral_constant<int, k>()), ...);
}
template <int N, class F>
inline __attribute__((always_inline)) void unroll(F&& f) {
    unrolled(f, std::make_integer_sequence<int, N>());
}

template <int S, int... lane>
inline V upper(V a, V b, std::integer_sequence<int, lane...>) {
#if defined(__clang__) || __GNUC__ >= 12
    return __builtin_shufflevector(a, b, (lane & S ? LANES + lane - S : lane)...);
#else
    return __builtin_shuffle(a, b, I{(lane & S ? LANES + lane - S : lane)...});
#endif
}
template <int S, int... lane>
inline V lower(V a, V b, std::integer_sequence<int, lane...>) {
#if defined(__clang__) || __GNUC__ >= 12
    return __builtin_shufflevector(a, b, (lane & S ? LANES + lane : lane + S)...);
#else
    return __builtin_shuffle(a, b, I{(lane & S ? LANES + lane : lane + S)...});
#endif
}
// LANES vectors as a matrix, transposed: blocks of S by S are, then those in them.
template <int S = LANES / 2>
inline void transpose(V* x) {
    constexpr auto lanes = std::make_integer_sequence<int, LANES>();
    for (int k = 0; k < LANES; k++) {
        if (k & S) continue;
        const V a = x[k], b = x[k + S];
        x[k] = upper<S>(a, b, lanes);
        x[k + S] = lower<S>(a, b, lanes);
    }
    if constexpr (S > 1) transpose<S / 2>(x);
}

// In each 2 S lanes, what the halves of a's and of b's lanes add up to.
template <int S, int... lane>
inline V folded(V a, V b, std::integer_sequence<int, lane...>) {
#if defined(__clang__) || __GNUC__ >= 12
    return __builtin_shufflevector(a, b, (lane % (2 * S) < S ? lane : LANES + lane - S)...) +
           __builtin_shufflevector(a, b, (lane % (2 * S) < S ? lane + S : LANES + lane)...);
#else
    return __builtin_shuffle(a, b, I{(lane % (2 * S) < S ? lane : LANES + lane - S)...}) +
           __builtin_shuffle(a, b, I{(lane % (2 * S) < S ? lane + S : LANES + lane)...});
#endif
}
// Sums of up to LANES vectors at once; `lane_of_sum` says where each is found.
template <int N, int S = LANES / 2>
inline V sums(const V* x) {
    constexpr int LEFT = (N + 1) / 2;
    V next[LEFT];
    for (int k = 0; k < LEFT; k++)
        next[k] = folded<S>(x[k], x[k + LEFT < N ? k + LEFT : k], std::make_integer_sequence<int, LANES>());
    if constexpr (S > 1) return sums<LEFT, S / 2>(next);
    return next[0];
}
constexpr int lane_of_sum(int k, int n) {
    int lane = 0;
    for (int s = LANES / 2; s > 0; s /= 2) {
        const int left = (n + 1) / 2;
        if (k >= left) lane += s, k -= left;
        n = left;
    }
    return lane;
}
inline V root(V x) {
    V y;
    for (int lane = 0; lane < LANES; lane++) y[lane] = std::sqrt(x[lane]);
    return y;
}
template <int N>
inline V polynomial(V x, const float (&coefficients)[N]) {
    V y = all(coefficients[N - 1]);
    for (int k = N - 2; k >= 0; k--) y = coefficients[k] + x * y;
    return y;
}
// 1 / (1 + exp(-x)); NaN stays NaN
inline V sigmoid(V x) {
    V t = x > 80.0f ? all(80.0f) : x;
    t = -(t < -80.0f ? all(-80.0f) : t);
    const V n = t * 1.44269504f + 12582912.0f;  // rounds: the last bits of n are the whole number
    const V whole = n - 12582912.0f;
    const V r = (t - whole * 0.693145752f) - whole * 1.42860677e-6f;
    const V p = polynomial(r, {1, 1, 0.5f, 1.66666667e-1f, 4.16666667e-2f, 8.33333333e-3f, 1.38888889e-3f});
    union { V v; I i; } power, rounded;
    rounded.v = n;
    power.i = (rounded.i - 0x4B400000 + 127) << 23;
    return 1.0f / (1.0f + p * power.v);
}
// sin(pi s), cos(pi s) for s in [0, 1]
inline void sine_cosine(V s, V& sine, V& cosine) {
    const V a = 3.14159265f * (s - 0.5f), b = a * a;
    sine = polynomial(b, {1, -0.5f, 4.16666667e-2f, -1.38888889e-3f, 2.48015873e-5f, -2.75573192e-7f, 2.08767570e-9f});
    cosine = -a * polynomial(b, {1, -1.66666667e-1f, 8.33333333e-3f, -1.98412698e-4f, 2.75573192e-6f, -2.50521084e-8f,
                                 1.60590438e-10f});
}

}  // namespace
