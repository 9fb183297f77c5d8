// Winograd's F(2x2, 3x3) (Lavin and Gray 2016, arXiv 1509.09308) for 3x3 convolutions of stride 1.

#pragma once

#include "convolution.hpp"

namespace {

// Some Winograd tiles of a map. `across` is the number of tiles in a row of the map.
struct Tiles {
    int first, count, across;

    int y(int tile) const { return (first + tile) / across * 2; }
    int x(int tile) const { return (first + tile) % across * 2; }
};

// Computes B^T d B of each 4x4 input tile d. Tiles overlap by two pixels.
template <class Number>
void transform_input(const Map& in, int blocks, Tiles tiles, const Transformed& to) {
    using Value = typename Number::Input;
    for (int b = 0; b < blocks; ++b)
        for (int t = 0; t < tiles.count; ++t) {
            const float* from = in.at(b, tiles.y(t) - 1, tiles.x(t) - 1);
            float* into = to.at(b, t);
            Value half[4][4];
            for (int x = 0; x < 4; ++x) {
                const Value d0 = load_as<Value>(from + x * V), d1 = load_as<Value>(from + in.row + x * V);
                const Value d2 = load_as<Value>(from + 2 * in.row + x * V);
                const Value d3 = load_as<Value>(from + 3 * in.row + x * V);
                half[0][x] = d0 - d2, half[1][x] = d1 + d2, half[2][x] = d2 - d1, half[3][x] = d1 - d3;
            }
            for (int y = 0; y < 4; ++y, into += 4 * to.position) {
                store_as(into, half[y][0] - half[y][2]);
                store_as(into + to.position, half[y][1] + half[y][2]);
                store_as(into + 2 * to.position, half[y][2] - half[y][1]);
                store_as(into + 3 * to.position, half[y][1] - half[y][3]);
            }
        }
}

// Multiplies the transformed weights and tiles of some output groups at each position.
template <class Number>
void multiply(const Convolution& c, int count, int first_group, int end_group, const Transformed& in,
              const Transformed& out) {
    constexpr int channels = Number::BLOCKS * V;
    const int step = tile_pixels<Number>(count), groups = c.output_groups();
    for (int position = 0; position < POSITIONS; ++position)
        for (int group = first_group; group < end_group; ++group) {
            const size_t row = size_t(position) * groups + group;
            for (int t = 0; t < count; t += step) {
                const ProductTile<Number> tile{{c.input_blocks(), 1, V, in.block, 0},
                                               in.at(0, t) + position * in.position,
                                               c.weights.get() + row * c.numbers() * channels,
                                               c.scale.get() + row * channels,
                                               out.at(group * Number::BLOCKS, t) + position * out.position,
                                               out.block};
                dispatch<1>(tile, std::min(step, count - t));
            }
        }
}

// Computes the 2x2 pixels A^T m A of each 4x4 product m. Pixels beyond the edge of an odd map are dropped.
template <int BLOCKS>
void transform_output(const Convolution& c, const Transformed& from, Tiles tiles, int group, const Target& target,
                      float* pooled) {
    constexpr int channels = BLOCKS * V;
    const float* bias = c.bias.get() + group * channels;
    Vector totals[BLOCKS] = {};
    for (int t = 0; t < tiles.count; ++t) {
        const int y = tiles.y(t), x = tiles.x(t);
        Vector pixels[2][2][BLOCKS];
        UNROLL for (int k = 0; k < BLOCKS; ++k) {
            const float* m = from.at(group * BLOCKS + k, t);
            Vector half[2][4];
            UNROLL for (int i = 0; i < 4; ++i) {
                const Vector m0 = load(m + i * from.position), m1 = load(m + (4 + i) * from.position);
                const Vector m2 = load(m + (8 + i) * from.position), m3 = load(m + (12 + i) * from.position);
                half[0][i] = m0 + m1 + m2, half[1][i] = m1 - m2 - m3;
            }
            UNROLL for (int i = 0; i < 2; ++i) {
                pixels[i][0][k] = half[i][0] + half[i][1] + half[i][2] + load(bias + k * V);
                pixels[i][1][k] = half[i][1] - half[i][2] - half[i][3] + load(bias + k * V);
            }
        }
        const Output out = target.at(group, channels, y, x, pooled);
        UNROLL for (int i = 0; i < 2; ++i)
            UNROLL for (int j = 0; j < 2; ++j)
                if (y + i < target.map.height && x + j < target.map.width)
                    write_pixel(pixels[i][j], out, out.pixels + i * target.map.row + j * V, totals);
    }
    if (pooled) add_to_pooled(pooled + group * channels, totals);
}

// Returns into how many parts the output groups are split, so that all of `threads` have about the same work. Each part
// transforms the input again.
inline int split_groups(int bands, int groups, int threads) {
    int parts = 1;
    while (parts < groups && bands * parts < 4 * threads && bands * parts % threads != 0) ++parts;
    return parts;
}

template <class Number>
void convolve_by_winograd(const Convolution& c, const Map& in, const Target& target, Bands bands, Workspace& space,
                          Member member) {
    const int across = (target.map.width + 1) / 2, all = across * ((target.map.height + 1) / 2);
    const int groups = c.output_groups(), parts = split_groups(bands.count, groups, member.count);
    const int units = bands.count * parts;
    for (int unit = member.first(units); unit < member.end(units); ++unit) {
        const int band = unit / parts, part = unit % parts, start = band * bands.size;
        const int first = groups * part / parts, end = groups * (part + 1) / parts;
        const Tiles tiles{start, std::min(bands.size, all - start), across};
        float* pooled = target.sums ? target.sums->part(band) : nullptr;
        transform_input<Number>(in, c.input_blocks(), tiles, space.inputs);
        multiply<Number>(c, tiles.count, first, end, space.inputs, space.products);
        for (int group = first; group < end; ++group) {
            if (pooled) std::fill_n(pooled + group * c.group(), c.group(), 0.0f);
            transform_output<Number::BLOCKS>(c, space.products, tiles, group, target, pooled);
        }
    }
}

// Runs this member's part of a convolution. The other members' parts may still be running when it returns.
void convolve(const Convolution& c, const Map& in, const Target& target, Workspace& space, Member member) {
    ++space.convolutions;
    const Bands bands = Bands::of(c, target.map.height, target.map.width);
    if (target.sums) target.sums->parts = bands.count;
    if (c.winograd()) {
        const auto run = c.integers ? convolve_by_winograd<Integers> : convolve_by_winograd<Floats>;
        run(c, in, target, bands, space, member);
    } else {
        (c.integers ? convolve_directly<Integers> : convolve_directly<Floats>)(c, in, target, bands, member);
    }
}

// Max pooling with a padding of zeros, which is equivalent to none after a ReLU.
template <int KERNEL, int PADDING>
void max_pool(const Map& in, Map& out, Member member) {
    const int units = out.blocks() * out.height;
    for (int unit = member.first(units); unit < member.end(units); ++unit) {
        const int b = unit / out.height, y = unit % out.height;
        for (int x = 0; x < out.width; ++x) {
            const float* from = in.at(b, 2 * y - PADDING, 2 * x - PADDING);
            Vector maximum = load(from);
            UNROLL for (int i = 1; i < KERNEL * KERNEL; ++i)
                maximum = larger(maximum, load(from + i / KERNEL * in.row + i % KERNEL * V));
            store(out.at(b, y, x), maximum);
        }
    }
}

// Writes a map of floats as 16-bit integers.
void quantize_map(const Map& in, Map& out, float scale, Member member) {
    const int blocks = in.blocks() / 2, units = blocks * in.height;
    for (int unit = member.first(units); unit < member.end(units); ++unit) {
        const int b = unit / in.height, y = unit % in.height;
        const float *first = in.at(2 * b, y, 0), *second = in.at(2 * b + 1, y, 0);
        float* to = out.at(b, y, 0);
        for (int x = 0; x < in.width * V; x += V)
            store_as(to + x, quantize(load(first + x), load(second + x), scale));
    }
}

}  // namespace
