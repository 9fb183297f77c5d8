// One network, one call: stem, blocks, gates and head of SkipNet on one CPU core per image.
//
// A gate costs well under a microsecond here and a skipped block is a branch that is not taken, so that
// wall-clock follows multiply-adds. Maps are blocked: [channels / V][height][width][V], V floats being one
// vector register, with a margin of zeros around them so that no inner loop knows about borders. 3x3
// convolutions of stride 1 use Winograd's F(2x2, 3x3) (Lavin and Gray 2016), all others are direct; both end
// in the same kernel, which keeps a tile of pixels x channels in registers.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <new>
#include <system_error>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

namespace {

// ---- Vectors -------------------------------------------------------------------------------------------

// V floats fill a register. A register tile is P pixels x K blocks of V channels: as many sums as leave room
// for weights and pixels. AVX-512 multiplies by a pixel straight from memory, so one block at a time is best.
#if defined(__AVX512F__)
constexpr int V = 16, P_MOST = 16, K = 1;
#elif defined(__AVX__)
constexpr int V = 8, P_MOST = 6, K = 2;
#elif defined(__aarch64__)
constexpr int V = 4, P_MOST = 8, K = 2;
#else
constexpr int V = 4, P_MOST = 4, K = 2;
#endif

using Vector = float __attribute__((vector_size(V * 4)));
using Bits = uint32_t __attribute__((vector_size(V * 4)));

inline Vector load(const float* from) { return *reinterpret_cast<const Vector*>(from); }
inline void store(float* to, Vector value) { *reinterpret_cast<Vector*>(to) = value; }
inline Vector larger(Vector a, Vector b) { return a < b ? b : a; }
inline Vector relu(Vector x) { return larger(x, Vector{}); }  // NaN stays NaN, as in the reference

// e^x to 2e-7 for |x| < 87, clamped beyond: x = n ln 2 + r, and e^r by its series.
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

// For loops over arrays that must live in registers, which needs every index to be a constant.
#define UNROLL _Pragma("GCC unroll 32")

constexpr int rounded(int count, int multiple) { return (count + multiple - 1) / multiple * multiple; }

// ---- Memory --------------------------------------------------------------------------------------------

struct Free {
    void operator()(float* memory) const { std::free(memory); }
};
using Buffer = std::unique_ptr<float, Free>;

Buffer zeros(size_t count) {
    const size_t bytes = (count * sizeof(float) + 63) / 64 * 64;
    auto* memory = static_cast<float*>(std::aligned_alloc(64, std::max<size_t>(bytes, 64)));
    if (memory == nullptr) throw std::bad_alloc();
    std::memset(memory, 0, bytes);
    return Buffer(memory);
}

// A feature map. The margin is written once, at allocation; one more row and column below and to the right
// let Winograd's tiles hang over maps of odd size.
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

// ---- Convolutions --------------------------------------------------------------------------------------

constexpr int TILES = 16;      // Winograd tiles worked on at a time: their transforms stay in the nearest caches
constexpr int POSITIONS = 16;  // of a 4x4 tile

struct Convolution {
    int inputs, outputs, kernel, stride;
    Buffer weights, bias;

    bool winograd() const { return kernel == 3 && stride == 1 && inputs % V == 0; }
    int lanes() const { return std::min(inputs, V); }
    int input_blocks() const { return rounded(inputs, V) / V; }
    int output_groups() const { return rounded(outputs, K * V) / (K * V); }
    int output_size(int size) const { return (size - 1) / stride + 1; }
};

enum class Epilogue { bias, bias_relu, bias_add_relu };  // add: to what the output map holds

// What the kernel reads: `blocks` x `kernel` x `kernel` taps of `lanes` channels.
struct Taps {
    int blocks, kernel, lanes;
    int block, row;  // strides in floats
};

// Adds, for P pixels that lie S apart and K output blocks, the products of what `in` and `weights` hold. The
// weights come in the order of use, from far caches in deep networks, so they are asked for ahead of time.
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
                        UNROLL for (int k = 0; k < K; ++k) sums[p][k] += load(weights + k * V) * tap[p * S * V + lane];
                }
            }
}

