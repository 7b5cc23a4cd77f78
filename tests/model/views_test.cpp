// Views: the second pass gives what a plain context computes from the tokens of the view, with every schedule, batch
// and kind of memory; and prompts are not read twice.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "forward/batch_rows.h"
#include "method/mixing.h"
#include "support/text.h"

namespace harp::testing {
namespace {

constexpr llama_pos n_prompt = 12;
constexpr llama_pos n_text = 30;

struct ViewCase {
    const char * name;
    std::filesystem::path (*path)();
    bool is_unified;
};

class Views : public ::testing::TestWithParam<ViewCase> {
  protected:
    void SetUp() override {
        model_ = load(GetParam().path());
        if (model_ == nullptr) GTEST_SKIP() << "model not there: " << GetParam().path().string();
    }
    [[nodiscard]] ForwardPass pass(const std::optional<Options> & options, uint32_t n_sequences = 1) const {
        llama_context_params params = small_context(128 * n_sequences, n_sequences);
        params.kv_unified = GetParam().is_unified;
        return {*model_, params, options};
    }
    /// Options with which every step hesitates, and logits are those of the second pass.
    [[nodiscard]] static Options seen_by(View view, uint32_t view_tokens = 10) {
        Options options;
        options.threshold = 0;
        options.beta = 0;
        options.view = view;
        options.view_tokens = view_tokens;
        options.schedule = Schedule::lazy;
        return options;
    }
    /// The logits of a plain context after these tokens.
    [[nodiscard]] std::vector<float> plain(const std::vector<llama_token> & tokens) const {
        ForwardPass p = pass(std::nullopt);
        decode(p, tokens, 0);
        return row(p);
    }
    /// What the second pass should read to predict the token after the one at `place`.
    [[nodiscard]] static std::vector<llama_token> view_before(const Options & options, llama_pos place,
                                                              std::vector<llama_token> negative_prompt = {}) {
        if (options.view == View::last)
            return text_of(std::max(0, place + 1 - static_cast<llama_pos>(options.view_tokens)), place + 1);
        if (negative_prompt.empty()) negative_prompt = {token_at(n_prompt - 1)};
        const auto answer = text_of(n_prompt, std::max(n_prompt, place + 1));
        negative_prompt.insert(negative_prompt.end(), answer.begin(), answer.end());
        return negative_prompt;
    }
    void expect_views(const Options & options, const std::vector<Step> & steps,
                      const std::vector<llama_token> & negative_prompt = {}) const {
        for (size_t i = 0; i < steps.size(); ++i) {
            const llama_pos place = n_prompt - 1 + static_cast<llama_pos>(i);
            EXPECT_LT(largest_difference(steps[i].logits, plain(view_before(options, place, negative_prompt))),
                      LONG_TOLERANCE)
                << "after the token at " << place;
        }
    }
    /// Reads the prompt except its last token, then that token and the answer one by one.
    [[nodiscard]] static std::vector<Step> read_and_answer(ForwardPass & p, llama_pos end = n_text) {
        p.set_prompt_end(0, n_prompt);
        read(p, 0, n_prompt - 1);
        return go_on(p, n_prompt - 1, end);
    }
    llama_model * model_ = nullptr;
};

TEST_P(Views, GuidanceReadsTheAnswerBehindThePromptsLastToken) {
    const Options options = seen_by(View::guidance);
    ForwardPass p = pass(options);
    expect_views(options, read_and_answer(p));
    EXPECT_EQ(p.statistics().second_pass_rows, static_cast<uint64_t>(n_text - n_prompt + 1))
        << "each row once, the prompt never";
}

TEST_P(Views, GuidanceReadsANegativePromptInThePromptsPlace) {
    for (const size_t n : {size_t{3}, size_t{40}}) {  // shorter than the prompt, and longer
        const Options options = seen_by(View::guidance);
        const std::vector<llama_token> negative = text_of(60, 60 + static_cast<llama_pos>(n));
        ForwardPass p = pass(options);
        p.set_negative_prompt(0, negative);
        expect_views(options, read_and_answer(p), negative);
    }
}

TEST_P(Views, LastReadsTheLastTokensAnew) {
    for (const uint32_t n : {1U, 5U}) {
        const Options options = seen_by(View::last, n);
        ForwardPass p = pass(options);
        const auto steps = read_and_answer(p);
        expect_views(options, steps);
        EXPECT_EQ(p.statistics().second_pass_rows, steps.size() * n);
    }
    ForwardPass all = pass(seen_by(View::last, 100));  // more than there are rows
    (void)read_and_answer(all);
    EXPECT_EQ(all.statistics().second_pass_rows, 0U) << "it would see what the first pass saw";
}

TEST_P(Views, ManyRowsOfABatchAreAsOneByOne) {
    for (const Options & options : {seen_by(View::guidance), seen_by(View::last, 5), seen_by(View::masked)}) {
        ForwardPass single = pass(options);
        const auto expected = read_and_answer(single);
        ForwardPass batch = pass(options);
        batch.set_prompt_end(0, n_prompt);
        read(batch, 0, n_prompt - 1);
        decode(batch, text_of(n_prompt - 1, n_text), n_prompt - 1, 0, /*all_outputs=*/true);
        for (size_t i = 0; i < expected.size(); ++i) {
            EXPECT_LT(largest_difference(row(batch, static_cast<int32_t>(i)), expected[i].logits), LONG_TOLERANCE)
                << get_option(options, "view") << " " << i;
        }
    }
}

TEST_P(Views, FusedIsLazy) {
    for (const bool has_negative_prompt : {false, true}) {
        Options options = seen_by(View::guidance);
        const auto run = [&](Schedule schedule) {
            options.schedule = schedule;
            ForwardPass p = pass(options);
            if (has_negative_prompt) p.set_negative_prompt(0, text_of(60, 70));
            auto steps = read_and_answer(p);
            EXPECT_EQ(p.statistics().fused_steps > 0, schedule == Schedule::fused);
            return steps;
        };
        expect_same_steps(run(Schedule::lazy), run(Schedule::fused), LONG_TOLERANCE);
    }
}

TEST_P(Views, MaskedRowsAreZeroAndTheOthersClean) {
    Options options = seen_by(View::masked);
    options.strength = 0;
    ForwardPass clean = pass(options);
    ForwardPass off = pass(std::nullopt);
    expect_same_steps(read_and_answer(clean), read_and_answer(off), LONG_TOLERANCE);
    options.strength = 1;
    ForwardPass none = pass(options);
    const auto steps = read_and_answer(none);
    Options dropped = options;
    dropped.view = View::perturbed;  // dropout of all coordinates is the same
    ForwardPass reference = pass(dropped);
    expect_same_steps(steps, read_and_answer(reference), LONG_TOLERANCE);
    options.strength = 0.5;
    ForwardPass some = pass(options);
    const auto half = read_and_answer(some);
    double difference = 0;
    for (size_t i = 0; i < steps.size(); ++i)
        difference = std::max(difference, largest_difference(half[i].logits, steps[i].logits));
    EXPECT_GT(difference, 0.01);
}

TEST_P(Views, ContrastIsOfVanillaAndTheSecondPass) {
    Options options = seen_by(View::guidance);
    options.beta = 2.5;
    options.plausibility = 0.1F;
    ForwardPass p = pass(options);
    size_t n_mixed = 0;
    p.set_observer([&](const StepObservation & o) {
        if (o.reframed.empty()) return;
        std::vector<float> expected(o.vanilla.size());
        method::mix_logits(o.vanilla, o.reframed, {2.5F, 0.1F}, expected);
        EXPECT_TRUE(std::equal(expected.begin(), expected.end(), o.mixed.begin()));
        ++n_mixed;
    });
    (void)read_and_answer(p);
    EXPECT_EQ(n_mixed, static_cast<size_t>(n_text - n_prompt + 1));
}

TEST_P(Views, TheRatioGateComparesTheTwoBest) {
    Options options = seen_by(View::last, 5);
    options.gate = Gate::ratio;
    options.threshold = 0.5;
    ForwardPass p = pass(options);
    size_t n_hesitations = 0;
    p.set_observer([&](const StepObservation & o) {
        std::vector<float> sorted(o.vanilla.begin(), o.vanilla.end());
        std::partial_sort(sorted.begin(), sorted.begin() + 2, sorted.end(), std::greater<>());
        EXPECT_NEAR(o.record.ratio, std::exp(static_cast<double>(sorted[1] - sorted[0])), 1e-6);
        EXPECT_EQ(o.record.hesitated, o.record.ratio > 0.5);
        n_hesitations += o.record.hesitated ? 1 : 0;
    });
    const auto steps = read_and_answer(p);
    EXPECT_GT(n_hesitations, 0U);
    EXPECT_LT(n_hesitations, steps.size());
}

TEST_P(Views, RowsThatAreTakenBackLeaveNothing) {
    for (const Options & options : {seen_by(View::guidance), seen_by(View::last, 5)}) {
        ForwardPass p = pass(options);
        p.set_prompt_end(0, n_prompt);
        read(p, 0, n_prompt - 1);
        (void)go_on(p, n_prompt - 1, 20);
        if (!p.can_continue_at(0, 16) || !p.memory_seq_rm(0, 16, -1)) GTEST_SKIP() << "this memory cannot be cut";
        EXPECT_EQ(p.check_invariant(), "");
        const auto steps = go_on(p, 16, 24);
        for (size_t i = 0; i < steps.size(); ++i) {
            const llama_pos place = 16 + static_cast<llama_pos>(i);
            EXPECT_LT(largest_difference(steps[i].logits, plain(view_before(options, place))), LONG_TOLERANCE) << place;
        }
        ASSERT_TRUE(p.memory_seq_rm(0, 5, -1));  // into the prompt
        EXPECT_EQ(p.check_invariant(), "");
        read(p, 5, n_prompt - 1);
        expect_views(options, go_on(p, n_prompt - 1, 16));
    }
}

TEST_P(Views, StatesBringTwinsBack) {
    const Options options = seen_by(View::guidance);
    const std::vector<llama_token> negative = text_of(60, 65);
    ForwardPass p = pass(options);
    p.set_negative_prompt(0, negative);
    (void)read_and_answer(p, 20);
    const auto saved = p.state_seq_get(0);
    const auto expected = go_on(p, 20, 24);
    for (const bool same_negative_prompt : {true, false}) {
        ForwardPass other = pass(options);
        if (same_negative_prompt) other.set_negative_prompt(0, negative);
        other.state_seq_set(saved, 0);
        EXPECT_EQ(other.check_invariant(), "");
        const auto steps = go_on(other, 20, 24);
        if (same_negative_prompt) {
            expect_same_steps(steps, expected, LONG_TOLERANCE);
            EXPECT_EQ(other.statistics().second_pass_rows, 4U) << "what it had read is there";
        } else {
            EXPECT_LT(largest_difference(steps.back().logits, plain(view_before(options, 23))), LONG_TOLERANCE);
        }
    }
}

TEST_P(Views, CopiesGoOnAsTheirSource) {
    const Options options = seen_by(View::guidance);
    ForwardPass p = pass(options, 2);
    p.set_negative_prompt(0, text_of(60, 65));
    (void)read_and_answer(p, 20);
    p.memory_seq_cp(0, 1, -1, -1);
    EXPECT_EQ(p.check_invariant(), "");
    expect_same_steps(go_on(p, 20, 24, 1), go_on(p, 20, 24, 0), LONG_TOLERANCE);
}

TEST_P(Views, AConversationThatGoesOnHasALongerPrompt) {
    const Options options = seen_by(View::guidance);
    ForwardPass p = pass(options);
    p.set_prompt_end(0, 6);
    read(p, 0, 5);
    (void)go_on(p, 5, 9);
    p.set_prompt_end(0, n_prompt);
    read(p, 9, n_prompt - 1);
    expect_views(options, go_on(p, n_prompt - 1, 20));
}

TEST_P(Views, AChangeOfViewTakesEffectAtOnce) {
    Options options = seen_by(View::guidance);
    ForwardPass p = pass(options);
    (void)read_and_answer(p, 16);
    for (const View view : {View::last, View::guidance, View::perturbed, View::guidance}) {
        options.view = view;
        p.set_sequence_options(0, options);
        EXPECT_EQ(p.check_invariant(), "");
        const llama_pos place = p.memory_seq_pos_max(0) + 1;
        const auto steps = go_on(p, place, place + 1);
        if (view == View::perturbed) continue;
        EXPECT_LT(largest_difference(steps[0].logits, plain(view_before(options, place))), LONG_TOLERANCE);
    }
}

TEST_P(Views, FusedLeavesOutWhatTheViewDoesNotChange) {
    const auto prompt_row = [&](Options options, Schedule schedule) {
        options.schedule = schedule;
        ForwardPass p = pass(options);
        read(p, 0, 3);
        (void)go_on(p, 3, 4);           // the prompt ends here, as far as is known
        p.set_prompt_end(0, n_prompt);  // what comes next is prompt: there is nothing to see twice
        const auto steps = go_on(p, 4, 6);
        EXPECT_EQ(p.check_invariant(), "");
        return steps;
    };
    Options clean_prompt = seen_by(View::perturbed);
    clean_prompt.scope = Scope::generated;
    Options off = clean_prompt;
    off.threshold = std::numeric_limits<double>::infinity();
    const auto vanilla = prompt_row(off, Schedule::lazy);
    for (const Options & options : {seen_by(View::guidance), clean_prompt}) {
        for (const Schedule schedule : {Schedule::lazy, Schedule::fused}) {
            const auto steps = prompt_row(options, schedule);
            for (size_t i = 0; i < steps.size(); ++i) {
                EXPECT_LT(largest_difference(steps[i].logits, vanilla[i].logits), LONG_TOLERANCE)
                    << get_option(options, "view") << ", " << get_option(options, "schedule") << " " << i;
            }
        }
    }
}

TEST_P(Views, BadNegativePromptsAreRefused) {
    ForwardPass p = pass(seen_by(View::guidance));
    EXPECT_THROW(p.set_negative_prompt(0, {-1}), Error);
    EXPECT_THROW(p.set_negative_prompt(0, {p.n_vocab()}), Error);
    EXPECT_THROW(p.set_negative_prompt(0, std::vector<llama_token>(p.n_ctx_seq(), 1)), Error);
    EXPECT_THROW(p.set_negative_prompt(1, {1}), Error);
    EXPECT_NO_THROW(p.set_negative_prompt(0, {}));
}

INSTANTIATE_TEST_SUITE_P(
    Models, Views,
    ::testing::Values(ViewCase{"Stories", stories260k, false}, ViewCase{"StoriesUnified", stories260k, true},
                      ViewCase{"Windowed", random_windowed, false}, ViewCase{"WindowedUnified", random_windowed, true},
                      ViewCase{"Mamba", random_mamba, false}, ViewCase{"Hybrid", random_hybrid, false}),
    [](const auto & tested) { return std::string(tested.param.name); });

}  // namespace
}  // namespace harp::testing
