// The energy of `models/gaunt_ace.py` and its forces and virial, in one pass over the atoms of one structure.
//
// The equations and their order are those of the module: mixed densities, powers on half a grid on the sphere in even
// and odd parts, readouts, messages. What differs is where the sums run. Nothing is kept of edges: harmonics and
// radial functions are made again in each pass, which costs less than memory does. An atom hears its neighbours by
// reading their h, so that all of an edge's gradient arises where its centre is; what belongs to the neighbour, its
// part of the force and of the gradient to h, is added to sums that each thread has for itself.
//
// Layers are passes over all atoms: forward up to the last layer, whose forward and reverse pass are one, then
// back. Atoms go in blocks of BLOCK, lm-major [row][atom][channel] as in the module, so that weights are read once
// a block. Sizes are compiled in: CHANNELS, RADIAL, DENSITY (element channels), MAX_ELL, CORRELATION, MESSAGE_ELL,
// LAYERS, HIDDEN. GCC's vector extensions, which clang has too, are all that is asked of the compiler.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>
#ifdef _OPENMP
#include <omp.h>
#endif

namespace {

constexpr int padded(int n, int to) { return (n + to - 1) / to * to; }
constexpr int square(int n) { return n * n; }

#if defined(__AVX512F__)
constexpr int LANES = 16;
constexpr int TILE_ROWS = 12;
#elif defined(__AVX__)
constexpr int LANES = 8;
constexpr int TILE_ROWS = 6;
#else
constexpr int LANES = 4;
constexpr int TILE_ROWS = 6;
#endif

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

template <class F, int... k>
inline __attribute__((always_inline)) void unrolled(F&& f, std::integer_sequence<int, k...>) {
    (f(std::integral_constant<int, k>()), ...);
}
template <int N, class F>
inline __attribute__((always_inline)) void unroll(F&& f) {
    unrolled(f, std::make_integer_sequence<int, N>());
}

// Vectors

typedef float V __attribute__((vector_size(4 * LANES)));
typedef int I __attribute__((vector_size(4 * LANES)));
typedef float Unaligned __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

inline V load(const float* p) { return *reinterpret_cast<const Unaligned*>(p); }
inline void store(float* p, V x) { *reinterpret_cast<Unaligned*>(p) = x; }
inline V all(float x) { return x - V{}; }

template <int S, int... lane>
inline V turned(V x, std::integer_sequence<int, lane...>) {
#if defined(__clang__) || __GNUC__ >= 12
    return __builtin_shufflevector(x, x, ((lane + S) % LANES)...);
#else
    return __builtin_shuffle(x, I{((lane + S) % LANES)...});
#endif
}
template <int S = LANES / 2>
inline float sum(V x) {
    x += turned<S>(x, std::make_integer_sequence<int, LANES>());
    if constexpr (S > 1) return sum<S / 2>(x);
    return x[0];
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
// 1 / (1 + exp(-x)); NaN stays NaN
inline V sigmoid(V x) {
    V t = x > 80.0f ? all(80.0f) : x;
    t = -(t < -80.0f ? all(-80.0f) : t);
    const V n = t * 1.44269504f + 12582912.0f;  // rounds: the last bits of n are the whole number
    const V whole = n - 12582912.0f;
    const V r = (t - whole * 0.693145752f) - whole * 1.42860677e-6f;
    const V p = 1 + r * (1 + r * (0.5f + r * (1.66666667e-1f + r * (4.16666667e-2f + r * (8.33333333e-3f + r * 1.38888889e-3f)))));
    union { V v; I i; } power, rounded;
    rounded.v = n;
    power.i = (rounded.i - 0x4B400000 + 127) << 23;
    return 1.0f / (1.0f + p * power.v);
}
// sin(pi s), cos(pi s) for s in [0, 1]
inline void sine_cosine(V s, V& sine, V& cosine) {
    const V a = 3.14159265f * (s - 0.5f), b = a * a;
    sine = 1 + b * (-0.5f + b * (4.16666667e-2f + b * (-1.38888889e-3f + b * (2.48015873e-5f + b * (-2.75573192e-7f + b * 2.08767570e-9f)))));
    cosine = -a * (1 + b * (-1.66666667e-1f + b * (8.33333333e-3f + b * (-1.98412698e-4f + b * (2.75573192e-6f + b * (-2.50521084e-8f + b * 1.60590438e-10f))))));
}

// Products of matrices: out = x w, or out += x w. x is (rows, depth) with any strides, w (depth, 16 n) and out are
// row by row.

template <int R, int N>
inline void tile(const float* x, ptrdiff_t row, ptrdiff_t step, const float* w, ptrdiff_t w_row, int depth,
                 float* out, ptrdiff_t out_row, bool add) {
    constexpr int CHAINS = R * N >= 6 ? 1 : R * N >= 3 ? 2 : 4;  // sums at once, to hide the latency of one
    V c[CHAINS][R][N] = {};
    if (add)
        for (int r = 0; r < R; r++)
            for (int n = 0; n < N; n++) c[0][r][n] = load(out + r * out_row + n * LANES);
    int k = 0;
    for (; k + CHAINS <= depth; k += CHAINS)
        for (int chain = 0; chain < CHAINS; chain++) {
            V wk[N];
            for (int n = 0; n < N; n++) wk[n] = load(w + (k + chain) * w_row + n * LANES);
            for (int r = 0; r < R; r++) {
                const V xk = all(x[r * row + (k + chain) * step]);
                for (int n = 0; n < N; n++) c[chain][r][n] += xk * wk[n];
            }
        }
    for (; k < depth; k++)
        for (int r = 0; r < R; r++)
            for (int n = 0; n < N; n++) c[0][r][n] += all(x[r * row + k * step]) * load(w + k * w_row + n * LANES);
    for (int r = 0; r < R; r++)
        for (int n = 0; n < N; n++) {
            V total = c[0][r][n];
            for (int chain = 1; chain < CHAINS; chain++) total += c[chain][r][n];
            store(out + r * out_row + n * LANES, total);
        }
}
template <int N, int R>
inline void some_rows(int rows, const float* x, ptrdiff_t row, ptrdiff_t step, const float* w, ptrdiff_t w_row,
                      int depth, float* out, ptrdiff_t out_row, bool add) {
    if (rows == R) return tile<R, N>(x, row, step, w, w_row, depth, out, out_row, add);
    if constexpr (R > 1) some_rows<N, R - 1>(rows, x, row, step, w, w_row, depth, out, out_row, add);
}
template <int N>
void columns(int rows, const float* x, ptrdiff_t row, ptrdiff_t step, const float* w, ptrdiff_t w_row, int depth,
             float* out, ptrdiff_t out_row, bool add) {
    for (; rows >= TILE_ROWS; rows -= TILE_ROWS, x += TILE_ROWS * row, out += TILE_ROWS * out_row)
        tile<TILE_ROWS, N>(x, row, step, w, w_row, depth, out, out_row, add);
    if (rows) some_rows<N, TILE_ROWS - 1>(rows, x, row, step, w, w_row, depth, out, out_row, add);
}
template <int WIDTH>
inline void multiply(int rows, const float* x, ptrdiff_t row, ptrdiff_t step, const float* w, ptrdiff_t w_row,
                     int depth, float* out, ptrdiff_t out_row, bool add = false) {
    constexpr int N = WIDTH / LANES;
    int n = 0;
    for (; n + 2 <= N; n += 2)
        columns<2>(rows, x, row, step, w + n * LANES, w_row, depth, out + n * LANES, out_row, add);
    if (n < N) columns<1>(rows, x, row, step, w + n * LANES, w_row, depth, out + n * LANES, out_row, add);
}

// Geometry of up to LANES edges, one in each lane. Unused lanes hold an edge as long as the cut-off, which counts
// for nothing.

constexpr double constant_root(double x) {
    double y = x > 1 ? x : 1;
    for (int k = 0; k < 80; k++) y = (y + x / y) / 2;
    return y;
}
struct Norms {  // of the harmonics of degree l and order m
    float at[LMAX + 1][LMAX + 1] = {};
    constexpr Norms() {
        for (int l = 0; l <= LMAX; l++)
            for (int m = 0; m <= l; m++) {
                double ratio = m ? 2 : 1;
                for (int k = l - m + 1; k <= l + m; k++) ratio /= k;
                at[l][m] = float(constant_root((2 * l + 1) * ratio));
            }
    }
};
constexpr Norms NORMS;

struct Edges {
    V y[M], radial[K], slope[K], u[3], inverse, distance;
};

struct Angular {  // (x + iy)^m, and the m-th derivative of the Legendre polynomial of degree l at z
    V real[LMAX + 1], imaginary[LMAX + 1], legendre[LMAX + 1][LMAX + 2];
    explicit Angular(const V* u) {
        real[0] = all(1);
        imaginary[0] = V{};
        for (int m = 1; m <= LMAX; m++) {
            real[m] = real[m - 1] * u[0] - imaginary[m - 1] * u[1];
            imaginary[m] = real[m - 1] * u[1] + imaginary[m - 1] * u[0];
        }
        float diagonal = 1;
        for (int m = 0; m <= LMAX; m++) {
            legendre[m][m] = all(diagonal);
            legendre[m][m + 1] = V{};
            if (m < LMAX) legendre[m + 1][m] = (2 * m + 1) * diagonal * u[2];
            for (int l = m + 2; l <= LMAX; l++)
                legendre[l][m] = (float(2 * l - 1) / (l - m)) * u[2] * legendre[l - 1][m] -
                                 (float(l + m - 1) / (l - m)) * legendre[l - 2][m];
            diagonal *= 2 * m + 1;
        }
    }
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
            *y++ = NORMS.at[l][m] * at.legendre[l][m] * at.real[m];
            *y++ = NORMS.at[l][m] * at.legendre[l][m] * at.imaginary[m];
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
        z += p_z * at.real[m] + q_z * at.imaginary[m];
        if (m == 0) continue;
        x += float(m) * (p * at.real[m - 1] + q * at.imaginary[m - 1]);
        y += float(m) * (q * at.real[m - 1] - p * at.imaginary[m - 1]);
    }
    const V* u = edges.u;
    const V radial = along - (x * u[0] + y * u[1] + z * u[2]) * edges.inverse;
    g[0] = x * edges.inverse + radial * u[0];
    g[1] = y * edges.inverse + radial * u[1];
    g[2] = z * edges.inverse + radial * u[2];
}

struct Grid {
    const float *inward, *outward;  // (orbits, M), (points, (L + 1)^2)
    int64_t orbits[7];              // number for each of ZEROS
};

// Powers on the sphere of a block, [M][BLOCK][C] to [(L + 1)^2][BLOCK][NU C], and their gradient.
//
// The grid's points come in orbits under reflections x -> -x, y -> -y, z -> -z, and each harmonic is even or odd under
// each of them, that is, of one of eight kinds. So harmonics are summed by kind at one point of an orbit, and their
// values at all its points differ by signs: half of the work. A kind is a number with a bit for each coordinate
// under whose reflection it is odd; orbits are sorted by which coordinates are zero, and of two antipodes one is there.

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

// What Python hands over. Matrices are (fan in, fan out), those ending in _T transposed; "by degree" has one matrix
// for each degree 0, 1, ...; rows of Q and HIDDEN numbers are padded to whole 16. There are no gates (null) where there is but one element.

struct Layer {
    const float *mix_density, *mix_density_T;  // by degree (Q, C)
    const float *mix_message, *mix_message_T;  // by degree (C, C)
    const float *mix_gate;                     // (element, degree, C)
    const float *product_gate;                 // (element, NU C)
    const float *hidden, *hidden_T;            // (F, HIDDEN)
    const float *hidden_bias, *hidden_out;     // (element, HIDDEN), (HIDDEN)
    const float *linear, *energy_bias;         // (F), (element)
    const float *send, *send_T, *send_bias;    // by degree (NU C, C), (element, C)
    const float *radial;                       // (K, RADII), odd degrees negative: Y(-r) = -Y(r)
    Grid grid;
};
struct Model {
    const float *channels;      // of neighbours' elements (element, W); null: one channel for each element
    const float *density_gate;  // (element, degree, Q)
    float cutoff, stretch;
    Layer layers[LAYERS];
};
struct Structure {
    int64_t num_atoms;
    const int64_t* start;     // (N + 1), edges are sorted by centre
    const int32_t* neighbor;  // (E)
    const int32_t* element;   // (N)
    const float* r_ij;        // (E, 3)
};

// Memory is the caller's: pieces of one buffer.

struct Arena {
    char* base;
    size_t used = 0;
    template <class T>
    T* take(size_t count) {
        T* piece = reinterpret_cast<T*>(base + used);
        used += (count * sizeof(T) + 63) / 64 * 64;
        return piece;
    }
};
struct Own {  // of one thread
    float* g_h[LAYERS];       // (N, ROWS_SENT, C), gradient to what each layer sends
    double *forces, *virial;  // (N, 3), (3, 3)
    Edges* edges;             // [BLOCK][longest / LANES]
    float *heard, *radii;     // [BLOCK][longest][C], [BLOCK][longest][RADII]
};
struct Buffers {
    float *density, *g_density;                         // blocks [M][BLOCK][Q_PAD]
    float *mixed[LAYERS], *h[LAYERS], *g_input[LAYERS];  // blocks [M][BLOCK][C], (N, ROWS_SENT, C), blocks [BLOCK][F]
    size_t longest;
    Own own[1024];

