// Laws that hold for any model, tested on the tiny model and on real ones if they are there.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "forward/batch_rows.h"
#include "support/agreement.h"
#include "support/models.h"

namespace harp::testing {
namespace {

struct LawCase {
    const char * name;
    std::filesystem::path (*path)();
    std::vector<llama_token> prompt;
    int n_tokens;
    double tolerance;   // of logits, between batch sizes and schedules, or
    double divergence;  // for quantised models: mean over the steps, nats
};

/// Compares the steps of two runs that must be the same.
class Comparison {
  public:
    explicit Comparison(const LawCase & tested) : tested_(tested) {}
    void add(const std::vector<float> & a, StepRecord ra, const std::vector<float> & b, StepRecord rb) {
        ++n_steps_;
        if (is_by_divergence()) {
            agreement_.add(a, ra, b, rb);
        } else {
            expect_same_step(a, ra, b, rb, tested_.tolerance);
        }
    }
    void add(const std::vector<float> & a, const std::vector<float> & b) { add(a, {}, b, {}); }
    /// Expects at least `least` steps, with entropies on both sides of the threshold in at most a quarter of them.
    void expect(size_t least) const {
        EXPECT_GE(n_steps_, least);
        if (is_by_divergence()) agreement_.expect(n_steps_ - n_steps_ / 4, tested_.divergence);
    }

  private:
    [[nodiscard]] bool is_by_divergence() const { return tested_.divergence > 0; }

