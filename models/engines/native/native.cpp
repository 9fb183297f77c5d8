// Runs a whole SkipNet - stem, blocks, gates and head - in one call, on one CPU core per image.
//
// A gate takes well under a microsecond and a skipped block is a branch that is not taken, so the time is nearly
// proportional to the MACs. layout.py describes the network to skipnet_create; engine.py calls skipnet_run.

#include "gates.hpp"

#include <atomic>
#include <cmath>
#include <exception>
#include <map>
#include <thread>
#include <tuple>
#include <vector>

namespace {

struct Block {
    std::vector<Convolution> residual;
    std::vector<Convolution> projection;  // empty for an identity shortcut, otherwise one
};

// The maps that a core uses for one image size. An executed block adds to its shortcut in place.
struct Plan {
    struct Step {
        std::vector<Map*> hidden;       // outputs of all residual convolutions except the last
        Map* output;                    // the input itself if the shortcut is the identity
        Map* gate_pooled = nullptr;
        std::vector<Map*> gate_hidden;  // for the gate that reads this block's output
    };
    std::map<std::tuple<int, int, int, int>, std::unique_ptr<Map>> maps;
    Map *image = nullptr, *stem = nullptr, *stem_pooled = nullptr;
    std::vector<Step> steps;

    // Maps of the same role and shape share memory, because they are never in use at the same time.
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

struct Output {
    float *logits, *probability;
    uint8_t* executed;
    int32_t* convolutions;
};

struct Network {
    Convolution stem;
    bool stem_pools;
    std::vector<Block> blocks;
    // At most one of the two lists has gates. A plain ResNet has none.
    std::vector<RecurrentGate> recurrent;
    std::vector<ConvolutionalGate> convolutional;
    Head head;
    int widest = 0;  // channels of the widest map, padded to whole register tiles

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
            block.residual = read_convolutions(reader);
            block.projection = read_convolutions(reader);
            for (const Convolution& c : block.residual)
                widest = std::max(widest, rounded(std::max(c.inputs, c.outputs), K * V));
        }
        int lstms = reader.integer(), others = reader.integer();
        while (lstms-- > 0) recurrent.push_back(read_recurrent_gate(reader));
        while (others-- > 0) convolutional.push_back(read_convolutional_gate(reader));
        head = read_head(reader);
    }

    bool gated() const { return !recurrent.empty() || !convolutional.empty(); }

    // Allocates the maps of `count` cores for images of this size. Returns false if they are too small for a gate.
    bool prepare(int count, int height, int width) {
        while (int(cores.size()) < count) cores.push_back({Workspace(widest), {}, 0, 0, zeros(widest)});
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
        if (stem_pools)
            x = plan.stem_pooled = plan.get(OUTPUT, x->channels, (x->height + 1) / 2, (x->width + 1) / 2);
        for (size_t i = 0; i < blocks.size(); ++i) {
            const Block& block = blocks[i];
            Plan::Step step;
            Map* hidden = x;
            for (size_t j = 0; j + 1 < block.residual.size(); ++j)
                step.hidden.push_back(hidden = plan.after(HIDDEN + int(j), block.residual[j], *hidden));
            step.output = block.projection.empty() ? x : plan.after(OUTPUT, block.projection[0], *x);
            x = step.output;
            if (i < convolutional.size() && !plan_gate(plan, step, convolutional[i], *x)) return false;
            plan.steps.push_back(std::move(step));
        }
        return true;
    }

    static bool plan_gate(Plan& plan, Plan::Step& step, const ConvolutionalGate& gate, Map& x) {
        Map* hidden = &x;
        if (gate.pools) {
            if (x.height < 2 || x.width < 2) return false;
            hidden = step.gate_pooled = plan.get(GATE_POOLED, x.channels, x.height / 2, x.width / 2);
        }
        for (size_t j = 0; j < gate.convolutions.size(); ++j) {
            hidden = plan.after(GATE_HIDDEN + int(j), gate.convolutions[j], *hidden);
            step.gate_hidden.push_back(hidden);
        }
        return true;
    }