    Buffers(Arena& arena, size_t n, size_t most_neighbors, int threads) {
        const size_t blocks = (n + BLOCK - 1) / BLOCK;
        longest = padded(int(most_neighbors), LANES);
        const size_t kept = LAYERS > 1 ? blocks : size_t(threads);
        density = arena.take<float>(kept * M * AQ);
        g_density = arena.take<float>(kept * M * AQ);
        for (int t = 0; t < LAYERS - 1; t++) {
            mixed[t] = arena.take<float>(blocks * M * AC);
            h[t] = arena.take<float>(blocks * BLOCK * ROWS_SENT * C);
            g_input[t] = arena.take<float>(blocks * BLOCK * (NU + 1) * C);
        }
        for (int k = 0; k < threads; k++) {
            for (int t = 0; t < LAYERS - 1; t++) own[k].g_h[t] = arena.take<float>(blocks * BLOCK * ROWS_SENT * C);
            own[k].forces = arena.take<double>(3 * n);
            own[k].virial = arena.take<double>(9);
            own[k].edges = arena.take<Edges>(BLOCK * longest / LANES);
            own[k].heard = arena.take<float>(BLOCK * longest * C);
            own[k].radii = arena.take<float>(BLOCK * longest * RADII);
        }
    }
};

template <int T>
constexpr int INPUT = (T == 0 ? NU : NU + 1) * C;  // F, width of the readout of layer T
template <int T>
constexpr bool LAST = T == LAYERS - 1;
template <int T>
constexpr int ELL = LAST<T> ? 0 : L_SENT;

// One thread's share of the atoms, a block at a time.

struct Worker {
    const Model& model;
    const Structure& structure;
    Buffers& buffers;
    Own& own;
    int thread, threads;
    float* energies;
    int64_t block = 0, atom[BLOCK];
    int element[BLOCK], num_edges[BLOCK];
    alignas(64) float gated_density[M * AQ], g_gated_density[M * AQ];
    alignas(64) float mixed[M * AC], g_mixed[M * AC], message[M * AC];
    alignas(64) float product[ROWS_SENT * BLOCK * NU * C], g_product[ROWS_SENT * BLOCK * NU * C];
    alignas(64) float input[BLOCK * (NU + 1) * C], g_input[BLOCK * (NU + 1) * C];

