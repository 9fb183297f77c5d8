// The persistent kernel's GPU instructions that C++ lacks, and its access to shared memory.
//
// Each function is one or two PTX instructions. Tests compile the kernel for the CPU with other definitions of them
// (tests/models/engines/persistent/shim.hpp). Nothing else in the kernel depends on the machine. It needs no header
// of the CUDA toolkit, so NVRTC compiles it with its own wheel alone.
//
// Shared memory is addressed by byte offset, a 32-bit number as ldmatrix takes it.

#pragma once

#define DEVICE __device__ __forceinline__

extern __shared__ __align__(128) unsigned char shared_memory[];

template <class T> DEVICE T read_shared(int at) { return *reinterpret_cast<const T*>(shared_memory + at); }
template <class T> DEVICE void write_shared(int at, T value) { *reinterpret_cast<T*>(shared_memory + at) = value; }

// The numbers of this thread, warp and lane. A shuffle hides their origin from the compiler. Otherwise it computes the
// addresses of every convolution before the loops and spills them. The warp's number is read from one lane, so the
// compiler knows that all lanes have the same number.
DEVICE int thread_number() { return __shfl_sync(0xffffffffu, int(threadIdx.x), int(threadIdx.x)); }
DEVICE int warp_number() { return __shfl_sync(0xffffffffu, int(threadIdx.x) / 32, 0); }
DEVICE int lane_number() { return thread_number() % 32; }

// Loads from global memory, which must not change while the kernel runs.
template <class T> DEVICE T fetch(const T* from) { return __ldg(from); }

// Starts a copy of 16 or 4 bytes from global to shared memory, without a register. After `wait_for_copies` it is
// visible to the same thread, and after a following barrier to the others.
template <class T> DEVICE void copy_async(int to, const T* from) {
    const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(shared_memory)) + to;
    if constexpr (sizeof(T) == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(from) : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(address), "l"(from) : "memory");
}
DEVICE void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// Loads four 8 x 8 matrices of fp16. Lane i gives the offset of row i % 8 of matrix i / 8 (PTX ISA, ldmatrix).
DEVICE void load_matrices(unsigned (&to)[4], int row) {
    const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(shared_memory)) + row;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
}

// Computes d += a b: 16 x 16 by 16 x 8, fp16 into fp32, in the fragments of mma.m16n8k16 (PTX ISA).
DEVICE void multiply_add(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Rounds two numbers to fp16, to nearest even. The first is in the lower half.
DEVICE unsigned pack(float low, float high) {
    unsigned both;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}

DEVICE float2 unpack(unsigned both) {
    float2 two;
    asm("{ .reg .f16 low, high; mov.b32 {low, high}, %2; cvt.f32.f16 %0, low; cvt.f32.f16 %1, high; }"
        : "=f"(two.x), "=f"(two.y)
        : "r"(both));
    return two;
}

// Returns x * scale - shift with two roundings, as numpy computes it, and not as one fused operation.
DEVICE float normalise(float x, float scale, float shift) { return __fsub_rn(__fmul_rn(x, scale), shift); }

// Return the value `mine` of lane `lane`, or of the lane whose number differs in the bits of `mask`.
DEVICE float shuffle(float mine, int lane) { return __shfl_sync(0xffffffffu, mine, lane); }
DEVICE float shuffle_xor(float mine, int mask) { return __shfl_xor_sync(0xffffffffu, mine, mask); }

// Thread blocks take images from one queue. A thread block whose image skips many blocks takes the next image sooner.
// The last thread block to leave resets the queue for the next launch. The results are in host memory: it then writes
// `ticket` to `done`, after every result of every thread block.
struct Queue {
    unsigned next, left;
};

DEVICE int take_image(Queue* queue) { return int(gridDim.x + atomicAdd(&queue->next, 1u)); }
DEVICE void leave(Queue* queue, volatile unsigned* done, unsigned ticket) {
    __threadfence_system();
    if (atomicInc(&queue->left, gridDim.x - 1) != gridDim.x - 1) return;
    queue->next = 0;
    __threadfence_system();
    *done = ticket;
}
