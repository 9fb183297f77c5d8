// A stand-in for the CUDA driver: a libcuda.so.1 with the functions that the persistent engine calls.
//
// A launch runs the kernel on simulated thread blocks (driver.cpp), or not at all. Memory is the host's. So the engine
// runs with its own calls of cuda.bindings and needs no GPU. `Seen` tells what it did.

#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <map>
#include <vector>

namespace {

enum Status { SUCCESS = 0, INVALID_VALUE = 1, INVALID_IMAGE = 200, INVALID_CONTEXT = 201, NOT_FOUND = 500, NOT_SUPPORTED = 801 };

struct Range {
    uintptr_t start, end;
};
constexpr int DONE = 12;  // the number of persistent.cu's argument `done`
// driver.cpp
using Kernel = void (*)(unsigned grid, uint64_t order, void** arguments, int64_t* counts, const Range*, size_t);

// standin.py has the same names.
struct Seen {
    int64_t launches, grid, pinned, device, allocations, contexts, waits, outside, races;
} seen;
struct Settings {
    Kernel kernel;  // null: a launch only tells the host that it is done
    int64_t compute, multiprocessors, failure;
} settings = {nullptr, 90, 2, 0};

std::map<void*, size_t> pinned, device;
std::vector<void*> contexts;

int allocate(std::map<void*, size_t>& kind, int64_t& total, void** to, size_t bytes) {
    // 256 bytes are the alignment of device memory.
    if (posix_memalign(to, 256, bytes) != 0) return INVALID_VALUE;
    std::memset(*to, 0xff, bytes);
    kind[*to] = bytes, total += int64_t(bytes), ++seen.allocations;
    return SUCCESS;
}

int release(std::map<void*, size_t>& kind, int64_t& total, void* from) {
    const auto found = kind.find(from);
    if (found == kind.end()) return INVALID_VALUE;
    total -= int64_t(found->second);
    kind.erase(found);
    std::free(from);
    return SUCCESS;
}

// Stands for every other function.
int refuse() { return NOT_SUPPORTED; }

int here() { return contexts.empty() ? INVALID_CONTEXT : SUCCESS; }

}  // namespace

extern "C" {

Seen* standin_seen() { return &seen; }
Settings* standin_settings() { return &settings; }
void* standin_context() { return contexts.empty() ? nullptr : contexts.back(); }

int cuInit(unsigned) { return SUCCESS; }
// NVRTC calls it. It compiles all the same.
int cuGetExportTable(const void** to, const void*) { return *to = nullptr, NOT_SUPPORTED; }
int cuDriverGetVersion(int* to) { return *to = 13000, SUCCESS; }
int cuDeviceGetCount(int* to) { return *to = 1, SUCCESS; }
int cuDeviceGet(int* to, int index) { return *to = index, index == 0 ? SUCCESS : INVALID_VALUE; }
int cuGetErrorName(int, const char** to) { return *to = "AN_ERROR", SUCCESS; }
int cuGetErrorString(int, const char** to) { return *to = "an error", SUCCESS; }

// The multiprocessors (16) and the compute capability (75 and 76).
int cuDeviceGetAttribute(int* to, int which, int) {
    *to = which == 16 ? int(settings.multiprocessors)
          : which == 75 ? int(settings.compute / 10)
          : which == 76 ? int(settings.compute % 10) : 0;
    return SUCCESS;
}

int cuDevicePrimaryCtxRetain(void** to, int) { return *to = &contexts, ++seen.contexts, SUCCESS; }
int cuDevicePrimaryCtxRelease_v2(int) { return --seen.contexts, SUCCESS; }
int cuCtxPushCurrent_v2(void* context) { return contexts.push_back(context), SUCCESS; }
int cuCtxPopCurrent_v2(void** to) {
    if (here() != SUCCESS) return INVALID_CONTEXT;
    *to = contexts.back();
    contexts.pop_back();
    return SUCCESS;
}
int cuCtxGetCurrent(void** to) { return *to = contexts.empty() ? nullptr : contexts.back(), SUCCESS; }

int cuCtxSynchronize() { return here(); }

int cuLibraryLoadData(void** to, const void* cubin, int*, void**, unsigned, int*, void**, unsigned) {
    return *to = &seen, std::memcmp(cubin, "\177ELF", 4) == 0 ? here() : INVALID_IMAGE;
}
int cuLibraryUnload(void*) { return SUCCESS; }
int cuLibraryGetKernel(void** to, void*, const char* name) {
    return *to = &settings, std::strstr(name, "route") != nullptr ? SUCCESS : NOT_FOUND;
}
int cuKernelSetAttribute(int, int, void*, int) { return SUCCESS; }
int cuOccupancyMaxActiveBlocksPerMultiprocessor(int* to, void*, int, size_t) { return *to = 2, here(); }

int cuStreamCreate(void** to, unsigned) { return *to = std::malloc(1), here(); }
int cuStreamDestroy_v2(void* stream) { return std::free(stream), SUCCESS; }
int cuStreamSynchronize(void*) { return ++seen.waits, settings.failure != 0 ? int(settings.failure) : here(); }

int cuMemAlloc_v2(void** to, size_t bytes) {
    return here() != SUCCESS ? INVALID_CONTEXT : allocate(device, seen.device, to, bytes);
}
int cuMemFree_v2(void* from) { return release(device, seen.device, from); }
int cuMemHostAlloc(void** to, size_t bytes, unsigned) {
    return here() != SUCCESS ? INVALID_CONTEXT : allocate(pinned, seen.pinned, to, bytes);
}
int cuMemFreeHost(void* from) { return release(pinned, seen.pinned, from); }
int cuMemcpyHtoD_v2(void* to, const void* from, size_t bytes) { return std::memcpy(to, from, bytes), here(); }

int cuLaunchKernel(void*, unsigned grid, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*,
                   void** arguments, void**) {
    if (here() != SUCCESS) return INVALID_CONTEXT;
    ++seen.launches, seen.grid = grid;
    if (settings.failure != 0) return SUCCESS;  // as of a kernel that fails: the next wait tells
    if (settings.kernel == nullptr) {
        **static_cast<volatile unsigned**>(arguments[DONE]) = *static_cast<unsigned*>(arguments[DONE + 1]);
        return SUCCESS;
    }
    std::vector<Range> ranges(1);
    for (const auto* kind : {&pinned, &device})
        for (const auto& [start, bytes] : *kind)
            ranges.push_back({reinterpret_cast<uintptr_t>(start), reinterpret_cast<uintptr_t>(start) + bytes});
    int64_t counts[10] = {};
    settings.kernel(grid, uint64_t(seen.launches), arguments, counts, ranges.data(), ranges.size());
    seen.outside += counts[7], seen.races += counts[8];
    return SUCCESS;
}

int cuGetProcAddress_v2(const char* name, void** to, int, uint64_t, int* status) {
    void* self = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
    *to = nullptr;
    for (const char* suffix : {"_v2", ""}) {
        char full[128];
        std::snprintf(full, sizeof full, "%s%s", name, suffix);
        if (*to == nullptr) *to = dlsym(self, full);
    }
    if (*to == nullptr) *to = reinterpret_cast<void*>(refuse);
    if (status != nullptr) *status = 0;
    return SUCCESS;
}
int cuGetProcAddress(const char* name, void** to, int version, uint64_t flags) {
    return cuGetProcAddress_v2(name, to, version, flags, nullptr);
}

}  // extern "C"