    Worker(const Model& model, const Structure& structure, Buffers& buffers, int thread, int threads, float* energies)
        : model(model), structure(structure), buffers(buffers), own(buffers.own[thread]), thread(thread),
          threads(threads), energies(energies) {
        const size_t blocks = (structure.num_atoms + BLOCK - 1) / BLOCK;
        for (int t = 0; t < LAYERS - 1; t++)
            std::memset(own.g_h[t], 0, blocks * BLOCK * ROWS_SENT * C * sizeof(float));
        std::memset(own.forces, 0, 3 * structure.num_atoms * sizeof(double));
        std::memset(own.virial, 0, 9 * sizeof(double));
    }

    // First block of a thread: each has as many edges, an atom counting as twenty.
    int64_t begin(int thread) const {
        const int64_t n = structure.num_atoms, blocks = (n + BLOCK - 1) / BLOCK;
        const double share = double(structure.start[n] + 20 * n) * thread / threads;
        int64_t low = 0, high = blocks;
        while (low < high) {
            const int64_t middle = (low + high) / 2, i = middle * BLOCK;
            if (structure.start[i] + 20 * i < share) low = middle + 1;
            else high = middle;
        }
        return low;
    }

    template <class F>
    void each_block(F&& run) {
        const int64_t end = thread + 1 < threads ? begin(thread + 1) : (structure.num_atoms + BLOCK - 1) / BLOCK;
        for (block = begin(thread); block < end; block++) {
            for (int a = 0; a < BLOCK; a++) {  // the last block may be short of atoms
                const int64_t i = block * BLOCK + a;
                const bool there = i < structure.num_atoms;
                atom[a] = i;
                element[a] = there ? structure.element[i] : 0;
                num_edges[a] = there ? int(structure.start[i + 1] - structure.start[i]) : 0;
            }
            run();
        }
    }

