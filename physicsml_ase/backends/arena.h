// Memory and work of threads.

#pragma once

#include <cstddef>
#include <cstdint>

namespace {

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

// First block of BLOCK atoms of a thread: each thread has as many edges, an atom counting as twenty. The edges of atom
// i begin at start[i].
template <int BLOCK>
int64_t first_block(const int64_t* start, int64_t num_atoms, int thread, int threads) {
    const int64_t blocks = (num_atoms + BLOCK - 1) / BLOCK;
    const double share = double(start[num_atoms] + 20 * num_atoms) * thread / threads;
    int64_t low = 0, high = blocks;
    while (low < high) {
        const int64_t middle = (low + high) / 2, i = middle * BLOCK;
        if (double(start[i] + 20 * i) < share) low = middle + 1;
        else high = middle;
    }
    return low;
}

}  // namespace
