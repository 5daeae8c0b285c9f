// Energies of `models/gaunt_ace.py`, their gradient to the pair vectors, and the weights' gradient of any function of
// both, for batches of structures.
//
// A loss of energies e_i and of the gradient g_ij of their sum sends back a_i = dL/de_i and lambda_ij = dL/dg_ij. Its
// gradient to the weights is that of sum_i (a_i e_i + de_i), where de_i is the change of e_i along lambda, a
// displacement of the pair vectors: a forward pass of values with their tangents, and one reverse pass. Geometry has
// no weights, so that harmonics, radial functions and their tangents are constants there.
//
// `Worker<1>` computes values: energies and their gradient to the pair vectors. `Worker<2>` computes values and
// tangents, and the gradient to the weights. Layers are passes over all atoms: forward up to the last layer, whose
// forward and reverse pass are one, then back. Atoms go in blocks of BLOCK, lm-major [row][part][atom][channel], so
// that weights are read once a block for all their values and tangents. What an atom sends along an edge is written
// where its neighbour reads it, at the reverse edge, and so is the gradient to it. Calls share nothing: threads compute
// one batch each.
//
// Sizes are compiled in: DOUBLE, CHANNELS, RADIAL, ELEMENTS, ELEMENT_CHANNELS (0: none), MAX_ELL, CORRELATION, MESSAGE_ELL, LAYERS, HIDDEN, and the
// numbers of points on half the sphere POINTS (of layers that send) and POINTS_LAST. GCC's vector extensions, which
// clang has too, are all that is asked of the compiler.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "arena.h"
#include "degrees.h"
#include "harmonics.h"
#include "lanes.h"

namespace {

#if defined(__AVX512F__)
constexpr int TILE_ROWS = 8;
#else
constexpr int TILE_ROWS = 6;
#endif

}  // namespace

#include "tiles.h"

namespace {

constexpr int C = CHANNELS, K = RADIAL, Z = ELEMENTS, NU = CORRELATION;
constexpr bool GATES = Z > 1;
constexpr int DEGREES = LMAX + 1;
// Channels of neighbours' elements: one for each element, or learned mixtures of them.
constexpr bool MIXTURES = ELEMENT_CHANNELS > 0;
constexpr int W = MIXTURES ? ELEMENT_CHANNELS : Z;
constexpr int Q = W * K, Q_PAD = padded(Q, LANES), H = HIDDEN, H_PAD = padded(H, LANES);
constexpr int M_PAD = padded(M, LANES), RADII = (L_SENT + 1) * C, NC = NU * C;
constexpr int B = 4;  // BLOCK

inline V root(V x) {
    alignas(64) real y[LANES];
    store(y, x);
    for (int lane = 0; lane < LANES; lane++) y[lane] = std::sqrt(y[lane]);
    return load(y);
}
// run(0), run(1), ... with numbers known to the compiler
template <class F, int... k>
inline void unrolled(F&& run, std::integer_sequence<int, k...>) {
    (run(std::integral_constant<int, k>()), ...);
}
template <int COUNT, class F>
inline void unrolled(F&& run) {
    unrolled(run, std::make_integer_sequence<int, COUNT>());
}
// 1 / (1 + exp(-x)); NaN stays NaN
inline V sigmoid(V x) {
#if DOUBLE
    V y;
    for (int lane = 0; lane < LANES; lane++) y[lane] = 1 / (1 + std::exp(-x[lane]));
    return y;
#else
    V t = x > 80.0f ? all(80.0f) : x;
    t = -(t < -80.0f ? all(-80.0f) : t);
    const V n = t * 1.44269504f + 12582912.0f;  // rounds: the last bits of n are the whole number
    const V rounded_n = n - 12582912.0f;
    const V r = (t - rounded_n * 0.693145752f) - rounded_n * 1.42860677e-6f;
    const V p = 1 + r * (1 + r * (0.5f + r * (1.66666667e-1f + r * (4.16666667e-2f + r * (8.33333333e-3f + r * 1.38888889e-3f)))));
    union { V v; I i; } power, rounded;
    rounded.v = n;
    power.i = (rounded.i - 0x4B400000 + 127) << 23;
    return 1.0f / (1.0f + p * power.v);
#endif
}
// sin(pi s), cos(pi s) for s in [0, 1]
inline void sine_cosine(V s, V& sine, V& cosine) {
#if DOUBLE
    for (int lane = 0; lane < LANES; lane++) {
        sine[lane] = std::sin(3.14159265358979323846 * s[lane]);
        cosine[lane] = std::cos(3.14159265358979323846 * s[lane]);
    }
#else
    const V a = 3.14159265f * (s - 0.5f), b = a * a;
    sine = 1 + b * (-0.5f + b * (4.16666667e-2f + b * (-1.38888889e-3f + b * (2.48015873e-5f + b * (-2.75573192e-7f + b * 2.08767570e-9f)))));
    cosine = -a * (1 + b * (-1.66666667e-1f + b * (8.33333333e-3f + b * (-1.98412698e-4f + b * (2.75573192e-6f + b * (-2.50521084e-8f + b * 1.60590438e-10f))))));
#endif
}

// Geometry of up to LANES edges, one in each lane. Unused lanes hold an edge as long as the cut-off, which counts
// for nothing.

struct Edges {
    V y[M], radial[K];
    V y_dot[M], radial_dot[K];  // tangents; of values alone, radial_dot is the derivative to the distance
    V u[3], inverse;
};
struct EdgesGradient {  // to harmonics, and along the edge
    V y[M], along;
};

// `order` has the place of each edge among r (E, 3) and its displacement, null for values alone.
void measure(const real* r_ij, const real* displacement, const int32_t* order, int count, real cutoff, real stretch,
             Edges& edges) {
    alignas(64) real there[3][LANES], change_of[3][LANES] = {};
    for (int lane = 0; lane < LANES; lane++)
        for (int k = 0; k < 3; k++) there[k][lane] = k == 2 ? cutoff : 0;
    for (int lane = 0; lane < count; lane++)
        for (int k = 0; k < 3; k++) {
            there[k][lane] = r_ij[3 * size_t(order[lane]) + k];
            if (displacement) change_of[k][lane] = displacement[3 * size_t(order[lane]) + k];
        }
    const V r[3] = {load(there[0]), load(there[1]), load(there[2])};
    const V d = root(r[0] * r[0] + r[1] * r[1] + r[2] * r[2]), one = all(1), none = V{};
    const I itself = d == 0;  // an atom's edge to itself points nowhere
    const V inverse = itself ? none : one / (itself ? one : d);
    edges.inverse = inverse;
    for (int k = 0; k < 3; k++) edges.u[k] = r[k] * inverse;

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
        const real order_k = real(3.14159265358979323846 * (k + 1));
        V wave = sine_k * s_inverse, change = (cosine_k * order_k - wave) * s_inverse * s_slope;
        wave = itself ? all(order_k) : wave;
        change = itself ? none : change;
        constexpr real ROOT = real(1.41421356237309504880);
        edges.radial[k] = ROOT * wave * envelope;
        edges.radial_dot[k] = ROOT * (change * envelope + wave * falling);
        const V next = sine_k * cosine + cosine_k * sine;
        cosine_k = cosine_k * cosine - sine_k * sine;
        sine_k = next;
    }

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
    if (!displacement) return;

