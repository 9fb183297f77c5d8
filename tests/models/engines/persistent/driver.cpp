// Compiles the persistent kernel for KIND_OF_GATE as a CPU library that is called with the arguments of a launch.

#include <utility>

#include "shim.hpp"

#include "persistent.cu"

namespace {

void** arguments;

template <class... Types, size_t... At>
void call(void (*kernel)(Types...), std::index_sequence<At...>) {
    kernel(*static_cast<Types*>(arguments[At])...);
}

template <class... Types> void call(void (*kernel)(Types...)) {
    call(kernel, std::make_index_sequence<sizeof...(Types)>());
}

}  // namespace

extern "C" int shared_bytes() { return SHARED_BYTES; }
extern "C" int threads() { return THREADS; }

// `given` are pointers to the kernel's arguments, as cuLaunchKernel takes them. The kernel may read the global memory of
// `ranges`. The first of them are the logits.
extern "C" void run_kernel(unsigned grid, uint64_t order, void** given, shim::Counts* counts,
                           const shim::Range* ranges, size_t count) {
    arguments = given;
    shim::results = ranges[0];
    shim::ranges.assign(ranges, ranges + count);
    gridDim.x = grid;
    shim::run(grid, THREADS, SHARED_BYTES, order, [] { call(route<KIND_OF_GATE>); });
    *counts = shim::counts;
}