    Edges* edges(int a) const { return own.edges + a * (buffers.longest / LANES); }
    float* heard(int a) const { return own.heard + a * buffers.longest * C; }
    float* radii(int a) const { return own.radii + a * buffers.longest * RADII; }
    const int32_t* neighbors(int a) const { return structure.neighbor + structure.start[atom[a]]; }
    float* of_block(float* all, size_t size) const { return all + (LAYERS > 1 ? block : thread) * size; }

    void geometry() {
        for (int a = 0; a < BLOCK; a++)
            for (int e = 0; e < num_edges[a]; e += LANES)
                measure(structure.r_ij + 3 * (structure.start[atom[a]] + e), std::min(num_edges[a] - e, LANES),
                        model.cutoff, model.stretch, edges(a)[e / LANES]);
    }

    // Runs of neighbours of the same element among LANES edges.
    template <class F>
    void each_run(int a, F&& run) const {
        const int32_t* j = neighbors(a);
        for (int e = 0; e < num_edges[a];) {
            const int z = structure.element[j[e]], end = std::min(num_edges[a], e / LANES * LANES + LANES);
            int next = e + 1;
            while (next < end && structure.element[j[next]] == z) next++;
            run(z, edges(a)[e / LANES], e % LANES, next - e);
            e = next;
        }
    }

    void density() {
        float* d = of_block(buffers.density, M * AQ);
        std::memset(d, 0, M * AQ * sizeof(float));
        for (int a = 0; a < BLOCK; a++)
            each_run(a, [&](int z, const Edges& edges, int lane, int count) {
                alignas(64) float radial[LANES * K_PAD], sums[M * K_PAD];
                for (int e = 0; e < count; e++)
                    for (int k = 0; k < K_PAD; k++) radial[e * K_PAD + k] = k < K ? edges.radial[k][lane + e] : 0;
                const float* y = reinterpret_cast<const float*>(edges.y) + lane;
                multiply<K_PAD>(M, y, LANES, 1, radial, K_PAD, count, sums, K_PAD);
                for (int w = model.channels ? 0 : z; w < (model.channels ? W : z + 1); w++) {
                    const float weight = model.channels ? model.channels[z * W + w] : 1;
                    for (int m = 0; m < M; m++)
                        for (int k = 0; k < K; k++)
                            d[m * AQ + a * Q_PAD + w * K + k] += weight * sums[m * K_PAD + k];
                }
            });
    }

