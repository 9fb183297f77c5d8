// Compiles the persistent kernel for KIND_OF_GATE as a CPU library that is called with the arguments of a launch.

#include "shim.hpp"

#include "persistent.cu"

namespace {

struct Launch {
    const float *images, *limits;
    const uint4 *group1, *group2, *group3, *head, *gates;
    float *logits, *probability;
    unsigned char* executed;
    Queue* queue;
    int count, blocks1, blocks2, blocks3, classes;
} launch;

void classify_images() {
    const Launch& l = launch;
    route<KIND_OF_GATE>(l.images, l.limits, l.group1, l.group2, l.group3, l.head, l.gates, l.logits, l.probability,
                l.executed, l.queue, l.count, l.blocks1, l.blocks2, l.blocks3, l.classes);
}

}  // namespace

extern "C" int shared_bytes() { return SHARED_BYTES; }
extern "C" int threads() { return THREADS; }

extern "C" void run_kernel(unsigned grid, uint64_t order, const Launch* given, shim::Counts* counts) {
    launch = *given;
    gridDim.x = grid;
    shim::run(grid, THREADS, SHARED_BYTES, order, classify_images);
    *counts = shim::counts;
}
