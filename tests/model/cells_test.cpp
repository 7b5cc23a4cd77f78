// Cells of the KV cache that sequences share, changes that llama.cpp makes at the next decode only, and gaps.
#include <gtest/gtest.h>

#include <array>
#include <limits>
#include <string>

#include "forward/batch_rows.h"
#include "support/text.h"

namespace harp::testing {
namespace {

class Cells : public ::testing::Test {
  protected:
    void SetUp() override {
        model_ = load(stories260k());
        if (model_ == nullptr) GTEST_SKIP() << "model not there: " << stories260k().string();
    }
    [[nodiscard]] ForwardPass pass(bool is_unified, const Options & options = {}) const {
        llama_context_params params = small_context(512, 3);
        params.kv_unified = is_unified;
        return {*model_, params, options};
    }
    /// Each step hesitates.
    [[nodiscard]] static Options always(View view = View::perturbed) {
        Options options;
        options.threshold = 0;
        options.view = view;
        options.schedule = Schedule::lazy;
        return options;
    }
    /// Removes rows 4 and 5 of a sequence, moves the rows after them down, and goes on from place 12 of the text.
    static std::vector<Step> shift_and_go_on(ForwardPass & p, llama_seq_id sequence) {
        EXPECT_TRUE(p.memory_seq_rm(sequence, 4, 6));
        p.memory_seq_add(sequence, 6, -1, -2);
        EXPECT_EQ(p.check_invariant(), "");
        return go_on(p, 12, 16, sequence, -2);
    }
    llama_model * model_ = nullptr;
};

/// Shared cells move for all that share them: a sequence that is shifted needs cells of its own, however it came to share
/// them.
TEST_F(Cells, ThatAreSharedAreNotMovedForOneSequence) {
    ForwardPass alone = pass(true);
    read(alone, 0, 12);
    const auto expected = go_on(alone, 12, 16);
    const auto expect_untouched = [&](ForwardPass & p, const char * how) {
        SCOPED_TRACE(how);
        (void)shift_and_go_on(p, 1);
        EXPECT_EQ(p.memory_seq_pos_max(0), 11);
        expect_same_steps(go_on(p, 12, 16), expected, LOGIT_TOLERANCE);
    };
    ForwardPass source = pass(true);
    read(source, 0, 12);
    source.memory_seq_cp(0, 1, -1, -1);
    const auto state = source.state_get();
    ForwardPass loaded = pass(true);
    loaded.state_set(state);
    expect_untouched(loaded, "a state of all");

    source.memory_seq_cp(2, 1, -1, -1);  // of nothing
    expect_untouched(source, "a copy of an empty sequence");

    ForwardPass both = pass(true);
    forward::BatchRows rows;
    constexpr std::array<llama_seq_id, 2> ids = {0, 1};
    for (llama_pos p = 0; p < 12; ++p) rows.add(token_at(p), p, ids, false);
    both.decode(rows.view());
    expect_untouched(both, "rows of two sequences");
}

/// llama.cpp applies a shift and copies a stream at the next decode. States, and copies that are made of states, are as if
/// it had done so at once.
TEST_F(Cells, ChangesThatArePendingAreInTheState) {
    Options never;
    never.threshold = std::numeric_limits<double>::infinity();
    for (const bool is_unified : {true, false}) {
        for (const Options & options : {never, always()}) {
            SCOPED_TRACE(is_unified ? "unified" : "streams");
            ForwardPass p = pass(is_unified, options);
            read(p, 0, 12);
            const auto round_trip = [](ForwardPass & q, llama_seq_id sequence) {
                const auto state = q.state_seq_get(sequence);
                ASSERT_TRUE(q.memory_seq_rm(sequence, -1, -1));
                q.state_seq_set(state, sequence);
            };
            ForwardPass shifted = pass(is_unified, options);
            read(shifted, 0, 12);
            const auto expected = shift_and_go_on(shifted, 0);

            ASSERT_TRUE(p.memory_seq_rm(0, 4, 6));
            p.memory_seq_add(0, 6, -1, -2);
            round_trip(p, 0);
            expect_same_steps(go_on(p, 12, 16, 0, -2), expected, LOGIT_TOLERANCE);

            ForwardPass copied = pass(is_unified, options);
            read(copied, 0, 12);
            const auto other = copied.state_seq_get(2);
            copied.memory_seq_cp(0, 1, -1, -1);
            round_trip(copied, 1);
            expect_same_steps(shift_and_go_on(copied, 1), expected, LOGIT_TOLERANCE);
            copied.memory_seq_rm(1, -1, -1);
            copied.memory_seq_rm(0, 12, -1);
            copied.memory_seq_cp(0, 1, -1, -1);
            copied.state_seq_set(other, 0);  // the copy must not come after this
            expect_same_steps(shift_and_go_on(copied, 1), expected, LOGIT_TOLERANCE);
        }
    }
}

TEST_F(Cells, TwoShiftsWithACopyBetweenThem) {
    Options never;
    never.threshold = std::numeric_limits<double>::infinity();
    ForwardPass expected = pass(true, never);
    read(expected, 0, 12);
    ForwardPass p = pass(true, never);
    read(p, 0, 12);
    for (ForwardPass * q : {&expected, &p}) {
        ASSERT_TRUE(q->memory_seq_rm(0, 8, 9));
        q->memory_seq_add(0, 9, -1, -1);
    }
    const auto steps = [](ForwardPass & q, llama_seq_id sequence) {
        EXPECT_TRUE(q.memory_seq_rm(sequence, 4, 6));
        q.memory_seq_add(sequence, 6, -1, -2);
        return go_on(q, 12, 16, sequence, -3);
    };
    p.memory_seq_cp(0, 1, -1, -1);
    expect_same_steps(steps(p, 1), steps(expected, 0), LOGIT_TOLERANCE);
}

/// llama.cpp cannot decode rows after a gap, so a twin that begins anew cannot read across one.
TEST_F(Cells, AGapIsRefusedByNameAndCanBeClosed) {
    for (const View view : {View::perturbed, View::masked, View::guidance, View::last}) {
        SCOPED_TRACE(static_cast<int>(view));
        Options later = always(view);
        later.threshold = std::numeric_limits<double>::infinity();
        ForwardPass p = pass(true, later);
        p.set_prompt_end(0, 2);
        read(p, 0, 12);
        ASSERT_TRUE(p.memory_seq_rm(0, 4, 6));
        p.set_sequence_options(0, always(view));
        try {
            decode(p, {token_at(12)}, 12);
            FAIL() << "was not refused";
        } catch (const Error & error) {
            EXPECT_EQ(error.code(), ErrorCode::unsupported_call);
            EXPECT_NE(std::string(error.what()).find("gap before position 6"), std::string::npos) << error.what();
        }
        EXPECT_EQ(p.check_invariant(), "");
        p.memory_seq_add(0, 6, -1, -2);
        EXPECT_EQ(go_on(p, 12, 14, 0, -2).size(), 2U);
    }
}

}  // namespace
}  // namespace harp::testing
