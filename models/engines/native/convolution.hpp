// Feature maps, register tiles and convolutions of the native engine (native.cpp).
//
// Maps are blocked: [channels / V][height][width][V], where V floats fill one vector register. A margin of zeros
// surrounds them, so that inner loops need no checks for borders. 3x3 convolutions of stride 1 use Winograd's
// F(2x2, 3x3) (Lavin and Gray 2016, arXiv 1509.09308). All others are direct. Both use the same kernel, which keeps a
// tile of pixels x channels in registers.

#pragma once

#include "vector.hpp"

#include <utility>

namespace {

// A feature map. The margin is cleared once, at allocation. It has one more row below and one more column to the
// right, because Winograd's tiles extend over the edge of maps of odd size.
struct Map {
    int channels, height, width, margin;
    int row, block;  // strides in floats
    Buffer data;

    Map(int channels, int height, int width, int margin)
        : channels(channels), height(height), width(width), margin(margin), row((width + 2 * margin + 1) * V),
          block((height + 2 * margin + 1) * row), data(zeros(size_t(blocks()) * block)) {}

    int blocks() const { return rounded(channels, K * V) / V; }
    float* at(int index, int y, int x) const {
        return data.get() + size_t(index) * block + (y + margin) * row + (x + margin) * V;
    }
};

constexpr int TILES = 16;  // Winograd tiles processed together, so that their transforms stay in the L1 and L2 caches
constexpr int POSITIONS = 16;  // in a 4x4 tile

struct Convolution {
    int inputs, outputs, kernel, stride;
    Buffer weights, bias;

    bool winograd() const { return kernel == 3 && stride == 1 && inputs % V == 0; }
    int lanes() const { return std::min(inputs, V); }
    int input_blocks() const { return rounded(inputs, V) / V; }
    int output_groups() const { return rounded(outputs, K * V) / (K * V); }
    int output_size(int size) const { return (size - 1) / stride + 1; }
};

enum class Epilogue { bias, bias_relu, bias_add_relu };  // add: the previous content of the output map

// The input of a tile: `blocks` x `kernel` x `kernel` taps of `lanes` channels.
struct Taps {
    int blocks, kernel, lanes;
    int block, row;  // strides in floats
};

// Adds the products of inputs and weights for K output blocks of P pixels at a distance of S. The weights are in the
// order of use. Deep networks read them from the L2 or L3 cache, so they are prefetched.
template <int P, int S>
__attribute__((always_inline)) inline void accumulate(Vector (&sums)[P][K], Taps taps, const float* in,
                                                      const float* weights) {
    constexpr int AHEAD = 1024;
    for (int b = 0; b < taps.blocks; ++b)
        for (int y = 0; y < taps.kernel; ++y)
            for (int x = 0; x < taps.kernel; ++x) {
                const float* tap = in + size_t(b) * taps.block + y * taps.row + x * V;
                for (int lane = 0; lane < taps.lanes; ++lane, weights += K * V) {
                    __builtin_prefetch(weights + AHEAD);
                    UNROLL for (int p = 0; p < P; ++p)
                        UNROLL for (int k = 0; k < K; ++k)
                            sums[p][k] += load(weights + k * V) * tap[p * S * V + lane];
                }
            }
}

// One register tile of a direct convolution, from bias to epilogue. If `pooled` is not null, the sums of the output's
// channels are added to it.
struct DirectTile {
    Taps taps;
    const float *in, *weights, *bias;
    float *out, *pooled;
    int out_block;
    Epilogue epilogue;

    template <int P, int S>
    void run() const {
        Vector sums[P][K];
        UNROLL for (int p = 0; p < P; ++p) UNROLL for (int k = 0; k < K; ++k) sums[p][k] = load(bias + k * V);
        accumulate<P, S>(sums, taps, in, weights);
        UNROLL for (int k = 0; k < K; ++k) {
            Vector total{};
            UNROLL for (int p = 0; p < P; ++p) {
                float* pixel = out + size_t(k) * out_block + p * V;
                Vector value = sums[p][k];
                if (epilogue == Epilogue::bias_add_relu) value += load(pixel);
                if (epilogue != Epilogue::bias) value = relu(value);
                store(pixel, value);
                total += value;
            }
            if (pooled) store(pooled + k * V, load(pooled + k * V) + total);
        }
    }
};

// One register tile of a Winograd product at one position: P Winograd tiles x K output blocks.
struct ProductTile {
    Taps taps;
    const float *in, *weights;
    float* out;
    int out_block;

