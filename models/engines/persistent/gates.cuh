// Gates, decided inside the kernel: from the map that the last block left to one logit.
//
// Each gate has `begin`, once an image, and `logit<M, Next>`, once a gate: M is the map that it reads, at `map`,
// Next the one that the gate after it will read; `spare` has room for maps of its own, `totals` for sums. These
// are the other ones than the last gate's, so that one barrier, between writing and reading them, does. Every
// thread gets the same logit in the same bits, because each warp does the same sums in the same order: the
// branch that follows is uniform.

#pragma once

// The sum of `mine` over the lanes of this warp: the same bits in each, since a + b = b + a.
DEVICE float sum_of_lanes(float mine) {
#pragma unroll
    for (int mask = 1; mask <= 16; mask *= 2) mine += across(mine, mask);
    return mine;
}

DEVICE float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// Sum over a map's pixels of one channel, from the strips' sums that a convolution to it left.
template <class M> DEVICE float sum_of_strips(int channel) {
    float sum = 0.0f;
#pragma unroll
    for (int strip = 0; strip < Convolution<M, M, 1>::STRIPS; ++strip)
        sum += read_shared<float>(SUMS + (strip * M::CHANNELS + channel) * 4);
    return sum;
}

// A plain ResNet: every block runs.
struct NoGate {
    static constexpr bool DECIDES = false;
    DEVICE explicit NoGate(const uint4*) {}
    DEVICE void begin(const uint4*) {}
    template <class M, class Next> DEVICE float logit(int, int, int) { return 0.0f; }
};

// RNN gate. Four threads share each of the LSTM's 40 pre-activations. Each of these threads has its weights copied
// to shared memory, for itself alone, while the block before runs, so that no gate waits for L2 and no registers
// are held meanwhile. A warp each keeps the whole state, in ten of its lanes.
struct RecurrentGate {
    static constexpr bool DECIDES = true;
    static constexpr int UNITS = 10, ROWS = 4 * UNITS, WORKERS = 4 * ROWS;
    static constexpr int RECURRENT = LSTM, READOUT = LSTM + 12 * ROWS * 4;  // [12][40], then [10] and the bias
    static constexpr int WEIGHTS = AHEAD, BIASES = AHEAD + 4 * WORKERS * 16;
    static constexpr int SHARED_WORDS = LSTM_BYTES / 16;

    const uint4* stream;
    float hidden, cell;

    // Starts each thread block: what all gates share goes to shared memory. A barrier must follow.
    DEVICE explicit RecurrentGate(const uint4* shared_part) {
        for (int i = thread_number(); i < SHARED_WORDS; i += THREADS) write_shared(LSTM + i * 16, fetch(shared_part + i));
    }

    DEVICE void begin(const uint4* gates) {
        stream = gates + SHARED_WORDS;
        hidden = cell = 0.0f;
        await_copies();  // of the gate after the last, which is none: copies may overtake each other
        copy_weights<16>();
    }

    template <int CHANNELS> DEVICE void copy_weights() {
        const int worker = thread_number();
        if (worker < WORKERS) {
#pragma unroll
            for (int i = 0; i < CHANNELS / 16; ++i)
                copy_ahead(WEIGHTS + (i * WORKERS + worker) * 16, stream + i * WORKERS + worker);
            const float* biases = reinterpret_cast<const float*>(stream + CHANNELS / 16 * WORKERS);
            if (worker % 4 == 0) copy_ahead(BIASES + worker, biases + worker / 4);
        }
        stream += CHANNELS / 16 * WORKERS + ROWS / 4;
    }