    void classify(Core& core, const float* image, float limit, Output output) const {
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
                execute = !gated() || probability > limit;
                output.probability[i - 1] = probability;
                output.executed[i - 1] = execute;
            }
            const int before = core.space.convolutions;
            x = run_block(core, i, *x, execute);
            output.convolutions[i] = core.space.convolutions - before;
        }
        head.classify(mean(core, core.space.pooled.get(), x->channels, *x), output.logits);
    }

    static void read_image(const float* image, Map& to) {
        const size_t plane = size_t(to.height) * to.width;
        for (int y = 0; y < to.height; ++y)
            for (int x = 0; x < to.width; ++x, ++image)
                for (int channel = 0; channel < to.channels; ++channel)
                    to.at(0, y, x)[channel] = image[channel * plane];
    }

    // Returns the block's output map. For a skipped block this is its shortcut, and an identity shortcut costs
    // nothing.
    Map* run_block(Core& core, size_t i, Map& x, bool execute) const {
        const Block& block = blocks[i];
        const Plan::Step& step = core.plan.steps[i];
        float* pooled = core.space.pooled.get();
        if (!block.projection.empty())
            convolve(block.projection[0], x, *step.output, Epilogue::bias, pooled, core.space);
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

    // Returns the probability of executing block i + 1: gate i reads the output x of block i.
    float probability_after(Core& core, size_t i, const Map& x, State& state) const {
        const float logit =
            recurrent.empty()
                ? convolutional_logit(core, i, x)
                : recurrent[i].logit(mean(core, core.space.pooled.get(), x.channels, x), state);
        return float(1.0 / (1.0 + std::exp(-double(logit))));
    }

    float convolutional_logit(Core& core, size_t i, const Map& x) const {
        const ConvolutionalGate& gate = convolutional[i];
        const Plan::Step& step = core.plan.steps[i];
        const Map* in = &x;
        if (gate.pools) max_pool<2, 0>(x, *step.gate_pooled), in = step.gate_pooled;
        // The sums go to `mean`, because those of the block's output are still needed if the next block is skipped.
        for (size_t j = 0; j < gate.convolutions.size(); in = step.gate_hidden[j++])
            convolve(gate.convolutions[j], *in, *step.gate_hidden[j], Epilogue::bias_relu, core.mean.get(),
                     core.space);
        const float* average = mean(core, core.mean.get(), in->channels, *in);
        float logit = gate.bias;
        for (int c = 0; c < in->channels; ++c) logit += gate.weight.get()[c] * average[c];
        return logit;
    }
};

}  // namespace

// ---- C interface, called by engine.py ------------------------------------------------------------------

enum Status { DONE = 0, OUT_OF_MEMORY = 1, TOO_SMALL = 2 };

extern "C" {

void* skipnet_create(const int32_t* integers, const float* numbers) try {
    return new Network(Reader{integers, numbers});
} catch (const std::bad_alloc&) {
    return nullptr;
}

void skipnet_destroy(void* network) { delete static_cast<Network*>(network); }

// Runs n images on up to `threads` cores, each image on one core. A core takes the next image when it has finished
// one, because images differ in cost. `limits` are compared with probabilities (models/gates.py).
int skipnet_run(void* handle, int threads, const float* images, const float* limits, int n, int height,
                int width, float* logits, float* probability, uint8_t* executed, int32_t* convolutions) try {
    auto& network = *static_cast<Network*>(handle);
    const int cores = std::max(1, std::min(threads, n));
    if (!network.prepare(cores, height, width)) return TOO_SMALL;
    const size_t blocks = network.blocks.size();
    std::atomic<int> next{0};
    const auto work = [&](int core) {
        for (int i; (i = next++) < n;) {
            const Output output{logits + size_t(i) * network.head.classes, probability + i * (blocks - 1),
                                executed + i * (blocks - 1), convolutions + i * blocks};
            const float* image = images + size_t(i) * network.stem.inputs * height * width;
            network.classify(network.cores[core], image, limits[i], output);
        }
    };
    std::vector<std::thread> others;
    try {
        others.reserve(cores - 1);
        for (int core = 1; core < cores; ++core) others.emplace_back(work, core);
    } catch (const std::exception&) {
        // The system has no more threads: those that run do the work.
    }
    work(0);
    for (std::thread& other : others) other.join();
    return DONE;
} catch (const std::bad_alloc&) {
    return OUT_OF_MEMORY;
}

}  // extern "C"
