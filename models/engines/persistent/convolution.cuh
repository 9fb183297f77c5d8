// Feature maps in shared memory and the convolutions between them, on tensor cores.

#pragma once

constexpr int WARPS = 8, THREADS = 32 * WARPS;

DEVICE constexpr int minimum(int a, int b) { return a < b ? a : b; }
DEVICE constexpr int maximum(int a, int b) { return a > b ? a : b; }

// ---- Shared memory, in bytes ---------------------------------------------------------------------------

// The widest map, 32 x 32 x 16 of fp16, fills a region; the maps of later groups are a half and a quarter of it.
constexpr int REGION = 32 * 32 * 16 * 2;
constexpr int LEFT = 0, RIGHT = REGION;
// Zeros for the taps outside of a map. A margin around the maps would take 10 KB and be cleared for every group.
constexpr int ZEROS = 2 * REGION, ZERO_BYTES = 128;
// The sums of a map's pixels by strip and channel, for the next gate and the head.
constexpr int SUMS = ZEROS + ZERO_BYTES, SUM_BYTES = 128 * 4;
// The same for a gate's own map. There are two, used alternately: a warp may be one gate ahead of another, but not two.
constexpr int GATE = SUMS + SUM_BYTES;
// For the RNN gate: the weights that all gates share, and the next gate's own, 40 rows x 4 threads x 16 channels.
constexpr int LSTM = GATE + 2 * SUM_BYTES, LSTM_BYTES = (12 * 40 + 20) * 4;
constexpr int PREFETCH = LSTM + LSTM_BYTES, PREFETCH_BYTES = (40 * 64 + 40) * 4;
// Values of the current image. No registers remain for them.
constexpr int IMAGE = PREFETCH + PREFETCH_BYTES, NEXT_IMAGE = IMAGE + 4, LIMIT = IMAGE + 8;
// The next image's pixels. They arrive while the current image is computed.
constexpr int STAGED = IMAGE + 16, STAGED_BYTES = 32 * 32 * 3;
constexpr int SHARED_BYTES = STAGED + STAGED_BYTES;

// ---- Maps ----------------------------------------------------------------------------------------------

// SIDE_ x SIDE_ pixels of CHANNELS_ fp16 numbers. The channels of a pixel are adjacent, in parts of 8 (16 bytes).
template <int SIDE_, int CHANNELS_> struct Map {
    static constexpr int SIDE = SIDE_, CHANNELS = CHANNELS_, PARTS = CHANNELS / 8;
    static constexpr int PITCH = maximum(SIDE, 8), ROW_BYTES = PITCH * CHANNELS * 2, BYTES = SIDE * ROW_BYTES;

    // Returns the offset of a part of a pixel, which may be outside of the map. Shared memory has 32 banks of 4
    // bytes, the width of eight parts. The parts of a pixel are permuted by its position (a swizzle), so that the
    // same part of eight neighbours in a row, which ldmatrix reads together, is in eight different banks.
    static DEVICE int offset(int y, int x, int part) {
        const int pixel = y * PITCH + x;
        const int swap = PARTS == 2 ? (pixel >> 2) & 1 : PARTS == 4 ? (pixel >> 1) & 3 : pixel & 7;
        return (pixel * PARTS + (part ^ swap)) * 16;
    }
};

// ---- Convolution ---------------------------------------------------------------------------------------

// What to do with the results of a convolution.
enum : unsigned {
    RELU = 1,
    ADD = 2,    // to the shortcut, which is already at the target
    STORE = 4,  // as fp16
    SUM = 8     // over the map's pixels, before rounding
};

