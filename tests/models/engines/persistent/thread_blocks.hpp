// Simulates a GPU's thread blocks on one CPU core, to run the persistent kernel's own source without a GPU.
//
// Every thread is a fiber. A warp's lanes meet at each instruction of the warp (ldmatrix, mma, shuffles). It is then
// executed for all of them. Thread blocks and warps proceed in a random order, in short and in long steps. So a warp
// may run as far ahead as barriers permit. Shared memory starts as NaN. Asynchronous copies arrive as late as they may.
//
// Every access to shared memory is checked: it must be in bounds and aligned, and no two threads may access one word
// between two barriers if one of them writes. This finds a missing barrier in any order. Loads from global memory must
// be aligned and inside of one array of the launch.

#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

namespace shim {

constexpr size_t STACK = 64 << 10;

struct Counts {
    // Sums over all thread blocks. simulated.py has the same names.
    int64_t multiplies, matrices, barriers, fetched, shared_read, shared_written;
    int64_t conflicts, outside, races, diverged;
};

struct Copy {
    int to, bytes;
    const void* from;
};

enum State { RUNNING, AT_BARRIER, AT_WARP, DONE };
enum class Operation { none, load, multiply, shuffle };

struct Lane {
    jmp_buf at;
    ucontext_t start;
    std::unique_ptr<char[]> stack;
    State state;
    Operation operation;
    bool started;
    std::vector<Copy> copies;
    // Operands and results of the warp's next instruction.
    int row, source;
    float value;
    unsigned a[4], b[2];
    float d[4];
};

struct Word {  // of shared memory: the last accesses, and the barrier before them
    int64_t written = -1, read = -1;
    int writer = 0, reader = 0;
};

struct Block {
    unsigned number;
    std::vector<Lane> lanes;
    std::vector<unsigned char> memory;
    std::vector<Word> words;
    int64_t barriers = 0;
};

struct Range {  // of global memory
    uintptr_t start, end;
};

inline Counts counts;
inline std::vector<Range> ranges;
inline Range results;  // NaN before the launch
inline jmp_buf scheduler;
inline Block* block;
inline int thread;
inline void (*body)();
inline uint64_t seed;

inline unsigned random() {
    seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
    return unsigned(seed >> 20);
}

inline Lane& lane() { return block->lanes[thread]; }

inline void wait(State state) {
    lane().state = state;
    if (_setjmp(lane().at) == 0) _longjmp(scheduler, 1);
}

inline void enter() {
    body();
    lane().state = DONE;
    _longjmp(scheduler, 1);
}

// Runs one fiber until it waits or ends. Only its first step needs its own context.
inline void resume(int number) {
    thread = number;
    Lane& lane = block->lanes[number];
    if (_setjmp(scheduler) != 0) return;
    lane.state = RUNNING;
    if (lane.started) _longjmp(lane.at, 1);
    lane.started = true;
    setcontext(&lane.start);
}

// ---- Shared memory -------------------------------------------------------------------------------------

inline bool inside(int at, int bytes) {
    const bool good = at >= 0 && at + bytes <= int(block->memory.size());
    if (!good) ++counts.outside;
    if (at % std::min(bytes, 16) != 0) ++counts.outside;
    return good;
}

// Counts a load from outside of the launch's arrays. The range of the last load is tried first.
inline bool readable(const void* from, size_t bytes) {
    static size_t last = 0;
    const auto start = reinterpret_cast<uintptr_t>(from);
    const auto holds = [&](const Range& range) { return start >= range.start && start + bytes <= range.end; };
    if (last < ranges.size() && holds(ranges[last])) return true;
    last = size_t(std::find_if(ranges.begin(), ranges.end(), holds) - ranges.begin());
    if (last == ranges.size()) ++counts.outside;
    return last < ranges.size();
}

// Counts a race: one thread writes a word, and another reads or writes it with no barrier between them.
inline void touch(int at, int bytes, bool writes, int who) {
    for (int i = at / 4; i <= (at + bytes - 1) / 4; ++i) {
        Word& word = block->words[i];
        const bool written = word.written == block->barriers && word.writer != who;
        const bool read = word.read == block->barriers && word.reader != who;
        if (written || (writes && read)) ++counts.races;
        if (writes) {
            word.written = block->barriers, word.writer = who;
        } else {
            word.reader = word.read == block->barriers && word.reader != who ? -1 : who;
            word.read = block->barriers;
        }
    }
}

inline void arrive(const Copy& copy) {
    touch(copy.to, copy.bytes, true, thread);
    std::memcpy(block->memory.data() + copy.to, copy.from, copy.bytes);
}

// ---- Numbers -------------------------------------------------------------------------------------------

inline float half(unsigned bits) {
    const auto narrow = uint16_t(bits);
    _Float16 number;
    std::memcpy(&number, &narrow, 2);
    return float(number);
}
inline unsigned bits(float number) {
    const auto narrow = _Float16(number);
    uint16_t bits;
    std::memcpy(&bits, &narrow, 2);
    return bits;
}

// ---- Instructions of all lanes of a warp --------------------------------------------------------------------------

// PTX ISA, ldmatrix .x4: lane i of the warp gives row i % 8 of matrix i / 8. It receives numbers 2 (i % 4) and
// 2 (i % 4) + 1 of row i / 4 of each matrix.
inline void load(Lane* lanes) {
    ++counts.matrices;
    for (int matrix = 0; matrix < 4; ++matrix) {
        unsigned banks = 0;
        for (int row = 0; row < 8; ++row) banks |= 1u << (lanes[matrix * 8 + row].row / 16 % 8);
        if (banks != 255) ++counts.conflicts;
        for (int i = 0; i < 32; ++i)
            std::memcpy(&lanes[i].a[matrix], block->memory.data() + lanes[matrix * 8 + i / 4].row + i % 4 * 4, 4);
    }
}

// PTX ISA, mma.m16n8k16: with group = i / 4 and member = i % 4 of lane i, register r of A holds row group +
// 8 (r % 2), columns 2 member + 8 (r / 2) and the next; register r of B rows 2 member + 8 r and the next, column
// group; number e of C and D row group + 8 (e / 2), column 2 member + e % 2.
inline void multiply(Lane* lanes) {
    ++counts.multiplies;
    float a[16][16], b[16][8], d[16][8];
    for (int i = 0; i < 32; ++i) {
        const int group = i / 4, member = i % 4 * 2;
        for (int r = 0; r < 4; ++r)
            for (int part = 0; part < 2; ++part)
                a[group + r % 2 * 8][member + r / 2 * 8 + part] = half(lanes[i].a[r] >> (16 * part));
        for (int r = 0; r < 2; ++r)
            for (int part = 0; part < 2; ++part) b[member + r * 8 + part][group] = half(lanes[i].b[r] >> (16 * part));
        for (int e = 0; e < 4; ++e) d[group + e / 2 * 8][member + e % 2] = lanes[i].d[e];
    }
    for (int row = 0; row < 16; ++row)
        for (int k = 0; k < 16; ++k)
            for (int column = 0; column < 8; ++column) d[row][column] += a[row][k] * b[k][column];
    for (int i = 0; i < 32; ++i)
        for (int e = 0; e < 4; ++e) lanes[i].d[e] = d[i / 4 + e / 2 * 8][i % 4 * 2 + e % 2];
}

inline void shuffle(Lane* lanes) {
    float given[32];
    for (int i = 0; i < 32; ++i) given[i] = lanes[lanes[i].source % 32].value;
    for (int i = 0; i < 32; ++i) lanes[i].value = given[i];
}

inline void meet(Operation operation) {
    lane().operation = operation;
    wait(AT_WARP);
}

// ---- Scheduling ----------------------------------------------------------------------------------------

inline void start(Block& made, unsigned number, int threads, int bytes) {
    made.number = number;
    made.lanes = std::vector<Lane>(threads);
    made.memory.assign(bytes, 0xff);
    made.words.assign(bytes / 4, Word());
    for (Lane& lane : made.lanes) {
        lane.stack = std::make_unique<char[]>(STACK);
        getcontext(&lane.start);
        lane.start.uc_stack.ss_sp = lane.stack.get();
        lane.start.uc_stack.ss_size = STACK;
        lane.start.uc_link = nullptr;
        makecontext(&lane.start, enter, 0);
        lane.state = RUNNING, lane.started = false;
    }
}

// Runs one step of a warp: every lane proceeds to its next wait. Returns false if no lane can.
inline bool step(int warp) {
    Lane* lanes = block->lanes.data() + warp * 32;
    int waiting = 0, there = 0;
    for (int i = 0; i < 32; ++i) {
        waiting += lanes[i].state == AT_WARP && lanes[i].operation == lanes[0].operation;
        there += lanes[i].state == AT_BARRIER || lanes[i].state == DONE;
    }
    if (there == 32) return false;
    if (waiting == 32) {
        if (lanes[0].operation == Operation::load) load(lanes);
        if (lanes[0].operation == Operation::multiply) multiply(lanes);
        if (lanes[0].operation == Operation::shuffle) shuffle(lanes);
    } else if (waiting > 0 || (there > 0 && there < 32)) {
        // Some lanes wait for others that took another branch. This is undefined on a GPU.
        ++counts.diverged;
        std::fprintf(stderr, "the lanes of a warp took different branches\n");
        std::abort();
    }
    const int first = random() % 32;
    for (int i = 0; i < 32; ++i) resume(warp * 32 + (first + i) % 32);
    return true;
}

// Opens the barrier at which all threads of a thread block wait. Returns false if all threads are done.
inline bool open() {
    bool alive = false;
    for (Lane& lane : block->lanes) alive |= lane.state != DONE;
    if (!alive) return false;
    for (Lane& lane : block->lanes) {
        if (lane.state == DONE) ++counts.diverged;
        lane.state = RUNNING;
    }
    ++block->barriers, ++counts.barriers;
    return true;
}

inline void run(unsigned grid, int threads, int bytes, uint64_t order, void (*kernel)()) {
    counts = {};
    body = kernel;
    seed = 0x9e3779b97f4a7c15ull * (order + 1);
    std::vector<Block> blocks(grid);
    for (unsigned i = 0; i < grid; ++i) start(blocks[i], i, threads, bytes);
    while (!blocks.empty()) {
        const size_t chosen = random() % blocks.size();
        block = &blocks[chosen];
        // Sometimes a warp runs to the barrier, otherwise it runs a few steps.
        const int warp = random() % (threads / 32), most = random() % 4 == 0 ? 1 << 20 : 1 + int(random() % 16);
        int steps = 0;
        while (steps < most && step(warp)) ++steps;
        if (steps > 0) continue;
        bool stuck = true;
        for (int other = 0; other < threads / 32 && stuck; ++other)
            for (int i = 0; i < 32 && stuck; ++i) {
                const State state = block->lanes[other * 32 + i].state;
                stuck = state == AT_BARRIER || state == DONE;
            }
        if (stuck && !open()) blocks.erase(blocks.begin() + long(chosen));
    }
}

}  // namespace shim