    template <class M, class Next> DEVICE float logit(int, int, int activations) {
        const int worker = thread_number();
        if (worker < WORKERS) {
            const int row = worker / 4, part = worker % 4;
            float sum = 0.0f;
            await_copies();
#pragma unroll
            for (int i = 0; i < M::CHANNELS / 16; ++i) {
                const float4 weight = read_shared<float4>(WEIGHTS + (i * WORKERS + worker) * 16);
                sum += weight.x * sum_of_strips<M>(i * 16 + part);
                sum += weight.y * sum_of_strips<M>(i * 16 + 4 + part);
                sum += weight.z * sum_of_strips<M>(i * 16 + 8 + part);
                sum += weight.w * sum_of_strips<M>(i * 16 + 12 + part);
            }
#pragma unroll
            for (int i = 0; i < 12; i += 4)
                sum += read_shared<float>(RECURRENT + ((i + part) * ROWS + row) * 4) * from_lane(hidden, i + part);
            sum += across(sum, 1);
            sum += across(sum, 2);
            if (part == 0) write_shared(activations + row * 4, sum + read_shared<float>(BIASES + worker));
        }
        copy_weights<Next::CHANNELS>();
        __syncthreads();
        const int unit = lane_number();
        float vote = 0.0f;
        if (unit < UNITS) {
            const float input = sigmoid(read_shared<float>(activations + unit * 4));
            const float forget = sigmoid(read_shared<float>(activations + (UNITS + unit) * 4));
            const float candidate = tanhf(read_shared<float>(activations + (2 * UNITS + unit) * 4));
            const float output = sigmoid(read_shared<float>(activations + (3 * UNITS + unit) * 4));
            cell = forget * cell + input * candidate;
            hidden = output * tanhf(cell);
            vote = hidden * read_shared<float>(READOUT + unit * 4);
        }
        return sum_of_lanes(vote) + read_shared<float>(READOUT + UNITS * 4);
    }
};

// What both feed-forward gates end in: the average over a map, a weight for each channel and a bias.
template <int STRIPS, int CHANNELS> DEVICE float weigh(const float* weights, int totals) {
    float vote = 0.0f;
    for (int channel = lane_number(); channel < CHANNELS; channel += 32) {
        float sum = 0.0f;
#pragma unroll
        for (int strip = 0; strip < STRIPS; ++strip)
            sum += read_shared<float>(totals + (strip * CHANNELS + channel) * 4);
        vote += sum * fetch(weights + channel);
    }
    return sum_of_lanes(vote) + fetch(weights + CHANNELS);
}

// FFGate-II: one convolution of stride 2, whose map is summed and never stored.
struct StridedGate {
    static constexpr bool DECIDES = true;
    const uint4* stream;

    DEVICE explicit StridedGate(const uint4*) {}
    DEVICE void begin(const uint4* gates) { stream = gates; }

    template <class M, class Next> DEVICE float logit(int map, int, int totals) {
        using Strided = Convolution<M, Map<M::SIDE / 2, M::CHANNELS>, 2>;
        Strided convolution(stream);
        convolution.accumulate(map);
        convolution.template finish<RELU | SUM>(0, totals);
        const float* weights = reinterpret_cast<const float*>(stream + Strided::WORDS);
        stream += Strided::WORDS + M::CHANNELS / 4 + 1;
        __syncthreads();
        return weigh<Strided::STRIPS, M::CHANNELS>(weights, totals);
    }
};

// FFGate-I: the map pooled to half its side, a convolution, and then as FFGate-II.
struct PooledGate {
    static constexpr bool DECIDES = true;
    StridedGate rest;

    DEVICE explicit PooledGate(const uint4* gates) : rest(gates) {}
    DEVICE void begin(const uint4* gates) { rest.begin(gates); }

    template <class M, class Next> DEVICE float logit(int map, int spare, int totals) {
        using Half = Map<M::SIDE / 2, M::CHANNELS>;
        using Keeping = Convolution<Half, Half, 1>;
        Keeping convolution(rest.stream);
        rest.stream += Keeping::WORDS;
        pool<M, Half>(map, spare);
        __syncthreads();
        convolution.accumulate(spare);
        convolution.template finish<RELU | STORE>(spare + Half::BYTES);
        __syncthreads();
        return rest.logit<Half, Next>(spare + Half::BYTES, 0, totals);
    }

    // The largest of each 2 x 2 pixels; a thread takes 8 channels of an output pixel at a time.
    template <class From, class To> static DEVICE void pool(int source, int target) {
        for (int i = thread_number(); i < To::SIDE * To::SIDE * To::PARTS; i += THREADS) {
            const int part = i % To::PARTS, x = i / To::PARTS % To::SIDE, y = i / To::PARTS / To::SIDE;
            uint4 best = read_shared<uint4>(source + From::offset(2 * y, 2 * x, part));
#pragma unroll
            for (int other = 1; other < 4; ++other) {
                const int at = source + From::offset(2 * y + other / 2, 2 * x + other % 2, part);
                const uint4 next = read_shared<uint4>(at);
                best = {larger(best.x, next.x), larger(best.y, next.y), larger(best.z, next.z), larger(best.w, next.w)};
            }
            write_shared(target + To::offset(y, x, part), best);
        }
    }

    static DEVICE unsigned larger(unsigned a, unsigned b) {
        const float2 x = unpack(a), y = unpack(b);
        return pack(fmaxf(x.x, y.x), fmaxf(x.y, y.y));
    }
};
