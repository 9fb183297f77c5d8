// The persistent kernel as a CPU library: called from Python with the arguments of a launch.

#include "shim.hpp"

#include "persistent.cu"

namespace {

struct Launch {
    const float *images, *thresholds;
    const uint4 *group1, *group2, *group3, *head, *gates;
    float *logits, *probability;
    unsigned char* executed;
    Queue* queue;
    int count, blocks1, blocks2, blocks3, classes;
} launch;

template <class Gate> void thread() {
    const Launch& l = launch;
    route<Gate>(l.images, l.thresholds, l.group1, l.group2, l.group3, l.head, l.gates, l.logits, l.probability, l.executed, l.queue, l.count,
                l.blocks1, l.blocks2, l.blocks3, l.classes);
}

}  // namespace

extern "C" int shared_bytes() { return SHARED_BYTES; }

extern "C" void run_kernel(int gate, unsigned grid, uint64_t order, const Launch* given, shim::Counts* counts) {
    void (*const kernels[])() = {thread<NoGate>, thread<RecurrentGate>, thread<PooledGate>, thread<StridedGate>};
    launch = *given;
    gridDim.x = grid;
    shim::run(grid, THREADS, SHARED_BYTES, order, kernels[gate]);
    *counts = shim::counts;
}