    const V moved[3] = {load(change_of[0]), load(change_of[1]), load(change_of[2])};
    const V along = moved[0] * edges.u[0] + moved[1] * edges.u[1] + moved[2] * edges.u[2];
    V u_dot[3];
    for (int k = 0; k < 3; k++) u_dot[k] = (moved[k] - along * edges.u[k]) * inverse;
    for (int k = 0; k < K; k++) edges.radial_dot[k] *= along;
    for (int l = 0; l <= LMAX; l++) {
        V* y = edges.y_dot + FELT.first[l];
        for (int m = l; m > 0; m--) {
            const V polar = NORMS.at[l][m] * at.legendre[l][m + 1] * u_dot[2];
            const V azimuth = (m * NORMS.at[l][m]) * at.legendre[l][m];
            *y++ = polar * at.re[m] + azimuth * (at.re[m - 1] * u_dot[0] - at.im[m - 1] * u_dot[1]);
            *y++ = polar * at.im[m] + azimuth * (at.im[m - 1] * u_dot[0] + at.re[m - 1] * u_dot[1]);
        }
        *y = NORMS.at[l][0] * at.legendre[l][1] * u_dot[2];
    }
}

// Gradient to the pair vectors.
void pull(const Edges& edges, const EdgesGradient& gradient, V* g) {
    const Angular at(edges.u);
    V x = {}, y = {}, z = {};
    for (int m = 0; m <= LMAX; m++) {
        V p = {}, q = {}, p_z = {}, q_z = {};
        for (int l = m > 0 ? m : 1; l <= LMAX; l++) {
            const int row = FELT.first[l] + 2 * (l - m);
            const V a = NORMS.at[l][m] * gradient.y[row];
            p += at.legendre[l][m] * a;
            p_z += at.legendre[l][m + 1] * a;
            if (m == 0) continue;
            const V b = NORMS.at[l][m] * gradient.y[row + 1];
            q += at.legendre[l][m] * b;
            q_z += at.legendre[l][m + 1] * b;
        }
        z += p_z * at.re[m] + q_z * at.im[m];
        if (m == 0) continue;
        x += real(m) * (p * at.re[m - 1] + q * at.im[m - 1]);
        y += real(m) * (q * at.re[m - 1] - p * at.im[m - 1]);
    }
    const V* u = edges.u;
    const V radial = gradient.along - (x * u[0] + y * u[1] + z * u[2]) * edges.inverse;
    g[0] = x * edges.inverse + radial * u[0];
    g[1] = y * edges.inverse + radial * u[1];
    g[2] = z * edges.inverse + radial * u[2];
}

// Powers on the sphere of a block, [M][P][B][C] to [(L + 1)^2][P][B][NU C], and their gradient. `inward` is
// (points, M), `outward` (points, (L + 1)^2), halved: a function is taken at points and at their antipodes, where its
// odd part has the other sign.

template <int P, int L, int POINTS_>
struct Product {
    static constexpr int OUT = square(L + 1), EVEN = FELT.num_even, EVEN_OUT = Degrees(L).num_even;
    static constexpr int ROW = P * B * NC, MC = P * B * C, HIGHER = NU > 1 ? NU - 1 : 1;

    static int direct(int out) { return out < EVEN_OUT ? out : EVEN + out - EVEN_OUT; }

    struct Grid {
        V here[POINTS_], there[POINTS_];  // at points and antipodes
    };
    static void to_grid(const real* a, const real* inward, Grid& grid) {
        V f[M];
        for (int m = 0; m < M; m++) f[m] = load(a + m * MC);
        for (int point = 0; point < POINTS_; point++) {
            const real* y = inward + point * M;
            V e = y[0] * f[0], o = y[EVEN] * f[EVEN];
            for (int m = 1; m < EVEN; m++) e += y[m] * f[m];
            for (int m = EVEN + 1; m < M; m++) o += y[m] * f[m];
            grid.here[point] = e + o;
            grid.there[point] = e - o;
        }
    }

    static void forward(const real* a, const real* inward, const real* outward, real* out) {
        for (int column = 0; column < B * C; column += LANES) {
            real* to = out + column / C * NC + column % C;
            for (int part = 0; part < P; part++)
                for (int k = 0; k < OUT; k++)
                    store(to + k * ROW + part * B * NC, load(a + direct(k) * MC + part * B * C + column));
            if (NU == 1) continue;
            Grid grid[P];
            for (int part = 0; part < P; part++) to_grid(a + part * B * C + column, inward, grid[part]);
            V powers[P][HIGHER][OUT] = {};
            for (int point = 0; point < POINTS_; point++) {
                const real* w = outward + point * OUT;
                const V s = grid[0].here[point], t = grid[0].there[point];
                V sp = s, tp = t;
                for (int p = 2; p <= NU; p++) {
                    if constexpr (P == 2) {
                        const V sd = real(p) * sp * grid[1].here[point], td = real(p) * tp * grid[1].there[point];
                        const V even = sd + td, odd = sd - td;
                        for (int k = 0; k < OUT; k++) powers[1][p - 2][k] += w[k] * (k < EVEN_OUT ? even : odd);
                    }
                    sp *= s;
                    tp *= t;
                    const V even = sp + tp, odd = sp - tp;
                    for (int k = 0; k < OUT; k++) powers[0][p - 2][k] += w[k] * (k < EVEN_OUT ? even : odd);
                }
            }
            for (int part = 0; part < P; part++)
                for (int p = 0; p < NU - 1; p++)
                    for (int k = 0; k < OUT; k++) store(to + k * ROW + part * B * NC + (p + 1) * C, powers[part][p][k]);
        }
    }

