// Saved state loaded into a pass in use, and damaged state: loading gives the same as into an empty pass, or is
// refused.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "support/text.h"

namespace harp::testing {
namespace {

Options with_threshold(double threshold) {
    Options options;
    options.threshold = threshold;
    options.seed = 7;
    return options;
}

struct StateCase {
    const char * name;
    std::filesystem::path (*path)();
    bool unified;
};

class SavedState : public ::testing::TestWithParam<StateCase> {
  protected:
    void SetUp() override {
        model_ = load(GetParam().path());
        if (model_ == nullptr) GTEST_SKIP() << "model not there: " << GetParam().path().string();
        llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);  // errors are expected here
    }
    /// Each step hesitates.
    [[nodiscard]] ForwardPass pass() const {
        llama_context_params params = small_context(256, 2);
        params.kv_unified = GetParam().unified;
        return {*model_, params, with_threshold(0)};
    }
    /// The steps after five tokens without output rows.
    [[nodiscard]] std::vector<Step> steps_after_five() const {
        ForwardPass p = pass();
        read(p, 0, 5);
        return go_on(p, 5, 12);
    }
    llama_model * model_ = nullptr;
};

TEST_P(SavedState, OfASequenceIsRestoredOverOneWhoseTwinIsInUse) {
    ForwardPass p = pass();
    read(p, 0, 5);
    const auto saved = p.state_seq_get(0);  // the twin holds nothing yet
    (void)go_on(p, 5, 7);
    ASSERT_GT(p.statistics().second_pass_rows, 0U);
    ASSERT_NO_THROW(p.state_seq_set(saved, 0));
    EXPECT_EQ(p.check_invariant(), "");
    EXPECT_EQ(p.memory_seq_pos_max(0), 4);
    expect_same_steps(go_on(p, 5, 12), steps_after_five(), LOGIT_TOLERANCE);
}

TEST_P(SavedState, OfASequenceIsRestoredOverALongerOne) {
    ForwardPass p = pass();
    read(p, 0, 5);
    (void)go_on(p, 5, 7);
    const auto saved = p.state_seq_get(0);
    const auto expected = go_on(p, 7, 20);
    ASSERT_NO_THROW(p.state_seq_set(saved, 0));
    EXPECT_EQ(p.memory_seq_pos_max(0), 6);
    expect_same_steps(go_on(p, 7, 20), expected, LOGIT_TOLERANCE);
}

TEST_P(SavedState, OfASequenceIsRestoredOverAnotherSequenceInUse) {
    ForwardPass p = pass();
    read(p, 0, 5);
    const auto saved = p.state_seq_get(0);
    (void)go_on(p, 0, 9, 1);  // the other sequence, whose twin holds all its rows
    p.set_sequence_options(1, with_threshold(0), /*mask_family=*/0);
    ASSERT_NO_THROW(p.state_seq_set(saved, 1));
    EXPECT_EQ(p.check_invariant(), "");
    EXPECT_EQ(p.memory_seq_pos_max(0), 4);
    EXPECT_EQ(p.memory_seq_pos_max(1), 4);
    expect_same_steps(go_on(p, 5, 12, 1), steps_after_five(), LOGIT_TOLERANCE);
    expect_same_steps(go_on(p, 5, 12, 0), steps_after_five(), LOGIT_TOLERANCE);
}

TEST_P(SavedState, OfAPassIsRestoredOverOneInUse) {
    ForwardPass p = pass();
    read(p, 0, 5);
    const auto saved = p.state_get();
    (void)go_on(p, 5, 7);
    (void)go_on(p, 0, 9, 1);
    ASSERT_NO_THROW(p.state_set(saved));
    EXPECT_EQ(p.check_invariant(), "");
    EXPECT_EQ(p.memory_seq_pos_max(0), 4);
    EXPECT_EQ(p.memory_seq_pos_max(1), -1);
    expect_same_steps(go_on(p, 5, 12), steps_after_five(), LOGIT_TOLERANCE);
}

/// With a KV stream for each sequence, `fused` puts a sequence's twins beside it, the other schedules behind all sequences.
TEST_P(SavedState, OfAPassWithAnotherOrderOfSequencesIsRefused) {
    llama_context_params params = small_context(256, 2);
    params.kv_unified = GetParam().unified;
    Options fused = with_threshold(0);
    fused.schedule = Schedule::fused;
    Options lazy = fused;
    lazy.schedule = Schedule::lazy;
    ForwardPass from(*model_, params, fused);
    read(from, 0, 5);
    ForwardPass to(*model_, params, lazy);
    if (GetParam().unified) {
        EXPECT_NO_THROW(to.state_set(from.state_get()));
        return;
    }
    try {
        to.state_set(from.state_get());
        ADD_FAILURE() << "not refused";
    } catch (const Error & error) {
        EXPECT_EQ(error.code(), ErrorCode::invalid_state);
    }
    EXPECT_EQ(to.memory_seq_pos_max(0), -1);
}

/// Offset of a token's id (as four bytes) where it first occurs in saved bytes; the end if it does not.
size_t offset_of_id(const std::vector<uint8_t> & state, llama_token token) {
    uint8_t bytes[sizeof(token)];
    std::memcpy(bytes, &token, sizeof(token));
    return static_cast<size_t>(std::search(state.begin(), state.end(), std::begin(bytes), std::end(bytes)) -
                               state.begin());
}

TEST_P(SavedState, WithAnIdThatIsNoTokenIsRefused) {
    ForwardPass p = pass();
    read(p, 0, 6);
    (void)go_on(p, 6, 9);
    const auto whole = p.state_seq_get(0);
    for (const llama_pos place : {1, 4, 8}) {
        const size_t at = offset_of_id(whole, token_at(place));
        ASSERT_LT(at + 4, whole.size());
        for (const size_t byte : {size_t{2}, size_t{3}}) {  // makes the id large, or negative by its highest bit
            auto damaged = whole;
            damaged[at + byte] = static_cast<uint8_t>(damaged[at + byte] ^ 0x80);
            try {
                p.state_seq_set(damaged, 0);
                ADD_FAILURE() << "not refused: id of place " << place << ", byte " << byte;
            } catch (const Error & error) {
                EXPECT_EQ(error.code(), ErrorCode::invalid_state) << error.what();
            }
            EXPECT_EQ(p.check_invariant(), "");
            EXPECT_EQ(p.memory_seq_pos_max(0), -1);
        }
    }
    p.state_seq_set(whole, 0);
    (void)go_on(p, 9, 12);
}

/// Flips bits in the description of the rows, which precedes llama.cpp's state. Either refused, or accepted and
/// decoding can continue.
TEST_P(SavedState, WithOneBitFlippedIsRefusedOrCanBeUsed) {
    ForwardPass p = pass();
    read(p, 0, 6);
    (void)go_on(p, 6, 9);
    const auto whole = p.state_seq_get(0);
    for (size_t at = 0; at < 160; ++at) {
        SCOPED_TRACE("byte " + std::to_string(at));
        for (const uint8_t bit : {uint8_t{0x01}, uint8_t{0x80}}) {
            auto damaged = whole;
            damaged[at] = static_cast<uint8_t>(damaged[at] ^ bit);
            try {
                p.state_seq_set(damaged, 0);
            } catch (const Error & error) {
                ASSERT_EQ(error.code(), ErrorCode::invalid_state) << error.what();
                ASSERT_EQ(p.memory_seq_pos_max(0), -1);
            }
            ASSERT_EQ(p.check_invariant(), "");
            ASSERT_NO_THROW(decode(p, {300}, p.memory_seq_pos_max(0) + 1));
            ASSERT_EQ(p.check_invariant(), "");
        }
    }
}

INSTANTIATE_TEST_SUITE_P(Models, SavedState,
                         ::testing::Values(StateCase{"Streams", stories260k, false},
                                           StateCase{"Unified", stories260k, true},
                                           StateCase{"Recurrent", random_mamba, false},
                                           StateCase{"Hybrid", random_hybrid, false},
                                           StateCase{"HybridUnified", random_hybrid, true}),
                         [](const auto & param_info) { return std::string(param_info.param.name); });

}  // namespace
}  // namespace harp::testing