    const LawCase & tested_;
    size_t n_steps_ = 0;
    Agreement agreement_;
};

class Laws : public ::testing::TestWithParam<LawCase> {
  protected:
    void SetUp() override {
#ifdef HARP_SANITIZED
        if (GetParam().divergence > 0)
            GTEST_SKIP() << "what is checked here is our code; the small models run all of it";
#endif
        model_ = load(GetParam().path());
        if (model_ == nullptr) GTEST_SKIP() << "model not there: " << GetParam().path().string();
    }
    ForwardPass pass(const std::optional<Options> & options, uint32_t n_seq_max = 1, bool unified = false) const {
        llama_context_params params = small_context(256 * n_seq_max, n_seq_max);
        params.kv_unified = unified;
        return {*model_, params, options};
    }
    Continuation run(const std::optional<Options> & options) const {
        ForwardPass p = pass(options);
        Continuation result = greedy(p, GetParam().prompt, GetParam().n_tokens);
        EXPECT_EQ(p.check_invariant(), "");
        return result;
    }
    static Options with(Schedule schedule) {
        Options options;
        options.schedule = schedule;
        options.seed = 7;
        return options;
    }
    /// Steps with other options on the text of the first run.
    [[nodiscard]] Continuation follow(const std::optional<Options> & options, const Continuation & first) const {
        ForwardPass p = pass(options);
        Continuation result;
        std::vector<llama_token> next = GetParam().prompt;
        llama_pos position = 0;
        for (const llama_token token : first.tokens) {
            decode(p, next, position);
            position += static_cast<llama_pos>(next.size());
            result.logits.push_back(row(p));
            result.records.push_back(p.step(-1));
            next = {token};
        }
        EXPECT_EQ(p.check_invariant(), "");
        return result;
    }
    llama_model * model_ = nullptr;
};

TEST_P(Laws, OffIsLlamaCppBitForBit) {
    llama_context_ptr plain(llama_init_from_model(model_, small_context(256)));
    const Continuation off = run(std::nullopt);
    std::vector<llama_token> next = GetParam().prompt;
    for (size_t i = 0; i < off.tokens.size(); ++i) {
        ASSERT_EQ(llama_decode(plain.get(), llama_batch_get_one(next.data(), static_cast<int32_t>(next.size()))), 0);
        const float * logits = llama_get_logits_ith(plain.get(), -1);
        ASSERT_EQ(off.logits[i], std::vector<float>(logits, logits + off.logits[i].size())) << "step " << i;
        next = {off.tokens[i]};
    }
}

TEST_P(Laws, InfiniteThresholdIsVanillaBitForBitWithoutASecondPass) {
    Options options = with(Schedule::fused);
    options.threshold = std::numeric_limits<double>::infinity();
    ForwardPass p = pass(options);
    EXPECT_EQ(greedy(p, GetParam().prompt, GetParam().n_tokens).logits, run(std::nullopt).logits);
    EXPECT_EQ(p.statistics().second_pass_rows, 0U);
}

TEST_P(Laws, BetaOneIsVanillaBitForBitWithoutASecondPass) {
    Options options = with(Schedule::fused);
    options.beta = 1.0F;
    ForwardPass p = pass(options);
    EXPECT_EQ(greedy(p, GetParam().prompt, GetParam().n_tokens).logits, run(std::nullopt).logits);
    EXPECT_EQ(p.statistics().second_pass_rows, 0U);
    EXPECT_GT(p.statistics().hesitations, 0U);  // still recorded
}

TEST_P(Laws, WithoutPerturbationTheTwinIsTheCleanStream) {
    for (const Schedule schedule : {Schedule::lazy, Schedule::fused}) {
        Options options = with(schedule);
        options.strength = 0.0F;
        ForwardPass p = pass(options);
        Comparison comparison(GetParam());
        p.set_observer([&](const StepObservation & o) {
            if (o.reframed.empty()) return;
            comparison.add({o.vanilla.begin(), o.vanilla.end()}, {o.reframed.begin(), o.reframed.end()});
        });
        (void)greedy(p, GetParam().prompt, GetParam().n_tokens);
        EXPECT_GT(p.statistics().second_pass_rows, 0U);
        comparison.expect(3);
    }
}

TEST_P(Laws, PerturbationChangesTheLogits) {
    const Continuation vanilla = run(std::nullopt);
    const Continuation harp = run(with(Schedule::lazy));
    EXPECT_NE(vanilla.logits, harp.logits);
}

TEST_P(Laws, LazyIsFused) {
    for (const uint32_t redraw : {0U, 3U}) {
        for (const uint32_t reframings : {1U, 3U}) {
            Options lazy = with(Schedule::lazy);
            lazy.redraw = redraw;
            lazy.reframings = reframings;
            Options fused = lazy;
            fused.schedule = Schedule::fused;
            const Continuation a = run(lazy), b = follow(fused, a);
            Comparison comparison(GetParam());
            for (size_t i = 0; i < a.logits.size(); ++i) {
                SCOPED_TRACE("step " + std::to_string(i));
                comparison.add(a.logits[i], a.records[i], b.logits[i], b.records[i]);
            }
            comparison.expect(static_cast<size_t>(GetParam().n_tokens));
        }
    }
}

TEST_P(Laws, SameSeedSameOutput) {
    EXPECT_EQ(run(with(Schedule::lazy)).logits, run(with(Schedule::lazy)).logits);
    Options other = with(Schedule::lazy);
    other.seed = 8;
    EXPECT_NE(run(with(Schedule::lazy)).logits, run(other).logits);
}

TEST_P(Laws, OneBatchOrTokenByToken) {
    const Continuation stepwise = run(with(Schedule::lazy));
    std::vector<llama_token> text = GetParam().prompt;
    text.insert(text.end(), stepwise.tokens.begin(), stepwise.tokens.end() - 1);
    for (const uint32_t redraw : {0U, 1U, 2U}) {
        Options options = with(Schedule::lazy);
        options.redraw = redraw;
        ForwardPass whole = pass(options);
        decode(whole, text, 0, 0, /*all_outputs=*/true);
        EXPECT_EQ(whole.check_invariant(), "");
        ForwardPass single = pass(options);
        Comparison comparison(GetParam());
        for (size_t i = 0; i < text.size(); ++i) {
            decode(single, {text[i]}, static_cast<llama_pos>(i));
            SCOPED_TRACE("position " + std::to_string(i) + " redraw " + std::to_string(redraw));
            const auto index = static_cast<int32_t>(i);
            comparison.add(row(whole, index), whole.step(index), row(single), single.step(-1));
        }
        comparison.expect(text.size());
    }
}

TEST_P(Laws, SequencesInOneBatchAreAsAlone) {
    // four sequences decoded together, each with its own text and options, for every layout of the cache
    std::vector<Options> options(4, with(Schedule::lazy));
    options[1].threshold = std::numeric_limits<double>::infinity();
    options[2].seed = 99;
    options[3].threshold = 0.5;
    std::vector<std::vector<llama_token>> texts(4, GetParam().prompt);
    for (size_t s = 0; s < 4; ++s) texts[s].push_back(static_cast<llama_token>(300 + s));
    std::vector<Continuation> alone;
    for (size_t s = 0; s < 4; ++s) {
        ForwardPass p = pass(options[s]);
        p.set_sequence_options(0, options[s], static_cast<uint32_t>(s));
        alone.push_back(greedy(p, texts[s], 12));
    }
    for (const bool unified : {false, true}) {
        for (const Schedule schedule : {Schedule::lazy, Schedule::fused}) {
            ForwardPass p = pass(with(schedule), 4, unified);
            Comparison comparison(GetParam());
            for (llama_seq_id s = 0; s < 4; ++s) {
                Options o = options[static_cast<size_t>(s)];
                o.schedule = schedule;
                p.set_sequence_options(s, o);
                decode(p, texts[static_cast<size_t>(s)], 0, s);
                const Continuation & other = alone[static_cast<size_t>(s)];
                comparison.add(row(p), p.step(-1), other.logits[0], other.records[0]);
            }
            for (size_t step = 1; step < 12; ++step) {
                forward::BatchRows rows;
                for (llama_seq_id s = 3; s >= 0; --s) {
                    const auto position = static_cast<llama_pos>(texts[static_cast<size_t>(s)].size() + step - 1);
                    rows.add(alone[static_cast<size_t>(s)].tokens[step - 1], position, {&s, 1}, true);
                }
                p.decode(rows.view());
                EXPECT_EQ(p.check_invariant(), "");
                for (int32_t i = 0; i < 4; ++i) {
                    SCOPED_TRACE("step " + std::to_string(step) + " row " + std::to_string(i) +
                                 (unified ? " unified" : " streams"));
                    const Continuation & other = alone[static_cast<size_t>(3 - i)];
                    comparison.add(row(p, i), p.step(i), other.logits[step], other.records[step]);
                }
            }
            comparison.expect(48);
        }
    }
}

TEST_P(Laws, RejectedRowsLeaveNoTrace) {
    // like speculation: three rows, of which two are taken back, then the right ones
    for (const uint32_t redraw : {0U, 2U}) {
        for (const Schedule schedule : {Schedule::lazy, Schedule::fused}) {
            Options options = with(schedule);
            options.redraw = redraw;
            ForwardPass straight = pass(options);
            const Continuation expected = greedy(straight, GetParam().prompt, 10);
            ForwardPass p = pass(options);
            decode(p, GetParam().prompt, 0);
            auto position = static_cast<llama_pos>(GetParam().prompt.size());
            Comparison comparison(GetParam());
            for (size_t i = 0; i + 1 < expected.tokens.size(); ++i) {
                const llama_token right = expected.tokens[i];
                decode(p, {right, 301, 302}, position, 0, /*all_outputs=*/true);
                SCOPED_TRACE("step " + std::to_string(i) + " redraw " + std::to_string(redraw));
                comparison.add(row(p, 0), p.step(0), expected.logits[i + 1], expected.records[i + 1]);
                if (!p.memory_seq_rm(0, position + 1, -1)) GTEST_SKIP() << "memory cannot be removed in part";
                ASSERT_EQ(p.check_invariant(), "");
                ++position;
            }
            comparison.expect(9);
        }
    }
}

TEST_P(Laws, OutputsThatAreNotUsefulAreSparedTheSecondPass) {
    Options options = with(Schedule::lazy);
    options.threshold = 0;  // each row hesitates
    const std::vector<llama_token> & prompt = GetParam().prompt;
    const std::vector<llama_token> drafted = {300, 301, 302, 303};
    const auto first = static_cast<llama_pos>(prompt.size());
    ForwardPass all = pass(options);
    decode(all, prompt, 0);
    decode(all, drafted, first, 0, /*all_outputs=*/true);
    ForwardPass off = pass(std::nullopt);
    decode(off, prompt, 0);
    decode(off, drafted, first, 0, /*all_outputs=*/true);

    ForwardPass p = pass(options);
    decode(p, prompt, 0);
    p.reset_statistics();
    std::vector<size_t> answers = {1, 3, 3};  // after the first row's second pass two more rows turn out to be useful
    std::vector<size_t> n_mixed;
    decode(p, drafted, first, 0, /*all_outputs=*/true, [&] {
        n_mixed.push_back(0);
        for (int32_t i = 0; i < 4; ++i) n_mixed.back() += static_cast<size_t>(row(p, i) != row(off, i));
        const size_t answer = answers.front();
        answers.erase(answers.begin());
        return answer;
    });
    EXPECT_EQ(n_mixed, (std::vector<size_t>{0, 1, 3}));
    EXPECT_EQ(p.statistics().second_pass_rows, 3U);
    Comparison comparison(GetParam());
    for (int32_t i = 0; i < 4; ++i) {
        SCOPED_TRACE("row " + std::to_string(i));
        EXPECT_TRUE(p.step(i).hesitated);
        comparison.add(row(p, i), row(i < 3 ? all : off, i));
    }
    EXPECT_EQ(p.check_invariant(), "");
    // a row without second pass is caught up on when the next one is wanted
    decode(p, {304}, first + 4);
    decode(all, {304}, first + 4);
    comparison.add(row(p), row(all));
    comparison.expect(5);
    EXPECT_EQ(p.check_invariant(), "");
}

TEST_P(Laws, VanillaLogitsAreKeptWhereTheyAreWanted) {
    const std::vector<llama_token> & prompt = GetParam().prompt;
    for (const Schedule schedule : {Schedule::lazy, Schedule::fused}) {
        Options options = with(schedule);
        options.threshold = 0;  // each row hesitates
        ForwardPass off = pass(std::nullopt);
        ForwardPass p = pass(options);
        decode(off, prompt, 0, 0, /*all_outputs=*/true);
        decode(p, prompt, 0, 0, /*all_outputs=*/true);
        EXPECT_EQ(p.vanilla_logits(-1), nullptr) << "mixed, and not kept";

        p.memory_clear(false);
        p.reset_statistics();
        p.keep_vanilla_logits(0, true);
        decode(p, prompt, 0, 0, /*all_outputs=*/true);
        double seconds = 0;
        Comparison comparison(GetParam());
        for (int32_t i = 0; i < static_cast<int32_t>(prompt.size()); ++i) {
            const float * kept = p.vanilla_logits(i);
            ASSERT_NE(kept, nullptr);
            const std::vector<float> vanilla(kept, kept + p.n_vocab());
            comparison.add(vanilla, row(off, i));
            EXPECT_NE(vanilla, row(p, i));
            EXPECT_GT(p.step(i).second_pass_seconds, 0);
            seconds += p.step(i).second_pass_seconds;
        }
        comparison.expect(prompt.size());
        EXPECT_NEAR(seconds, p.statistics().second_pass_seconds, 1e-9);

        options.threshold = std::numeric_limits<double>::infinity();
        p.set_sequence_options(0, options);
        p.memory_clear(false);
        decode(p, prompt, 0);
        EXPECT_EQ(p.vanilla_logits(-1), p.logits(-1)) << "nothing was mixed";
        EXPECT_EQ(p.step(-1).second_pass_seconds, 0);
        EXPECT_EQ(p.vanilla_logits(0), nullptr) << "no output row";
    }
}

TEST_P(Laws, GeneratedScopeLeavesThePromptClean) {
    for (const bool unified : {false, true}) {
        Options options = with(Schedule::lazy);
        options.scope = Scope::generated;
        ForwardPass p = pass(options, 1, unified);
        std::vector<uint32_t> perturbed;
        p.set_row_perturbation([&](const RowToPerturb & r, std::span<float>) { perturbed.push_back(r.ordinal); });
        (void)greedy(p, GetParam().prompt, GetParam().n_tokens);
        ASSERT_FALSE(perturbed.empty());
        EXPECT_GE(*std::min_element(perturbed.begin(), perturbed.end()), GetParam().prompt.size());
        // the prompt was not decoded again for the twin
        EXPECT_LE(p.statistics().second_pass_rows, static_cast<uint64_t>(GetParam().n_tokens));
        EXPECT_EQ(p.check_invariant(), "");
    }
}

TEST_P(Laws, StateRoundTrip) {
    for (const Schedule schedule : {Schedule::lazy, Schedule::fused}) {
        Options options = with(schedule);
        options.redraw = 4;
        ForwardPass p = pass(options);
        const Continuation first = greedy(p, GetParam().prompt, 9);
        const auto sequence = p.state_seq_get(0);
        const auto all = p.state_get();
        const auto position = static_cast<llama_pos>(GetParam().prompt.size() + first.tokens.size() - 1);
        const auto go_on = [&](ForwardPass & q) {
            EXPECT_EQ(q.check_invariant(), "");
            std::vector<float> all_rows;
            for (llama_pos i = 0; i < 6; ++i) {
                decode(q, {static_cast<llama_token>(310 + i)}, position + i);
                const auto r = row(q);
                all_rows.insert(all_rows.end(), r.begin(), r.end());
            }
            return all_rows;
        };
        const auto expected = go_on(p);
        ForwardPass q = pass(options);
        q.state_seq_set(sequence, 0);
        EXPECT_EQ(go_on(q), expected);
        ForwardPass r = pass(options);
        r.state_set(all);
        EXPECT_EQ(go_on(r), expected);
        // damaged state is refused and leaves an empty, usable pass
        for (const size_t cut : {size_t{0}, size_t{3}, size_t{40}, sequence.size() / 2, sequence.size() - 1}) {
            EXPECT_THROW(r.state_seq_set(std::span(sequence).first(cut), 0), Error) << cut;
            EXPECT_EQ(r.check_invariant(), "");
            EXPECT_EQ(r.memory_seq_pos_max(0), -1);
        }
        EXPECT_THROW(r.state_set(std::span(all).first(all.size() / 3)), Error);
        (void)greedy(r, GetParam().prompt, 3);
    }
}

INSTANTIATE_TEST_SUITE_P(
    Models, Laws,
    ::testing::Values(LawCase{"stories260K", stories260k, once_upon_a_time, 40, 2e-4, 0},
                      LawCase{
                          "SmolLM2Q4", smollm2_q4, {1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47}, 14, 0, 0.02},
                      LawCase{"Gemma3Q4", gemma3_q4, {2, 818, 5279, 529, 7001, 563}, 14, 0, 0.02},
                      LawCase{"RandomMamba", random_mamba, once_upon_a_time, 14, 2e-4, 0},
                      LawCase{"RandomHybrid", random_hybrid, once_upon_a_time, 14, 2e-4, 0},
                      LawCase{"RandomWindowed", random_windowed, once_upon_a_time, 40, 5e-3, 0}),
    [](const auto & param_info) { return std::string(param_info.param.name); });

}  // namespace
}  // namespace harp::testing