    static void reverse(const real* a, const real* inward, const real* outward, const real* g, real* g_a) {
        for (int column = 0; column < B * C; column += LANES) {
            const real* from = g + column / C * NC + column % C;
            Grid grid[P];
            if (NU > 1)
                for (int part = 0; part < P; part++) to_grid(a + part * B * C + column, inward, grid[part]);
            V v[P][HIGHER][OUT];  // p times the gradient to the p-th power
            for (int part = 0; part < P; part++)
                for (int p = 2; p <= NU; p++)
                    for (int k = 0; k < OUT; k++)
                        v[part][p - 2][k] = real(p) * load(from + k * ROW + part * B * NC + (p - 1) * C);
            for (int point = 0; point < (NU > 1 ? POINTS_ : 0); point++) {
                const real* w = outward + point * OUT;
                V sp[NU + 1], tp[NU + 1], g_s[P] = {}, g_t[P] = {};
                sp[0] = tp[0] = all(1);
                for (int p = 1; p <= NU - 1; p++) {
                    sp[p] = p == 1 ? grid[0].here[point] : sp[p - 1] * sp[1];
                    tp[p] = p == 1 ? grid[0].there[point] : tp[p - 1] * tp[1];
                }
                for (int part = 0; part < P; part++)
                    for (int p = 2; p <= NU; p++) {
                        V even = w[0] * v[part][p - 2][0], odd = {};
                        for (int k = 1; k < EVEN_OUT; k++) even += w[k] * v[part][p - 2][k];
                        for (int k = EVEN_OUT; k < OUT; k++) odd += w[k] * v[part][p - 2][k];
                        const V s = OUT > EVEN_OUT ? even + odd : even, t = OUT > EVEN_OUT ? even - odd : even;
                        g_s[part] += sp[p - 1] * s;
                        g_t[part] += tp[p - 1] * t;
                        if (part == 1) {  // of a tangent p f^(p-1) df
                            const V s2 = p == 2 ? s : real(p - 1) * sp[p - 2] * s;
                            const V t2 = p == 2 ? t : real(p - 1) * tp[p - 2] * t;
                            g_s[0] += s2 * grid[P - 1].here[point];
                            g_t[0] += t2 * grid[P - 1].there[point];
                        }
                    }
                for (int part = 0; part < P; part++) {
                    grid[part].here[point] = g_s[part] + g_t[part];
                    grid[part].there[point] = g_s[part] - g_t[part];
                }
            }
            for (int part = 0; part < P; part++) {
                V g_f[M] = {};
                for (int k = 0; k < OUT; k++) g_f[direct(k)] = load(from + k * ROW + part * B * NC);
                for (int point = 0; point < (NU > 1 ? POINTS_ : 0); point++) {
                    const real* y = inward + point * M;
                    const V even = grid[part].here[point], odd = grid[part].there[point];
                    for (int m = 0; m < EVEN; m++) g_f[m] += y[m] * even;
                    for (int m = EVEN; m < M; m++) g_f[m] += y[m] * odd;
                }
                for (int m = 0; m < M; m++) store(g_a + m * MC + part * B * C + column, g_f[m]);
            }
        }
    }
};

// Weights and their gradient. Python's are one row of numbers, piece after piece in the order of `each`; here rows are
// padded, scalar factors are part of the weights, and those ending in _T are transposed. "By degree" has one matrix,
// (fan in, fan out), for each degree 0, 1, ...

struct Layer {
    real* radial;                        // (K, RADII)
    real *mix_density, *mix_message;     // by degree (Q, C), (C, C)
    real *mix_gate, *product_gate;       // (degree, element, C), (element, NU C)
    real *hidden, *hidden_out, *linear;  // (F, HIDDEN), (HIDDEN), (F)
    real *hidden_bias, *energy_bias;     // (element, HIDDEN), (element)
    real *send, *send_bias;              // by degree (NU C, C), (element, C)
    real *mix_density_T, *mix_message_T, *hidden_T, *send_T;
};

struct Weights {
    real* mixture;       // (element, W)
    real* density_gate;  // (degree, element, Q)
    Layer layers[LAYERS];

    // run(piece, rows, width, padded width, factor)
    template <class F>
    void each(real scale, F&& run) {
        if (MIXTURES) run(mixture, Z, W, W, real(1));
        if (GATES) run(density_gate, DEGREES * Z, Q, Q_PAD, real(1));
        for (int t = 0; t < LAYERS; t++) {
            Layer& layer = layers[t];
            const int inputs = NC + (t ? C : 0), degrees = L_SENT + 1;
            if (t) run(layer.radial, K, RADII, RADII, real(1));
            run(layer.mix_density, DEGREES * Q, C, C, scale);
            if (t) run(layer.mix_message, DEGREES * C, C, C, scale);
            if (GATES) run(layer.mix_gate, DEGREES * Z, C, C, real(1));
            if (GATES) run(layer.product_gate, Z, NC, NC, real(1));
            run(layer.hidden, inputs, H, H_PAD, real(1));
            run(layer.hidden_out, 1, H, H_PAD, real(1));
            run(layer.linear, 1, inputs, inputs, real(1));
            run(layer.hidden_bias, Z, H, H_PAD, real(1));
            run(layer.energy_bias, Z, 1, 1, real(1));
            if (t == LAYERS - 1) continue;
            run(layer.send, degrees * NC, C, C, real(1));
            run(layer.send_bias, Z, C, C, real(1));
        }
    }
    void place(Arena& arena) {
        each(0, [&](real*& piece, int rows, int, int pitch, real) { piece = arena.take<real>(size_t(rows) * pitch); });
    }
    void place_transposed(Arena& arena) {
        for (int t = 0; t < LAYERS; t++) {
            layers[t].mix_density_T = arena.take<real>(DEGREES * C * Q_PAD);
            layers[t].mix_message_T = arena.take<real>(DEGREES * C * C);
            layers[t].hidden_T = arena.take<real>(H * (NC + C));
            layers[t].send_T = arena.take<real>((L_SENT + 1) * C * NC);
        }
    }
    void read(const real* flat, real scale) {
        each(scale, [&](real*& piece, int rows, int width, int pitch, real factor) {
            for (int row = 0; row < rows; row++)
                for (int k = 0; k < pitch; k++) piece[row * pitch + k] = k < width ? factor * flat[row * width + k] : 0;
            flat += rows * width;
        });
        for (int t = 0; t < LAYERS; t++) {
            Layer& layer = layers[t];
            const int inputs = NC + (t ? C : 0);
            for (int l = 0; l < DEGREES; l++) {
                turn(layer.mix_density + l * Q * C, Q, C, C, layer.mix_density_T + l * C * Q_PAD, Q_PAD);
                if (t) turn(layer.mix_message + l * C * C, C, C, C, layer.mix_message_T + l * C * C, C);
            }
            turn(layer.hidden, inputs, H, H_PAD, layer.hidden_T, inputs);
            for (int l = 0; l <= L_SENT && t < LAYERS - 1; l++)
                turn(layer.send + l * NC * C, NC, C, C, layer.send_T + l * NC * C, NC);
        }
    }
    static void turn(const real* from, int rows, int width, int pitch, real* to, int to_pitch) {
        for (int k = 0; k < width; k++)
            for (int row = 0; row < to_pitch; row++) to[k * to_pitch + row] = row < rows ? from[row * pitch + k] : 0;
    }
    void clear() {
        each(0, [](real*& piece, int rows, int, int pitch, real) { std::fill_n(piece, size_t(rows) * pitch, real(0)); });
    }
};

// Batch

struct Batch {
    int64_t num_atoms, num_edges;
    const int64_t* start;             // (N + 1), edges are sorted by centre
    const int32_t* order;             // (E), place in Python's order: here an atom's edges are sorted by element
    const int32_t* reverse;           // (E)
    const int32_t *element, *other;   // (N), (E) of the neighbour
    const real *r_ij, *displacement;  // (E, 3) in Python's order
};
struct Told {
    real scale, cutoff, stretch;
    const real *inward, *outward, *inward_last, *outward_last;  // of layers that send, and of the last
};
struct Results {
    real *energies, *gradient;       // (N), (E, 3) of values
    const real* energies_gradient;  // (N), a of the head
};

template <int T>
constexpr bool LAST = T == LAYERS - 1;
template <int T>
constexpr int ELL = LAST<T> ? 0 : L_SENT;
template <int T>
constexpr int INPUT = NC + (T ? C : 0);

struct Kept {  // of one layer, by blocks
    real *mixed, *product, *message, *hidden;  // before gates: [M][P][B][C], [rows][P][B][NU C]; [P][B][H_PAD]
    real *h, *g_h;                             // [rows sent][P][B][C], [P][B][C] from the next layer's readout
    real *sent, *g_sent;                       // (E, P, C), where they are heard
};

