// Errors in the middle of work: each has a type, leaves the state as before the call, and decoding can continue.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <stdexcept>

#include "forward/batch_rows.h"
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

/// The code of the harp::Error that `call` throws; fails the test if it throws none.
template <typename Call>
ErrorCode code_of(Call && call, std::string * message = nullptr) {
    try {
        call();
    } catch (const Error & error) {
        if (message != nullptr) *message = error.what();
        return error.code();
    }
    ADD_FAILURE() << "no error";
    return ErrorCode::io;
}

Options with_schedule(Schedule schedule, uint32_t redraw = 0, uint32_t reframings = 1) {
    Options options;
    options.schedule = schedule;
    options.redraw = redraw;
    options.reframings = reframings;
    options.seed = 7;
    return options;
}

/// Logits and record of each of the last batch's `n` output rows.
std::vector<Step> rows_of_last_batch(ForwardPass & pass, int32_t n) {
    std::vector<Step> rows;
    for (int32_t i = 0; i < n; ++i) {
        if (pass.logits(i) != nullptr) rows.push_back({row(pass, i), pass.step(i)});
    }
    return rows;
}

class Faults : public ::testing::Test {
  protected:
    void SetUp() override {
        model_ = load(stories260k());
        if (model_ == nullptr) GTEST_SKIP() << "model not there: " << stories260k().string();
        llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);  // errors are expected here
    }
    llama_model * model_ = nullptr;
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

TEST_F(Faults, AContextThatIsFullTakesNothingOfTheBatch) {
    for (const bool unified : {false, true}) {
        for (const Schedule schedule : {Schedule::lazy, Schedule::fused}) {
            llama_context_params params = small_context(256);
            params.kv_unified = unified;
            Options options = with_schedule(schedule);
            options.threshold = 2.0;
            ForwardPass pass(*model_, params, options);
            const auto size = static_cast<llama_pos>(pass.n_ctx());
            ASSERT_EQ(size, 256);
            decode(pass, text_of(0, size - 2), 0, 0, /*all_outputs=*/true);  // the twin holds the same number of rows
            ForwardPass undisturbed(*model_, params, options);
            decode(undisturbed, text_of(0, size - 2), 0, 0, /*all_outputs=*/true);
            std::string message;
            EXPECT_EQ(code_of([&] { decode(pass, text_of(size - 2, size + 100), size - 2); }, &message),
                      ErrorCode::context_full);
            EXPECT_NE(message.find("n_ctx"), std::string::npos) << message;
            EXPECT_EQ(pass.check_invariant(), "");
            EXPECT_EQ(pass.memory_seq_pos_max(0), size - 3);
            EXPECT_EQ(pass.logits(-1), nullptr);
            for (llama_pos p = size - 2; p < size; ++p) {  // these take the last two cells
                decode(pass, {token_at(p)}, p);
                decode(undisturbed, {token_at(p)}, p);
                expect_same_steps(rows_of_last_batch(pass, 1), rows_of_last_batch(undisturbed, 1), LOGIT_TOLERANCE);
            }
            // once there is room, it continues
            ASSERT_TRUE(pass.memory_seq_rm(0, 100, -1));
            ASSERT_TRUE(undisturbed.memory_seq_rm(0, 100, -1));
            decode(pass, {token_at(7)}, 100);
            decode(undisturbed, {token_at(7)}, 100);
            EXPECT_EQ(pass.check_invariant(), "");
            expect_same_steps(rows_of_last_batch(pass, 1), rows_of_last_batch(undisturbed, 1), LOGIT_TOLERANCE);
        }
    }
}

