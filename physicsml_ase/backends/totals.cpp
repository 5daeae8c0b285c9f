// From the energies of the atoms of a batch and their gradient to the pair vectors to what a potential predicts, and the
// way back of a loss of that. Numbers of the model are `real`, double with the macro DOUBLE, float otherwise, in units of
// the energy scale; predictions are double, eV and Å. S structures, N atoms, E edges.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

namespace {

#if DOUBLE
typedef double real;
#else
typedef float real;
#endif

struct Graph {
    int64_t num_structures, num_atoms, num_edges;
    const int64_t *centre, *neighbor;        // (E)
    const int64_t *structure, *number;       // (N), atomic numbers
    const double *positions, *shift, *cell;  // (N, 3), (E, 3) in lattice vectors, (S, 3, 3)
    const double *references, *outer;        // (Z) [eV], (Z, Z) where walls begin [Å] or null; by atomic number
    int64_t num_elements;                    // Z
    double scale, no_volume;                 // a cell of no more has no stress
};

double volume(const double* h) {
    return std::abs(h[0] * (h[4] * h[8] - h[5] * h[7]) + h[1] * (h[5] * h[6] - h[3] * h[8]) +
                    h[2] * (h[3] * h[7] - h[4] * h[6]));
}

}  // namespace

extern "C" {

// Pair vectors (E, 3); returns how many are within a wall.
int64_t pair_vectors(const Graph* graph, real* r_ij) {
    int64_t near = 0;
    for (int64_t e = 0; e < graph->num_edges; e++) {
        const int64_t i = graph->centre[e], j = graph->neighbor[e];
        const double *x = graph->positions + 3 * i, *y = graph->positions + 3 * j, *s = graph->shift + 3 * e;
        const double* h = graph->cell + 9 * graph->structure[i];
        const bool shifted = s[0] != 0 || s[1] != 0 || s[2] != 0;  // else the cell may be anything
        double squared = 0;
        for (int k = 0; k < 3; k++) {
            double r = y[k] - x[k];
            if (shifted) r += s[0] * h[k] + s[1] * h[3 + k] + s[2] * h[6 + k];
            r_ij[3 * e + k] = real(r);
            squared += r * r;
        }
        if (!graph->outer) continue;
        const double outer = graph->outer[graph->number[i] * graph->num_elements + graph->number[j]];
        near += squared > 0 && squared < outer * outer;  // an atom's edge to itself is no pair
    }
    return near;
}

// Energy (S), energies (N), forces (N, 3) and stress (S, 3, 3), NaN without a full cell, from e (N) and g (E, 3).
void predict(const Graph* graph, const real* r_ij, const real* e, const real* g, double* energy, double* energies,
             double* forces, double* stress) {
    const int64_t S = graph->num_structures, n = graph->num_atoms;
    std::fill_n(energy, S, 0.0);
    std::fill_n(forces, 3 * n, 0.0);
    std::fill_n(stress, 9 * S, 0.0);
    for (int64_t a = 0; a < n; a++) {
        energies[a] = graph->scale * e[a] + graph->references[graph->number[a]];
        energy[graph->structure[a]] += energies[a];
    }
    for (int64_t k = 0; k < graph->num_edges; k++) {
        const int64_t i = graph->centre[k];
        double *to_i = forces + 3 * i, *to_j = forces + 3 * graph->neighbor[k];
        double* virial = stress + 9 * graph->structure[i];
        for (int b = 0; b < 3; b++) {
            const double part = graph->scale * g[3 * k + b];
            to_i[b] += part;
            to_j[b] -= part;
            for (int a = 0; a < 3; a++) virial[3 * a + b] += r_ij[3 * k + a] * part;
        }
    }
    for (int64_t s = 0; s < S; s++) {
        double* of = stress + 9 * s;
        const double size = volume(graph->cell + 9 * s);
        for (int a = 0; a < 3; a++)
            for (int b = a; b < 3; b++) {
                const double value = size > graph->no_volume ? (of[3 * a + b] + of[3 * b + a]) / (2 * size)
                                                             : std::numeric_limits<double>::quiet_NaN();
                of[3 * a + b] = of[3 * b + a] = value;
            }
    }
}

// The loss's gradient to e and to g, from those to the predictions.
void send_back(const Graph* graph, const real* r_ij, const double* g_energy, const double* g_energies,
               const double* g_forces, const double* g_stress, real* g_e, real* g_g) {
    for (int64_t a = 0; a < graph->num_atoms; a++)
        g_e[a] = real(graph->scale * (g_energy[graph->structure[a]] + g_energies[a]));
    double g_virial[9] = {};
    int64_t last = -1;
    for (int64_t k = 0; k < graph->num_edges; k++) {
        const int64_t i = graph->centre[k], s = graph->structure[i];
        if (s != last) {  // edges are sorted by centre
            const double size = volume(graph->cell + 9 * s), *of = g_stress + 9 * s;
            for (int a = 0; a < 3; a++)
                for (int b = 0; b < 3; b++)
                    g_virial[3 * a + b] = size > graph->no_volume ? (of[3 * a + b] + of[3 * b + a]) / (2 * size) : 0;
            last = s;
        }
        const double *to_i = g_forces + 3 * i, *to_j = g_forces + 3 * graph->neighbor[k];
        for (int b = 0; b < 3; b++) {
            double total = to_i[b] - to_j[b];
            for (int a = 0; a < 3; a++) total += r_ij[3 * k + a] * g_virial[3 * a + b];
            g_g[3 * k + b] = real(graph->scale * total);
        }
    }
}

}  // extern "C"