template <int P>
struct Buffers {
    real *density, *g_density;  // [M][P][B][Q_PAD]
    Kept layers[LAYERS];
    size_t longest;
    Edges* edges;              // [B][longest / LANES]
    EdgesGradient* gradients;
    Weights gradient;

    Buffers(Arena& arena, size_t n, size_t num_edges, size_t most_neighbors) {
        const size_t blocks = (n + B - 1) / B, density_blocks = LAYERS > 1 ? blocks : 1;
        longest = padded(int(most_neighbors), LANES);
        density = arena.take<real>(density_blocks * M * P * B * Q_PAD);
        g_density = arena.take<real>(density_blocks * M * P * B * Q_PAD);
        for (int t = 0; t < LAYERS; t++) {
            Kept& kept = layers[t];
            const bool last = t == LAYERS - 1;
            const size_t slots = last ? 1 : blocks;
            kept.mixed = arena.take<real>(slots * M * P * B * C);
            kept.product = arena.take<real>(slots * (last ? 1 : ROWS_SENT) * P * B * NC);
            kept.hidden = arena.take<real>(slots * P * B * H_PAD);
            if (t) kept.message = arena.take<real>(slots * M * P * B * C);
            if (last) continue;
            kept.h = arena.take<real>(slots * ROWS_SENT * P * B * C);
            kept.g_h = arena.take<real>(slots * P * B * C);
            kept.sent = arena.take<real>(num_edges * P * C);
            kept.g_sent = arena.take<real>(num_edges * P * C);
        }
        edges = arena.take<Edges>(B * longest / LANES);
        gradients = arena.take<EdgesGradient>(P == 1 ? B * longest / LANES : 0);
        if (P == 2) gradient.place(arena);
    }
};

// All atoms, a block at a time.

template <int P>
struct Worker {
    static constexpr int PB = P * B, MC = PB * C, MQ = PB * Q_PAD, ROW = PB * NC;  // from row to row
    const Weights& weights;
    const Told& told;
    const Batch& batch;
    Buffers<P>& buffers;
    const Results& results;
    int64_t block = 0, atom[B];
    int element[B], num_edges[B];
    alignas(64) real gated_density_[M * MQ], mixed_[M * MC], product_[ROWS_SENT * ROW];
    alignas(64) real g_mixed[M * MC], g_product[ROWS_SENT * ROW], g_message[M * MC], g_sent[ROWS_SENT * MC];

    Worker(const Weights& weights, const Told& told, const Batch& batch, Buffers<P>& buffers, const Results& results)
        : weights(weights), told(told), batch(batch), buffers(buffers), results(results) {}

    // Pieces of the block; those of the last layer are used at once.
    template <int T>
    int64_t slot() const { return LAST<T> ? 0 : block; }
    real* density() const { return buffers.density + (LAYERS > 1 ? block : 0) * M * MQ; }
    real* g_density() const { return buffers.g_density + (LAYERS > 1 ? block : 0) * M * MQ; }
    template <int T>
    real* mixed() const { return buffers.layers[T].mixed + slot<T>() * M * MC; }
    template <int T>
    real* product() const { return buffers.layers[T].product + slot<T>() * square(ELL<T> + 1) * ROW; }
    template <int T>
    real* message() const { return buffers.layers[T].message + slot<T>() * M * MC; }
    template <int T>
    real* hidden() const { return buffers.layers[T].hidden + slot<T>() * PB * H_PAD; }
    template <int T>
    real* h() const { return buffers.layers[T].h + block * ROWS_SENT * MC; }
    template <int T>
    real* g_h() const { return buffers.layers[T].g_h + block * MC; }
    Edges* edges(int a) const { return buffers.edges + a * (buffers.longest / LANES); }
    EdgesGradient* gradients(int a) const { return buffers.gradients + a * (buffers.longest / LANES); }
    static const real* lanes(const V* x) { return reinterpret_cast<const real*>(x); }

    template <class F>
    void each_block(F&& run) {
        for (block = 0; block < (batch.num_atoms + B - 1) / B; block++) {
            for (int a = 0; a < B; a++) {  // the last block may be short of atoms
                const int64_t i = block * B + a;
                const bool there = i < batch.num_atoms;
                atom[a] = i;
                element[a] = there ? batch.element[i] : 0;
                num_edges[a] = there ? int(batch.start[i + 1] - batch.start[i]) : 0;
                for (int e = 0; e < num_edges[a]; e += LANES)
                    measure(batch.r_ij, batch.displacement, batch.order + batch.start[i] + e,
                            std::min(num_edges[a] - e, LANES), told.cutoff, told.stretch, edges(a)[e / LANES]);
                if (P == 1) std::memset(gradients(a), 0, (num_edges[a] + LANES - 1) / LANES * sizeof(EdgesGradient));
            }
            run();
        }
    }
    template <class F>
    void each_lanes(int a, F&& run) const {  // LANES edges, the first of them, their number
        for (int first = 0; first < num_edges[a]; first += LANES)
            run(edges(a)[first / LANES], first, std::min(num_edges[a] - first, LANES));
    }
    // Neighbours of one element among LANES edges; `last` where no more follow.
    template <class F>
    void each_run(int a, F&& run) const {
        const int32_t* other = batch.other + batch.start[std::min(atom[a], batch.num_atoms)];
        for (int e = 0; e < num_edges[a];) {
            const int z = other[e], end = std::min(num_edges[a], e / LANES * LANES + LANES);
            int next = e + 1;
            while (next < end && other[next] == z) next++;
            run(z, e, next - e, next == num_edges[a] || other[next] != z);
            e = next;
        }
    }

    // Density of an atom's neighbours of each element: run(z, sum), where sum(m, k, part) is a number.
    template <class F>
    void each_element(int a, F&& run) const {
        constexpr int WIDTH = padded(P * K, LANES), NARROW = padded(K, LANES);
        alignas(64) real radial[LANES * WIDTH] = {}, sums[M * WIDTH], change[M * NARROW];
        const auto sum = [&](int m, int k, int part) {
            return part ? sums[m * WIDTH + K + k] + change[m * NARROW + k] : sums[m * WIDTH + k];
        };
        bool add = false;
        each_run(a, [&](int z, int e, int count, bool last) {
            const Edges& here = edges(a)[e / LANES];
            const int lane = e % LANES;
            for (int k = 0; k < K; k++)
                for (int n = 0; n < count; n++) {
                    radial[n * WIDTH + k] = here.radial[k][lane + n];
                    if (P == 2) radial[n * WIDTH + K + k] = here.radial_dot[k][lane + n];
                }
            multiply<WIDTH>(M, lanes(here.y) + lane, LANES, 1, radial, WIDTH, count, sums, WIDTH, add);
            if (P == 2) multiply<NARROW>(M, lanes(here.y_dot) + lane, LANES, 1, radial, WIDTH, count, change, NARROW, add);
            add = !last;
            if (last) run(z, sum);
        });
    }
    void sum_density() {
        real* d = density();
        std::memset(d, 0, M * MQ * sizeof(real));
        for (int a = 0; a < B; a++)
            each_element(a, [&](int z, auto&& sum) {
                for (int m = 0; m < M; m++)
                    for (int part = 0; part < P; part++) {
                        real* to = d + m * MQ + part * B * Q_PAD + a * Q_PAD;
                        if constexpr (MIXTURES) {
                            for (int w = 0; w < W; w++)
                                for (int k = 0; k < K; k++) to[w * K + k] += weights.mixture[z * W + w] * sum(m, k, part);
                        } else {
                            for (int k = 0; k < K; k++) to[z * K + k] = sum(m, k, part);
                        }
                    }
            });
    }
    // Gradient to the mixtures, from that to the density before factors.
    void learn_mixture() {
        const real* g = g_density();
        for (int a = 0; a < B; a++)
            each_element(a, [&](int z, auto&& sum) {
                real total[W] = {};
                for (int m = 0; m < M; m++)
                    for (int part = 0; part < P; part++) {
                        const real* from = g + m * MQ + part * B * Q_PAD + a * Q_PAD;
                        for (int w = 0; w < W; w++)
                            for (int k = 0; k < K; k++) total[w] += from[w * K + k] * sum(m, k, part);
                    }
                for (int w = 0; w < W; w++) buffers.gradient.mixture[z * W + w] += total[w];
            });
    }

