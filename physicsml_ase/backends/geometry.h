// Harmonics and radial functions of edges, as `nn/sphere.py` and `nn/geometry.py` define them, and their gradient.

#pragma once

#include <cmath>

#include "harmonics.h"
#include "sizes.h"

namespace {

// Geometry of up to LANES edges, one in each lane. Unused lanes hold an edge as long as the cut-off, which counts
// for nothing.

struct Edges {
    V y[M], radial[K], slope[K], u[3], inverse, distance;
};

void measure(const float* r_ij, int count, float cutoff, float stretch, Edges& edges) {
    alignas(64) float sorted[3][LANES] = {};
    for (int lane = 0; lane < count; lane++)
        for (int k = 0; k < 3; k++) sorted[k][lane] = r_ij[3 * lane + k];
    for (int lane = count; lane < LANES; lane++) sorted[2][lane] = cutoff;
    const V r[3] = {load(sorted[0]), load(sorted[1]), load(sorted[2])};
    const V d = root(r[0] * r[0] + r[1] * r[1] + r[2] * r[2]), one = all(1), none = V{};
    const I itself = d == 0;  // an atom's edge to itself points nowhere
    edges.distance = d;
    edges.inverse = itself ? none : one / (itself ? one : d);
    for (int k = 0; k < 3; k++) edges.u[k] = r[k] * edges.inverse;

    const Angular at(edges.u);
    for (int l = 0; l <= LMAX; l++) {
        V* y = edges.y + FELT.first[l];
        for (int m = l; m > 0; m--) {
            *y++ = NORMS.at[l][m] * at.legendre[l][m] * at.re[m];
            *y++ = NORMS.at[l][m] * at.legendre[l][m] * at.im[m];
        }
        *y = NORMS.at[l][0] * at.legendre[l][0];
        if (l) *y = itself ? none : *y;
    }

    V x = d / cutoff;
    x = x > 1 ? one : x;
    const V rest = 1 - x, rest2 = rest * rest, x2 = x * x;
    const V envelope = rest2 * rest * (1 + x * (3 + x * (6 + x * (10 + 15 * x))));
    const V falling = (-105 / cutoff) * x2 * x2 * rest2;
    const V over = 1 / (x + stretch);
    const V s = itself ? one : x * (1 + stretch) * over;
    const V s_slope = ((1 + stretch) * stretch / cutoff) * over * over, s_inverse = 1 / s;
    V sine, cosine;
    sine_cosine(s, sine, cosine);
    V sine_k = sine, cosine_k = cosine;
    for (int k = 0; k < K; k++) {
        const float order = 3.14159265f * (k + 1);
        V wave = sine_k * s_inverse, change = (cosine_k * order - wave) * s_inverse * s_slope;
        wave = itself ? all(order) : wave;
        change = itself ? none : change;
        edges.radial[k] = 1.41421356f * wave * envelope;
        edges.slope[k] = 1.41421356f * (change * envelope + wave * falling);
        const V next = sine_k * cosine + cosine_k * sine;
        cosine_k = cosine_k * cosine - sine_k * sine;
        sine_k = next;
    }
}

// Gradient to the pair vectors from that to harmonics and that along the edge.
void pull(const Edges& edges, const V* g_y, V along, V* g) {
    const Angular at(edges.u);
    V x = {}, y = {}, z = {};
    for (int m = 0; m <= LMAX; m++) {
        V p = {}, q = {}, p_z = {}, q_z = {};
        for (int l = m > 0 ? m : 1; l <= LMAX; l++) {
            const int row = FELT.first[l] + 2 * (l - m);
            const V a = NORMS.at[l][m] * g_y[row];
            p += at.legendre[l][m] * a;
            p_z += at.legendre[l][m + 1] * a;
            if (m == 0) continue;
            const V b = NORMS.at[l][m] * g_y[row + 1];
            q += at.legendre[l][m] * b;
            q_z += at.legendre[l][m + 1] * b;
        }
        z += p_z * at.re[m] + q_z * at.im[m];
        if (m == 0) continue;
        x += float(m) * (p * at.re[m - 1] + q * at.im[m - 1]);
        y += float(m) * (q * at.re[m - 1] - p * at.im[m - 1]);
    }
    const V* u = edges.u;
    const V radial = along - (x * u[0] + y * u[1] + z * u[2]) * edges.inverse;
    g[0] = x * edges.inverse + radial * u[0];
    g[1] = y * edges.inverse + radial * u[1];
    g[2] = z * edges.inverse + radial * u[2];
}

}  // namespace
