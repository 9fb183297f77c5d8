// Runs a complete SkipNet (stem, blocks, gates and head) in one call, on one or several CPU cores per image.
//
// A gate takes less than a microsecond, and a skipped block is a branch that is not taken. So the time is nearly
// proportional to the MACs. layout.py describes the network to skipnet_create; engine.py calls skipnet_run.

#include "plan.hpp"

namespace {

struct Network {
    Convolution stem;
    bool stem_pools;
    std::vector<Block> blocks;
    // At most one of the two lists has gates. A plain ResNet has none.
    std::vector<RecurrentGate> recurrent;
    std::vector<ConvolutionalGate> convolutional;
    Head head;
    int widest = 0;  // channels of the widest map, padded to whole register tiles

    Team team;
    Barrier barrier;
    std::vector<Workspace> spaces;  // one for each thread
    struct Sized {
        Plan plan;
        int height = 0, width = 0;
    };
    std::vector<Sized> plans;  // one for each image that runs at the same time

    explicit Network(Reader reader) {
        stem = read_convolution(reader);
        stem_pools = reader.integer();
        blocks.resize(reader.integer());
        for (Block& block : blocks) {
            // The largest number that divides every number of channels in the block.
            const bool may_have_integers = reader.integer() % (2 * V) == 0;
            block.residual = read_convolutions(reader, may_have_integers);
            block.projection = read_convolutions(reader, may_have_integers);
            for (const Convolution& c : block.residual)
                widest = std::max(widest, rounded(std::max(c.inputs, c.outputs), 2 * V));
        }
        int lstms = reader.integer(), others = reader.integer();
        while (lstms-- > 0) recurrent.push_back(read_recurrent_gate(reader));
        while (others-- > 0) convolutional.push_back(read_convolutional_gate(reader));
        head = read_head(reader);
    }

    bool gated() const { return !recurrent.empty() || !convolutional.empty(); }