    template <int P, int S>
    void run() const {
        Vector sums[P][K];
        UNROLL for (int p = 0; p < P; ++p) UNROLL for (int k = 0; k < K; ++k) sums[p][k] = Vector{};
        accumulate<P, S>(sums, taps, in, weights);
        UNROLL for (int k = 0; k < K; ++k)
            UNROLL for (int p = 0; p < P; ++p) store(out + size_t(k) * out_block + p * V, sums[p][k]);
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
    dispatch<S>(tile, pixels, std::make_integer_sequence<int, P_MOST>());
}

// Returns the number of pixels per register tile for a row of `count` pixels. Equal parts use the registers best.
inline int tile_pixels(int count) {
    const int tiles = (count + P_MOST - 1) / P_MOST;
    return (count + tiles - 1) / tiles;
}

template <int S>
void convolve_directly(const Convolution& c, const Map& in, Map& out, Epilogue epilogue, float* pooled) {
    const size_t group_weights = size_t(c.input_blocks()) * c.kernel * c.kernel * c.lanes() * K * V;
    const int padding = c.kernel / 2, step = tile_pixels(out.width);
    for (int b = 0; b < out.blocks(); b += K)
        for (int y = 0; y < out.height; ++y)
            for (int x = 0; x < out.width; x += step) {
                const DirectTile tile{{c.input_blocks(), c.kernel, c.lanes(), in.block, in.row},
                                      in.at(0, y * S - padding, x * S - padding),
                                      c.weights.get() + b / K * group_weights,
                                      c.bias.get() + b * V,
                                      out.at(b, y, x),
                                      pooled ? pooled + b * V : nullptr,
                                      out.block,
                                      epilogue};
                dispatch<S>(tile, std::min(step, out.width - x));
            }
}

// Transformed tiles: [16 positions][blocks][16 tiles][V]. Two positions are an odd number of cache lines apart.
// Otherwise the 16 parts of one tile would share one set of the L1 cache and evict each other.
struct Transformed {
    int block = TILES * V, position;
    Buffer data;

