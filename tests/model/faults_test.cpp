// Errors in the middle of work: each has a type, leaves the state as before the call, and decoding can continue.
#include "support/faults.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <stdexcept>

#include "forward/batch_rows.h"
#include "support/models.h"
#include "support/text.h"

namespace harp::testing {
namespace {

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
}  // namespace
}  // namespace harp::testing
