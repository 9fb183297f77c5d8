// Gates and head of the native engine (native.cpp).

#pragma once

#include "weights.hpp"

namespace {

// The LSTM's 10 hidden units, padded to whole registers. Its four parts are input, forget, cell and output.
constexpr int UNITS = 16;

// Returns e^x with a relative error of 2e-7 for |x| < 87, and clamped beyond: x = n ln 2 + r, and e^r by its series.
inline Vector exponential(Vector x) {
    x = x < -87.0f ? Vector{} - 87.0f : x;
    x = x > 87.0f ? Vector{} + 87.0f : x;
    const float shift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, held in the low bits
    const Vector shifted = x * 1.44269504f + shift;
    const Vector n = shifted - shift;
    const Vector r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    Vector sum = Vector{} + 1.0f / 720;
    for (const float factor : {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) sum = sum * r + factor;
    Bits bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    bits = (bits << 23) + (127u << 23);
    Vector power;
    std::memcpy(&power, &bits, sizeof power);
    return sum * power;
}

inline Vector sigmoid(Vector x) { return 1.0f / (1.0f + exponential(-x)); }
inline Vector hyperbolic_tangent(Vector x) { return 2.0f * sigmoid(2.0f * x) - 1.0f; }

struct State {
    alignas(64) float hidden[UNITS] = {}, cell[UNITS] = {};
};

struct RecurrentGate {
    int channels;
    Buffer weight, bias, recurrent, readout;  // [channels][4][16], [4][16], [16][4][16], [16]
    float readout_bias;

    float logit(const float* mean, State& state) const {
        constexpr int N = 4 * UNITS / V, PART = UNITS / V;
        Vector sums[N];
        for (int j = 0; j < N; ++j) sums[j] = load(bias.get() + j * V);
        add_product<N>(sums, weight.get(), mean, channels);
        add_product<N>(sums, recurrent.get(), state.hidden, UNITS);
        for (int j = 0; j < PART; ++j) {
            const Vector input = sigmoid(sums[j]), forget = sigmoid(sums[PART + j]);
            const Vector candidate = hyperbolic_tangent(sums[2 * PART + j]);
            const Vector cell = forget * load(state.cell + j * V) + input * candidate;
            store(state.cell + j * V, cell);
            store(state.hidden + j * V, sigmoid(sums[3 * PART + j]) * hyperbolic_tangent(cell));
        }
        float logit = readout_bias;
        for (int u = 0; u < UNITS; ++u) logit += readout.get()[u] * state.hidden[u];
        return logit;
    }

    template <int N>
    static void add_product(Vector (&sums)[N], const float* weight, const float* x, int count) {
        for (int i = 0; i < count; ++i, weight += N * V)
            for (int j = 0; j < N; ++j) sums[j] += load(weight + j * V) * x[i];
    }
};

struct ConvolutionalGate {
    bool pools;
    std::vector<Convolution> convolutions;
    Buffer weight;
    float bias;
};

struct Head {
    int channels, classes;
    Buffer weight, bias;  // [channels][classes, padded to V], [classes, padded to V]

    void classify(const float* mean, float* logits) const {
        const int row = rounded(classes, V);
        for (int first = 0; first < classes; first += V) {
            Vector sum = load(bias.get() + first);
            for (int i = 0; i < channels; ++i) sum += load(weight.get() + size_t(i) * row + first) * mean[i];
            for (int j = 0; j < std::min(V, classes - first); ++j) logits[first + j] = sum[j];
        }
    }
};

RecurrentGate read_recurrent_gate(Reader& reader) {
    RecurrentGate gate{};
    gate.channels = reader.integer();
    gate.weight = reader.copy(size_t(gate.channels) * 4 * UNITS, size_t(gate.channels) * 4 * UNITS);
    gate.bias = reader.copy(4 * UNITS, 4 * UNITS);
    gate.recurrent = reader.copy(4 * UNITS * UNITS, 4 * UNITS * UNITS);
    gate.readout = reader.copy(UNITS, UNITS);
    gate.readout_bias = *reader.take(1);
    return gate;
}

ConvolutionalGate read_convolutional_gate(Reader& reader) {
    ConvolutionalGate gate{};
    gate.pools = reader.integer();
    gate.convolutions = read_convolutions(reader);
    const int channels = gate.convolutions.back().outputs;
    gate.weight = reader.copy(channels, channels);
    gate.bias = *reader.take(1);
    return gate;
}

Head read_head(Reader& reader) {
    Head head{};
    head.channels = reader.integer(), head.classes = reader.integer();
    const int padded = rounded(head.classes, V);
    head.weight = zeros(size_t(head.channels) * padded);
    for (int i = 0; i < head.channels; ++i)
        std::copy_n(reader.take(head.classes), head.classes, head.weight.get() + size_t(i) * padded);
    head.bias = reader.copy(head.classes, padded);
    return head;
}

}  // namespace