    explicit Transformed(int blocks)
        : position(blocks * TILES * V + 16), data(zeros(size_t(POSITIONS) * position)) {}
    float* at(int index, int tile) const { return data.get() + size_t(index) * block + tile * V; }
};

// Computes B^T d B of each 4x4 input tile d. Tiles overlap by two pixels.
void transform_input(const Map& in, int first, int count, int across, const Transformed& to) {
    for (int b = 0; b < in.blocks(); ++b)
        for (int t = 0; t < count; ++t) {
            const float* from = in.at(b, (first + t) / across * 2 - 1, (first + t) % across * 2 - 1);
            float* into = to.at(b, t);
            Vector half[4][4];
            for (int x = 0; x < 4; ++x) {
                const Vector d0 = load(from + x * V), d1 = load(from + in.row + x * V);
                const Vector d2 = load(from + 2 * in.row + x * V), d3 = load(from + 3 * in.row + x * V);
                half[0][x] = d0 - d2, half[1][x] = d1 + d2, half[2][x] = d2 - d1, half[3][x] = d1 - d3;
            }
            for (int y = 0; y < 4; ++y, into += 4 * to.position) {
                store(into, half[y][0] - half[y][2]);
                store(into + to.position, half[y][1] + half[y][2]);
                store(into + 2 * to.position, half[y][2] - half[y][1]);
                store(into + 3 * to.position, half[y][1] - half[y][3]);
            }
        }
}

// Computes the 2x2 pixels A^T m A of each 4x4 product m. Pixels beyond the edge of an odd map are dropped.
void transform_output(const Convolution& c, const Transformed& from, int first, int count, int across,
                      Map& out, Epilogue epilogue, float* pooled) {
    for (int b = 0; b < out.blocks(); ++b) {
        const Vector bias = load(c.bias.get() + b * V);
        Vector total{};
        for (int t = 0; t < count; ++t) {
            const int y = (first + t) / across * 2, x = (first + t) % across * 2;
            const float* m = from.at(b, t);
            Vector half[2][4];
            for (int i = 0; i < 4; ++i) {
                const Vector m0 = load(m + i * from.position), m1 = load(m + (4 + i) * from.position);
                const Vector m2 = load(m + (8 + i) * from.position), m3 = load(m + (12 + i) * from.position);
                half[0][i] = m0 + m1 + m2, half[1][i] = m1 - m2 - m3;
            }
            for (int i = 0; i < 2 && y + i < out.height; ++i) {
                const Vector* h = half[i];
                const Vector pair[2] = {h[0] + h[1] + h[2], h[1] - h[2] - h[3]};
                for (int j = 0; j < 2 && x + j < out.width; ++j) {
                    float* pixel = out.at(b, y + i, x + j);
                    Vector value = pair[j] + bias;
                    if (epilogue == Epilogue::bias_add_relu) value += load(pixel);
                    if (epilogue != Epilogue::bias) value = relu(value);
                    store(pixel, value);
                    total += value;
                }
            }
        }
        if (pooled) store(pooled + b * V, load(pooled + b * V) + total);
    }
}

// Multiplies the transformed weights and tiles at each position.
void multiply(const Convolution& c, int count, const Transformed& in, const Transformed& out) {
    const float* weights = c.weights.get();
    const int step = tile_pixels(count);
    for (int position = 0; position < POSITIONS; ++position)
        for (int b = 0; b < c.output_groups() * K; b += K, weights += size_t(c.inputs) * K * V)
            for (int t = 0; t < count; t += step) {
                const ProductTile tile{{c.input_blocks(), 1, V, in.block, 0},
                                       in.at(0, t) + position * in.position,
                                       weights,
                                       out.at(b, t) + position * out.position,
                                       out.block};
                dispatch<1>(tile, std::min(step, count - t));
            }
}

// The buffers that one core writes, allocated when an image size first occurs.
struct Workspace {
    Transformed inputs, products;
    Buffer pooled;         // channel sums of the last block's output
    int convolutions = 0;  // run so far; tests compare it with the decisions

    Workspace(int channels) : inputs(channels / V), products(channels / V), pooled(zeros(channels)) {}
};

// Runs a convolution. If `pooled` is not null, it receives the sums of the output's channels.
void convolve(const Convolution& c, const Map& in, Map& out, Epilogue epilogue, float* pooled,
              Workspace& space) {
    ++space.convolutions;
    if (pooled) std::fill_n(pooled, out.blocks() * V, 0.0f);
    if (!c.winograd()) {
        return (c.stride == 1 ? convolve_directly<1> : convolve_directly<2>)(c, in, out, epilogue, pooled);
    }
    const int across = (out.width + 1) / 2, tiles = across * ((out.height + 1) / 2);
    for (int first = 0; first < tiles; first += TILES) {
        const int count = std::min(TILES, tiles - first);
        transform_input(in, first, count, across, space.inputs);
        multiply(c, count, space.inputs, space.products);
        transform_output(c, space.products, first, count, across, out, epilogue, pooled);
    }
}

// Max pooling with a padding of zeros, which is equivalent to none after a ReLU.
template <int KERNEL, int PADDING>
void max_pool(const Map& in, Map& out) {
    for (int b = 0; b < out.blocks(); ++b)
        for (int y = 0; y < out.height; ++y)
            for (int x = 0; x < out.width; ++x) {
                const float* from = in.at(b, 2 * y - PADDING, 2 * x - PADDING);
                Vector maximum = load(from);
                UNROLL for (int i = 1; i < KERNEL * KERNEL; ++i)
                    maximum = larger(maximum, load(from + i / KERNEL * in.row + i % KERNEL * V));
                store(out.at(b, y, x), maximum);
            }
}

}  // namespace