// One register tile of a direct convolution, from bias to epilogue. `pooled` gathers channel sums if not null.
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

// One register tile of a Winograd product at one position: P tiles x K output blocks.
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

// Calls tile.run<pixels, S>() for a number of pixels known only at run time.
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

// How many pixels a register tile takes of a row of `count`: equal parts use the registers best.
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

// Transformed tiles: [16 positions][blocks][16 tiles][V]. Positions lie an odd number of cache lines apart,
// because the 16 parts of one tile would else fall into one set of the first cache and evict each other.
struct Transformed {
    int block = TILES * V, position;
    Buffer data;

    explicit Transformed(int blocks) : position(blocks * TILES * V + 16), data(zeros(size_t(POSITIONS) * position)) {}
    float* at(int index, int tile) const { return data.get() + size_t(index) * block + tile * V; }
};

// B^T d B of each 4x4 input tile d, tiles overlapping by two.
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

// A^T m A of each 4x4 product m gives 2x2 pixels; those beyond an odd map's edge are dropped.
void transform_output(const Convolution& c, const Transformed& from, int first, int count, int across, Map& out,
                      Epilogue epilogue, float* pooled) {
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
                const Vector pair[2] = {half[i][0] + half[i][1] + half[i][2], half[i][1] - half[i][2] - half[i][3]};
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

// At each position, the product of the transformed weights and tiles.
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

// A core's own memory: everything that a run writes, allocated when an image size is first seen.
struct Workspace {
    Transformed inputs, products;
    Buffer pooled;         // channel sums of the newest block output
    int convolutions = 0;  // run so far: tests compare it with the decisions

    Workspace(int channels) : inputs(channels / V), products(channels / V), pooled(zeros(channels)) {}
};

// Runs a convolution, leaving the output's channel sums in `pooled` if not null.
void convolve(const Convolution& c, const Map& in, Map& out, Epilogue epilogue, float* pooled, Workspace& space) {
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

// Max pooling without padding, or with a padding of zeros, which is the same after a ReLU.
template <int KERNEL, int PADDING>
void max_pool(const Map& in, Map& out) {
    for (int b = 0; b < out.blocks(); ++b)
        for (int y = 0; y < out.height; ++y)
            for (int x = 0; x < out.width; ++x) {
                const float* from = in.at(b, 2 * y - PADDING, 2 * x - PADDING);
                Vector most = load(from);
                UNROLL for (int i = 1; i < KERNEL * KERNEL; ++i)
                    most = larger(most, load(from + i / KERNEL * in.row + i % KERNEL * V));
                store(out.at(b, y, x), most);
            }
}

// ---- Reading the network -------------------------------------------------------------------------------

// The folded network as native.py lays it out: integers that describe it, and its numbers, in order.
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

// G g G^T of a 3x3 filter g, as 16 positions.
void transform_filter(const float* g, float* to) {
    const double G[4][3] = {{1, 0, 0}, {0.5, 0.5, 0.5}, {0.5, -0.5, 0.5}, {0, 0, 1}};
    for (int position = 0; position < POSITIONS; ++position) {
        double sum = 0;
        for (int i = 0; i < 9; ++i) sum += G[position / 4][i / 3] * g[i] * G[position % 4][i % 3];
        to[position] = float(sum);
    }
}

// Lays weights [outputs][inputs][kernel][kernel] out in the order in which the kernels read them.
Convolution read_convolution(Reader& reader) {
    Convolution c{};
    c.inputs = reader.integer(), c.outputs = reader.integer(), c.kernel = reader.integer(), c.stride = reader.integer();
    const int taps = c.kernel * c.kernel, positions = c.winograd() ? POSITIONS : taps;
    const int lanes = c.lanes(), inputs = c.input_blocks() * lanes, outputs = c.output_groups() * K * V;
    const float* from = reader.take(size_t(c.outputs) * c.inputs * taps);
    c.bias = reader.copy(c.outputs, outputs);
    c.weights = zeros(size_t(outputs) * inputs * positions);
    std::vector<float> filter(positions);
    for (int o = 0; o < c.outputs; ++o)
        for (int i = 0; i < c.inputs; ++i, from += taps) {
            const int group = o / (K * V), lane = o % (K * V);
            if (c.winograd()) transform_filter(from, filter.data());
            else std::copy_n(from, taps, filter.begin());
            for (int p = 0; p < positions; ++p) {
                const size_t at = c.winograd() ? (size_t(p) * c.output_groups() + group) * inputs + i
                                               : ((group * c.input_blocks() + i / lanes) * taps + p) * lanes + i % lanes;
                c.weights.get()[at * K * V + lane] = filter[p];
            }
        }
    return c;
}

// ---- Gates and head ------------------------------------------------------------------------------------

constexpr int UNITS = 16;  // the LSTM's 10 hidden units, padded; four parts (input, forget, cell, output) of them

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
            const Vector candidate = hyperbolic_tangent(sums[2 * PART + j]), output = sigmoid(sums[3 * PART + j]);
            const Vector cell = forget * load(state.cell + j * V) + input * candidate;
            store(state.cell + j * V, cell);
            store(state.hidden + j * V, output * hyperbolic_tangent(cell));
        }
        float answer = readout_bias;
        for (int u = 0; u < UNITS; ++u) answer += readout.get()[u] * state.hidden[u];
        return answer;
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
        for (int first = 0; first < classes; first += V) {
            Vector sum = load(bias.get() + first);
            for (int i = 0; i < channels; ++i) sum += load(weight.get() + size_t(i) * rounded(classes, V) + first) * mean[i];
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
    for (int count = reader.integer(); count > 0; --count) gate.convolutions.push_back(read_convolution(reader));
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
    for (int i = 0; i < head.channels; ++i) std::copy_n(reader.take(head.classes), head.classes, head.weight.get() + i * padded);
    head.bias = reader.copy(head.classes, padded);
    return head;
}

// ---- Network -------------------------------------------------------------------------------------------

struct Block {
    std::vector<Convolution> residual;
    std::vector<Convolution> projection;  // none (identity) or one
};

// Which maps a core's run goes through at one image size. An executed block adds to its shortcut in place.
struct Plan {
    struct Step {
        std::vector<Map*> hidden;       // outputs of all residual convolutions but the last
        Map* output;                    // the input, where the shortcut is the identity
        Map* gate_pooled = nullptr;
        std::vector<Map*> gate_hidden;  // of the gate that reads this block's output
    };
    std::map<std::tuple<int, int, int, int>, std::unique_ptr<Map>> maps;
    Map *image = nullptr, *stem = nullptr, *stem_pooled = nullptr;
    std::vector<Step> steps;

    // Maps of one role and shape share memory: no two of them are in use at once.
    Map* get(int role, int channels, int height, int width, int margin = 1) {
        auto& slot = maps[{role, channels, height, width}];
        if (!slot) slot = std::make_unique<Map>(channels, height, width, margin);
        return slot.get();
    }
    Map* after(int role, const Convolution& c, const Map& in) {
        return get(role, c.outputs, c.output_size(in.height), c.output_size(in.width));
    }
};

enum Role { IMAGE, STEM, OUTPUT, GATE_POOLED, GATE_HIDDEN, HIDDEN = GATE_HIDDEN + 8 };

struct Answer {
    float *logits, *probability;
    uint8_t* executed;
    int32_t* convolutions;
};

struct Network {
    Convolution stem;
    bool stem_pools;
    std::vector<Block> blocks;
    std::vector<RecurrentGate> recurrent;          // one of the two gate lists is empty, both in a plain ResNet
    std::vector<ConvolutionalGate> convolutional;
    Head head;
    int widest = V;

    struct Core {
        Workspace space;
        Plan plan;
        int height = 0, width = 0;
        Buffer mean;
    };
    std::vector<Core> cores;

    explicit Network(Reader reader) {
        stem = read_convolution(reader);
        stem_pools = reader.integer();
        blocks.resize(reader.integer());
        for (Block& block : blocks) {
            for (int count = reader.integer(); count > 0; --count) block.residual.push_back(read_convolution(reader));
            for (int count = reader.integer(); count > 0; --count) block.projection.push_back(read_convolution(reader));
            for (const Convolution& c : block.residual) widest = std::max(widest, std::max(c.inputs, c.outputs));
        }
        for (int count = reader.integer(); count > 0; --count) recurrent.push_back(read_recurrent_gate(reader));
        for (int count = reader.integer(); count > 0; --count) convolutional.push_back(read_convolutional_gate(reader));
        head = read_head(reader);
    }

    bool gated() const { return !recurrent.empty() || !convolutional.empty(); }

    // Allocates what `count` cores need for images of this size. False if a gate cannot pool maps so small.
    bool prepare(int count, int height, int width) {
        while (int(cores.size()) < count) cores.push_back({Workspace(rounded(widest, K * V)), {}, 0, 0, zeros(rounded(widest, K * V))});
        for (int i = 0; i < count; ++i) {
            Core& core = cores[i];
            if (core.height == height && core.width == width) continue;
            core.height = core.width = 0;
            if (!plan(core.plan = Plan(), height, width)) return false;
            core.height = height, core.width = width;
        }
        return true;
    }

    bool plan(Plan& plan, int height, int width) const {
        plan.image = plan.get(IMAGE, stem.inputs, height, width, stem.kernel / 2);
        Map* x = plan.stem = plan.after(STEM, stem, *plan.image);
        if (stem_pools) x = plan.stem_pooled = plan.get(OUTPUT, x->channels, (x->height + 1) / 2, (x->width + 1) / 2);
        for (size_t i = 0; i < blocks.size(); ++i) {
            const Block& block = blocks[i];
            Plan::Step step;
            Map* hidden = x;
            for (size_t j = 0; j + 1 < block.residual.size(); ++j)
                step.hidden.push_back(hidden = plan.after(HIDDEN + int(j), block.residual[j], *hidden));
            step.output = block.projection.empty() ? x : plan.after(OUTPUT, block.projection[0], *x);
            x = step.output;
            if (i < convolutional.size()) {
                hidden = x;
                if (convolutional[i].pools) {
                    if (x->height < 2 || x->width < 2) return false;
                    hidden = step.gate_pooled = plan.get(GATE_POOLED, x->channels, x->height / 2, x->width / 2);
                }
                for (size_t j = 0; j < convolutional[i].convolutions.size(); ++j)
                    step.gate_hidden.push_back(hidden = plan.after(GATE_HIDDEN + int(j), convolutional[i].convolutions[j], *hidden));
            }
            plan.steps.push_back(std::move(step));
        }
        return true;
    }

    void classify(Core& core, const float* image, float threshold, Answer answer) const {
        const Plan& plan = core.plan;
        read_image(image, *plan.image);
        convolve(stem, *plan.image, *plan.stem, Epilogue::bias_relu, nullptr, core.space);
        if (stem_pools) max_pool<3, 1>(*plan.stem, *plan.stem_pooled);
        Map* x = stem_pools ? plan.stem_pooled : plan.stem;
        State state;
        for (size_t i = 0; i < blocks.size(); ++i) {
            bool execute = true;
            if (i > 0) {
                const float probability = gated() ? probability_after(core, i - 1, *x, state) : 1.0f;
                execute = !gated() || probability > threshold;
                answer.probability[i - 1] = probability;
                answer.executed[i - 1] = execute;
            }
            const int before = core.space.convolutions;
            x = run_block(core, i, *x, execute);
            answer.convolutions[i] = core.space.convolutions - before;
        }
        head.classify(mean(core, core.space.pooled.get(), x->channels, *x), answer.logits);
    }

    static void read_image(const float* image, Map& to) {
        const size_t plane = size_t(to.height) * to.width;
        for (int y = 0; y < to.height; ++y)
            for (int x = 0; x < to.width; ++x, ++image)
                for (int channel = 0; channel < to.channels; ++channel) to.at(0, y, x)[channel] = image[channel * plane];
    }

    // Returns the block's output map; a skipped block is its shortcut alone, the identity being no work at all.
    Map* run_block(Core& core, size_t i, Map& x, bool execute) const {
        const Block& block = blocks[i];
        const Plan::Step& step = core.plan.steps[i];
        float* pooled = core.space.pooled.get();
        if (!block.projection.empty()) convolve(block.projection[0], x, *step.output, Epilogue::bias, pooled, core.space);
        if (!execute) return step.output;
        const Map* in = &x;
        for (size_t j = 0; j < step.hidden.size(); in = step.hidden[j++])
            convolve(block.residual[j], *in, *step.hidden[j], Epilogue::bias_relu, nullptr, core.space);
        convolve(block.residual.back(), *in, *step.output, Epilogue::bias_add_relu, pooled, core.space);
        return step.output;
    }

    static const float* mean(Core& core, const float* sums, int channels, const Map& map) {
        const float scale = 1.0f / float(map.height * map.width);
        for (int i = 0; i < channels; ++i) core.mean.get()[i] = sums[i] * scale;
        return core.mean.get();
    }

    // The probability that gate i, which reads block i's output x, gives to executing block i + 1.
    float probability_after(Core& core, size_t i, const Map& x, State& state) const {
        const float logit = recurrent.empty() ? convolutional_logit(core, i, x)
                                              : recurrent[i].logit(mean(core, core.space.pooled.get(), x.channels, x), state);
        return float(1.0 / (1.0 + std::exp(-double(logit))));
    }

    float convolutional_logit(Core& core, size_t i, const Map& x) const {
        const ConvolutionalGate& gate = convolutional[i];
        const Plan::Step& step = core.plan.steps[i];
        const Map* in = &x;
        if (gate.pools) max_pool<2, 0>(x, *step.gate_pooled), in = step.gate_pooled;
        // The sums go to `mean`, since those of the block's output are still needed if the next block is skipped.
        for (size_t j = 0; j < gate.convolutions.size(); in = step.gate_hidden[j++])
            convolve(gate.convolutions[j], *in, *step.gate_hidden[j], Epilogue::bias_relu, core.mean.get(), core.space);
        const float* average = mean(core, core.mean.get(), in->channels, *in);
        float logit = gate.bias;
        for (int c = 0; c < in->channels; ++c) logit += gate.weight.get()[c] * average[c];
        return logit;
    }
};

}  // namespace