    // Factors by element: x of each row (m, part) of a block times its factors, `of` maps a row m to them.
    template <int WIDTH, int PITCH, class F>
    void gate(int rows, const real* x, real* to, F&& of) const {
        for (int m = 0; m < rows; m++)
            for (int part = 0; part < P; part++)
                for (int a = 0; a < B; a++) {
                    const real* factor = of(m, element[a]);
                    const int at = ((m * P + part) * B + a) * PITCH;
                    for (int c = 0; c < WIDTH; c += LANES) store(to + at + c, load(x + at + c) * load(factor + c));
                }
    }
    // Gradient to the factors.
    template <int WIDTH, int PITCH, class F>
    void learn_gate(int rows, const real* x, const real* g, F&& of) const {
        for (int a = 0; a < B; a++)
            for (int m = 0; m < rows; m++) {
                real* to = of(m, element[a]);
                for (int c = 0; c < WIDTH; c += LANES) {
                    V total = load(to + c);
                    for (int part = 0; part < P; part++) {
                        const int at = ((m * P + part) * B + a) * PITCH + c;
                        total += load(x + at) * load(g + at);
                    }
                    store(to + c, total);
                }
            }
    }
    static auto by_degree(real* table, int width) {
        return [=](int m, int z) { return table + (FELT.row_degree[m] * Z + z) * width; };
    }
    static auto by_element(real* table, int width) {
        return [=](int, int z) { return table + z * width; };
    }
    const real* gated_density() {
        if (!GATES) return density();
        gate<Q_PAD, Q_PAD>(M, density(), gated_density_, by_degree(weights.density_gate, Q_PAD));
        return gated_density_;
    }
    template <int T>
    const real* gated_mixed() {
        if (!GATES) return mixed<T>();
        gate<C, C>(M, mixed<T>(), mixed_, by_degree(weights.layers[T].mix_gate, C));
        return mixed_;
    }
    template <int T>
    const real* gated_product() {
        if (!GATES) return product<T>();
        gate<NC, NC>(square(ELL<T> + 1), product<T>(), product_, by_element(weights.layers[T].product_gate, NC));
        return product_;
    }

    // What was sent to an atom along its edges, times harmonics.
    template <int T>
    void hear() {
        real* s = message<T>();
        std::memset(s, 0, M * MC * sizeof(real));
        for (int a = 0; a < B; a++)
            each_lanes(a, [&](const Edges& here, int first, int count) {
                const real* heard = buffers.layers[T - 1].sent + (batch.start[atom[a]] + first) * P * C;
                for (int part = 0; part < P; part++)
                    multiply<C>(M, lanes(here.y), LANES, 1, heard + part * C, P * C, count, s + (part * B + a) * C, MC, true);
                if (P == 2) multiply<C>(M, lanes(here.y_dot), LANES, 1, heard, P * C, count, s + (B + a) * C, MC, true);
            });
    }
    template <int T>
    void reverse_hear() {
        alignas(64) real back[P][LANES * C], turned[C * M_PAD] = {}, g_y[LANES * M_PAD];
        for (int a = 0; a < B; a++) {
            if (P == 1)
                for (int c = 0; c < C; c++)
                    for (int m = 0; m < M; m++) turned[c * M_PAD + m] = g_message[m * MC + a * C + c];
            each_lanes(a, [&](const Edges& here, int first, int count) {
                const int64_t edge = batch.start[atom[a]] + first;
                for (int part = 0; part < P; part++)
                    multiply<C>(count, lanes(here.y), 1, LANES, g_message + (part * B + a) * C, MC, M, back[part], C);
                if (P == 2) multiply<C>(count, lanes(here.y_dot), 1, LANES, g_message + (B + a) * C, MC, M, back[0], C, true);
                for (int e = 0; e < count; e++) {
                    real* to = buffers.layers[T - 1].g_sent + size_t(batch.reverse[edge + e]) * P * C;
                    for (int part = 0; part < P; part++) std::memcpy(to + part * C, back[part] + e * C, C * sizeof(real));
                }
                if (P == 1) {
                    const real* heard = buffers.layers[T - 1].sent + edge * C;
                    multiply<M_PAD>(count, heard, C, 1, turned, M_PAD, C, g_y, M_PAD);
                    EdgesGradient& to = gradients(a)[first / LANES];
                    for (int m = 0; m < M; m++)
                        for (int e = 0; e < count; e++) to.y[m][e] += g_y[e * M_PAD + m];
                }
            });
        }
    }