    void gate_density(const float* from, float* to) const {
        if (!model.density_gate) {
            if (from != to) std::memcpy(to, from, M * AQ * sizeof(float));
            return;
        }
        for (int m = 0; m < M; m++)
            for (int a = 0; a < BLOCK; a++) {
                const float* gate = model.density_gate + (element[a] * (LMAX + 1) + FELT.row_degree[m]) * Q_PAD;
                const int at = m * AQ + a * Q_PAD;
                for (int q = 0; q < Q_PAD; q += LANES) store(to + at + q, load(from + at + q) * load(gate + q));
            }
    }

    template <int WIDTH>
    static void scale(float* x, const float* by) {
        for (int c = 0; c < WIDTH; c += LANES) store(x + c, load(x + c) * load(by + c));
    }

    template <int T>
    void gate_mixed(float* x) const {
        if (!model.layers[T].mix_gate) return;
        for (int m = 0; m < M; m++)
            for (int a = 0; a < BLOCK; a++) {
                const float* gate = model.layers[T].mix_gate + (element[a] * (LMAX + 1) + FELT.row_degree[m]) * C;
                scale<C>(x + m * AC + a * C, gate);
            }
    }

    template <int T>
    void gate_product(float* x) const {
        if (!model.layers[T].product_gate) return;
        for (int row = 0; row < square(ELL<T> + 1); row++)
            for (int a = 0; a < BLOCK; a++)
                scale<NU * C>(x + (row * BLOCK + a) * NU * C, model.layers[T].product_gate + element[a] * NU * C);
    }

    // S of each atom, and what was heard along each edge.
    template <int T>
    void hear() {
        const float* h = buffers.h[T - 1];
        std::memset(message, 0, sizeof message);
        for (int a = 0; a < BLOCK; a++) {
            const int32_t* j = neighbors(a);
            for (int first = 0; first < num_edges[a]; first += LANES) {
                const Edges& here = edges(a)[first / LANES];
                const float *radial = reinterpret_cast<const float*>(here.radial), *y = reinterpret_cast<const float*>(here.y);
                float *r = radii(a) + first * RADII, *to = heard(a) + first * C;
                const int count = std::min(num_edges[a] - first, LANES);
                multiply<RADII>(count, radial, 1, LANES, model.layers[T].radial, RADII, K, r, RADII);
                for (int e = 0; e < count; e++) {
                    const float* h_j = h + size_t(j[first + e]) * ROWS_SENT * C;
                    for (int c = 0; c < C; c += LANES) {
                        V total = load(r + e * RADII + c) * load(h_j + c);
                        for (int part = 1; part <= L_SENT; part++) {
                            const int l = SENT.at[part];
                            V along = {};
                            for (int m = 0; m < 2 * l + 1; m++)
                                along += y[(FELT.first[l] + m) * LANES + e] * load(h_j + (SENT.first[l] + m) * C + c);
                            total += load(r + e * RADII + part * C + c) * along;
                        }
                        store(to + e * C + c, total);
                    }
                }
                multiply<C>(M, y, LANES, 1, to, C, count, message + a * C, AC, true);
            }
        }
    }

    // Mixed densities and messages, and their powers.
    template <int T>
    void products() {
        const Layer& layer = model.layers[T];
        for (int l = 0; l <= LMAX; l++) {
            const int row = FELT.first[l], rows = (2 * l + 1) * BLOCK;
            multiply<C>(rows, gated_density + row * AQ, Q_PAD, 1, layer.mix_density + l * Q * C, C, Q, mixed + row * AC, C);
            if constexpr (T > 0)
                multiply<C>(rows, message + row * AC, C, 1, layer.mix_message + l * C * C, C, C, mixed + row * AC, C, true);
        }
        gate_mixed<T>(mixed);
        Product<ELL<T>>::forward(mixed, layer.grid, product);
        gate_product<T>(product);
    }

    template <int T>
    void readout() {
        const Layer& layer = model.layers[T];
        constexpr int F = INPUT<T>;
        for (int a = 0; a < BLOCK; a++) {
            std::memcpy(input + a * F, product + a * NU * C, NU * C * sizeof(float));
            if constexpr (T > 0)
                std::memcpy(input + a * F + NU * C, buffers.h[T - 1] + atom[a] * ROWS_SENT * C, C * sizeof(float));
        }
        alignas(64) float hidden[BLOCK * H_PAD];
        for (int a = 0; a < BLOCK; a++) {
            std::memcpy(hidden + a * H_PAD, layer.hidden_bias + element[a] * H_PAD, H_PAD * sizeof(float));
            std::memcpy(g_input + a * F, layer.linear, F * sizeof(float));
        }
        multiply<H_PAD>(BLOCK, input, F, 1, layer.hidden, H_PAD, F, hidden, H_PAD, true);
        for (int a = 0; a < BLOCK; a++) {
            V total = {};
            for (int k = 0; k < H_PAD; k += LANES) {
                const V x = load(hidden + a * H_PAD + k), out = load(layer.hidden_out + k);
                const V s = sigmoid(x), silu = x * s;
                total += silu * out;
                store(hidden + a * H_PAD + k, out * (s + silu * (1 - s)));
            }
            for (int c = 0; c < F; c += LANES) total += load(input + a * F + c) * load(layer.linear + c);
            if (atom[a] < structure.num_atoms) {
                const float energy = sum(total) + layer.energy_bias[element[a]];
                energies[atom[a]] = T == 0 ? energy : energies[atom[a]] + energy;
            }
        }
        multiply<F>(BLOCK, hidden, H_PAD, 1, layer.hidden_T, F, HIDDEN, g_input, F, true);
    }

