// The edges within the cut-off, out of a list with a skin. N atoms, E edges of the list, sorted by centre.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#ifdef _OPENMP
#include <omp.h>
#endif

namespace {

struct List {
    int64_t num_atoms;
    const int64_t* start;     // (N + 1)
    const int32_t* neighbor;  // (E)
    const int32_t* shift;     // (E), row of `offsets`
    const int32_t* element;   // (N)
    int64_t no_shift, num_elements;
};

inline double separation(const List& list, const double* offsets, const double* positions, int64_t i, int64_t e,
                         double* r) {
    const double *x = positions + 3 * i, *y = positions + 3 * int64_t(list.neighbor[e]);
    const double* o = offsets + 3 * list.shift[e];
    for (int k = 0; k < 3; k++) r[k] = y[k] + o[k] - x[k];
    return r[0] * r[0] + r[1] * r[1] + r[2] * r[2];
}

// Whether two atoms that were `room` further apart than the cut-off when they were at `origin` must be outside of it
// still: no atom has moved by half of that beside the common motion of all. Not where positions are not numbers.
inline bool holds(int64_t n, const double* positions, const double* origin, double room) {
    constexpr double FARTHEST = 1e7;  // as in neighbors/pairs.py
    double common[3] = {}, largest = 0, farthest = 0;
    for (int64_t i = 0; i < n; i++)
        for (int k = 0; k < 3; k++) common[k] += positions[3 * i + k] - origin[3 * i + k];
    for (int k = 0; k < 3; k++) common[k] /= double(n);
    for (int64_t i = 0; i < n; i++) {
        double squared = 0;
        for (int k = 0; k < 3; k++) {
            const double x = positions[3 * i + k], u = x - origin[3 * i + k] - common[k];
            squared += u * u;
            farthest = std::max(farthest, std::abs(x));
        }
        largest = std::max(largest, squared);
    }
    // a sum with NaN is NaN, which a maximum passes over
    return 4 * largest < room * room && farthest < FARTHEST && std::isfinite(common[0] + common[1] + common[2]);
}

}  // namespace

// Writes where each atom's edges begin, start (N + 1), their neighbours, (E), and pair vectors, (E, 3), of the edges
// that are shorter than the cut-off or not a number. `outer` (element, element) are squares of distances; `near` is set to how many
// edges are shorter than theirs, and `shortest` to the square of the shortest distance, an atom's from itself aside.
// With an `origin`, where the atoms were when the list was made with a skin of `room`, -1 where it may lack edges.
extern "C" int64_t within(const List* list, const double* offsets, const double* positions, const double* origin,
                          double room, double cutoff, const double* outer, int threads, int64_t* start,
                          int32_t* neighbor, float* r_ij, int64_t* near, double* shortest) {
    const int64_t n = list->num_atoms;
    if (origin && !holds(n, positions, origin, room)) return -1;
    const double most = cutoff * cutoff;
    int64_t close = 0;
    double least = std::numeric_limits<double>::infinity();
    start[0] = 0;
    if (threads > 1) {  // each must know where to begin
#pragma omp parallel for num_threads(threads) schedule(static)
        for (int64_t i = 0; i < n; i++) {
            int64_t count = 0;
            double r[3];
            for (int64_t e = list->start[i]; e < list->start[i + 1]; e++)
                count += !(separation(*list, offsets, positions, i, e, r) >= most);
            start[i + 1] = count;
        }
        for (int64_t i = 0; i < n; i++) start[i + 1] += start[i];
    }
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1) reduction(+ : close) \
    reduction(min : least)
    for (int64_t i = 0; i < n; i++) {
        int64_t to = start[i];
        const double* limits = outer + list->element[i] * list->num_elements;
        for (int64_t e = list->start[i]; e < list->start[i + 1]; e++) {
            double r[3];
            const double squared = separation(*list, offsets, positions, i, e, r);
            if (squared >= most) continue;
            const int32_t j = list->neighbor[e];
            for (int k = 0; k < 3; k++) r_ij[3 * to + k] = float(r[k]);
            neighbor[to++] = j;
            if (j == i && list->shift[e] == list->no_shift) continue;
            least = squared < least ? squared : least;
            close += squared < limits[list->element[j]];
        }
        if (threads <= 1) start[i + 1] = to;
    }
    *near = close;
    *shortest = least;
    return start[n];
}
