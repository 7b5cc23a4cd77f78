// Rows that do not come one by one in one sequence: many outputs in a batch, rows of several sequences, copies of
// recurrent states, sequences that do not begin at position 0. The second passes are as if they had.
#include <gtest/gtest.h>

#include <array>
#include <stdexcept>

#include "forward/batch_rows.h"
#include "support/text.h"

namespace harp::testing {
namespace {

/// Each step hesitates.
Options always() {
    Options options;
    options.threshold = 0;
    options.schedule = Schedule::lazy;
    return options;
}

/// The scale of uniform noise depends on the length at the first hesitation, which is none inside the prompt.
TEST(CopiedRows, UniformNoiseIsTheSameForManyOutputsInABatch) {
    HARP_REQUIRE_MODEL(model, stories260k());
    Options options = always();
    options.perturbation = Perturbation::uniform;
    options.strength = 5;
    ForwardPass one_by_one(model, small_context(), options), at_once(model, small_context(), options);
    for (ForwardPass * p : {&one_by_one, &at_once}) p->set_prompt_end(0, 6);
    const auto expected = go_on(one_by_one, 0, 12);
    decode(at_once, text_of(0, 12), 0, 0, /*all_outputs=*/true);
    for (int32_t i = 0; i < 12; ++i) {
        EXPECT_LE(largest_difference(row(at_once, i), expected[static_cast<size_t>(i)].logits), LOGIT_TOLERANCE) << i;
    }
}

TEST(CopiedRows, AHesitationOfSeveralSequencesCountsForEach) {
    HARP_REQUIRE_MODEL(model, stories260k());
    Options options = always();
    options.redraw = 1;
    llama_context_params params = small_context(512, 2);
    params.kv_unified = true;
    ForwardPass p(model, params, options);
    constexpr std::array<llama_seq_id, 2> ids = {0, 1};
    forward::BatchRows rows;
    for (llama_pos place = 0; place < 8; ++place) rows.add(token_at(place), place, ids, place == 7);
    p.decode(rows.view());
    ASSERT_TRUE(p.step(-1).hesitated);
    for (const llama_seq_id s : ids) {
        uint32_t draw = 0;
        p.set_row_perturbation([&](const RowToPerturb & where, std::span<float>) { draw = where.draw; });
        (void)go_on(p, 8, 9, s);
        EXPECT_EQ(draw, 1U) << "sequence " << s;
    }
}

/// A copied recurrent state is the same cell until one of the two is decoded.
TEST(CopiedRows, AMoveOfARecurrentCopyLeavesItsSourceAlone) {
    for (const auto & path : {random_mamba(), random_hybrid()}) {
        HARP_REQUIRE_MODEL(model, path);
        for (const Scope scope : {Scope::all, Scope::generated}) {
            SCOPED_TRACE(path.filename().string() + (scope == Scope::all ? ", all" : ", generated"));
            Options options = always();
            options.scope = scope;
            ForwardPass p(model, small_context(512, 2), options), alone(model, small_context(), options);
            for (ForwardPass * each : {&p, &alone}) read(*each, 0, 12);
            p.memory_seq_cp(0, 1, -1, -1);
            p.memory_seq_add(1, 0, -1, 5);
            EXPECT_EQ(p.check_invariant(), "");
            EXPECT_EQ(p.memory_seq_pos_max(0), 11);
            EXPECT_EQ(p.memory_seq_pos_max(1), 16);
            expect_same_steps(go_on(p, 12, 16), go_on(alone, 12, 16), LOGIT_TOLERANCE);
            EXPECT_EQ(go_on(p, 12, 16, 1, 5).size(), 4U);

            ForwardPass whole(model, small_context(), options);
            read(whole, 0, 12);
            whole.prepare_twins(0);
            whole.memory_seq_add(0, 0, -1, 5);
            EXPECT_EQ(whole.check_invariant(), "");
        }
    }
}

/// What a window does not hold because it was never there, or was removed on purpose, is not missing.
TEST(CopiedRows, AWindowBeginsWhereItsRowsDo) {
    HARP_REQUIRE_MODEL(model, random_windowed());
    ForwardPass p(model, windowed_context(), always());
    read(p, 0, 14);
    ASSERT_TRUE(p.memory_seq_rm(0, 0, 2));
    ASSERT_TRUE(p.memory_seq_rm(0, 4, 7));
    EXPECT_TRUE(p.can_continue_at(0, 12));
    EXPECT_TRUE(p.memory_seq_rm(0, 12, -1));
    EXPECT_EQ(p.memory_seq_pos_max(0), 11);
    p.set_observer([](const StepObservation &) { throw std::runtime_error("stop"); });
    Options never = always();
    never.threshold = 100;
    p.set_sequence_options(0, never);
    EXPECT_THROW(decode(p, {token_at(12)}, 12), std::runtime_error);
    EXPECT_EQ(p.memory_seq_pos_max(0), 11);  // nothing of the failed batch stays, and nothing else is lost
    EXPECT_EQ(p.check_invariant(), "");
}

/// A negative end is no prompt at all, also after a round trip through a state.
TEST(CopiedRows, APromptThatEndsBelowZeroStaysEmpty) {
    HARP_REQUIRE_MODEL(model, stories260k());
    Options options = always();
    options.scope = Scope::generated;
    ForwardPass p(model, small_context(), options);
    p.set_prompt_end(0, -1);
    p.state_seq_set(p.state_seq_get(0), 0);
    size_t n_perturbed = 0;
    p.set_row_perturbation([&](auto &&...) { ++n_perturbed; });
    decode(p, text_of(0, 6), 0);
    EXPECT_EQ(n_perturbed, 6U);
}

/// Where memory cannot go back, a part that ends there cannot be copied: it would have no window, or another state.
TEST(CopiedRows, APartThatMemoryCannotGoBackToIsRefused) {
    for (const auto & path : {random_windowed(), random_hybrid()}) {
        HARP_REQUIRE_MODEL(model, path);
        SCOPED_TRACE(path.filename().string());
        llama_context_params params = windowed_context(512, 2);
        params.kv_unified = true;
        ForwardPass p(model, params, always()), fresh(model, params, always());
        read(p, 0, BEYOND_WINDOW);
        EXPECT_THROW(p.memory_seq_cp(0, 1, 0, 100), Error);
        EXPECT_EQ(p.check_invariant(), "");
        EXPECT_EQ(p.memory_seq_pos_max(1), -1);
        llama_pos end = BEYOND_WINDOW;
        while (p.can_continue_at(0, end - 1)) --end;
        p.memory_seq_cp(0, 1, 0, end);
        read(fresh, 0, end);
        expect_same_steps(go_on(p, end, end + 4, 1), go_on(fresh, end, end + 4), LONG_TOLERANCE);
    }
}

}  // namespace
}  // namespace harp::testing
