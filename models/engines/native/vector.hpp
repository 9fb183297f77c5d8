// Vector registers and aligned memory of the native engine (native.cpp).

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

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

inline Vector load(const float* from) { return *reinterpret_cast<const Vector*>(from); }
inline void store(float* to, Vector value) { *reinterpret_cast<Vector*>(to) = value; }
inline Vector larger(Vector a, Vector b) { return a < b ? b : a; }
inline Vector relu(Vector x) { return larger(x, Vector{}); }  // NaN stays NaN, as in the reference engine

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
