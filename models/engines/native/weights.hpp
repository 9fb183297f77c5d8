// Reads a network from the arrays of layout.py and puts the weights of its convolutions into the order of use.

#pragma once

#include "winograd.hpp"

#include <cmath>
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

// The weights of one output channel at one position or tap that share a scale when they become integers.
// Returns their scale: weights times scale are 12-bit integers, whose products with `activation` sum up within 31 bits.
double weight_scale(const std::vector<float>& weights, double activation) {
    double largest = 0, sum = 0;
    for (const float weight : weights) largest = std::max<double>(largest, std::abs(weight)), sum += std::abs(weight);
    constexpr double MOST = 4095, LIMIT = 2147483647;
    if (largest == 0) return 1;
    // Rounding adds at most half to each weight.
    return std::min(MOST / largest, (LIMIT / activation - 0.5 * double(weights.size())) / sum);
}

// Where the weights of a convolution lie in the order of use.
struct Order {
    const Convolution& c;
    int positions, taps;

    explicit Order(const Convolution& c)
        : c(c), positions(c.winograd() ? POSITIONS : 1), taps(c.winograd() ? 1 : c.kernel * c.kernel) {}

    // Returns the index of the float, or of the half of a pair, of an output channel, an input channel and a tap.
    size_t index(int output, int input, int position, int tap) const {
        const int halves = c.integers ? 2 : 1, group = output / c.group();
        const int block = input / (halves * V), half = input / V % halves, lane = input % V;
        const size_t lanes = c.lanes(), row = size_t(position) * c.output_groups() + group;
        const size_t number = ((row * c.input_blocks() + block) * taps + tap) * lanes + lane;
        return (number * c.group() + output % c.group()) * halves + half;
    }
};

// Puts the weights of one output channel into the order of use. `filters` are [inputs][positions or taps].
void arrange(Convolution& c, int output, const std::vector<float>& filters) {
    const Order order(c);
    const int numbers = order.positions * order.taps;
    for (int position = 0; position < order.positions; ++position) {
        std::vector<float> shared;
        for (int i = 0; i < c.inputs * numbers; ++i)
            if (order.positions == 1 || i % numbers == position) shared.push_back(filters[i]);
        double scale = 1;
        if (c.integers) {
            scale = weight_scale(shared, c.winograd() ? 4.0 * LARGEST_ACTIVATION : LARGEST_ACTIVATION);
            c.scale.get()[size_t(position) * c.output_groups() * c.group() + output] =
                float(1 / (scale * c.input_scale));
        }
        for (size_t i = 0; i < shared.size(); ++i) {
            const size_t at = order.index(output, int(i) / order.taps, position, int(i) % order.taps);
            if (c.integers) reinterpret_cast<int16_t*>(c.weights.get())[at] = int16_t(std::lround(shared[i] * scale));
            else c.weights.get()[at] = shared[i];
        }
    }
}

// Reads weights [outputs][inputs][kernel][kernel] into the order in which the kernel uses them. A limit is the largest
// magnitude of the input; the convolution has integers if it has a limit and if the channels fill blocks of pairs.
Convolution read_convolution(Reader& reader, bool may_have_integers = false) {
    Convolution c{};
    c.inputs = reader.integer(), c.outputs = reader.integer();
    c.kernel = reader.integer(), c.stride = reader.integer();
    const float limit = *reader.take(1);
    c.integers = may_have_integers && limit > 0;
    c.input_scale = c.integers ? LARGEST_ACTIVATION / limit : 1;
    const int taps = c.kernel * c.kernel, positions = c.winograd() ? POSITIONS : taps;
    const int outputs = c.output_groups() * c.group();
    const float* from = reader.take(size_t(c.outputs) * c.inputs * taps);
    c.bias = reader.copy(c.outputs, outputs);
    c.scale = zeros(size_t(outputs) * (c.winograd() ? POSITIONS : 1));
    c.weights = zeros(size_t(outputs) * c.input_blocks() * c.lanes() * positions);
    std::vector<float> filters(size_t(c.inputs) * positions);
    for (int o = 0; o < c.outputs; ++o) {
        for (int i = 0; i < c.inputs; ++i, from += taps) {
            if (c.winograd()) transform_filter(from, &filters[size_t(i) * positions]);
            else std::copy_n(from, taps, &filters[size_t(i) * positions]);
        }
        arrange(c, o, filters);
    }
    return c;
}

std::vector<Convolution> read_convolutions(Reader& reader, bool may_have_integers = false) {
    std::vector<Convolution> convolutions(reader.integer());
    for (Convolution& c : convolutions) c = read_convolution(reader, may_have_integers);
    return convolutions;
}

}  // namespace
