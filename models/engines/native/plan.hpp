// The maps of an image and the threads' view of it, for the native engine (native.cpp).

#pragma once

#include "gates.hpp"

#include <map>
#include <tuple>

namespace {

struct Block {
    std::vector<Convolution> residual;
    std::vector<Convolution> projection;  // empty for an identity shortcut, otherwise one

    bool integers() const { return residual[0].integers; }
};

enum Role { IMAGE, STEM, OUTPUT, GATE_POOLED, GATE_HIDDEN, HIDDEN = GATE_HIDDEN + 8, QUANTIZED = 64 };

// The maps that an image uses, for one image size. An executed block adds to its shortcut in place.
struct Plan {
    struct Step {
        Map* quantized = nullptr;       // the input, for a block with integers
        std::vector<Map*> hidden;       // outputs of all residual convolutions except the last
        Map* output;                    // the input itself if the shortcut is the identity
        Map* gate_pooled = nullptr;
        std::vector<Map*> gate_hidden;  // for the gate that reads this block's output
    };
    std::map<std::tuple<int, int, int, int>, std::unique_ptr<Map>> maps;
    Map *image = nullptr, *stem = nullptr, *stem_pooled = nullptr;
    std::vector<Step> steps;
    // Channel sums of the blocks' outputs and of the gates' maps. They alternate, because a thread may still read the
    // last ones while another writes the next.
    Buffer sums[4];
    int parts = 1, row = 0;  // the most parts, and the floats of one

    // Maps of the same role and shape share memory, because they are never in use at the same time.
    Map* get(int role, int channels, int height, int width, int margin = 1) {
        auto& slot = maps[{role, channels, height, width}];
        if (!slot) slot = std::make_unique<Map>(channels, height, width, margin);
        return slot.get();
    }
    // Returns the map for a convolution's output. If `quantized`, it has 16-bit integers.
    Map* after(int role, const Convolution& c, const Map& in, bool quantized = false) {
        const int height = c.output_size(in.height), width = c.output_size(in.width);
        parts = std::max(parts, Bands::of(c, height, width).count);
        row = std::max(row, rounded(c.outputs, 2 * V));
        return get(role + (quantized ? QUANTIZED : 0), quantized ? c.outputs / 2 : c.outputs, height, width);
    }
};

struct Result {
    float *logits, *probability;
    uint8_t* executed;
    int32_t* convolutions;
};

// One thread's view of the image that it runs, alone or with others.
struct Run {
    Plan& plan;
    Workspace& space;
    Member member;
    Sums sums, gate_sums;  // of the current map, and of the last gate's last convolution
    int turn = 0, gate_turn = 0;

    Sums* next_sums() {
        sums = {plan.sums[turn ^= 1].get(), plan.row, 0};
        return &sums;
    }
    Sums* next_gate_sums() {
        gate_sums = {plan.sums[2 + (gate_turn ^= 1)].get(), plan.row, 0};
        return &gate_sums;
    }
    void convolve(const Convolution& c, const Map& in, const Target& target) {
        ::convolve(c, in, target, space, member);
        member.meet();
    }
    // Returns the channels' means over a map.
    const float* mean(const Sums& from, const Map& map) {
        const float scale = 1.0f / float(map.height * map.width);
        float* to = space.mean.get();
        for (int c = 0; c < map.channels; c += V) {
            Vector sum = load(from.part(0) + c);
            for (int i = 1; i < from.parts; ++i) sum += load(from.part(i) + c);
            store(to + c, sum * scale);
        }
        return to;
    }
};

}  // namespace