TEST_F(Faults, AContextThatIsFullForTheTwinTakesNothingOfTheBatch) {
    // in a unified cache the clean stream can take cells that the twin needs at its first hesitation
    llama_context_params params = small_context(256);
    params.kv_unified = true;
    Options options = with_schedule(Schedule::lazy);
    ForwardPass pass(*model_, params, options);
    ForwardPass undisturbed(*model_, params, options);
    for (ForwardPass * p : {&pass, &undisturbed}) {
        Options never = options;
        never.threshold = std::numeric_limits<double>::infinity();
        p->set_sequence_options(0, never);
        decode(*p, text_of(0, 100), 0);
    }
    decode(pass, text_of(100, 300), 100);
    Options always = options;
    always.threshold = 0;
    for (ForwardPass * p : {&pass, &undisturbed}) p->set_sequence_options(0, always);
    EXPECT_EQ(code_of([&] { decode(pass, {token_at(300)}, 300); }), ErrorCode::context_full);
    EXPECT_EQ(pass.check_invariant(), "");
    EXPECT_EQ(pass.memory_seq_pos_max(0), 299);
    ASSERT_TRUE(pass.memory_seq_rm(0, 100, -1));
    for (llama_pos p = 100; p < 104; ++p) {
        decode(pass, {token_at(p)}, p);
        decode(undisturbed, {token_at(p)}, p);
        expect_same_steps(rows_of_last_batch(pass, 1), rows_of_last_batch(undisturbed, 1), LOGIT_TOLERANCE);
        EXPECT_TRUE(pass.step(-1).hesitated);
    }
    EXPECT_EQ(pass.check_invariant(), "");
}

TEST_F(Faults, BadBatchesAreRejectedAndLeaveNoTrace) {
    for (const Schedule schedule : {Schedule::lazy, Schedule::fused}) {
        ForwardPass pass(*model_, small_context(256, 2), with_schedule(schedule));
        ForwardPass undisturbed(*model_, small_context(256, 2), with_schedule(schedule));
        decode(pass, text_of(0, 11), 0);
        decode(undisturbed, text_of(0, 11), 0);
        const auto rejected = [&](ErrorCode code, const llama_batch & batch, const std::string & part) {
            std::string message;
            EXPECT_EQ(code_of([&] { pass.decode(batch); }, &message), code) << part;
            EXPECT_NE(message.find(part), std::string::npos) << message;
            EXPECT_EQ(pass.check_invariant(), "") << part;
            EXPECT_EQ(pass.logits(-1), nullptr);
        };
        std::vector<llama_token> tokens(pass.n_batch() + 1, 300);
        rejected(ErrorCode::invalid_batch, llama_batch_get_one(tokens.data(), 0), "empty");
        rejected(ErrorCode::invalid_batch, llama_batch_get_one(tokens.data(), static_cast<int32_t>(tokens.size())),
                 "n_batch");
        tokens[1] = 512;
        rejected(ErrorCode::invalid_batch, llama_batch_get_one(tokens.data(), 2), "token 512");
        std::vector<float> embeddings(64);
        llama_batch embedded = llama_batch_get_one(nullptr, 1);
        embedded.embd = embeddings.data();
        rejected(ErrorCode::invalid_batch, embedded, "pos is NULL");
        forward::BatchRows rows;
        const auto add = [&rows](llama_pos position, llama_seq_id id) { rows.add(300, position, {&id, 1}, true); };
        add(11, 0);
        add(0, 2);  // the id of a twin is not one of the caller's
        rejected(ErrorCode::invalid_batch, rows.view(), "sequence id 2");
        rows.clear();
        add(5, 0);
        rejected(ErrorCode::invalid_batch, rows.view(), "position 5");
        rows.clear();
        add(11, 0);
        add(13, 0);
        rejected(ErrorCode::invalid_batch, rows.view(), "llama_decode rejected");
        rows.clear();
        add(14, 0);
        rejected(ErrorCode::invalid_batch, rows.view(), "llama_decode rejected");

        for (llama_pos p = 11; p < 18; ++p) {
            decode(pass, {token_at(p)}, p);
            decode(undisturbed, {token_at(p)}, p);
            expect_same_steps(rows_of_last_batch(pass, 1), rows_of_last_batch(undisturbed, 1), LOGIT_TOLERANCE);
        }
    }
}

TEST_F(Faults, UnknownRowsHaveNoLogits) {
    for (const bool is_on : {true, false}) {
        ForwardPass pass(*model_, small_context(256),
                         is_on ? std::optional(with_schedule(Schedule::lazy)) : std::nullopt);
        if (is_on) {
            EXPECT_EQ(pass.logits(0), nullptr);  // before any batch
            EXPECT_EQ(pass.logits(-1), nullptr);
            EXPECT_EQ(code_of([&] { (void)pass.step(-1); }), ErrorCode::invalid_batch);
        }
        decode(pass, text_of(0, 11), 0);
        EXPECT_NE(pass.logits(10), nullptr);
        EXPECT_EQ(pass.logits(10), pass.logits(-1));
        for (const int32_t i : {0, 9, 11, -2, 1000, -1000}) {
            EXPECT_EQ(pass.logits(i), nullptr) << i;
            EXPECT_EQ(code_of([&] { (void)pass.step(i); }), ErrorCode::invalid_batch) << i;
        }
    }
}

