// Stops by the abort callback: wherever they come, the state is as before the call, and decoding can continue.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <random>

#include "forward/batch_rows.h"
#include "support/faults.h"
#include "support/models.h"
#include "support/text.h"

namespace harp::testing {
namespace {

/// An abort callback that says stop from its k-th call on.
struct Abort {
    int64_t n_calls = 0;
    int64_t stop_at = std::numeric_limits<int64_t>::max();
    static bool callback(void * self) {
        auto & abort = *static_cast<Abort *>(self);
        return abort.n_calls++ >= abort.stop_at;
    }
    void arm(int64_t k) {
        n_calls = 0;
        stop_at = k;
    }
    void disarm() { arm(std::numeric_limits<int64_t>::max()); }
};

struct AbortCase {
    const char * name;
    Options options;
    bool unified;
};

class Aborts : public Faults, public ::testing::WithParamInterface<AbortCase> {};

TEST_P(Aborts, LeaveNoTraceWheneverTheyCome) {
    llama_context_params params = small_context(256);
    params.kv_unified = GetParam().unified;
    ForwardPass undisturbed(*model_, params, GetParam().options);
    Abort abort;
    params.abort_callback = &Abort::callback;
    params.abort_callback_data = &abort;
    ForwardPass pass(*model_, params, GetParam().options);

    // a prompt with logits at its end, single tokens, a piece with logits for all rows (like a draft), single tokens
    const std::vector<llama_pos> pieces{11, 12, 13, 14, 15, 16, 21, 22, 23, 24, 25, 26, 27, 28};
    std::mt19937 random(3);
    int n_aborted = 0;
    llama_pos begin = 0;
    for (const llama_pos end : pieces) {
        SCOPED_TRACE("rows " + std::to_string(begin) + " to " + std::to_string(end));
        const bool all_outputs = begin > 0;
        const std::vector<llama_token> tokens = text_of(begin, end);
        decode(undisturbed, tokens, begin, 0, all_outputs);
        const auto expected = rows_of_last_batch(undisturbed, end - begin);

        abort.disarm();  // the number of calls of the callback tells where a stop is possible
        bool is_decoded = false;
        for (int attempt = 0; attempt < 12 && !is_decoded; ++attempt) {
            abort.arm(std::uniform_int_distribution<int64_t>(0, attempt % 3 == 0 ? 60 : 700)(random));
            try {
                decode(pass, tokens, begin, 0, all_outputs);
                is_decoded = true;
            } catch (const Error & error) {
                ASSERT_EQ(error.code(), ErrorCode::aborted) << error.what();
                ++n_aborted;
                ASSERT_EQ(pass.check_invariant(), "") << "after a stop at call " << abort.stop_at;
                ASSERT_EQ(pass.memory_seq_pos_max(0), begin - 1);
                ASSERT_EQ(pass.logits(-1), nullptr);
            }
        }
        abort.disarm();
        if (!is_decoded) decode(pass, tokens, begin, 0, all_outputs);
        ASSERT_EQ(pass.check_invariant(), "");
        expect_same_steps(rows_of_last_batch(pass, end - begin), expected, LOGIT_TOLERANCE);
        if (HasFailure()) return;
        begin = end;
    }
    EXPECT_GT(n_aborted, 20);
    EXPECT_GT(pass.statistics().second_pass_rows, 0U);
}

INSTANTIATE_TEST_SUITE_P(Schedules, Aborts,
                         ::testing::Values(AbortCase{"Lazy", with_schedule(Schedule::lazy), false},
                                           AbortCase{"LazyUnified", with_schedule(Schedule::lazy), true},
                                           AbortCase{"Fused", with_schedule(Schedule::fused), false},
                                           AbortCase{"FusedUnified", with_schedule(Schedule::fused), true},
                                           AbortCase{"Automatic", with_schedule(Schedule::automatic), false},
                                           AbortCase{"Redraw1", with_schedule(Schedule::lazy, 1), false},
                                           AbortCase{"Redraw3Fused", with_schedule(Schedule::fused, 3), false},
                                           AbortCase{"TwoReframings", with_schedule(Schedule::lazy, 2, 2), false},
                                           AbortCase{"TwoReframingsFusedUnified", with_schedule(Schedule::fused, 0, 2),
                                                     true},
                                           AbortCase{"Generated",
                                                     [] {
                                                         Options options = with_schedule(Schedule::lazy);
                                                         options.scope = Scope::generated;
                                                         return options;
                                                     }(),
                                                     false},
                                           AbortCase{"GeneratedFusedUnified",
                                                     [] {
                                                         Options options = with_schedule(Schedule::fused);
                                                         options.scope = Scope::generated;
                                                         return options;
                                                     }(),
                                                     true}),
                         [](const auto & param_info) { return std::string(param_info.param.name); });

TEST_F(Faults, AnAbortLeavesTheOtherSequencesOfTheBatch) {
    llama_context_params params = small_context(512, 2);
    ForwardPass undisturbed(*model_, params, with_schedule(Schedule::lazy));
    Abort abort;
    params.abort_callback = &Abort::callback;
    params.abort_callback_data = &abort;
    ForwardPass pass(*model_, params, with_schedule(Schedule::lazy));
    const auto step = [](ForwardPass & p, llama_pos position) {
        forward::BatchRows rows;
        for (const llama_seq_id s : {0, 1}) rows.add(token_at(position + 3 * s), position, {&s, 1}, true);
        p.decode(rows.view());
    };
    for (llama_pos position = 0; position < 20; ++position) {
        step(undisturbed, position);
        const auto expected = rows_of_last_batch(undisturbed, 2);
        abort.arm(50 + 37 * position);
        try {
            step(pass, position);
        } catch (const Error & error) {
            ASSERT_EQ(error.code(), ErrorCode::aborted);
            ASSERT_EQ(pass.check_invariant(), "");
            abort.disarm();
            step(pass, position);
        }
        expect_same_steps(rows_of_last_batch(pass, 2), expected, LOGIT_TOLERANCE);
        if (HasFailure()) return;
    }
    EXPECT_EQ(pass.statistics().steps, undisturbed.statistics().steps) << "steps that came twice count once";
    EXPECT_EQ(pass.statistics().hesitations, undisturbed.statistics().hesitations);
}

TEST_F(Faults, AnAbortWhileTwinsArePreparedIsSaid) {
    for (const auto & file : {stories260k(), random_mamba()}) {
        SCOPED_TRACE(file.string());
        llama_model * model = load(file);
        if (model == nullptr) continue;
        llama_context_params params = small_context(256);
        Abort abort;
        params.abort_callback = &Abort::callback;
        params.abort_callback_data = &abort;
        Options options = with_schedule(Schedule::lazy);
        options.threshold = 1000;  // no step hesitates: all rows are pending
        ForwardPass pass(*model, params, options);
        decode(pass, text_of(0, 12), 0);
        abort.arm(5);
        EXPECT_EQ(code_of([&] { pass.prepare_twins(0); }), ErrorCode::aborted);
        abort.disarm();
        EXPECT_EQ(pass.check_invariant(), "");
        const llama_pos last = pass.memory_seq_pos_max(0);
        EXPECT_EQ(last, llama_model_is_recurrent(model) ? -1 : 11);
        decode(pass, text_of(last + 1, last + 5), last + 1);
        pass.prepare_twins(0);
        EXPECT_EQ(pass.check_invariant(), "");
    }
}

TEST_F(Faults, AnAbortedPromptIsStillThePrompt) {
    // with Scope::generated, rows up to the first output row are prompt, or up to the end that was set
    Options options = with_schedule(Schedule::lazy);
    options.scope = Scope::generated;
    options.threshold = 0;
    for (const bool end_is_set : {false, true}) {
        SCOPED_TRACE(end_is_set ? "prompt end set" : "first output row");
        for (const auto & [model, first_piece] : {std::pair{model_, 0}, {model_, 4}, {load(random_mamba()), 0}}) {
            if (model == nullptr) continue;
            const auto run = [&, model = model, first_piece = first_piece](bool is_disturbed) {
                llama_context_params params = small_context(256);
                Abort abort;
                params.abort_callback = &Abort::callback;
                params.abort_callback_data = &abort;
                ForwardPass pass(*model, params, options);
                if (end_is_set) pass.set_prompt_end(0, 8);
                if (first_piece > 0) {
                    forward::BatchRows rows;
                    const llama_seq_id id = 0;
                    for (llama_pos p = 0; p < first_piece; ++p) rows.add(token_at(p), p, {&id, 1}, false);
                    pass.decode(rows.view());
                }
                const auto rest = text_of(first_piece, 12);
                int n_aborted = 0;
                for (int64_t k = 20; is_disturbed && k < 2000; k += 20) {
                    abort.arm(k);
                    try {
                        decode(pass, rest, first_piece, 0, /*all_outputs=*/true);
                        break;
                    } catch (const Error & error) {
                        EXPECT_EQ(error.code(), ErrorCode::aborted);
                        ++n_aborted;
                    }
                }
                abort.disarm();
                EXPECT_EQ(n_aborted > 0, is_disturbed);
                if (!is_disturbed) decode(pass, rest, first_piece, 0, /*all_outputs=*/true);
                EXPECT_EQ(pass.check_invariant(), "");
                return rows_of_last_batch(pass, static_cast<int32_t>(rest.size()));
            };
            expect_same_steps(run(true), run(false), LOGIT_TOLERANCE);
        }
    }
}

TEST(RecurrentFaults, AnAbortSpoilsNoSequenceOutsideTheBatch) {
    for (const auto & path : {random_mamba(), random_hybrid()}) {
        HARP_REQUIRE_MODEL(model, path);
        SCOPED_TRACE(path.filename().string());
        ForwardPass pass(model, small_context(256, 3), Options()), undisturbed(model, small_context(), Options());
        pass.set_sequence_options(2, Options(), /*mask_family=*/0);
        read(undisturbed, 0, 8);
        const auto expected = go_on(undisturbed, 8, 11);
        Abort abort;
        llama_set_abort_callback(pass.context(), &Abort::callback, &abort);
        for (int64_t stop_at = 0;; stop_at += 5) {
            SCOPED_TRACE(stop_at);
            pass.memory_clear(true);
            abort.disarm();
            decode(pass, text_of(20, 28), 0, 0);
            read(pass, 0, 8, 2);  // between the two of the batch
            decode(pass, text_of(30, 38), 0, 1);
            forward::BatchRows rows;
            for (const llama_seq_id s : {0, 1}) rows.add(token_at(8), 8, {&s, 1}, /*is_output=*/true);
            abort.arm(stop_at);
            try {
                pass.decode(rows.view());
                break;
            } catch (const Error & error) {
                ASSERT_EQ(error.code(), ErrorCode::aborted) << error.what();
            }
            abort.disarm();
            ASSERT_EQ(pass.check_invariant(), "");
            if (pass.memory_seq_pos_max(2) < 0) read(pass, 0, 8, 2);  // it was emptied
            expect_same_steps(go_on(pass, 8, 11, 2), expected, LOGIT_TOLERANCE);
        }
    }
}

}  // namespace
}  // namespace harp::testing
