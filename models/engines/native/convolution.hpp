// Convolutions of the native engine (native.cpp). 3x3 convolutions of stride 1 use Winograd's algorithm, all others are
// direct. Several threads may share one: each runs its part of the units, and no number depends on how many there are.

#pragma once

#include "team.hpp"
#include "tiles.hpp"

namespace {

constexpr int TILES = 16;  // Winograd tiles processed together, so that their transforms stay in the L1 and L2 caches
constexpr int POSITIONS = 16;  // in a 4x4 tile

struct Convolution {
    int inputs, outputs, kernel, stride;
    bool integers;               // the input and the weights are 16-bit integers
    float input_scale;           // integers per unit of the input
    Buffer weights, bias;
    Buffer scale;                // of the products of integers, for each position and output channel

    int numbers() const { return integers ? inputs / 2 : inputs; }  // floats or pairs of an input pixel
    int group() const { return (integers ? Integers::BLOCKS : K) * V; }  // output channels of a register tile
    bool winograd() const { return kernel == 3 && stride == 1 && numbers() % V == 0; }
    int lanes() const { return std::min(numbers(), V); }
    int input_blocks() const { return rounded(numbers(), V) / V; }
    int output_groups() const { return rounded(outputs, group()) / group(); }
    int output_size(int size) const { return (size - 1) / stride + 1; }
};

// The sums of a map's channels, in `parts` that different units of a convolution wrote: [parts][row].
struct Sums {
    float* data = nullptr;
    int row = 0, parts = 0;

    float* part(int index) const { return data + size_t(index) * row; }
};

// The parts of a map that one unit of work of a convolution computes. They depend on the shape only, so that sums do
// not depend on the number of threads.
struct Bands {
    int count, size;  // size: rows of a direct convolution, or Winograd tiles

    static Bands of(const Convolution& c, int height, int width) {
        if (c.winograd()) {
            const int tiles = ((width + 1) / 2) * ((height + 1) / 2), count = (tiles + TILES - 1) / TILES;
            return {count, (tiles + count - 1) / count};
        }
        constexpr int CACHE = 192 * 1024;  // bytes of the input, which all output groups read again
        const int row = c.input_blocks() * V * int(sizeof(float)) * width * c.stride * c.stride;
        const int most = std::max(1, std::min(height, CACHE / row)), count = (height + most - 1) / most;
        return {count, (height + count - 1) / count};
    }
};

// Transformed tiles: [16 positions][blocks][16 tiles][V]. Two positions are an odd number of cache lines apart.
// Otherwise the 16 parts of one tile would share one set of the L1 cache and evict each other.
struct Transformed {
    int block = TILES * V, position;
    Buffer data;

    explicit Transformed(int blocks)
        : position(blocks * TILES * V + 16), data(zeros(size_t(POSITIONS) * position)) {}
    float* at(int index, int tile) const { return data.get() + size_t(index) * block + tile * V; }
};

// The buffers that one thread writes, allocated when an image size first occurs.
struct Workspace {
    Transformed inputs, products;
    Buffer mean;
    int convolutions = 0;  // run so far; tests compare it with the decisions

    explicit Workspace(int channels) : inputs(channels / V), products(channels / V), mean(zeros(channels)) {}
};

// The operations on a convolution's output.
struct Target {
    Map& map;
    Epilogue epilogue;
    float quantize_scale = 0;
    Sums* sums = nullptr;  // of the output's channels

    Output at(int group, int channels, int y, int x, float* pooled) const {
        const int blocks = epilogue == Epilogue::bias_relu_quantize ? channels / V / 2 : channels / V;
        return {map.at(group * blocks, y, x), pooled ? pooled + group * channels : nullptr, map.block, epilogue,
                quantize_scale};
    }
};

template <class Number, int S>
void convolve_band(const Convolution& c, const Map& in, const Target& target, int group, int top, int bottom,
                   float* pooled) {
    const Map& out = target.map;
    const int padding = c.kernel / 2, step = tile_pixels<Number>(out.width), channels = Number::BLOCKS * V;
    const size_t weights = size_t(c.input_blocks()) * c.kernel * c.kernel * c.lanes() * channels;
    for (int y = top; y < bottom; ++y)
        for (int x = 0; x < out.width; x += step) {
            const DirectTile<Number> tile{{c.input_blocks(), c.kernel, c.lanes(), in.block, in.row},
                                          in.at(0, y * S - padding, x * S - padding),
                                          c.weights.get() + group * weights,
                                          c.bias.get() + group * channels,
                                          c.scale.get() + group * channels,
                                          target.at(group, channels, y, x, pooled)};
            dispatch<S>(tile, std::min(step, out.width - x));
        }
}

template <class Number>
void convolve_directly(const Convolution& c, const Map& in, const Target& target, Bands bands, Member member) {
    const int groups = c.output_groups(), units = bands.count * groups;
    for (int unit = member.first(units); unit < member.end(units); ++unit) {
        const int band = unit / groups, group = unit % groups;
        const int top = band * bands.size, bottom = std::min(target.map.height, top + bands.size);
        float* pooled = target.sums ? target.sums->part(band) : nullptr;
        if (pooled) std::fill_n(pooled + group * c.group(), c.group(), 0.0f);
        (c.stride == 1 ? convolve_band<Number, 1> : convolve_band<Number, 2>)(c, in, target, group, top, bottom, pooled);
    }
}

}  // namespace