// A convolution from one map to another, TAPS x TAPS with zero padding, as a matrix product: [pixels, taps and input
// channels] by [taps and input channels, output channels]. A warp computes 16 output channels (a pair of n8 tiles) of
// a strip of the map: ROWS tiles of 16 pixels, one below the other. So a row of pixels is read once for all output
// rows that need it: a 3x3 convolution of stride 1 takes ROWS + 2 reads instead of 3 ROWS.
//
// If a map is less than 16 pixels wide, a tile has LINES rows of it at a distance of STEP, so that this still holds.
//
// A thread holds the weights of two or three columns of taps for 16 input channels (three times 16 bytes each). It
// loads the next column as soon as one is used, because L2 is slow. The constructor loads the first columns:
// construct a convolution before a barrier, and use it after.
template <class In, class Out, int STRIDE, int TAPS = 3> struct Convolution {
    static constexpr int PAIRS = Out::CHANNELS / 16, CHUNKS = In::CHANNELS / 16, PADDING = TAPS / 2;
    static constexpr int WIDTH = minimum(Out::SIDE, 16), LINES = 16 / WIDTH, ACROSS = Out::SIDE / WIDTH;
    static constexpr int STEP = maximum(Out::SIDE / LINES, 1);
    static constexpr int TILES = maximum(Out::SIDE * Out::SIDE / 16, 1);
    static constexpr int STRIPS = minimum(WARPS / PAIRS, TILES), ROWS = TILES / STRIPS;
    static constexpr int READS = (ROWS - 1) * STRIDE + TAPS;  // rows of the input that a strip reads
    static constexpr bool PARTIAL = Out::SIDE * WIDTH < 16;   // not even one tile is full
    // The sums of the widest maps leave no registers for a third column of weights.
    static constexpr int SLOTS = CHUNKS == 1 ? minimum(TAPS, 2) : TAPS;
    static constexpr int FILTER_WORDS = CHUNKS * TAPS * TAPS * PAIRS * 32;
    static constexpr int WORDS = FILTER_WORDS + Out::CHANNELS / 4;  // of 16 bytes, with the biases

    const uint4* filter;
    int lane, pair, strip, top, left;
    // Cleared for warps without work. A variable that is set on one path only counts as live throughout the loop over
    // images and is spilled.
    uint4 weights[SLOTS][TAPS] = {};  // of one column of taps, from the top
    float sums[ROWS][2][4] = {};

    DEVICE explicit Convolution(const uint4* stream) : lane(lane_number()) {
        const int warp = warp_number();
        pair = warp % PAIRS, strip = warp / PAIRS;
        top = strip / ACROSS * ROWS, left = strip % ACROSS * WIDTH;
        filter = stream + pair * 32 + lane;
        if (!works()) return;
#pragma unroll
        for (int column = 0; column < SLOTS; ++column) load_column(column, column);
        const float2* biases = reinterpret_cast<const float2*>(stream + FILTER_WORDS) + pair * 8 + lane % 4;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float2 bias = fetch(biases + half * 4);
#pragma unroll
            for (int i = 0; i < ROWS; ++i) {
                sums[i][half][0] = sums[i][half][2] = bias.x;
                sums[i][half][1] = sums[i][half][3] = bias.y;
            }
        }
    }

    // On small maps, some warps have no work.
    DEVICE bool works() const { return STRIPS * PAIRS == WARPS || strip < STRIPS; }

    // `column` counts over all chunks.
    DEVICE void load_column(int slot, int column) {
#pragma unroll
        for (int row = 0; row < TAPS; ++row)
            weights[slot][row] = fetch(filter + (column * TAPS + row) * PAIRS * 32);
    }

    DEVICE void accumulate(int source) {
        if (!works()) return;
        // The position of this lane's matrix row in the input, for the first tap.
        const int y = (top + lane % 16 / WIDTH * STEP) * STRIDE - PADDING;
        const int x = (left + lane % WIDTH) * STRIDE - PADDING;
#pragma unroll 1
        for (int chunk = 0; chunk < CHUNKS; ++chunk) {
#pragma unroll
            for (int column = 0; column < TAPS; ++column) {
                const int first = In::offset(y, x + column, lane / 16) ^ (chunk << 5);
                const int zeros = ZEROS + (first & 0x70);  // in the banks of the missing pixel
                const bool outside_column = column != PADDING && unsigned(x + column) >= unsigned(In::SIDE);
                const int start = outside_column ? zeros : source + first, step = outside_column ? 0 : In::ROW_BYTES;
#pragma unroll
                for (int row = 0; row < READS; ++row) {
                    if (row % STRIDE >= TAPS) continue;  // a projection does not use this row
                    // Only the outermost rows can be outside. Lanes beyond the end of a small map read zeros too.
                    const bool outer = row == 0 || row == READS - 1 || PARTIAL;
                    const bool outside = outer && unsigned(y + row) >= unsigned(In::SIDE);
                    unsigned pixels[4];
                    load_matrices(pixels, outside ? zeros : start + row * step);
#pragma unroll
                    for (int tap = 0; tap < TAPS; ++tap) {
                        const int i = (row - tap) / STRIDE;
                        if (row < tap || (row - tap) % STRIDE != 0 || i >= ROWS) continue;
                        const uint4 weight = weights[column % SLOTS][tap];
                        multiply_add(sums[i][0], pixels, weight.x, weight.y);
                        multiply_add(sums[i][1], pixels, weight.z, weight.w);
                    }
                }
                const int next = chunk * TAPS + column + SLOTS;
                if (next < CHUNKS * TAPS) load_column(column % SLOTS, next);
            }
        }
    }

    // Writes sums to `totals` as fp32 [STRIPS][channels].
    template <unsigned WORK> DEVICE void finish(int target, int totals = 0) {
        if (!works()) return;
        float total[2][2] = {};
#pragma unroll
        for (int i = 0; i < ROWS; ++i)
#pragma unroll
            for (int lower = 0; lower < 2; ++lower) {
                const int pixel = lane / 4 + 8 * lower;
                const int y = top + i + pixel / WIDTH * STEP, x = left + pixel % WIDTH;
                if (PARTIAL && y >= Out::SIDE) continue;
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const int at = target + Out::offset(y, x, pair * 2 + half) + lane % 4 * 4;
                    float2 value = {sums[i][half][lower * 2], sums[i][half][lower * 2 + 1]};
                    if (WORK & ADD) {
                        const float2 shortcut = unpack(read_shared<unsigned>(at));
                        value.x += shortcut.x, value.y += shortcut.y;
                    }
                    if (WORK & RELU) value.x = fmaxf(value.x, 0.0f), value.y = fmaxf(value.y, 0.0f);
                    if (WORK & STORE) write_shared(at, pack(value.x, value.y));
                    total[half][0] += value.x, total[half][1] += value.y;
                }
            }
        if constexpr (WORK & SUM) write_sums(total, totals);
    }

    DEVICE void write_sums(float (&total)[2][2], int totals) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
            for (int mask = 4; mask <= 16; mask *= 2) {
                total[half][0] += shuffle_xor(total[half][0], mask);
                total[half][1] += shuffle_xor(total[half][1], mask);
            }
            const int channel = (pair * 2 + half) * 8 + lane % 4 * 2;
            if (lane < 4)
                write_shared(totals + (strip * Out::CHANNELS + channel) * 4, float2{total[half][0], total[half][1]});
        }
    }
};
