// Vectors of as many numbers as the machine's registers hold, by extensions that GCC and clang have. The numbers are
// double with the macro DOUBLE, float otherwise.

#pragma once

#include <cstdint>
#include <utility>

namespace {

#if DOUBLE
typedef double real;
typedef int64_t whole;
#else
typedef float real;
typedef int32_t whole;
#endif
#if defined(__AVX512F__)
constexpr int BYTES = 64;
#elif defined(__AVX__)
constexpr int BYTES = 32;
#else
constexpr int BYTES = 16;
#endif
constexpr int LANES = BYTES / int(sizeof(real));

typedef real V __attribute__((vector_size(BYTES)));
typedef whole I __attribute__((vector_size(BYTES)));
typedef real Unaligned __attribute__((vector_size(BYTES), aligned(sizeof(real)), may_alias));

inline V load(const real* p) { return *reinterpret_cast<const Unaligned*>(p); }
inline void store(real* p, V x) { *reinterpret_cast<Unaligned*>(p) = x; }
inline V all(real x) { return x - V{}; }

template <int S, int... lane>
inline V turned(V x, std::integer_sequence<int, lane...>) {
#if defined(__clang__) || __GNUC__ >= 12
    return __builtin_shufflevector(x, x, ((lane + S) % LANES)...);
#else
    return __builtin_shuffle(x, I{((lane + S) % LANES)...});
#endif
}
template <int S = LANES / 2>
inline real sum(V x) {
    x += turned<S>(x, std::make_integer_sequence<int, LANES>());
    if constexpr (S > 1) return sum<S / 2>(x);
    return x[0];
}

}  // namespace