// ---- C interface, called by native.py ------------------------------------------------------------------

enum Status { DONE = 0, OUT_OF_MEMORY = 1, TOO_SMALL = 2 };

extern "C" {

void* skipnet_create(const int32_t* integers, const float* numbers) try {
    return new Network(Reader{integers, numbers});
} catch (const std::bad_alloc&) {
    return nullptr;
}

void skipnet_destroy(void* network) { delete static_cast<Network*>(network); }

// Runs n images, each on one core, on as many as `threads` cores. A core takes the next image when it is
// done with one, since images differ in what they cost.
int skipnet_run(void* handle, int threads, const float* images, const float* thresholds, int n, int height, int width,
                float* logits, float* probability, uint8_t* executed, int32_t* convolutions) try {
    auto& network = *static_cast<Network*>(handle);
    const int cores = std::max(1, std::min(threads, n));
    if (!network.prepare(cores, height, width)) return TOO_SMALL;
    const size_t blocks = network.blocks.size();
    std::atomic<int> next{0};
    const auto work = [&](int core) {
        for (int i; (i = next++) < n;) {
            const Answer answer{logits + size_t(i) * network.head.classes, probability + i * (blocks - 1),
                                executed + i * (blocks - 1), convolutions + i * blocks};
            const float* image = images + size_t(i) * network.stem.inputs * height * width;
            network.classify(network.cores[core], image, thresholds[i], answer);
        }
    };
    std::vector<std::thread> others;
    for (int core = 1; core < cores; ++core) try {
            others.emplace_back(work, core);
        } catch (const std::system_error&) {
            break;  // no more threads to be had: those that run do the work
        }
    work(0);
    for (std::thread& other : others) other.join();
    return DONE;
} catch (const std::bad_alloc&) {
    return OUT_OF_MEMORY;
}

}  // extern "C"
