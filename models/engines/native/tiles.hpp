// Feature maps and register tiles of the native engine (native.cpp).
//
// Maps are blocked: [channels / V][height][width][V], where V floats fill one vector register. A margin of zeros
// surrounds them, so that inner loops need no checks for borders. A map of 16-bit integers has a pair of channels in
// place of each float: pair i of block b holds the channels 2bV + i and (2b + 1)V + i.

#pragma once

#include "vector.hpp"

#include <utility>

namespace {

// A feature map. The margin is cleared once, at allocation. It has one more row below and one more column to the
// right, because Winograd's tiles extend over the edge of maps of odd size.
struct Map {
    int channels, height, width, margin;  // channels: floats or pairs
    int row, block;                       // strides in floats
    Buffer data;

    Map(int channels, int height, int width, int margin)
        : channels(channels), height(height), width(width), margin(margin), row((width + 2 * margin + 1) * V),
          block((height + 2 * margin + 1) * row), data(zeros(size_t(blocks()) * block)) {}

    int blocks() const { return rounded(channels, K * V) / V; }
    float* at(int index, int y, int x) const {
        return data.get() + size_t(index) * block + (y + margin) * row + (x + margin) * V;
    }
};

// The two kinds of numbers that convolutions multiply. A register tile is at most MOST pixels x BLOCKS blocks.
struct Floats {
    using Sum = Vector;
    using Input = Vector;
    static constexpr int MOST = P_MOST, BLOCKS = K;
    static void add_product(Sum& sum, const float* weights, const float* tap) { sum += load(weights) * *tap; }
    static Vector value(Sum sum, const float*) { return sum; }
};

struct Integers {
    using Sum = Pairs;
    using Input = Shorts;
    static constexpr int MOST = V == 16 ? 12 : P_MOST, BLOCKS = 2;  // two blocks of channels make one of pairs
    static void add_product(Sum& sum, const float* weights, const float* tap) {
        int32_t pair;
        std::memcpy(&pair, tap, sizeof pair);
        sum += multiply_pairs(load_as<Pairs>(weights), Pairs{} + pair);
    }
    static Vector value(Sum sum, const float* scale) { return __builtin_convertvector(sum, Vector) * load(scale); }
};

enum class Epilogue {
    bias,
    bias_relu,
    bias_add_relu,   // add: the previous content of the output map
    bias_relu_quantize,  // the output map has 16-bit integers
};

// The input of a tile: `blocks` x `kernel` x `kernel` taps of `lanes` floats or pairs.
struct Taps {
    int blocks, kernel, lanes;
    int block, row;  // strides in floats
};

// Adds the products of inputs and weights for some output blocks of P pixels at a distance of S. The weights are in the
// order of use. Deep networks read them from the L2 or L3 cache, so they are prefetched.
template <class Number, int P, int S>
__attribute__((always_inline)) inline void accumulate(typename Number::Sum (&sums)[P][Number::BLOCKS], Taps taps,
                                                      const float* in, const float* weights) {
    constexpr int AHEAD = 1024, BLOCKS = Number::BLOCKS;
    for (int b = 0; b < taps.blocks; ++b)
        for (int y = 0; y < taps.kernel; ++y)
            for (int x = 0; x < taps.kernel; ++x) {
                const float* tap = in + size_t(b) * taps.block + y * taps.row + x * V;
                for (int lane = 0; lane < taps.lanes; ++lane, weights += BLOCKS * V) {
                    __builtin_prefetch(weights + AHEAD);
                    UNROLL for (int p = 0; p < P; ++p)
                        UNROLL for (int k = 0; k < BLOCKS; ++k)
                            Number::add_product(sums[p][k], weights + k * V, tap + p * S * V + lane);
                }
            }
}

// Where and how a tile's values are written. `pooled`, if not null, has the sums of the tile's channels.
struct Output {
    float *pixels, *pooled;
    int block;  // stride in floats
    Epilogue epilogue;
    float quantize_scale;
};

// Writes one pixel of some blocks and adds its values to `totals`.
template <int BLOCKS>
inline void write_pixel(Vector (&values)[BLOCKS], const Output& out, float* pixel, Vector (&totals)[BLOCKS]) {
    UNROLL for (int k = 0; k < BLOCKS; ++k) {
        if (out.epilogue == Epilogue::bias_add_relu) values[k] += load(pixel + size_t(k) * out.block);
        if (out.epilogue != Epilogue::bias) values[k] = relu(values[k]);
        totals[k] += values[k];
    }
    if constexpr (BLOCKS == 2)
        if (out.epilogue == Epilogue::bias_relu_quantize)
            return store_as(pixel, quantize(values[0], values[1], out.quantize_scale));
    UNROLL for (int k = 0; k < BLOCKS; ++k) store(pixel + size_t(k) * out.block, values[k]);
}

template <int BLOCKS>
inline void add_to_pooled(float* pooled, const Vector (&totals)[BLOCKS]) {
    if (!pooled) return;
    UNROLL for (int k = 0; k < BLOCKS; ++k) store(pooled + k * V, load(pooled + k * V) + totals[k]);
}

// One register tile of a direct convolution, from bias to epilogue.
template <class Number>
struct DirectTile {
    using Numbers = Number;
    Taps taps;
    const float *in, *weights, *bias, *scale;
    Output out;