    // What an atom sends along its edges: its h in the edge's direction, times functions of the distance.
    template <int T>
    void tell() {
        alignas(64) real radii[P][LANES * RADII];
        for (int a = 0; a < B; a++)
            each_lanes(a, [&](const Edges& here, int first, int count) {
                multiply<RADII>(count, lanes(here.radial), 1, LANES, weights.layers[T + 1].radial, RADII, K, radii[0], RADII);
                if (P == 2)
                    multiply<RADII>(count, lanes(here.radial_dot), 1, LANES, weights.layers[T + 1].radial, RADII, K, radii[P - 1], RADII);
                const int32_t* reverse = batch.reverse + batch.start[atom[a]] + first;
                const real *y = lanes(here.y), *y_dot = lanes(here.y_dot);
                for (int c = 0; c < C; c += LANES) {
                    V own_h[P][ROWS_SENT];
                    for (int part = 0; part < P; part++)
                        for (int row = 0; row < ROWS_SENT; row++)
                            own_h[part][row] = load(h<T>() + (row * PB + part * B + a) * C + c);
                    for (int e = 0; e < count; e++) {
                        V total[P] = {};
                        unrolled<L_SENT + 1>([&](auto k) {
                            V along[P];
                            directed<k>(own_h, y + e, y_dot + e, along);
                            const V r = load(radii[0] + e * RADII + k * C + c);
                            for (int part = 0; part < P; part++) total[part] += r * along[part];
                            if (P == 2) total[P - 1] += load(radii[P - 1] + e * RADII + k * C + c) * along[0];
                        });
                        real* to = buffers.layers[T].sent + size_t(reverse[e]) * P * C + c;
                        for (int part = 0; part < P; part++) store(to + part * C, total[part]);
                    }
                }
            });
    }
    // Y_l . h_l of the k-th degree for one edge
    template <int k>
    static void directed(const V (&own_h)[P][ROWS_SENT], const real* y, const real* y_dot, V (&along)[P]) {
        constexpr int l = SENT.at[k];
        if constexpr (l == 0) {  // Y_00 = 1
            for (int part = 0; part < P; part++) along[part] = own_h[part][0];
        } else {
            for (int part = 0; part < P; part++) along[part] = V{};
            unrolled<2 * l + 1>([&](auto m) {
                constexpr int row = SENT.first[l] + m, at = (FELT.first[l] + m) * LANES;
                for (int part = 0; part < P; part++) along[part] += y[at] * own_h[part][row];
                if (P == 2) along[P - 1] += y_dot[at] * own_h[0][row];
            });
        }
    }
    // Adds to the gradient to h, g_sent.
    template <int T>
    void reverse_tell() {
        alignas(64) real radii[P][LANES * RADII], slopes[LANES * RADII];
        for (int a = 0; a < B; a++)
            each_lanes(a, [&](const Edges& here, int first, int count) {
                const real* radial = weights.layers[T + 1].radial;
                multiply<RADII>(count, lanes(here.radial), 1, LANES, radial, RADII, K, radii[0], RADII);
                multiply<RADII>(count, lanes(here.radial_dot), 1, LANES, radial, RADII, K, P == 2 ? radii[P - 1] : slopes, RADII);
                const real* g_heard = buffers.layers[T].g_sent + (batch.start[atom[a]] + first) * P * C;
                const real *y = lanes(here.y), *y_dot = lanes(here.y_dot);
                V stretch[LANES] = {}, g_y[LANES][ROWS_SENT] = {};
                for (int c = 0; c < C; c += LANES) {
                    V own_h[P][ROWS_SENT], g[P][ROWS_SENT];
                    for (int part = 0; part < P; part++)
                        for (int row = 0; row < ROWS_SENT; row++) {
                            own_h[part][row] = load(h<T>() + (row * PB + part * B + a) * C + c);
                            g[part][row] = load(g_sent + (row * PB + part * B + a) * C + c);
                        }
                    for (int e = 0; e < count; e++) {
                        V back[P];
                        for (int part = 0; part < P; part++) back[part] = load(g_heard + (e * P + part) * C + c);
                        unrolled<L_SENT + 1>([&](auto k) {
                            constexpr int l = SENT.at[k];
                            const ptrdiff_t at = e * RADII + k * C + c;
                            V along[P], g_along[P];
                            directed<k>(own_h, y + e, y_dot + e, along);
                            for (int part = 0; part < P; part++) g_along[part] = back[part] * load(radii[0] + at);
                            if constexpr (P == 2) {
                                g_along[0] += back[1] * load(radii[1] + at);
                                store(radii[0] + at, back[0] * along[0] + back[1] * along[1]);
                                store(radii[1] + at, back[1] * along[0]);
                            } else {
                                stretch[e] += back[0] * along[0] * load(slopes + at);
                            }
                            if constexpr (l == 0) {
                                for (int part = 0; part < P; part++) g[part][0] += g_along[part];
                            } else {
                                unrolled<2 * l + 1>([&](auto m) {
                                    constexpr int row = SENT.first[l] + m, of_y = (FELT.first[l] + m) * LANES;
                                    for (int part = 0; part < P; part++) g[part][row] += y[of_y + e] * g_along[part];
                                    if (P == 2) g[0][row] += y_dot[of_y + e] * g_along[P - 1];
                                    if (P == 1) g_y[e][row] += g_along[0] * own_h[0][row];
                                });
                            }
                        });
                    }
                    for (int part = 0; part < P; part++)
                        for (int row = 0; row < ROWS_SENT; row++) store(g_sent + (row * PB + part * B + a) * C + c, g[part][row]);
                }
                if constexpr (P == 2) {
                    multiply<RADII>(K, lanes(here.radial), LANES, 1, radii[0], RADII, count, buffers.gradient.layers[T + 1].radial, RADII, true);
                    multiply<RADII>(K, lanes(here.radial_dot), LANES, 1, radii[1], RADII, count, buffers.gradient.layers[T + 1].radial, RADII, true);
                } else {
                    EdgesGradient& to = gradients(a)[first / LANES];
                    for (int e = 0; e < count; e++) {
                        to.along[e] += sum(stretch[e]);
                        for (int k = 1; k <= L_SENT; k++)
                            for (int m = 0; m < 2 * SENT.at[k] + 1; m++)
                                to.y[FELT.first[SENT.at[k]] + m][e] += sum(g_y[e][SENT.first[SENT.at[k]] + m]);
                    }
                }
            });
    }

    template <int T>
    void readout(const real* x) {
        const Layer& layer = weights.layers[T];
        real* act = hidden<T>();
        std::memset(act, 0, PB * H_PAD * sizeof(real));
        for (int a = 0; a < B; a++) std::memcpy(act + a * H_PAD, layer.hidden_bias + element[a] * H_PAD, H_PAD * sizeof(real));
        multiply<H_PAD>(PB, x, NC, 1, layer.hidden, H_PAD, NC, act, H_PAD, true);
        if constexpr (T > 0) multiply<H_PAD>(PB, h<T - 1>(), C, 1, layer.hidden + NC * H_PAD, H_PAD, C, act, H_PAD, true);
        if constexpr (P == 1)
            for (int a = 0; a < B; a++) {
                V total = {};
                for (int k = 0; k < H_PAD; k += LANES) {
                    const V value = load(act + a * H_PAD + k);
                    total += value * sigmoid(value) * load(layer.hidden_out + k);
                }
                for (int c = 0; c < NC; c += LANES) total += load(x + a * NC + c) * load(layer.linear + c);
                if constexpr (T > 0)
                    for (int c = 0; c < C; c += LANES) total += load(h<T - 1>() + a * C + c) * load(layer.linear + NC + c);
                if (atom[a] < batch.num_atoms) {
                    const real energy = sum(total) + layer.energy_bias[element[a]];
                    results.energies[atom[a]] = T == 0 ? energy : results.energies[atom[a]] + energy;
                }
            }
    }
    // Writes the gradient to scalars: to row 0 of g_product, and of what was sent before.
    template <int T>
    void reverse_readout(const real* x) {
        const Layer& layer = weights.layers[T];
        const real* act = hidden<T>();
        alignas(64) real g_act[PB * H_PAD];
        for (int a = 0; a < B; a++) {
            const bool there = atom[a] < batch.num_atoms;
            const real of_energy = P == 1 ? real(1) : there ? results.energies_gradient[atom[a]] : real(0);
            const real of_change = there;
            for (int k = 0; k < H_PAD; k += LANES) {
                const V value = load(act + a * H_PAD + k), s = sigmoid(value), out = load(layer.hidden_out + k);
                const V rest = 1 - s, slope = s * (1 + value * rest);
                if constexpr (P == 1) {
                    store(g_act + a * H_PAD + k, out * slope);
                } else {
                    const V change = of_change * load(act + (B + a) * H_PAD + k);
                    const V bend = s * rest * (2 + value * (1 - 2 * s));
                    store(g_act + a * H_PAD + k, out * (of_energy * slope + bend * change));
                    store(g_act + (B + a) * H_PAD + k, of_change * out * slope);
                    real* g_out = buffers.gradient.layers[T].hidden_out + k;
                    store(g_out, load(g_out) + of_energy * value * s + slope * change);
                    real* g_bias = buffers.gradient.layers[T].hidden_bias + element[a] * H_PAD + k;
                    store(g_bias, load(g_bias) + load(g_act + a * H_PAD + k));
                }
            }
            for (int part = 0; part < P; part++) {
                const real factor = part ? of_change : of_energy;
                for (int c = 0; c < INPUT<T>; c += LANES) {
                    real* to = nullptr;
                    const real* from = nullptr;
                    if (c < NC) {
                        to = g_product + (part * B + a) * NC + c;
                        from = x + (part * B + a) * NC + c;
                    } else if constexpr (T > 0) {
                        to = g_h<T - 1>() + (part * B + a) * C + c - NC;
                        from = h<T - 1>() + (part * B + a) * C + c - NC;
                    }
                    store(to, factor * load(layer.linear + c));
                    if constexpr (P == 2) {
                        real* g_linear = buffers.gradient.layers[T].linear + c;
                        store(g_linear, load(g_linear) + factor * load(from));
                    }
                }
            }
            if (P == 2) buffers.gradient.layers[T].energy_bias[element[a]] += of_energy;
        }
        multiply<NC>(PB, g_act, H_PAD, 1, layer.hidden_T, INPUT<T>, H, g_product, NC, true);
        if constexpr (T > 0) multiply<C>(PB, g_act, H_PAD, 1, layer.hidden_T + NC, INPUT<T>, H, g_h<T - 1>(), C, true);
        if constexpr (P == 2) {
            real* g_hidden = buffers.gradient.layers[T].hidden;
            multiply<H_PAD>(NC, x, 1, NC, g_act, H_PAD, PB, g_hidden, H_PAD, true);
            if constexpr (T > 0) multiply<H_PAD>(C, h<T - 1>(), 1, C, g_act, H_PAD, PB, g_hidden + NC * H_PAD, H_PAD, true);
        }
    }

