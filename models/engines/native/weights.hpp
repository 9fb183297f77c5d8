// Reads a network from the arrays of layout.py and puts the weights of its convolutions into the order of use.

#pragma once

#include "convolution.hpp"

#include <vector>

namespace {

// The folded network as layout.py lays it out: integers for its shapes, and numbers for its weights.
struct Reader {
    const int32_t* integers;
    const float* numbers;

    int integer() { return *integers++; }
    const float* take(size_t count) { return std::exchange(numbers, numbers + count); }
    Buffer copy(size_t count, size_t padded) {
        Buffer buffer = zeros(padded);
        std::copy_n(take(count), count, buffer.get());
        return buffer;
    }
};

// Computes the 16 positions G g G^T of a 3x3 filter g.
void transform_filter(const float* g, float* to) {
    const double G[4][3] = {{1, 0, 0}, {0.5, 0.5, 0.5}, {0.5, -0.5, 0.5}, {0, 0, 1}};
    for (int position = 0; position < POSITIONS; ++position) {
        double sum = 0;
        for (int i = 0; i < 9; ++i) sum += G[position / 4][i / 3] * g[i] * G[position % 4][i % 3];
        to[position] = float(sum);
    }
}

// Reads weights [outputs][inputs][kernel][kernel] into the order in which the kernel uses them.
Convolution read_convolution(Reader& reader) {
    Convolution c{};
    c.inputs = reader.integer(), c.outputs = reader.integer();
    c.kernel = reader.integer(), c.stride = reader.integer();
    const int taps = c.kernel * c.kernel, positions = c.winograd() ? POSITIONS : taps;
    const int lanes = c.lanes(), inputs = c.input_blocks() * lanes, outputs = c.output_groups() * K * V;
    const float* from = reader.take(size_t(c.outputs) * c.inputs * taps);
    c.bias = reader.copy(c.outputs, outputs);
    c.weights = zeros(size_t(outputs) * inputs * positions);
    std::vector<float> filter(positions);
    for (int o = 0; o < c.outputs; ++o)
        for (int i = 0; i < c.inputs; ++i, from += taps) {
            if (c.winograd()) transform_filter(from, filter.data());
            else std::copy_n(from, taps, filter.begin());
            const size_t group = o / (K * V), lane = o % (K * V), block = i / lanes;
            for (size_t p = 0; p < filter.size(); ++p) {
                const size_t tap = (group * c.input_blocks() + block) * taps + p;
                const size_t row = c.winograd() ? (p * c.output_groups() + group) * inputs + i
                                                : tap * lanes + i % lanes;
                c.weights.get()[row * K * V + lane] = filter[p];
            }
        }
    return c;
}

std::vector<Convolution> read_convolutions(Reader& reader) {
    std::vector<Convolution> convolutions(reader.integer());
    for (Convolution& c : convolutions) c = read_convolution(reader);
    return convolutions;
}

}  // namespace
