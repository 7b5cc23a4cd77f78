// Partial states, which llama.cpp's server uses as checkpoints. They hold only what cannot be cut (a sliding window's
// cache, recurrent state). When one is restored and the caller has cut the rest, the sequence must continue as if it
// had never gone further.
#include <gtest/gtest.h>

#include "support/text.h"

namespace harp::testing {
namespace {

constexpr llama_pos CHECKPOINT = 280;  // more than 256, as BEYOND_WINDOW
constexpr llama_state_seq_flags PARTIAL = LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY;

struct PartialStateCase {
    const char * name;
    bool windowed;  // a sliding window that is exceeded; else recurrent layers and attention
    bool unified;
    Schedule schedule;
    double before, after;  // thresholds before and after the checkpoint, so that the twin is up to date there or not
};

class PartialState : public ::testing::TestWithParam<PartialStateCase> {
  protected:
    void SetUp() override {
        const auto path = GetParam().windowed ? random_windowed() : random_hybrid();
        model_ = load(path);
        if (model_ == nullptr) GTEST_SKIP() << "model not there: " << path.string();
    }
    [[nodiscard]] static Options options(double threshold) {
        Options options;
        options.threshold = threshold;
        options.schedule = GetParam().schedule;
        options.seed = 7;
        return options;
    }
    [[nodiscard]] ForwardPass pass() const {
        llama_context_params params = windowed_context();
        params.kv_unified = GetParam().unified;
        return {*model_, params, options(GetParam().before)};
    }
    /// Reads up to a checkpoint, with logits for the last step only.
    static void read_to_checkpoint(ForwardPass & p) {
        read(p, 0, CHECKPOINT - 1);
        (void)go_on(p, CHECKPOINT - 1, CHECKPOINT);
    }
    llama_model * model_ = nullptr;
};

TEST_P(PartialState, TakesASequenceBackToItsCheckpoint) {
    ForwardPass fresh = pass();
    read_to_checkpoint(fresh);
    fresh.set_sequence_options(0, options(GetParam().after));
    const auto expected = go_on(fresh, CHECKPOINT, CHECKPOINT + 8);

    ForwardPass p = pass();
    read_to_checkpoint(p);
    const auto saved = p.state_seq_get(0, PARTIAL);
    p.set_sequence_options(0, options(GetParam().after));
    for (int round = 0; round < 2; ++round) {  // a checkpoint can be used more than once
        const llama_pos next = p.memory_seq_pos_max(0) + 1;
        (void)go_on(p, next, next + 5);
        read(p, next + 5, BEYOND_WINDOW);
        ASSERT_NO_THROW(p.state_seq_set(saved, 0, PARTIAL));
        ASSERT_TRUE(p.memory_seq_rm(0, CHECKPOINT, -1));
        EXPECT_EQ(p.check_invariant(), "");
        EXPECT_EQ(p.memory_seq_pos_max(0), CHECKPOINT - 1);
        expect_same_steps(go_on(p, CHECKPOINT, CHECKPOINT + 8), expected, LONG_TOLERANCE);
    }
}

TEST_P(PartialState, IsFollowedByAnotherText) {
    // like a second question to the same prompt: places from BEYOND_WINDOW on, at positions from the checkpoint on
    const auto other_text = [&](ForwardPass & p) {
        return go_on(p, BEYOND_WINDOW, BEYOND_WINDOW + 6, 0, CHECKPOINT - BEYOND_WINDOW);
    };
    ForwardPass fresh = pass();
    read_to_checkpoint(fresh);
    fresh.set_sequence_options(0, options(GetParam().after));
    const auto expected = other_text(fresh);

    ForwardPass p = pass();
    read_to_checkpoint(p);
    const auto saved = p.state_seq_get(0, PARTIAL);
    p.set_sequence_options(0, options(GetParam().after));
    read(p, CHECKPOINT, BEYOND_WINDOW - 1);
    (void)go_on(p, BEYOND_WINDOW - 1, BEYOND_WINDOW);
    ASSERT_NO_THROW(p.state_seq_set(saved, 0, PARTIAL));
    ASSERT_TRUE(p.memory_seq_rm(0, CHECKPOINT, -1));
    expect_same_steps(other_text(p), expected, LONG_TOLERANCE);
}

TEST_P(PartialState, IsLoadedOverATextWhoseLastTokenIsAnother) {
    if (!GetParam().windowed) GTEST_SKIP() << "recurrent state holds the last token, so the server does not do this";
    // the text up to the checkpoint but for its last token, then the text from BEYOND_WINDOW on
    const auto other_text = [&](ForwardPass & p) {
        return go_on(p, BEYOND_WINDOW, BEYOND_WINDOW + 6, 0, CHECKPOINT - 1 - BEYOND_WINDOW);
    };
    ForwardPass fresh = pass();
    read(fresh, 0, CHECKPOINT - 1);
    fresh.set_sequence_options(0, options(GetParam().after));
    const auto expected = other_text(fresh);

    ForwardPass source = pass();
    read_to_checkpoint(source);
    if (!source.can_continue_at(0, CHECKPOINT - 1)) GTEST_SKIP() << "the window before the last token has moved on";
    const auto saved = source.state_seq_get(0, PARTIAL);

    ForwardPass p = pass();
    read(p, 0, CHECKPOINT - 1);
    p.set_sequence_options(0, options(GetParam().after));
    (void)other_text(p);
    const llama_pos next = p.memory_seq_pos_max(0) + 1;
    for (llama_pos place = next; place < BEYOND_WINDOW; place += 20) {  // far enough for the window to move on
        decode(p, text_of(place, std::min<llama_pos>(place + 20, BEYOND_WINDOW)), place, 0);
    }
    ASSERT_NO_THROW(p.state_seq_set(saved, 0, PARTIAL));
    EXPECT_EQ(p.check_invariant(), "");
    ASSERT_TRUE(p.memory_seq_rm(0, CHECKPOINT - 1, -1));
    EXPECT_EQ(p.memory_seq_pos_max(0), CHECKPOINT - 2);
    expect_same_steps(other_text(p), expected, LONG_TOLERANCE);
}

constexpr double ALWAYS = 0, NEVER = 50;  // bits

INSTANTIATE_TEST_SUITE_P(
    Models, PartialState,
    ::testing::Values(PartialStateCase{"Window", true, false, Schedule::lazy, ALWAYS, ALWAYS},
                      PartialStateCase{"WindowFused", true, false, Schedule::fused, ALWAYS, ALWAYS},
                      PartialStateCase{"WindowUnified", true, true, Schedule::lazy, ALWAYS, ALWAYS},
                      PartialStateCase{"WindowTwinBehind", true, false, Schedule::lazy, NEVER, ALWAYS},
                      PartialStateCase{"Hybrid", false, false, Schedule::lazy, ALWAYS, ALWAYS},
                      PartialStateCase{"HybridFused", false, false, Schedule::fused, ALWAYS, ALWAYS},
                      PartialStateCase{"HybridUnified", false, true, Schedule::lazy, ALWAYS, ALWAYS},
                      PartialStateCase{"HybridTwinBehind", false, false, Schedule::lazy, NEVER, ALWAYS},
                      PartialStateCase{"HybridTwinNeverUsedAgain", false, false, Schedule::lazy, ALWAYS, NEVER}),
    [](const auto & param_info) { return std::string(param_info.param.name); });

}  // namespace
}  // namespace harp::testing