    template <int T>
    auto grids() const { return std::pair(LAST<T> ? told.inward_last : told.inward, LAST<T> ? told.outward_last : told.outward); }
    template <int T>
    using Powers = Product<P, ELL<T>, LAST<T> ? POINTS_LAST : POINTS>;

    // Up to the readout of layer T, and what it sends.
    template <int T>
    void enter() {
        const Layer& layer = weights.layers[T];
        if constexpr (T == 0) sum_density();
        if constexpr (T > 0) hear<T>();
        const real* d = gated_density();
        real* a = mixed<T>();
        for (int l = 0; l <= LMAX; l++) {
            const int row = FELT.first[l], rows = (2 * l + 1) * PB;
            multiply<C>(rows, d + row * MQ, Q_PAD, 1, layer.mix_density + l * Q * C, C, Q, a + row * MC, C);
            if constexpr (T > 0)
                multiply<C>(rows, message<T>() + row * MC, C, 1, layer.mix_message + l * C * C, C, C, a + row * MC, C, true);
        }
        Powers<T>::forward(gated_mixed<T>(), grids<T>().first, grids<T>().second, product<T>());
        const real* p = gated_product<T>();
        readout<T>(p);
        if constexpr (!LAST<T>) {
            for (int l = 0; l <= L_SENT; l++) {
                const int row = SENT.first[l];
                multiply<C>((2 * l + 1) * PB, p + row * ROW, NC, 1, layer.send + l * NC * C, C, NC, h<T>() + row * MC, C);
            }
            for (int k = 0; k < B; k++)
                for (int c = 0; c < C; c++) h<T>()[k * C + c] += layer.send_bias[element[k] * C + c];
            tell<T>();
        }
    }
    // From what the layer above left to what the layer below needs.
    template <int T>
    void leave() {
        const Layer& layer = weights.layers[T];
        const Layer& g_layer = buffers.gradient.layers[T];
        const real *d = gated_density(), *x = gated_mixed<T>(), *p = gated_product<T>();
        if constexpr (!LAST<T>) {
            std::memset(g_sent, 0, sizeof g_sent);
            std::memcpy(g_sent, g_h<T>(), MC * sizeof(real));
            reverse_tell<T>();
        }
        reverse_readout<T>(p);
        if constexpr (!LAST<T>) {
            if constexpr (P == 2)
                for (int a = 0; a < B; a++)
                    for (int c = 0; c < C; c++) g_layer.send_bias[element[a] * C + c] += g_sent[a * C + c];
            for (int l = 0; l <= L_SENT; l++) {
                const int row = SENT.first[l], rows = (2 * l + 1) * PB;
                multiply<NC>(rows, g_sent + row * MC, C, 1, layer.send_T + l * NC * C, NC, C, g_product + row * ROW, NC, l == 0);
                if constexpr (P == 2)
                    multiply<C>(NC, p + row * ROW, 1, NC, g_sent + row * MC, C, rows, g_layer.send + l * NC * C, C, true);
            }
        }
        if constexpr (GATES) {
            constexpr int OUT = square(ELL<T> + 1);
            if (P == 2) learn_gate<NC, NC>(OUT, product<T>(), g_product, by_element(g_layer.product_gate, NC));
            gate<NC, NC>(OUT, g_product, g_product, by_element(layer.product_gate, NC));
        }
        Powers<T>::reverse(x, grids<T>().first, grids<T>().second, g_product, g_mixed);
        if constexpr (GATES) {
            if (P == 2) learn_gate<C, C>(M, mixed<T>(), g_mixed, by_degree(g_layer.mix_gate, C));
            gate<C, C>(M, g_mixed, g_mixed, by_degree(layer.mix_gate, C));
        }
        for (int l = 0; l <= LMAX; l++) {
            const int row = FELT.first[l], rows = (2 * l + 1) * PB;
            const real* g = g_mixed + row * MC;
            if constexpr (P == 1 || GATES || MIXTURES)
                multiply<Q_PAD>(rows, g, C, 1, layer.mix_density_T + l * C * Q_PAD, Q_PAD, C, g_density() + row * MQ, Q_PAD, !LAST<T>);
            if constexpr (T > 0)
                multiply<C>(rows, g, C, 1, layer.mix_message_T + l * C * C, C, C, g_message + row * MC, C);
            if constexpr (P == 2) {
                multiply<C>(Q, d + row * MQ, 1, Q_PAD, g, C, rows, g_layer.mix_density + l * Q * C, C, true);
                if constexpr (T > 0)
                    multiply<C>(C, message<T>() + row * MC, 1, C, g, C, rows, g_layer.mix_message + l * C * C, C, true);
            }
        }
        if constexpr (T > 0) reverse_hear<T>();
        if constexpr (T == 0 && P == 2 && GATES)
            learn_gate<Q_PAD, Q_PAD>(M, density(), g_density(), by_degree(buffers.gradient.density_gate, Q_PAD));
        if constexpr (T == 0 && (P == 1 || MIXTURES)) {
            real* g_d = g_density();
            if (GATES) gate<Q_PAD, Q_PAD>(M, g_d, g_d, by_degree(weights.density_gate, Q_PAD));
        }
        if constexpr (T == 0 && P == 2 && MIXTURES) learn_mixture();
        if constexpr (T == 0 && P == 1) reverse_density();
        if constexpr (P == 1) give();
    }