    template <int T>
    void send() {
        const Layer& layer = model.layers[T];
        alignas(64) float sent[ROWS_SENT * AC];
        for (int l = 0; l <= L_SENT; l++) {
            const int row = SENT.first[l];
            multiply<C>((2 * l + 1) * BLOCK, product + row * BLOCK * NU * C, NU * C, 1, layer.send + l * NU * C * C, C,
                        NU * C, sent + row * AC, C);
        }
        for (int a = 0; a < BLOCK; a++) {
            for (int c = 0; c < C; c++) sent[a * C + c] += layer.send_bias[element[a] * C + c];
            for (int row = 0; row < ROWS_SENT; row++)
                std::memcpy(buffers.h[T] + (atom[a] * ROWS_SENT + row) * C, sent + row * AC + a * C, C * sizeof(float));
        }
    }

    // From the gradient to the readout's input, and to what was sent, those to mixed and to density.
    template <int T>
    void reverse_products(const float* g_input) {
        const Layer& layer = model.layers[T];
        constexpr int F = INPUT<T>;
        if constexpr (!LAST<T>) {
            alignas(64) float g_sent[ROWS_SENT * AC];
            for (int a = 0; a < BLOCK; a++)
                for (int row = 0; row < ROWS_SENT; row++)
                    for (int c = 0; c < C; c += LANES) {
                        const size_t at = (atom[a] * ROWS_SENT + row) * C + c;
                        V total = load(buffers.own[0].g_h[T] + at);
                        for (int k = 1; k < threads; k++) total += load(buffers.own[k].g_h[T] + at);
                        store(g_sent + row * AC + a * C + c, total);
                    }
            for (int l = 0; l <= L_SENT; l++) {
                const int row = SENT.first[l];
                multiply<NU * C>((2 * l + 1) * BLOCK, g_sent + row * AC, C, 1, layer.send_T + l * NU * C * C, NU * C, C,
                                 g_product + row * BLOCK * NU * C, NU * C);
            }
        }
        for (int a = 0; a < BLOCK; a++)
            for (int c = 0; c < NU * C; c += LANES) {
                float* g = g_product + a * NU * C + c;
                store(g, load(g_input + a * F + c) + (LAST<T> ? V{} : load(g)));
            }
        gate_product<T>(g_product);
        Product<ELL<T>>::reverse(mixed, layer.grid, g_product, g_mixed);
        gate_mixed<T>(g_mixed);
        for (int l = 0; l <= LMAX; l++) {
            const int row = FELT.first[l];
            multiply<Q_PAD>((2 * l + 1) * BLOCK, g_mixed + row * AC, C, 1, layer.mix_density_T + l * C * Q_PAD, Q_PAD, C,
                            g_gated_density + row * AQ, Q_PAD, !LAST<T>);
        }
    }

    // Adds the gradient to some pair vectors to forces and virial.
    void push(int a, int first, const V* g, double* force, V* virial) {
        const Edges& here = edges(a)[first / LANES];
        const int count = std::min(num_edges[a] - first, LANES);
        const int32_t* j = neighbors(a) + first;
        for (int lane = 0; lane < count; lane++)
            for (int k = 0; k < 3; k++) {
                force[k] += g[k][lane];
                own.forces[3 * size_t(j[lane]) + k] -= g[k][lane];
            }
        V inside;
        for (int lane = 0; lane < LANES; lane++) inside[lane] = lane < count ? here.distance[lane] : 0;
        for (int k = 0; k < 3; k++)
            for (int x = 0; x < 3; x++) virial[3 * k + x] += inside * here.u[k] * g[x];
    }
    void push_atom(int a, const double* force, const V* virial) {
        for (int k = 0; k < 3; k++) own.forces[3 * atom[a] + k] += force[k];
        for (int k = 0; k < 9; k++) own.virial[k] += sum(virial[k]);
    }

