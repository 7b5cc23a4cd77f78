// The laws with llama.cpp's defaults (a float16 KV cache, flash attention, several threads, batches of several
// micro-batches), with several sequences in a batch, a context beyond a sliding window, and two passes in two threads.
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <thread>

#include "forward/batch_rows.h"
#include "support/agreement.h"
#include "support/models.h"

namespace harp::testing {
namespace {

constexpr llama_seq_id N_SEQUENCES = 3;

/// The parameters of llama.cpp's programs on a small scale: the prompt has several micro-batches.
llama_context_params default_context(uint32_t n_ctx, bool is_unified) {
    llama_context_params params = llama_context_default_params();
    params.n_ctx = n_ctx;
    params.n_batch = 256;
    params.n_ubatch = 16;
    params.n_seq_max = N_SEQUENCES;
    params.kv_unified = is_unified;
    params.swa_full = false;
    params.n_threads = params.n_threads_batch = 2;
    return params;
}

Options options_with(Schedule schedule, double threshold) {
    Options options;
    options.schedule = schedule;
    options.threshold = threshold;
    options.seed = 7;
    return options;
}

llama_token token_of(llama_seq_id sequence, llama_pos position) {
    return position == 0 ? 1 : 259 + (position * position * 7 + 31 * sequence + 3) % 240;
}

/// One step of each sequence, decoded in one batch.
using StepOfAll = std::vector<std::vector<float>>;

/// Decodes prompts of different lengths, then steps of all sequences in one batch per step, or separately if
/// `is_alone`.
std::vector<StepOfAll> steps_of(ForwardPass & pass, int n_steps, bool is_alone = false) {
    const auto length = [](llama_seq_id s) { return 37 + 5 * s; };
    for (llama_seq_id s = 0; s < N_SEQUENCES; ++s) {
        std::vector<llama_token> prompt;
        for (llama_pos p = 0; p < length(s); ++p) prompt.push_back(token_of(s, p));
        decode(pass, prompt, 0, s);
    }
    std::vector<StepOfAll> steps;
    for (int step = 0; step < n_steps; ++step) {
        StepOfAll logits;
        forward::BatchRows rows;
        for (llama_seq_id s = 0; s < N_SEQUENCES; ++s) {
            const llama_pos position = length(s) + step;
            if (is_alone) {
                decode(pass, {token_of(s, position)}, position, s);
                logits.push_back(row(pass));
            } else {
                rows.add(token_of(s, position), position, {&s, 1}, true);
            }
        }
        if (!is_alone) {
            pass.decode(rows.view());
            for (int32_t s = 0; s < N_SEQUENCES; ++s) logits.push_back(row(pass, s));
        }
        EXPECT_EQ(pass.check_invariant(), "");
        steps.push_back(std::move(logits));
    }
    return steps;
}

Agreement agreement_of(const std::vector<StepOfAll> & a, const std::vector<StepOfAll> & b) {
    Agreement agreement;
    for (size_t i = 0; i < a.size(); ++i) {
        for (size_t s = 0; s < a[i].size(); ++s) agreement.add(a[i][s], b[i][s]);
    }
    return agreement;
}

struct DefaultsCase {
    const char * name;
    std::filesystem::path (*path)();
    bool is_unified;
    double most;  // nats; bound of the mean divergence if sums are added in another order
};

class Defaults : public ::testing::TestWithParam<DefaultsCase> {
  protected:
    void SetUp() override {
        model_ = load(GetParam().path());
        if (model_ == nullptr) GTEST_SKIP() << "model not there: " << GetParam().path().string();
    }
    [[nodiscard]] ForwardPass pass(const std::optional<Options> & options) const {
        return {*model_, default_context(128 * N_SEQUENCES, GetParam().is_unified), options};
    }
    static constexpr int N_STEPS = 4;
    static constexpr size_t N_COMPARED = N_STEPS * N_SEQUENCES;
    llama_model * model_ = nullptr;
};

constexpr double NEVER = std::numeric_limits<double>::infinity();

TEST_P(Defaults, WithoutHesitationTheLogitsAreThoseOfHarpOff) {
    ForwardPass off = pass(std::nullopt), never = pass(options_with(Schedule::lazy, NEVER));
    agreement_of(steps_of(off, N_STEPS), steps_of(never, N_STEPS)).expect(N_COMPARED, GetParam().most);
    EXPECT_EQ(never.statistics().second_pass_rows, 0U);
}

TEST_P(Defaults, LazyIsFused) {
    ForwardPass lazy = pass(options_with(Schedule::lazy, 0)), fused = pass(options_with(Schedule::fused, 0));
    agreement_of(steps_of(lazy, N_STEPS), steps_of(fused, N_STEPS)).expect(N_COMPARED, GetParam().most);
    EXPECT_GT(fused.statistics().fused_steps, 0U);
    EXPECT_EQ(lazy.statistics().fused_steps, 0U);
}

TEST_P(Defaults, HesitationsChangeMoreThanRoundingDoes) {
    ForwardPass off = pass(std::nullopt), always = pass(options_with(Schedule::lazy, 0));
    EXPECT_GT(agreement_of(steps_of(off, N_STEPS), steps_of(always, N_STEPS)).mean(), 3 * GetParam().most);
}

TEST_P(Defaults, WithoutPerturbationTheTwinIsTheCleanStream) {
    for (const Schedule schedule : {Schedule::lazy, Schedule::fused}) {
        Options options = options_with(schedule, 0);
        options.strength = 0;
        ForwardPass p = pass(options);
        Agreement agreement;
        p.set_observer([&](const StepObservation & o) { agreement.add(o.vanilla, o.reframed); });
        (void)steps_of(p, N_STEPS);
        agreement.expect(N_COMPARED, GetParam().most);
    }
}

TEST_P(Defaults, SequencesInOneBatchAreAsAlone) {
    for (const Schedule schedule : {Schedule::lazy, Schedule::fused}) {
        ForwardPass together = pass(options_with(schedule, 0)), alone = pass(options_with(schedule, 0));
        agreement_of(steps_of(together, N_STEPS), steps_of(alone, N_STEPS, /*is_alone=*/true))
            .expect(N_COMPARED, GetParam().most);
    }
}

TEST_P(Defaults, TwoPassesInTwoThreadsAreAsOneAfterTheOther) {
    const auto run = [&](uint64_t seed) {
        Options options = options_with(Schedule::lazy, 0);
        options.seed = seed;
        ForwardPass p = pass(options);
        return steps_of(p, N_STEPS);
    };
    const auto first = run(1), second = run(2);
    std::vector<StepOfAll> first_beside, second_beside;
    std::thread other([&] { second_beside = run(2); });
    first_beside = run(1);
    other.join();
    EXPECT_EQ(first_beside, first);
    EXPECT_EQ(second_beside, second);
    EXPECT_NE(first, second);
}

INSTANTIATE_TEST_SUITE_P(Models, Defaults,
                         ::testing::Values(DefaultsCase{"stories260K", stories260k, false, 1e-3},
                                           DefaultsCase{"stories260KUnified", stories260k, true, 1e-3},
                                           DefaultsCase{"SmolLM2Q4Unified", smollm2_q4, true, 0.02},
                                           DefaultsCase{"Gemma3Q4", gemma3_q4, false, 0.02},
                                           DefaultsCase{"RandomHybrid", random_hybrid, false, 1e-3},
                                           DefaultsCase{"RandomWindowed", random_windowed, true, 1e-3}),
                         [](const auto & param_info) { return std::string(param_info.param.name); });

/// Gemma with default settings: a window of 512 tokens, once exceeded, gives the same as a cache of all rows.
TEST(DefaultsBeyondAWindow, AreThoseOfACacheOfAllRows) {
    HARP_REQUIRE_MODEL(model, gemma3_q4());
    const auto steps = [&](bool keeps_all) {
        llama_context_params params = llama_context_default_params();
        params.n_ctx = 2048;
        params.n_batch = 512;
        params.n_ubatch = 128;
        params.n_threads = params.n_threads_batch = 2;
        params.swa_full = keeps_all;
        ForwardPass pass(model, params, options_with(Schedule::lazy, 0));
        constexpr llama_pos n_prompt = 850;  // the window's cache holds 768 rows
        forward::BatchRows rows;
        const llama_seq_id sequence = 0;
        for (llama_pos p = 0; p < n_prompt; ++p) {
            rows.add(token_of(0, p), p, {&sequence, 1}, /*is_output=*/false);
            if (rows.size() == 425) {
                pass.decode(rows.view());
                rows.clear();
            }
        }
        std::vector<StepOfAll> all;
        for (llama_pos p = n_prompt; p < n_prompt + 8; ++p) {
            decode(pass, {token_of(0, p)}, p);
            all.push_back({row(pass)});
        }
        EXPECT_EQ(pass.check_invariant(), "");
        EXPECT_EQ(pass.memory_seq_pos_min(0) > 0, !keeps_all);
        return all;
    };
    agreement_of(steps(false), steps(true)).expect(8, 0.02);
}

}  // namespace
}  // namespace harp::testing
