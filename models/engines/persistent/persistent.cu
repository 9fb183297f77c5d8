// Runs a complete CIFAR SkipNet, from stem to logits, in one launch. Each thread block processes one image at a time.
//
// Both maps of a block stay in shared memory from the first convolution to the last, and every gate is evaluated in the
// thread block that has its map. So no map and no decision goes to another thread block or to the host. A skipped block
// is a branch that is not taken: its weights and maps are not accessed. Thread blocks take images from a queue, so any
// batch is one launch of as many thread blocks as the GPU holds.
//
// Maps and weights are fp16, and sums fp32. Batch norm is folded into the weights. Weights are streams of 16-byte
// words in the order of use, one stream per group of blocks. So the kernel needs no table of addresses: it advances
// the stream past a skipped block. layout.py writes the streams.

#ifndef DEVICE
#include "machine.cuh"
#endif
#include "convolution.cuh"
#include "gates.cuh"

using Map1 = Map<32, 16>;
using Map2 = Map<16, 32>;
using Map3 = Map<8, 64>;

// Decides for one image: evaluates the gate, compares its probability with the image's limit, and stores both.
template <class Gate> struct Router {
    Gate& gate;
    float* probability;  // [images][decisions]
    unsigned char* executed;
    int decisions, decision;

    template <class M, class Next> DEVICE bool executes(int map, int spare) {
        if (!Gate::DECIDES) return true;
        const int totals = GATE + decision % 2 * SUM_BYTES;
        const float estimate = sigmoid(gate.template logit<M, Next>(map, spare, totals));
        const bool execute = estimate > read_shared<float>(LIMIT);
        if (threadIdx.x == 0) {
            const int at = read_shared<int>(IMAGE) * decisions + decision;
            probability[at] = estimate, executed[at] = execute;
        }
        ++decision;
        return execute;
    }
};

// Computes relu(residual(x) + x) in place. `spare` holds the map between the two convolutions.
template <class M> DEVICE void execute_block(const uint4* stream, int map, int spare) {
    using Keeping = Convolution<M, M, 1>;
    Keeping first(stream);
    first.accumulate(map);
    first.template finish<RELU | STORE>(spare);
    Keeping second(stream + Keeping::WORDS);
    __syncthreads();
    second.accumulate(spare);
    second.template finish<ADD | RELU | STORE | SUM>(map, SUMS);
    __syncthreads();
}

// Runs the blocks of a group after its first one.
template <class M, class Gate>
DEVICE void run_group(Router<Gate>& router, const uint4* stream, int blocks, int map, int spare) {
    constexpr int WORDS = 2 * Convolution<M, M, 1>::WORDS;
#pragma unroll 1
    for (int i = 1; i < blocks; ++i)
        if (router.template executes<M, M>(map, spare)) execute_block<M>(stream + (i - 1) * WORDS, map, spare);
}

// Runs the first block of a group, with half the side and twice the channels. Its shortcut is a projection, which
// always runs. Returns the rest of the stream.
template <class In, class Out, class Gate>
DEVICE const uint4* reduce(Router<Gate>& router, const uint4* stream, int map, int spare, int shortcut, int hidden) {
    using Projection = Convolution<In, Out, 2, 1>;
    using Reducing = Convolution<In, Out, 2>;
    using Keeping = Convolution<Out, Out, 1>;
    const bool execute = router.template executes<In, Out>(map, spare);
    Projection projection(stream);
    projection.accumulate(map);
    projection.template finish<STORE | SUM>(shortcut, SUMS);
    stream += Projection::WORDS;
    if (execute) {
        Reducing first(stream);
        first.accumulate(map);
        first.template finish<RELU | STORE>(hidden);
        Keeping second(stream + Reducing::WORDS);
        __syncthreads();
        second.accumulate(hidden);
        second.template finish<ADD | RELU | STORE | SUM>(shortcut, SUMS);
    }
    __syncthreads();
    return stream + Reducing::WORDS + Keeping::WORDS;
}

// The images of a batch in host memory: normalised, float [3][32][32], or pixels as they were decoded, unsigned char
// [32][32][3].
struct Images {
    const void* images;
    const float* normalisation;  // of pixels: the scales of the three colours and then what is subtracted; or null

    // Starts to copy an image's pixels to shared memory.
    DEVICE void request(int image) const {
        constexpr int WORDS = STAGED_BYTES / 16;
        const int word = thread_number();
        if (normalisation != nullptr && word < WORDS)
            copy_async(STAGED + word * 16, static_cast<const uint4*>(images) + size_t(image) * WORDS + word);
    }