    void reverse_density() {
        const real* g_d = g_density();
        for (int a = 0; a < B; a++) {
            alignas(64) real of_element[M * K];  // gradient to the density of one element
            int taken = -1;
            each_run(a, [&](int z, int e, int count, bool) {
                const Edges& here = edges(a)[e / LANES];
                EdgesGradient& to = gradients(a)[e / LANES];
                I inside;
                for (int lane = 0; lane < LANES; lane++) inside[lane] = lane >= e % LANES && lane < e % LANES + count ? -1 : 0;
                V radial[K], slope[K], along = {};
                for (int k = 0; k < K; k++) {
                    radial[k] = inside ? here.radial[k] : V{};
                    slope[k] = inside ? here.radial_dot[k] : V{};
                }
                if (MIXTURES && z != taken) {
                    taken = z;
                    for (int m = 0; m < M; m++)
                        for (int k = 0; k < K; k++) {
                            real total = 0;
                            for (int w = 0; w < W; w++) total += weights.mixture[z * W + w] * g_d[m * MQ + a * Q_PAD + w * K + k];
                            of_element[m * K + k] = total;
                        }
                }
                for (int m = 0; m < M; m++) {
                    const real* g = MIXTURES ? of_element + m * K : g_d + m * MQ + a * Q_PAD + z * K;
                    V of_y = {}, of_slope = {};
                    for (int k = 0; k < K; k++) {
                        of_y += g[k] * radial[k];
                        of_slope += g[k] * slope[k];
                    }
                    to.y[m] += of_y;
                    along += here.y[m] * of_slope;
                }
                to.along += along;
            });
        }
    }
    // Adds to the gradient to pair vectors.
    void give() {
        for (int a = 0; a < B; a++)
            each_lanes(a, [&](const Edges& here, int first, int count) {
                V g[3];
                pull(here, gradients(a)[first / LANES], g);
                const int32_t* order = batch.order + batch.start[atom[a]] + first;
                for (int e = 0; e < count; e++)
                    for (int k = 0; k < 3; k++) results.gradient[3 * size_t(order[e]) + k] += g[k][e];
            });
    }

    template <int T>
    void forward() {
        if constexpr (T < LAYERS - 1) {
            each_block([&] { enter<T>(); });
            forward<T + 1>();
        }
    }
    template <int T>
    void reverse() {
        if constexpr (T >= 0) {
            each_block([&] { leave<T>(); });
            reverse<T - 1>();
        }
    }
    void run() {
        if (P == 2) buffers.gradient.clear();
        forward<0>();
        each_block([&] {
            enter<LAYERS - 1>();
            leave<LAYERS - 1>();
        });
        reverse<LAYERS - 2>();
    }
};

char* aligned(char* p) { return p + (64 - reinterpret_cast<uintptr_t>(p) % 64) % 64; }

template <int P>
void compute(const Batch& batch, const Told& told, const Results& results, const real* flat, real* g_flat,
             int64_t most_neighbors, char* scratch) {
    Arena arena{aligned(scratch)};
    Weights weights;
    weights.place(arena);
    weights.place_transposed(arena);
    weights.read(flat, told.scale);
    Buffers<P> buffers(arena, batch.num_atoms, batch.num_edges, most_neighbors);
    Worker<P>(weights, told, batch, buffers, results).run();
    if constexpr (P == 2) {
        std::vector<const real*> pieces;
        buffers.gradient.each(0, [&](real*& piece, int, int, int, real) { pieces.push_back(piece); });
        size_t k = 0;
        weights.each(told.scale, [&](real*&, int rows, int width, int pitch, real factor) {
            for (int row = 0; row < rows; row++)
                for (int c = 0; c < width; c++) g_flat[row * width + c] = factor * pieces[k][row * pitch + c];
            g_flat += rows * width;
            k++;
        });
    }
}

template <int P>
size_t size(int64_t n, int64_t num_edges, int64_t most_neighbors) {
    Arena arena{nullptr};
    Weights weights;
    weights.place(arena);
    weights.place_transposed(arena);
    Buffers<P>(arena, n, num_edges, most_neighbors);
    return arena.used + 64;
}

}  // namespace

extern "C" {

int64_t num_weights() {
    int64_t total = 0;
    Weights().each(0, [&](real*&, int rows, int width, int, real) { total += rows * width; });
    return total;
}

// Sorts each atom's edges by their neighbour's element; returns the largest number of neighbours. `i` and `j` are
// Python's edge_index and `back` the reverse edges, of atoms and edges that are counted from `atom` and `edge`; `places`
// maps atomic numbers to elements.
int64_t plan(int64_t n, int64_t num_edges, int64_t atom, int64_t edge, const int64_t* i, const int64_t* j,
             const int64_t* back, const int64_t* numbers, const int64_t* places, int64_t* start, int32_t* order,
             int32_t* reverse, int32_t* element, int32_t* other) {
    for (int64_t a = 0; a < n; a++) element[a] = int32_t(places[numbers[a]]);
    std::fill_n(start, n + 1, 0);
    for (int64_t e = 0; e < num_edges; e++) start[i[e] - atom + 1]++;
    int64_t most = 0;
    for (int64_t a = 0; a < n; a++) {
        most = std::max(most, start[a + 1]);
        start[a + 1] += start[a];
    }
    std::vector<int32_t> place(num_edges);
    for (int64_t a = 0; a < n; a++) {
        int64_t at[Z + 1] = {};
        for (int64_t e = start[a]; e < start[a + 1]; e++) at[element[j[e] - atom] + 1]++;
        for (int z = 0; z < Z; z++) at[z + 1] += at[z];
        for (int64_t e = start[a]; e < start[a + 1]; e++) {
            const int64_t to = start[a] + at[element[j[e] - atom]]++;
            order[to] = int32_t(e);
            other[to] = element[j[e] - atom];
            place[e] = int32_t(to);
        }
    }
    for (int64_t e = 0; e < num_edges; e++) reverse[e] = place[back[order[e]] - edge];
    return most;
}

size_t scratch_size(int64_t n, int64_t num_edges, int64_t most_neighbors, int parts) {
    return parts == 1 ? size<1>(n, num_edges, most_neighbors) : size<2>(n, num_edges, most_neighbors);
}

// Energies (N) and gradient (E, 3), which is added to.
void values(const Batch* batch, const Told* told, const Results* results, const real* weights, int64_t most_neighbors,
            char* scratch) {
    compute<1>(*batch, *told, *results, weights, nullptr, most_neighbors, scratch);
}

// The weights' gradient, as one row of numbers.
void weights_gradient(const Batch* batch, const Told* told, const Results* results, const real* weights,
                      real* gradient, int64_t most_neighbors, char* scratch) {
    compute<2>(*batch, *told, *results, weights, gradient, most_neighbors, scratch);
}

}  // extern "C"