    // Allocates what `threads` threads and `images` images at the same time need. Returns false if images of this size
    // are too small for a gate.
    bool prepare(int threads, int images, int height, int width) {
        while (int(spaces.size()) < threads) spaces.emplace_back(widest);
        while (int(plans.size()) < images) plans.emplace_back();
        for (int i = 0; i < images; ++i) {
            Sized& sized = plans[i];
            if (sized.height == height && sized.width == width) continue;
            sized.height = sized.width = 0;
            if (!plan(sized.plan = Plan(), height, width)) return false;
            sized.height = height, sized.width = width;
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
            if (block.integers()) step.quantized = plan.get(QUANTIZED, x->channels / 2, x->height, x->width);
            for (size_t j = 0; j + 1 < block.residual.size(); ++j) {
                hidden = plan.after(HIDDEN + int(j), block.residual[j], *hidden, block.integers());
                step.hidden.push_back(hidden);
            }
            step.output = block.projection.empty() ? x : plan.after(OUTPUT, block.projection[0], *x);
            plan.after(OUTPUT, block.residual.back(), *hidden);
            x = step.output;
            if (i < convolutional.size() && !plan_gate(plan, step, convolutional[i], *x)) return false;
            plan.steps.push_back(std::move(step));
        }
        for (Buffer& sums : plan.sums) sums = zeros(size_t(plan.parts) * plan.row);
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

    // Runs an image. All members of the team take the same decisions. The first one writes the result.
    void classify(Run run, const float* image, float limit, Result result) const {
        const Plan& plan = run.plan;
        read_image(image, *plan.image, run.member);
        run.member.meet();
        run.convolve(stem, *plan.image, {*plan.stem, Epilogue::bias_relu});
        Map* x = plan.stem;
        if (stem_pools) {
            max_pool<3, 1>(*plan.stem, *(x = plan.stem_pooled), run.member);
            run.member.meet();
        }
        const bool writes = run.member.index == 0;
        State state;
        for (size_t i = 0; i < blocks.size(); ++i) {
            bool execute = true;
            if (i > 0) {
                const float probability = gated() ? probability_after(run, i - 1, *x, state) : 1.0f;
                execute = !gated() || probability > limit;
                if (writes) result.probability[i - 1] = probability, result.executed[i - 1] = execute;
            }
            const int before = run.space.convolutions;
            x = run_block(run, i, *x, execute);
            if (writes) result.convolutions[i] = run.space.convolutions - before;
        }
        if (writes) head.classify(run.mean(run.sums, *x), result.logits);
    }

    static void read_image(const float* image, Map& to, Member member) {
        const size_t plane = size_t(to.height) * to.width;
        for (int y = member.first(to.height); y < member.end(to.height); ++y)
            for (int x = 0; x < to.width; ++x)
                for (int channel = 0; channel < to.channels; ++channel)
                    to.at(0, y, x)[channel] = image[channel * plane + size_t(y) * to.width + x];
    }

    // Returns the block's output map. For a skipped block this is its shortcut, and an identity shortcut costs
    // nothing.
    Map* run_block(Run& run, size_t i, Map& x, bool execute) const {
        const Block& block = blocks[i];
        const Plan::Step& step = run.plan.steps[i];
        if (!execute && block.projection.empty()) return step.output;
        const Map* in = &x;
        if (block.integers()) {
            quantize_map(x, *step.quantized, block.residual[0].input_scale, run.member);
            run.member.meet();
            in = step.quantized;
        }
        if (!block.projection.empty()) {
            const Target target{*step.output, Epilogue::bias, 0, execute ? nullptr : run.next_sums()};
            run.convolve(block.projection[0], *in, target);
        }
        if (!execute) return step.output;
        for (size_t j = 0; j < step.hidden.size(); in = step.hidden[j++]) {
            const Epilogue epilogue = block.integers() ? Epilogue::bias_relu_quantize : Epilogue::bias_relu;
            run.convolve(block.residual[j], *in, {*step.hidden[j], epilogue, block.residual[j + 1].input_scale});
        }
        run.convolve(block.residual.back(), *in, {*step.output, Epilogue::bias_add_relu, 0, run.next_sums()});
        return step.output;
    }

    // Returns the probability of executing block i + 1: gate i reads the output x of block i.
    float probability_after(Run& run, size_t i, const Map& x, State& state) const {
        const float logit = recurrent.empty() ? convolutional_logit(run, i, x)
                                              : recurrent[i].logit(run.mean(run.sums, x), state);
        return float(1.0 / (1.0 + std::exp(-double(logit))));
    }

    float convolutional_logit(Run& run, size_t i, const Map& x) const {
        const ConvolutionalGate& gate = convolutional[i];
        const Plan::Step& step = run.plan.steps[i];
        const Map* in = &x;
        if (gate.pools) {
            max_pool<2, 0>(x, *step.gate_pooled, run.member);
            run.member.meet();
            in = step.gate_pooled;
        }
        for (size_t j = 0; j < gate.convolutions.size(); in = step.gate_hidden[j++])
            run.convolve(gate.convolutions[j], *in,
                         {*step.gate_hidden[j], Epilogue::bias_relu, 0, run.next_gate_sums()});
        const float* average = run.mean(run.gate_sums, *in);
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

// Runs n images on up to `threads` cores. If `spreads` and there are fewer images than cores, each image runs on all
// cores, one after the other. Otherwise each image runs on one core, which then takes the next image, because images
// differ in cost. `limits` are compared with probabilities (models/gates.py).
int skipnet_run(void* handle, int threads, int spreads, const float* images, const float* limits, int n, int height,
                int width, float* logits, float* probability, uint8_t* executed, int32_t* convolutions) try {
    auto& network = *static_cast<Network*>(handle);
    const bool spread = spreads && n < threads;
    const int cores = network.team.grow(std::max(1, spread ? threads : std::min(threads, n)));
    if (!network.prepare(cores, spread ? 1 : cores, height, width)) return TOO_SMALL;
    const size_t blocks = network.blocks.size();
    const auto classify = [&](int i, int core, Member member) {
        const Result result{logits + size_t(i) * network.head.classes, probability + i * (blocks - 1),
                            executed + i * (blocks - 1), convolutions + i * blocks};
        const float* image = images + size_t(i) * network.stem.inputs * height * width;
        Plan& plan = network.plans[spread ? 0 : core].plan;
        network.classify({plan, network.spaces[core], member, {}, {}}, image, limits[i], result);
    };
    std::atomic<int> next{0};
    network.team.share(cores, [&](int core) {
        if (spread)
            for (int i = 0; i < n; ++i) {
                classify(i, core, {core, cores, &network.barrier});
                if (i + 1 < n) network.barrier.wait(cores);
            }
        else
            for (int i; (i = next++) < n;) classify(i, core, {});
    });
    return DONE;
} catch (const std::bad_alloc&) {
    return OUT_OF_MEMORY;
}

}  // extern "C"
