// Gates inside the kernel: they turn the output map of a block into one logit.
//
// `begin` is called once per image and `logit<M, Next>` once per gate. M is the map at `map` that the gate reads, and
// Next is the map of the following gate. `spare` has room for the gate's own maps, and `totals` for sums. Consecutive
// gates use different `totals`, so one barrier between writing and reading is enough. Each warp computes the same sums
// in the same order. So every thread has the same logit, bit for bit, and the branch that follows is uniform.

#pragma once

// Returns the sum of `mine` over the lanes of this warp. All lanes get the same bits, because a + b = b + a.
DEVICE float sum_of_lanes(float mine) {
#pragma unroll
    for (int mask = 1; mask <= 16; mask *= 2) mine += shuffle_xor(mine, mask);
    return mine;
}

DEVICE float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// Returns one channel's sum over the pixels of a map, from the sums of strips that a convolution wrote.
template <class M> DEVICE float sum_of_strips(int channel) {
    float sum = 0.0f;
#pragma unroll
    for (int strip = 0; strip < Convolution<M, M, 1>::STRIPS; ++strip)
        sum += read_shared<float>(SUMS + (strip * M::CHANNELS + channel) * 4);
    return sum;
}

// No gate, for a plain ResNet: every block is executed.
struct NoGate {
    static constexpr bool DECIDES = false;
    DEVICE explicit NoGate(const uint4*) {}
    DEVICE void begin(const uint4*) {}
    template <class M, class Next> DEVICE float logit(int, int, int) { return 0.0f; }
};

// The RNN gate. Four threads compute each of the LSTM's 40 pre-activations. While the previous block runs, each of
// these threads copies its own weights to shared memory. So no gate waits for L2, and no registers are used meanwhile.
// Every warp keeps the complete state, in ten of its lanes.
struct RecurrentGate {
    static constexpr bool DECIDES = true;
    static constexpr int UNITS = 10, ROWS = 4 * UNITS, WORKERS = 4 * ROWS;
    static constexpr int RECURRENT = LSTM, READOUT = LSTM + 12 * ROWS * 4;  // [12][40], then [10] and the bias
    static constexpr int WEIGHTS = PREFETCH, BIASES = PREFETCH + 4 * WORKERS * 16;
    static constexpr int SHARED_WORDS = LSTM_BYTES / 16;

    const uint4* stream;
    float hidden, cell;

    // Copies the weights that all gates share to shared memory, once per thread block. A barrier must follow.
    DEVICE explicit RecurrentGate(const uint4* shared_part) {
        for (int i = thread_number(); i < SHARED_WORDS; i += THREADS)
            write_shared(LSTM + i * 16, fetch(shared_part + i));
    }

    DEVICE void begin(const uint4* gates) {
        stream = gates + SHARED_WORDS;
        hidden = cell = 0.0f;
        wait_for_copies();  // of the padding after the last gate, because copies may overtake each other
        copy_weights<16>();
    }

    template <int CHANNELS> DEVICE void copy_weights() {
        const int worker = thread_number();
        if (worker < WORKERS) {
#pragma unroll
            for (int i = 0; i < CHANNELS / 16; ++i)
                copy_async(WEIGHTS + (i * WORKERS + worker) * 16, stream + i * WORKERS + worker);
            const float* biases = reinterpret_cast<const float*>(stream + CHANNELS / 16 * WORKERS);
            if (worker % 4 == 0) copy_async(BIASES + worker, biases + worker / 4);
        }
        stream += CHANNELS / 16 * WORKERS + ROWS / 4;
    }

    template <class M, class Next> DEVICE float logit(int, int, int activations) {
        const int worker = thread_number();
        if (worker < WORKERS) {
            const int row = worker / 4, part = worker % 4;
            float sum = 0.0f;
            wait_for_copies();
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
                sum += read_shared<float>(RECURRENT + ((i + part) * ROWS + row) * 4) * shuffle(hidden, i + part);
            sum += shuffle_xor(sum, 1);
            sum += shuffle_xor(sum, 2);
            if (part == 0) write_shared(activations + row * 4, sum + read_shared<float>(BIASES + worker));
        }
        copy_weights<Next::CHANNELS>();
        __syncthreads();
        const int unit = lane_number();
        float partial = 0.0f;
        if (unit < UNITS) {
            const float input = sigmoid(read_shared<float>(activations + unit * 4));
            const float forget = sigmoid(read_shared<float>(activations + (UNITS + unit) * 4));
            const float candidate = tanhf(read_shared<float>(activations + (2 * UNITS + unit) * 4));
            const float output = sigmoid(read_shared<float>(activations + (3 * UNITS + unit) * 4));
            cell = forget * cell + input * candidate;
            hidden = output * tanhf(cell);
            partial = hidden * read_shared<float>(READOUT + unit * 4);
        }
        return sum_of_lanes(partial) + read_shared<float>(READOUT + UNITS * 4);
    }
};

// The end of both feed-forward gates: the average over a map, a weight for each channel, and a bias.
template <int STRIPS, int CHANNELS> DEVICE float weighted_average(const float* weights, int totals) {
    float partial = 0.0f;
    for (int channel = lane_number(); channel < CHANNELS; channel += 32) {
        float sum = 0.0f;
#pragma unroll
        for (int strip = 0; strip < STRIPS; ++strip)
            sum += read_shared<float>(totals + (strip * CHANNELS + channel) * 4);
        partial += sum * fetch(weights + channel);
    }
    return sum_of_lanes(partial) + fetch(weights + CHANNELS);
}

// FFGate-II: one convolution of stride 2. Its map is summed and not stored.
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
        return weighted_average<Strided::STRIPS, M::CHANNELS>(weights, totals);
    }
};

// FFGate-I: max pooling, a convolution, and then as FFGate-II.
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

    // 2 x 2 max pooling. A thread computes 8 channels of an output pixel at a time.
    template <class From, class To> static DEVICE void pool(int source, int target) {
        for (int i = thread_number(); i < To::SIDE * To::SIDE * To::PARTS; i += THREADS) {
            const int part = i % To::PARTS, x = i / To::PARTS % To::SIDE, y = i / To::PARTS / To::SIDE;
            uint4 largest = read_shared<uint4>(source + From::offset(2 * y, 2 * x, part));
#pragma unroll
            for (int other = 1; other < 4; ++other) {
                const int at = source + From::offset(2 * y + other / 2, 2 * x + other % 2, part);
                const uint4 next = read_shared<uint4>(at);
                largest = {larger(largest.x, next.x), larger(largest.y, next.y), larger(largest.z, next.z),
                           larger(largest.w, next.w)};
            }
            write_shared(target + To::offset(y, x, part), largest);
        }
    }

    static DEVICE unsigned larger(unsigned a, unsigned b) {
        const float2 x = unpack(a), y = unpack(b);
        return pack(fmaxf(x.x, y.x), fmaxf(x.y, y.y));
    }
};
