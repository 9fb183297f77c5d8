// Defines for the simulated thread blocks what machine.cuh defines for a GPU, so that the persistent kernel's own source
// runs on a CPU.

#pragma once

#include "thread_blocks.hpp"

#define __global__
#define __launch_bounds__(...)
#define DEVICE inline

struct float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct Dimension {
    unsigned x;
};

struct Queue {
    unsigned next, left;
};

struct ThreadIndex {
    struct {
        operator unsigned() const { return unsigned(shim::thread); }
    } x;
};
struct BlockIndex {
    struct {
        operator unsigned() const { return shim::block->number; }
    } x;
};
inline ThreadIndex threadIdx;
inline BlockIndex blockIdx;
inline Dimension gridDim;

inline void __syncthreads() { shim::wait(shim::AT_BARRIER); }

template <class T> DEVICE T read_shared(int at) {
    T value{};
    if (!shim::inside(at, sizeof(T))) return value;
    shim::counts.shared_read += sizeof(T);
    shim::touch(at, sizeof(T), false, shim::thread);
    std::memcpy(&value, shim::block->memory.data() + at, sizeof(T));
    return value;
}

template <class T> DEVICE void write_shared(int at, T value) {
    if (!shim::inside(at, sizeof(T))) return;
    shim::counts.shared_written += sizeof(T);
    shim::touch(at, sizeof(T), true, shim::thread);
    std::memcpy(shim::block->memory.data() + at, &value, sizeof(T));
}

template <class T> DEVICE T fetch(const T* from) {
    shim::counts.fetched += sizeof(T);
    if (reinterpret_cast<uintptr_t>(from) % sizeof(T) != 0) ++shim::counts.outside;
    return shim::readable(from, sizeof(T)) ? *from : T{};
}

template <class T> DEVICE void copy_async(int to, const T* from) {
    if (!shim::inside(to, sizeof(T)) || !shim::readable(from, sizeof(T))) return;
    shim::counts.fetched += sizeof(T), shim::counts.shared_written += sizeof(T);
    // The copy may arrive at any time from now on, so no other thread may access the target.
    shim::touch(to, sizeof(T), true, shim::thread);
    shim::lane().copies.push_back({to, int(sizeof(T)), from});
}

inline void wait_for_copies() {
    for (const shim::Copy& copy : shim::lane().copies) shim::arrive(copy);
    shim::lane().copies.clear();
}

inline void load_matrices(unsigned (&to)[4], int row) {
    if (!shim::inside(row, 16)) row = 0;
    shim::touch(row, 16, false, shim::thread);
    shim::lane().row = row;
    shim::meet(shim::Operation::load);
    std::copy_n(shim::lane().a, 4, to);
}

inline void multiply_add(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    shim::Lane& lane = shim::lane();
    std::copy_n(a, 4, lane.a), std::copy_n(d, 4, lane.d);
    lane.b[0] = b0, lane.b[1] = b1;
    shim::meet(shim::Operation::multiply);
    std::copy_n(lane.d, 4, d);
}

inline unsigned pack(float low, float high) { return shim::bits(low) | shim::bits(high) << 16; }
inline float2 unpack(unsigned both) { return {shim::half(both), shim::half(both >> 16)}; }

// Without contraction, which is the compiler's default.
__attribute__((optimize("fp-contract=off"), noinline)) inline float normalise(float x, float scale, float shift) {
    return x * scale - shift;
}

inline float shuffle(float mine, int source) {
    shim::lane().value = mine, shim::lane().source = source;
    shim::meet(shim::Operation::shuffle);
    return shim::lane().value;
}
inline float shuffle_xor(float mine, int mask) { return shuffle(mine, shim::thread % 32 ^ mask); }

inline int thread_number() { return shim::thread; }
inline int warp_number() { return shim::thread / 32; }
inline int lane_number() { return shim::thread % 32; }

inline int take_image(Queue* queue) { return int(gridDim.x + queue->next++); }

// A result that is still missing when the host is told that all are there counts as a race.
inline void leave(Queue* queue, volatile unsigned* done, unsigned ticket) {
    if (++queue->left < gridDim.x) return;
    *queue = {0, 0};
    *done = ticket;
    for (uintptr_t at = shim::results.start; at < shim::results.end; at += sizeof(float))
        if (std::isnan(*reinterpret_cast<const float*>(at))) ++shim::counts.races;
}