    template <int P, int S>
    void run() const {
        constexpr int BLOCKS = Number::BLOCKS;
        constexpr bool FLOATS = std::is_same_v<Number, Floats>;
        typename Number::Sum sums[P][BLOCKS];
        UNROLL for (int p = 0; p < P; ++p) UNROLL for (int k = 0; k < BLOCKS; ++k) {
            if constexpr (FLOATS) sums[p][k] = load(bias + k * V);
            else sums[p][k] = typename Number::Sum{};
        }
        accumulate<Number, P, S>(sums, taps, in, weights);
        Vector totals[BLOCKS] = {};
        UNROLL for (int p = 0; p < P; ++p) {
            Vector values[BLOCKS];
            UNROLL for (int k = 0; k < BLOCKS; ++k) {
                values[k] = Number::value(sums[p][k], scale + k * V);
                if constexpr (!FLOATS) values[k] += load(bias + k * V);
            }
            write_pixel(values, out, out.pixels + p * V, totals);
        }
        add_to_pooled(out.pooled, totals);
    }
};

// One register tile of a Winograd product at one position: P Winograd tiles x some output blocks.
template <class Number>
struct ProductTile {
    using Numbers = Number;
    Taps taps;
    const float *in, *weights, *scale;
    float* out;
    int out_block;

    template <int P, int S>
    void run() const {
        constexpr int BLOCKS = Number::BLOCKS;
        typename Number::Sum sums[P][BLOCKS];
        UNROLL for (int p = 0; p < P; ++p) UNROLL for (int k = 0; k < BLOCKS; ++k) sums[p][k] = typename Number::Sum{};
        accumulate<Number, P, S>(sums, taps, in, weights);
        UNROLL for (int k = 0; k < BLOCKS; ++k)
            UNROLL for (int p = 0; p < P; ++p)
                store(out + size_t(k) * out_block + p * V, Number::value(sums[p][k], scale + k * V));
    }
};

// Calls tile.run<pixels, S>() for a number of pixels that is known only at run time.
template <int S, class Tile, int... P>
inline void dispatch(const Tile& tile, int pixels, std::integer_sequence<int, P...>) {
    using Run = void (Tile::*)() const;
    static constexpr Run runs[] = {&Tile::template run<P + 1, S>...};
    (tile.*runs[pixels - 1])();
}

template <int S, class Tile>
inline void dispatch(const Tile& tile, int pixels) {
    dispatch<S>(tile, pixels, std::make_integer_sequence<int, Tile::Numbers::MOST>());
}

// Returns the number of pixels per register tile for a row of `count` pixels. Equal parts use the registers best.
template <class Number>
inline int tile_pixels(int count) {
    const int tiles = (count + Number::MOST - 1) / Number::MOST;
    return (count + tiles - 1) / tiles;
}

}  // namespace