TEST_F(Faults, ReframedLogitsThatAreNotNumbersAreAnError) {
    for (const Schedule schedule : {Schedule::lazy, Schedule::fused}) {
        for (const uint32_t reframings : {1U, 2U}) {
            SCOPED_TRACE(schedule == Schedule::lazy ? "lazy" : "fused");
            Options options = with_schedule(schedule, 0, reframings);
            options.threshold = 0;
            ForwardPass pass(*model_, small_context(256), options);
            decode(pass, text_of(0, 11), 0);  // from here on the twins are up to date
            pass.set_row_perturbation([](const RowToPerturb & where, std::span<float> row) {
                if (where.ordinal == 13) row[0] = std::nanf("");
            });
            decode(pass, text_of(11, 13), 11, 0, /*all_outputs=*/true);
            EXPECT_EQ(code_of([&] { decode(pass, {token_at(13)}, 13); }), ErrorCode::decode_failed);
            EXPECT_EQ(pass.check_invariant(), "");
            EXPECT_EQ(pass.memory_seq_pos_max(0), 12);
            pass.set_row_perturbation([](const RowToPerturb &, std::span<float>) {});
            decode(pass, {token_at(13)}, 13);  // with the perturbation giving numbers again, it continues
            for (const float x : row(pass)) ASSERT_TRUE(std::isfinite(x));
        }
    }
}

TEST_F(Faults, ACallersExceptionLeavesAPassThatCanBeUsed) {
    // row perturbations and observers may throw anything, also from other languages
    for (const Schedule schedule : {Schedule::lazy, Schedule::fused}) {
        SCOPED_TRACE(schedule == Schedule::lazy ? "lazy" : "fused");
        Options options = with_schedule(schedule);
        options.threshold = 0;
        ForwardPass pass(*model_, small_context(256), options);
        decode(pass, text_of(0, 11), 0);
        pass.set_row_perturbation([](const RowToPerturb &, std::span<float>) { throw std::domain_error("no"); });
        EXPECT_THROW(decode(pass, {token_at(11)}, 11), std::domain_error);
        EXPECT_EQ(pass.check_invariant(), "");
        EXPECT_EQ(pass.memory_seq_pos_max(0), 10);
        pass.set_row_perturbation(nullptr);
        decode(pass, {token_at(11)}, 11);
        pass.set_observer([](const StepObservation &) { throw std::domain_error("no"); });
        EXPECT_THROW(decode(pass, {token_at(12)}, 12), std::domain_error);
        EXPECT_EQ(pass.check_invariant(), "");
        EXPECT_EQ(pass.memory_seq_pos_max(0), 11);
        pass.set_observer(nullptr);
        decode(pass, {token_at(12)}, 12);

        ForwardPass undisturbed(*model_, small_context(256), options);
        decode(undisturbed, text_of(0, 11), 0);
        decode(undisturbed, {token_at(11)}, 11);
        decode(undisturbed, {token_at(12)}, 12);
        expect_same_steps(rows_of_last_batch(pass, 1), rows_of_last_batch(undisturbed, 1), LOGIT_TOLERANCE);
    }
}

TEST_F(Faults, MemoryThatOtherCallsHaveChangedIsNamed) {
    ForwardPass pass(*model_, small_context(256), with_schedule(Schedule::lazy));
    read(pass, 0, 8);
    llama_memory_clear(llama_get_memory(pass.context()), true);
    std::string message;
    EXPECT_EQ(code_of([&] { decode(pass, {token_at(8)}, 8); }, &message), ErrorCode::unsupported_call);
    EXPECT_NE(message.find("memory ends at position -1, the rows at 7"), std::string::npos) << message;
    pass.memory_clear(true);
    read(pass, 0, 8);
    decode(pass, {token_at(8)}, 8);
    EXPECT_EQ(pass.check_invariant(), "");
}

/// llama.cpp moves the recurrent states of all sequences while it computes a batch of some of them.
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
