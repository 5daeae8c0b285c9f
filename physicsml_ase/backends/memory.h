// What the kernel reads, and the memory that it works in.

#pragma once

#include <cstddef>
#include <cstdint>

#include "arena.h"
#include "geometry.h"
#include "product.h"

namespace {

// What Python hands over. Matrices are (fan in, fan out), those ending in _T transposed; "by degree" has one matrix
// for each degree 0, 1, ...; rows of Q and HIDDEN numbers are padded to whole 16. Gates are null
// where there is but one element.

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

constexpr size_t CACHE = 1 << 19;  // bytes that most processors keep near each core beside everything else

struct Own {  // of one thread
    float* g_h[LAYERS];       // (N, ROWS_SENT, C), gradient to what each layer sends
    double *forces, *virial;  // (N, 3), (3, 3)
    float *heard, *radii;     // [BLOCK][longest][C], [BLOCK][longest][RADII]
};
struct Buffers {
    float *density, *g_density;                         // blocks [M][BLOCK][Q_PAD]
    float *mixed[LAYERS], *h[LAYERS], *g_input[LAYERS];  // blocks [M][BLOCK][C], (N, ROWS_SENT, C), blocks [BLOCK][F]
    size_t longest;
    bool keeps_edges;  // of all atoms, (N, longest / LANES), or of a block, [thread][BLOCK][longest / LANES]
    Edges* edges;
    Own own[1024];

    Buffers(Arena& arena, size_t n, size_t most_neighbors, int threads) {
        const size_t blocks = (n + BLOCK - 1) / BLOCK;
        longest = padded(int(most_neighbors), LANES);
        const size_t kept = LAYERS > 1 ? blocks : size_t(threads);
        const size_t edges_of_all = blocks * BLOCK * longest / LANES;
        keeps_edges = edges_of_all * sizeof(Edges) <= CACHE;
        edges = arena.take<Edges>(keeps_edges ? edges_of_all : threads * BLOCK * longest / LANES);
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

}  // namespace
