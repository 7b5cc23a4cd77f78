// A step is judged by the options that its sequence had when it was decoded, even if it is asked for later.
#include <gtest/gtest.h>

#include <limits>
#include <span>
#include <vector>

#include "support/text.h"

namespace harp::testing {
namespace {

TEST(Judgement, IsByTheOptionsOfTheDecode) {
    HARP_REQUIRE_MODEL(model, stories260k());
    Options never;
    never.threshold = std::numeric_limits<double>::infinity();
    ForwardPass pass(model, small_context(256), never);
    decode(pass, text_of(0, 12), 0);  // not judged at once, because it cannot hesitate
    const std::vector<float> logits = row(pass);
    Options always;
    always.threshold = 0;
    pass.set_sequence_options(0, always);
    const StepRecord record = pass.step(-1);
    EXPECT_GT(record.entropy, 0);
    EXPECT_FALSE(record.hesitated);
    EXPECT_EQ(row(pass), logits);

    decode(pass, {403}, 12);
    pass.set_sequence_options(0, never);
    EXPECT_TRUE(pass.step(-1).hesitated);
}

TEST(Judgement, DoesNotDependOnWhenItIsAskedFor) {
    HARP_REQUIRE_MODEL(model, stories260k());
    Options never;
    never.threshold = std::numeric_limits<double>::infinity();
    ForwardPass pass(model, small_context(256), never);
    decode(pass, text_of(0, 12), 0, 0, /*all_outputs=*/true);
    std::vector<double> entropies;
    for (int32_t i = 0; i < 12; ++i) entropies.push_back(pass.step(i).entropy);
    Options always;
    always.threshold = 0;
    pass.set_sequence_options(0, always);
    for (int32_t i = 0; i < 12; ++i) {
        EXPECT_EQ(pass.step(i).entropy, entropies[static_cast<size_t>(i)]);
        EXPECT_FALSE(pass.step(i).hesitated) << i;
    }
}

TEST(Judgement, HesitationsInsideThePromptDoNotCountForRedraw) {
    HARP_REQUIRE_MODEL(model, stories260k());
    const auto draws_of_answer = [&](bool all_outputs) {
        Options options;
        options.threshold = 0;
        options.redraw = 2;
        ForwardPass pass(model, small_context(256), options);
        std::vector<uint32_t> draws;
        pass.set_row_perturbation([&](const RowToPerturb & r, std::span<float>) {
            if (draws.empty() || draws.back() != r.draw) draws.push_back(r.draw);
        });
        if (all_outputs) pass.set_prompt_end(0, 10);
        decode(pass, text_of(0, 10), 0, 0, all_outputs);
        for (llama_pos position = 10; position < 16; ++position) {
            decode(pass, text_of(position, position + 1), position);
        }
        return draws;
    };
    EXPECT_EQ(draws_of_answer(false), (std::vector<uint32_t>{0, 1, 2, 3}));
    EXPECT_EQ(draws_of_answer(true), (std::vector<uint32_t>{0, 1, 2, 3}));
}

}  // namespace
}  // namespace harp::testing