    // Reads an image into a map whose other 13 channels are zero, so that the stem is an ordinary convolution. Pixels
    // must have been requested.
    DEVICE void read(int image, int target) const {
        constexpr int PIXELS = Map1::SIDE * Map1::SIDE;
        if (normalisation == nullptr) {
            const float* colours = static_cast<const float*>(images) + size_t(image) * 3 * PIXELS;
            for (int i = thread_number(); i < PIXELS; i += THREADS)
                write(target, i, fetch(colours + i), fetch(colours + PIXELS + i), fetch(colours + 2 * PIXELS + i));
            return;
        }
        wait_for_copies();
        __syncthreads();
        for (int i = thread_number(); i < PIXELS; i += THREADS)
            write(target, i, colour(i, 0), colour(i, 1), colour(i, 2));
    }

    DEVICE float colour(int pixel, int which) const {
        const float value = read_shared<unsigned char>(STAGED + pixel * 3 + which);
        return normalise(value, fetch(normalisation + which), fetch(normalisation + 3 + which));
    }

    static DEVICE void write(int target, int pixel, float red, float green, float blue) {
        const int y = pixel / Map1::SIDE, x = pixel % Map1::SIDE;
        write_shared(target + Map1::offset(y, x, 0), uint4{pack(red, green), pack(blue, 0.0f), 0u, 0u});
        write_shared(target + Map1::offset(y, x, 1), uint4{0u, 0u, 0u, 0u});
    }
};

// The head: an average and a linear layer with weights [64][row] and biases [row]. A row is the classes, rounded up
// to 4.
DEVICE void classify(const uint4* stream, float* logits, int classes) {
    const float* weights = reinterpret_cast<const float*>(stream);
    const int row = (classes + 3) / 4 * 4;
    for (int i = thread_number(); i < classes; i += THREADS) {
        float sum = fetch(weights + Map3::CHANNELS * row + i);
        for (int channel = 0; channel < Map3::CHANNELS; ++channel)
            sum += sum_of_strips<Map3>(channel) * fetch(weights + channel * row + i);
        logits[i] = sum;
    }
}

// Inputs: images and execute thresholds [count]. Outputs: logits [count][classes], and probability and executed
// [count][blocks - 1]; then `ticket` in `done`. Launch up to `count` thread blocks of THREADS threads with SHARED_BYTES
// of dynamic shared memory. Two fit on a multiprocessor with 164 KB of it, with at most 128 registers per thread.
template <class Gate>
__global__ void __launch_bounds__(THREADS, 2)
    route(const void* pictures, const float* normalisation, const float* thresholds, const uint4* stem_and_group1,
          const uint4* group2, const uint4* group3, const uint4* head, const uint4* gates, float* logits,
          float* probability, unsigned char* executed, Queue* queue, volatile unsigned* done, unsigned ticket, int count,
          int blocks1, int blocks2, int blocks3, int classes) {
    using Stem = Convolution<Map1, Map1, 1>;
    const Images images{pictures, normalisation};
    if (threadIdx.x < ZERO_BYTES / 4) write_shared(ZEROS + threadIdx.x * 4, 0u);
    Gate gate(gates);
    images.request(blockIdx.x);
    for (int image = blockIdx.x; image < count; image = read_shared<int>(NEXT_IMAGE)) {
        Router<Gate> router{gate, probability, executed, blocks1 + blocks2 + blocks3 - 1, 0};
        images.read(image, RIGHT);
        gate.begin(gates);
        Stem stem(stem_and_group1);
        __syncthreads();
        // All threads have read the previous values. The next image's number is read long before it is needed.
        if (threadIdx.x == 0) {
            write_shared(IMAGE, image);
            write_shared(NEXT_IMAGE, take_image(queue));
            // As models/gates.py: at threshold 0 every block is executed, although a sigmoid can round to 0.
            const float threshold = fetch(thresholds + image);
            write_shared(LIMIT, threshold <= 0.0f ? -1.0f : threshold);
        }
        stem.accumulate(RIGHT);
        stem.template finish<RELU | STORE>(LEFT);
        __syncthreads();
        if (read_shared<int>(NEXT_IMAGE) < count) images.request(read_shared<int>(NEXT_IMAGE));
        const uint4* group1 = stem_and_group1 + Stem::WORDS;
        execute_block<Map1>(group1, LEFT, RIGHT);
        run_group<Map1>(router, group1 + 2 * Stem::WORDS, blocks1, LEFT, RIGHT);
        const uint4* rest2 = reduce<Map1, Map2>(router, group2, LEFT, RIGHT, RIGHT, RIGHT + Map2::BYTES);
        run_group<Map2>(router, rest2, blocks2, RIGHT, RIGHT + Map2::BYTES);
        const uint4* rest3 = reduce<Map2, Map3>(router, group3, RIGHT, LEFT, LEFT, LEFT + Map3::BYTES);
        run_group<Map3>(router, rest3, blocks3, LEFT, LEFT + Map3::BYTES);
        classify(head, logits + size_t(read_shared<int>(IMAGE)) * classes, classes);
    }
    __syncthreads();
    if (threadIdx.x == 0) leave(queue, done, ticket);
}