    template <int T>
    void reverse_hear() {
        const Layer& layer = model.layers[T];
        const float* h = buffers.h[T - 1];
        float* g_h = own.g_h[T - 1];
        float* g_message = message;
        for (int l = 0; l <= LMAX; l++) {
            const int row = FELT.first[l];
            multiply<C>((2 * l + 1) * BLOCK, g_mixed + row * AC, C, 1, layer.mix_message_T + l * C * C, C, C,
                        g_message + row * AC, C);
        }
        alignas(64) float turned[C * M_PAD] = {}, g_heard[LANES * C], slopes[LANES * RADII], g_rows[LANES * M_PAD];
        for (int a = 0; a < BLOCK; a++) {
            if (!num_edges[a]) continue;
            for (int c = 0; c < C; c++)
                for (int m = 0; m < M; m++) turned[c * M_PAD + m] = g_message[m * AC + a * C + c];
            double force[3] = {};
            V virial[9] = {};
            const int32_t* j = neighbors(a);
            for (int first = 0; first < num_edges[a]; first += LANES) {
                const Edges& here = edges(a)[first / LANES];
                const float *slope = reinterpret_cast<const float*>(here.slope), *y = reinterpret_cast<const float*>(here.y);
                const float *r = radii(a) + first * RADII;
                const int count = std::min(num_edges[a] - first, LANES);
                multiply<C>(count, y, 1, LANES, g_message + a * C, AC, M, g_heard, C);
                multiply<M_PAD>(count, heard(a) + first * C, C, 1, turned, M_PAD, C, g_rows, M_PAD);
                multiply<RADII>(count, slope, 1, LANES, layer.radial, RADII, K, slopes, RADII);
                alignas(64) float along[LANES] = {};
                for (int e = 0; e < count; e++) {
                    const float* h_j = h + size_t(j[first + e]) * ROWS_SENT * C;
                    float* g_j = g_h + size_t(j[first + e]) * ROWS_SENT * C;
                    V g_y[ROWS_SENT] = {};  // the first one along the edge, whose harmonic is constant
                    for (int c = 0; c < C; c += LANES) {
                        const V g = load(g_heard + e * C + c);
                        store(g_j + c, load(g_j + c) + g * load(r + e * RADII + c));
                        V slope_sum = load(h_j + c) * load(slopes + e * RADII + c);
                        for (int part = 1; part <= L_SENT; part++) {
                            const int l = SENT.at[part];
                            const V g_along = g * load(r + e * RADII + part * C + c);
                            V projected = {};
                            for (int m = 0; m < 2 * l + 1; m++) {
                                const int row = SENT.first[l] + m;
                                const V h_row = load(h_j + row * C + c);
                                const float y_row = y[(FELT.first[l] + m) * LANES + e];
                                projected += y_row * h_row;
                                g_y[row] += g_along * h_row;
                                store(g_j + row * C + c, load(g_j + row * C + c) + y_row * g_along);
                            }
                            slope_sum += projected * load(slopes + e * RADII + part * C + c);
                        }
                        g_y[0] += g * slope_sum;
                    }
                    float totals[ROWS_SENT];
                    unroll<(ROWS_SENT + LANES - 1) / LANES>([&](auto part) {
                        constexpr int first = part * LANES, some = std::min(ROWS_SENT - first, LANES);
                        alignas(64) float found[LANES];
                        store(found, sums<some>(g_y + first));
                        for (int k = 0; k < some; k++) totals[first + k] = found[lane_of_sum(k, some)];
                    });
                    along[e] = totals[0];
                    for (int row = 1; row < ROWS_SENT; row++) {
                        const int l = SENT.row_degree[row];
                        g_rows[e * M_PAD + FELT.first[l] + row - SENT.first[l]] += totals[row];
                    }
                }
                V g_y[M], g[3];
                for (int m = 0; m < M; m++)
                    for (int e = 0; e < LANES; e++) g_y[m][e] = e < count ? g_rows[e * M_PAD + m] : 0;
                pull(here, g_y, load(along), g);
                push(a, first, g, force, virial);
            }
            push_atom(a, force, virial);
        }
    }

    void reverse_density() {
        gate_density(g_gated_density, g_gated_density);
        for (int a = 0; a < BLOCK; a++) {
            double force[3] = {};
            V virial[9] = {}, g_y[M] = {}, along = {};
            int last = -1;
            alignas(64) float g_sums[M * K];
            const Edges* begin = edges(a);
            const int n = num_edges[a];
            each_run(a, [&](int z, const Edges& here, int lane, int count) {
                if (z != last)
                    for (int m = 0; m < M; m++)
                        for (int k = 0; k < K; k++) {
                            const float* g = g_gated_density + m * AQ + a * Q_PAD + k;
                            float total = 0;
                            if (!model.channels) total = g[z * K];
                            else for (int w = 0; w < W; w++) total += model.channels[z * W + w] * g[w * K];
                            g_sums[m * K + k] = total;
                        }
                last = z;
                const int first = int(&here - begin) * LANES;
                if (lane == 0) {
                    along = V{};
                    for (int m = 0; m < M; m++) g_y[m] = V{};
                }
                V radial[K], slope[K];
                for (int k = 0; k < K; k++)
                    for (int e = 0; e < LANES; e++) {
                        const bool inside = e >= lane && e < lane + count;
                        radial[k][e] = inside ? here.radial[k][e] : 0;
                        slope[k][e] = inside ? here.slope[k][e] : 0;
                    }
                for (int m = 0; m < M; m++) {
                    V of_y = {}, of_slope = {};
                    for (int k = 0; k < K; k++) {
                        of_y += g_sums[m * K + k] * radial[k];
                        of_slope += g_sums[m * K + k] * slope[k];
                    }
                    g_y[m] += of_y;
                    along += here.y[m] * of_slope;
                }
                if (first + lane + count == std::min(n, first + LANES)) {
                    V g[3];
                    pull(here, g_y, along, g);
                    push(a, first, g, force, virial);
                }
            });
            if (n) push_atom(a, force, virial);
        }
    }

