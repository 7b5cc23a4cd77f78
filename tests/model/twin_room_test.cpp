// Twins with less room than their sequence (n_ctx_twin): the same second passes in less memory; what has no room is
// refused, or ends the sequence as a full context does.
#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <optional>
#include <string>

#include "support/text.h"

namespace harp::testing {
namespace {

struct RoomCase {
    const char * name;
    std::filesystem::path (*path)();
};

class TwinRoom : public ::testing::TestWithParam<RoomCase> {
  protected:
    static constexpr llama_pos n_prompt = 12;
    static constexpr llama_pos n_text = 30;
    static constexpr uint32_t n_ctx = 512;

    void SetUp() override {
        model_ = load(GetParam().path());
        if (model_ == nullptr) GTEST_SKIP() << "model not there: " << GetParam().path().string();
    }
    [[nodiscard]] ForwardPass pass(const Options & options, uint32_t n_ctx_twin, uint32_t n_sequences = 1,
                                   bool is_unified = true) const {
        llama_context_params params = windowed_context(n_ctx, n_sequences);
        params.kv_unified = is_unified;
        return {*model_, params, options, n_ctx_twin};
    }
    [[nodiscard]] static Options seen_by(View view, Schedule schedule = Schedule::lazy) {
        Options options;
        options.threshold = 0;
        options.view = view;
        options.view_tokens = 5;
        options.schedule = schedule;
        return options;
    }
    [[nodiscard]] static Options clean_prompt(Schedule schedule = Schedule::lazy) {
        Options options = seen_by(View::perturbed, schedule);
        options.scope = Scope::generated;
        return options;
    }
    [[nodiscard]] static std::vector<Step> read_and_answer(ForwardPass & p, llama_pos end = n_text) {
        p.set_prompt_end(0, n_prompt);
        read(p, 0, n_prompt - 1);
        return go_on(p, n_prompt - 1, end);
    }
    [[nodiscard]] static std::optional<ErrorCode> refusal(const std::function<void()> & call) {
        try {
            call();
        } catch (const Error & error) {
            return error.code();
        }
        return std::nullopt;
    }
    llama_model * model_ = nullptr;
};

TEST_P(TwinRoom, SecondPassesAreTheSameInLessMemory) {
    for (const Schedule schedule : {Schedule::lazy, Schedule::fused}) {
        for (const Options & options :
             {seen_by(View::guidance, schedule), seen_by(View::last, schedule), clean_prompt(schedule)}) {
            const uint32_t room = options.view == View::last ? options.view_tokens : n_text - n_prompt + 1;
            ForwardPass whole = pass(options, 0);
            ForwardPass small = pass(options, room);
            expect_same_steps(read_and_answer(small), read_and_answer(whole), LONG_TOLERANCE);
            EXPECT_EQ(small.check_invariant(), "");
            EXPECT_EQ(small.n_ctx(), n_ctx);
            EXPECT_EQ(small.n_ctx_twin(), room);
            EXPECT_EQ(llama_n_ctx(whole.context()), 2 * n_ctx);
            EXPECT_LE(llama_n_ctx(small.context()), n_ctx + 256) << "llama.cpp rounds up to 256";
        }
    }
}

TEST_P(TwinRoom, ASequenceWhoseTwinIsFullIsFull) {
    constexpr llama_pos n_answer = 8;
    for (const bool has_negative_prompt : {false, true}) {
        for (const Options & options : {seen_by(View::guidance), clean_prompt()}) {
            const uint32_t n_before = has_negative_prompt ? 6 : 1;
            if (options.view != View::guidance && has_negative_prompt) continue;
            ForwardPass p =
                pass(options, static_cast<uint32_t>(n_answer) + (options.view == View::guidance ? n_before : 0));
            if (has_negative_prompt) p.set_negative_prompt(0, text_of(60, 66));
            (void)read_and_answer(p, n_prompt + n_answer);
            EXPECT_EQ(p.max_rows(0), static_cast<uint32_t>(n_prompt + n_answer));
            EXPECT_EQ(refusal([&] { (void)go_on(p, n_prompt + n_answer, n_prompt + n_answer + 1); }),
                      ErrorCode::context_full);
            EXPECT_EQ(p.check_invariant(), "");
            if (!p.can_continue_at(0, n_prompt + 4) || !p.memory_seq_rm(0, n_prompt + 4, -1)) continue;
            (void)go_on(p, n_prompt + 4, n_prompt + n_answer);  // there is room again
            Options off = options;
            off.threshold = std::numeric_limits<double>::infinity();
            p.set_sequence_options(0, off);
            EXPECT_EQ(p.max_rows(0), n_ctx);
            (void)go_on(p, n_prompt + n_answer, n_text);  // a sequence without second passes needs no twin
        }
    }
}

TEST_P(TwinRoom, TwinsThatBeginAnewShareACleanPromptAgain) {
    constexpr llama_pos n_long = 300;  // longer than what llama.cpp adds to round up
    const auto answer = [&](ForwardPass & p) {
        p.set_prompt_end(0, n_long);
        read(p, 0, n_long - 1);
        Options other = clean_prompt();
        p.set_sequence_options(0, other);
        (void)go_on(p, n_long - 1, n_long + 5);
        other.seed = 5;  // other masks: what the twins hold is of no use
        p.set_sequence_options(0, other);
        auto steps = go_on(p, n_long + 5, n_long + 15);
        EXPECT_EQ(p.check_invariant(), "");
        return steps;
    };
    ForwardPass whole = pass(clean_prompt(), 0);
    ForwardPass small = pass(clean_prompt(), 16);
    expect_same_steps(answer(small), answer(whole), LONG_TOLERANCE);
    const bool is_recurrent = llama_model_is_recurrent(model_) || llama_model_is_hybrid(model_);
    if (!is_recurrent) {
        EXPECT_LT(small.statistics().second_pass_rows, 50U) << "the prompt is not read again";
    }
}

TEST_P(TwinRoom, ALongerPromptDoesNotFillTheTwin) {
    ForwardPass p = pass(seen_by(View::guidance), 8);
    read(p, 0, 100);  // no output row yet: all of it is prompt
    (void)go_on(p, 100, 107);
    EXPECT_EQ(p.check_invariant(), "");
}

TEST_P(TwinRoom, SequencesHaveRoomEach) {
    ForwardPass p = pass(seen_by(View::last), 5, 3);
    EXPECT_EQ(p.n_ctx_seq(), n_ctx);
    for (llama_seq_id s = 0; s < 3; ++s) {
        read(p, 0, n_prompt, s);
        (void)go_on(p, n_prompt, n_text, s);
    }
    EXPECT_EQ(p.check_invariant(), "");
}

TEST_P(TwinRoom, WhatHasNoRoomIsRefused) {
    const auto creation = [&](const Options & options, uint32_t n_ctx_twin, uint32_t n_sequences, bool is_unified) {
        return refusal([&] { (void)pass(options, n_ctx_twin, n_sequences, is_unified); });
    };
    Options many = seen_by(View::last);
    many.view_tokens = 6;
    EXPECT_EQ(creation(seen_by(View::perturbed), 100, 1, true), ErrorCode::invalid_option);
    EXPECT_EQ(creation(seen_by(View::masked), n_ctx - 1, 1, true), ErrorCode::invalid_option);
    EXPECT_EQ(creation(many, 5, 1, true), ErrorCode::invalid_option);
    EXPECT_EQ(creation(seen_by(View::last), 5, 2, false), ErrorCode::invalid_option);
    EXPECT_EQ(creation(seen_by(View::last), 5, 1, false), std::nullopt) << "one sequence can share with its twin";
    EXPECT_EQ(creation(seen_by(View::last), std::numeric_limits<uint32_t>::max(), 1, true), std::nullopt)
        << "no more cells than the sequence has";

    ForwardPass p = pass(seen_by(View::last), 5);
    const auto change = [&](const Options & options) { return refusal([&] { p.set_sequence_options(0, options); }); };
    EXPECT_EQ(change(many), ErrorCode::invalid_option);
    EXPECT_EQ(change(seen_by(View::perturbed)), ErrorCode::invalid_option);
    EXPECT_EQ(p.sequence_options(0), seen_by(View::last)) << "as it was";
    EXPECT_EQ(change(seen_by(View::guidance)), std::nullopt);
    EXPECT_EQ(change(clean_prompt()), std::nullopt);
    Options vanilla = seen_by(View::perturbed);
    vanilla.beta = 1;
    EXPECT_EQ(change(vanilla), std::nullopt) << "it runs no second pass";
    EXPECT_EQ(refusal([&] { p.set_negative_prompt(0, text_of(0, 5)); }), ErrorCode::invalid_input);
    EXPECT_EQ(refusal([&] { p.set_negative_prompt(0, text_of(0, 4)); }), std::nullopt);
}

TEST(TwinRoomWithoutCache, IsNotUsed) {
    llama_model * model = load(random_mamba());
    ASSERT_NE(model, nullptr);
    ForwardPass p(*model, small_context(), Options{}, /*n_ctx_twin=*/5);
    EXPECT_EQ(p.n_ctx_twin(), p.n_ctx_seq());
}

INSTANTIATE_TEST_SUITE_P(Models, TwinRoom,
                         ::testing::Values(RoomCase{"Stories", stories260k}, RoomCase{"Windowed", random_windowed},
                                           RoomCase{"Hybrid", random_hybrid}),
                         [](const auto & tested) { return std::string(tested.param.name); });

}  // namespace
}  // namespace harp::testing
