// Vector registers and aligned memory of the native engine (native.cpp).

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

// V floats fill a register. A register tile is P pixels x K blocks of V channels: as many sums as leave registers for
// weights and pixels. AVX-512 can read a multiplication's pixel from memory, so one block at a time is best.
#if defined(__AVX512F__)
constexpr int V = 16, P_MOST = 16, K = 1;
#elif defined(__AVX__)
constexpr int V = 8, P_MOST = 6, K = 2;
#elif defined(__aarch64__)
constexpr int V = 4, P_MOST = 8, K = 2;
#else
constexpr int V = 4, P_MOST = 4, K = 2;
#endif

using Vector = float __attribute__((vector_size(V * 4)));
using Bits = uint32_t __attribute__((vector_size(V * 4)));
// A map or a weight of 16-bit integers has one pair of channels where a map of floats has one channel.
using Pairs = int32_t __attribute__((vector_size(V * 4), may_alias));
using Shorts = int16_t __attribute__((vector_size(V * 4), may_alias));

inline Vector load(const float* from) { return *reinterpret_cast<const Vector*>(from); }
inline void store(float* to, Vector value) { *reinterpret_cast<Vector*>(to) = value; }
template <class Integers>
inline Integers load_as(const float* from) { return *reinterpret_cast<const Integers*>(from); }
template <class Integers>
inline void store_as(float* to, Integers value) { *reinterpret_cast<Integers*>(to) = value; }
inline Vector larger(Vector a, Vector b) { return a < b ? b : a; }
inline Vector relu(Vector x) { return larger(x, Vector{}); }  // NaN stays NaN, as in the reference engine

// Returns a.first * b.first + a.second * b.second of each pair, as 32-bit integers.
inline Pairs multiply_pairs(Pairs a, Pairs b) {
#if defined(__AVX512BW__)
    return Pairs(_mm512_madd_epi16(__m512i(a), __m512i(b)));
#elif defined(__AVX2__)
    return Pairs(_mm256_madd_epi16(__m256i(a), __m256i(b)));
#elif defined(__SSE2__) && !defined(__AVX__)
    return Pairs(_mm_madd_epi16(__m128i(a), __m128i(b)));
#else
    return (a << 16 >> 16) * (b << 16 >> 16) + (a >> 16) * (b >> 16);
#endif
}

// The largest magnitude of a quantised activation. Winograd's transform makes it up to four times larger.
constexpr int LARGEST_ACTIVATION = 2047;

// Returns the pairs (a[i], b[i]) * scale, rounded to the nearest integers and limited to the largest activation.
inline Pairs quantize(Vector a, Vector b, float scale) {
    constexpr float MOST = LARGEST_ACTIVATION, SHIFT = 12582912.0f;  // 1.5 * 2^23: the low bits hold the integer
    a = larger(a * scale, Vector{} - MOST), b = larger(b * scale, Vector{} - MOST);
    a = (a > MOST ? Vector{} + MOST : a) + SHIFT, b = (b > MOST ? Vector{} + MOST : b) + SHIFT;
    Bits first, second;
    std::memcpy(&first, &a, sizeof a);
    std::memcpy(&second, &b, sizeof b);
    return Pairs((first & 0xffffu) | (second << 16));
}

// For loops over arrays that must be in registers: every index must then be a constant.
#define UNROLL _Pragma("GCC unroll 32")

constexpr int rounded(int count, int multiple) { return (count + multiple - 1) / multiple * multiple; }

struct Free {
    void operator()(float* memory) const { std::free(memory); }
};
using Buffer = std::unique_ptr<float, Free>;

Buffer zeros(size_t count) {
    const size_t bytes = (count * sizeof(float) + 63) / 64 * 64;
    auto* memory = static_cast<float*>(std::aligned_alloc(64, std::max<size_t>(bytes, 64)));
    if (memory == nullptr) throw std::bad_alloc();
    std::memset(memory, 0, bytes);
    return Buffer(memory);
}

}  // namespace