    template <int T>
    void enter() {  // up to the readout of layer T
        if constexpr (T == 0) density();
        gate_density(of_block(buffers.density, M * AQ), gated_density);
        if constexpr (T > 0) hear<T>();
        products<T>();
        readout<T>();
    }
    template <int T>
    void leave() {  // from the gradient to the mixed densities
        if constexpr (T > 0) reverse_hear<T>();
        else reverse_density();
    }

    template <int T>
    void forward() {
        each_block([&] {
            geometry();
            enter<T>();
            send<T>();
            std::memcpy(buffers.mixed[T] + block * M * AC, mixed, sizeof mixed);
            std::memcpy(buffers.g_input[T] + block * BLOCK * (NU + 1) * C, g_input, sizeof g_input);
        });
    }
    void turn() {
        constexpr int T = LAYERS - 1;
        each_block([&] {
            geometry();
            enter<T>();
            reverse_products<T>(g_input);
            if constexpr (T > 0) hand_down<T>(g_input);
            leave<T>();
            keep_g_density();
        });
    }
    template <int T>
    void reverse() {
        each_block([&] {
            geometry();
            if constexpr (T > 0) hear<T>();
            std::memcpy(mixed, buffers.mixed[T] + block * M * AC, sizeof mixed);
            std::memcpy(g_gated_density, buffers.g_density + block * M * AQ, sizeof g_gated_density);
            const float* g_input = buffers.g_input[T] + block * BLOCK * (NU + 1) * C;
            reverse_products<T>(g_input);
            if constexpr (T > 0) hand_down<T>(g_input);
            leave<T>();
            if constexpr (T > 0) keep_g_density();
        });
    }
    // The readout of layer T also sees what the atom itself sent before.
    template <int T>
    void hand_down(const float* g_input) {
        for (int a = 0; a < BLOCK; a++) {
            float* g = own.g_h[T - 1] + atom[a] * ROWS_SENT * C;
            for (int c = 0; c < C; c++) g[c] += g_input[a * INPUT<T> + NU * C + c];
        }
    }
    void keep_g_density() {
        if constexpr (LAYERS > 1)
            std::memcpy(buffers.g_density + block * M * AQ, g_gated_density, sizeof g_gated_density);
    }
};

inline void wait() {
#pragma omp barrier
}
template <int T>
void all_forward(Worker& worker) {
    if constexpr (T < LAYERS - 1) {
        worker.forward<T>();
        wait();
        all_forward<T + 1>(worker);
    }
}
template <int T>
void all_reverse(Worker& worker) {
    if constexpr (T >= 0) {
        worker.reverse<T>();
        wait();
        all_reverse<T - 1>(worker);
    }
}

}  // namespace

extern "C" {

// Energies (N), forces (N, 3) and virial (3, 3) in units of the energy scale. Returns how many bytes of scratch it needs;
// if that is more than there are, nothing has been done.
size_t compute(const Model* model, int64_t num_atoms, const int64_t* start, const int32_t* neighbor,
               const int32_t* element, const float* r_ij, int threads, char* scratch, size_t size, float* energies,
               double* forces, double* virial) {
    const Structure structure{num_atoms, start, neighbor, element, r_ij};
    int64_t longest = 0;
    for (int64_t i = 0; i < num_atoms; i++) longest = std::max(longest, start[i + 1] - start[i]);
    Arena arena{scratch + (64 - reinterpret_cast<uintptr_t>(scratch) % 64) % 64};
    Buffers buffers(arena, num_atoms, longest, threads);
    const size_t needed = arena.used + 64;
    if (needed > size) return needed;
    const int64_t n = num_atoms;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
#ifdef _OPENMP
        const int thread = omp_get_thread_num(), started = omp_get_num_threads();
#else
        const int thread = 0, started = 1;
#endif
        Worker worker(*model, structure, buffers, thread, started, energies);
        wait();
        all_forward<0>(worker);
        worker.turn();
        wait();
        all_reverse<LAYERS - 2>(worker);
        for (int64_t k = 3 * n * thread / started; k < 3 * n * (thread + 1) / started; k++) {
            forces[k] = 0;
            for (int t = 0; t < started; t++) forces[k] += buffers.own[t].forces[k];
        }
        if (thread == 0)
            for (int k = 0; k < 9; k++) {
                virial[k] = 0;
                for (int t = 0; t < started; t++) virial[k] += buffers.own[t].virial[k];
            }
    }
    return needed;
}

}  // extern "C"
