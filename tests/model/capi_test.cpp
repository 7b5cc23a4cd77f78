// The C API: the C++ pass under llama.h's names, plain contexts unchanged, errors as return values with a message.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <string>

#include "harp/harp.h"
#include "harp/registration.h"
#include "support/c_context.h"
#include "support/models.h"

namespace harp::testing {
namespace {

TEST_F(CApi, SecondPassesCanHaveLittleRoom) {
    harp_params params = harp_default_params();
    params.view = HARP_VIEW_LAST;
    ASSERT_TRUE(harp_set_default_params(&params));
    harp_set_default_n_ctx_twin(params.view_tokens);
    const Context context = create(small_context(1024));
    harp_set_default_n_ctx_twin(0);
    EXPECT_EQ(harp_n_ctx(context.get()), 1024U);
    EXPECT_EQ(llama_n_ctx(context.get()), 1280U) << "rounded up to 256";
    EXPECT_FALSE(harp_set_sequence_params(context.get(), 0, harp_default_params()));
    EXPECT_NE(std::string(harp_last_error()).find("n_ctx_twin"), std::string::npos) << harp_last_error();
    EXPECT_EQ(llama_n_ctx(create(small_context(1024)).get()), 2048U);
}

TEST_F(CApi, LittleRoomForSecondPassesLeavesTheBatchItsSize) {
    harp_params params = harp_default_params();
    params.view = HARP_VIEW_LAST;
    ASSERT_TRUE(harp_set_default_params(&params));
    harp_set_default_n_ctx_twin(params.view_tokens);
    llama_context_params of_context = small_context(500);
    of_context.n_batch = 500;
    const Context context = create(of_context);
    harp_set_default_n_ctx_twin(0);
    EXPECT_EQ(harp_n_batch(context.get()), 500U);
    EXPECT_EQ(decode(context.get(), std::vector<llama_token>(500, 300)), 0) << harp_last_error();
    EXPECT_EQ(harp_memory_seq_pos_max(llama_get_memory(context.get()), 0), 499);
}

TEST_F(CApi, GivesTheLogitsOfTheCppPass) {
    const Context context = create();
    const Continuation c = greedy_by_c(context.get(), 40);
    ForwardPass pass(*model_, small_context(256), options());
    const Continuation cpp = greedy(pass, once_upon_a_time, 40);
    EXPECT_EQ(c.logits, cpp.logits);
    ASSERT_EQ(c.records.size(), cpp.records.size());
    int n_hesitations = 0;
    for (size_t i = 0; i < c.records.size(); ++i) {
        EXPECT_EQ(c.records[i].entropy, cpp.records[i].entropy);
        EXPECT_EQ(c.records[i].hesitated, cpp.records[i].hesitated);
        n_hesitations += c.records[i].hesitated ? 1 : 0;
    }
    EXPECT_GT(n_hesitations, 0);
    EXPECT_EQ(find_pass(context.get())->check_invariant(), "");
}

TEST_F(CApi, ContextsAreTheCallers) {
    llama_context_params params = small_context(1024, 2);
    const Context context = create(params);
    EXPECT_EQ(harp_n_ctx(context.get()), 1024U);
    EXPECT_EQ(harp_n_ctx_seq(context.get()), 512U);
    EXPECT_EQ(harp_n_batch(context.get()), 512U);
    EXPECT_EQ(harp_n_seq_max(context.get()), 2U);
    EXPECT_EQ(llama_get_model(context.get()), model_);
}

TEST_F(CApi, PlainContextsPassThrough) {
    const llama_context_ptr plain(llama_init_from_model(model_, small_context(256)));
    const llama_context_ptr other(llama_init_from_model(model_, small_context(256)));
    EXPECT_EQ(find_pass(plain.get()), nullptr);
    EXPECT_EQ(harp_n_ctx(plain.get()), llama_n_ctx(plain.get()));
    EXPECT_EQ(harp_n_ctx_seq(plain.get()), llama_n_ctx_seq(plain.get()));
    EXPECT_EQ(harp_n_batch(plain.get()), llama_n_batch(plain.get()));
    EXPECT_EQ(harp_n_seq_max(plain.get()), llama_n_seq_max(plain.get()));
    const Continuation run = greedy_by_c(plain.get(), 10);
    EXPECT_TRUE(run.records.empty());
    std::vector<llama_token> next = once_upon_a_time;
    for (size_t i = 0; i < run.tokens.size(); ++i) {
        ASSERT_EQ(llama_decode(other.get(), llama_batch_get_one(next.data(), static_cast<int32_t>(next.size()))), 0);
        const float * logits = llama_get_logits_ith(other.get(), -1);
        ASSERT_EQ(run.logits[i], std::vector<float>(logits, logits + 512));
        next = {run.tokens[i]};
    }
    EXPECT_EQ(harp_get_logits(plain.get()), llama_get_logits(plain.get()));
    llama_memory_t memory = llama_get_memory(plain.get());
    EXPECT_EQ(harp_memory_seq_pos_max(memory, 0), 13);
    EXPECT_EQ(harp_memory_seq_pos_min(memory, 0), 0);
    EXPECT_TRUE(harp_memory_seq_rm(memory, 0, 10, -1));
    EXPECT_EQ(llama_memory_seq_pos_max(memory, 0), 9);
    EXPECT_EQ(harp_state_seq_get_size(plain.get(), 0), llama_state_seq_get_size(plain.get(), 0));
    harp_set_prompt_end(plain.get(), 0, 3);
    EXPECT_FALSE(harp_set_sequence_params(plain.get(), 0, harp_default_params()));
    EXPECT_STREQ(harp_last_error(), "this context has no HARP");
    harp_memory_clear(memory, true);
    EXPECT_EQ(llama_memory_seq_pos_max(memory, 0), -1);
    harp_free(llama_init_from_model(model_, small_context(256)));  // it accepts any context
}

TEST_F(CApi, HarpOffIsAPlainContext) {
    ASSERT_TRUE(harp_set_default_params(nullptr));
    const Context off = create();
    const llama_context_ptr plain(llama_init_from_model(model_, small_context(256)));
    EXPECT_EQ(greedy_by_c(off.get(), 10).logits, greedy_by_c(plain.get(), 10).logits);
    EXPECT_EQ(llama_n_ctx(off.get()), llama_n_ctx(plain.get()));
    EXPECT_FALSE(harp_set_negative_prompt(off.get(), 0, once_upon_a_time.data(), once_upon_a_time.size()));
    EXPECT_STREQ(harp_last_error(), "this context has no HARP");
}

TEST_F(CApi, DefaultsAreTheOptionTables) {
    const harp_params params = harp_default_params();
    const Options options;
    EXPECT_EQ(params.gate, HARP_GATE_ENTROPY);
    EXPECT_EQ(params.threshold, options.threshold);
    EXPECT_EQ(params.beta, options.beta);
    EXPECT_EQ(params.plausibility, options.plausibility);
    EXPECT_EQ(params.view, HARP_VIEW_PERTURBED);
    EXPECT_EQ(params.view_tokens, options.view_tokens);
    EXPECT_EQ(params.perturbation, HARP_PERTURBATION_DROPOUT);
    EXPECT_EQ(params.strength, options.strength);
    EXPECT_EQ(params.reframings, options.reframings);
    EXPECT_EQ(params.schedule, HARP_SCHEDULE_AUTO);
    EXPECT_EQ(params.redraw, options.redraw);
    EXPECT_EQ(params.scope, HARP_SCOPE_ALL);
    EXPECT_EQ(params.seed, options.seed);
    EXPECT_EQ(static_cast<int>(Gate::ratio), HARP_GATE_RATIO);
    EXPECT_EQ(static_cast<int>(View::masked), HARP_VIEW_MASKED);
    EXPECT_EQ(static_cast<int>(View::guidance), HARP_VIEW_GUIDANCE);
    EXPECT_EQ(static_cast<int>(View::last), HARP_VIEW_LAST);
    EXPECT_EQ(static_cast<int>(Perturbation::gaussian), HARP_PERTURBATION_GAUSSIAN);
    EXPECT_EQ(static_cast<int>(Schedule::lazy), HARP_SCHEDULE_LAZY);
    EXPECT_EQ(static_cast<int>(Scope::generated), HARP_SCOPE_GENERATED);
}

TEST_F(CApi, ANegativePromptChangesWhatGuidanceSubtracts) {
    harp_params params = harp_default_params();
    params.view = HARP_VIEW_GUIDANCE;
    params.threshold = 0;
    params.beta = 2.0F;
    const Context own = create();
    ASSERT_TRUE(harp_set_sequence_params(own.get(), 0, params));
    const auto guided = greedy_by_c(own.get(), 10);
    const Context other = create();
    ASSERT_TRUE(harp_set_sequence_params(other.get(), 0, params));
    const std::array<llama_token, 3> negative = {1, 300, 310};
    EXPECT_TRUE(harp_set_negative_prompt(other.get(), 0, negative.data(), negative.size()));
    EXPECT_NE(greedy_by_c(other.get(), 10).logits, guided.logits);
    const std::array<llama_token, 1> bad = {-7};
    EXPECT_FALSE(harp_set_negative_prompt(other.get(), 0, bad.data(), bad.size()));
    EXPECT_NE(std::string(harp_last_error()).find("-7"), std::string::npos);
    EXPECT_FALSE(harp_set_negative_prompt(other.get(), 0, nullptr, 1));
    EXPECT_TRUE(harp_set_negative_prompt(other.get(), 0, nullptr, 0));
}

TEST_F(CApi, ErrorsAreReturnValuesWithASentence) {
    const auto error_mentions = [](const std::string & part) {
        EXPECT_NE(std::string(harp_last_error()).find(part), std::string::npos) << harp_last_error();
    };
    harp_params bad = harp_default_params();
    bad.beta = 8.5F;
    EXPECT_FALSE(harp_set_default_params(&bad));
    error_mentions("beta");
    EXPECT_EQ(harp_init_from_model(nullptr, small_context()), nullptr);
    error_mentions("NULL");
    EXPECT_EQ(harp_init_from_model(model_, small_context(256, 200)), nullptr);
    error_mentions("n_seq_max");
    bad = harp_default_params();
    const int unknown = 17;  // a C program may write any number
    std::memcpy(&bad.perturbation, &unknown, sizeof(bad.perturbation));
    EXPECT_FALSE(harp_set_default_params(&bad));
    error_mentions("perturbation");

    const Context context = create();
    EXPECT_STREQ(harp_last_error(), "");  // a successful call clears it
    EXPECT_EQ(decode(context.get(), {}), -1);
    error_mentions("empty");
    EXPECT_EQ(decode(context.get(), {1, 9999}), -1);
    error_mentions("token 9999");
    std::vector<float> embeddings(64);
    llama_batch embedded = llama_batch_get_one(nullptr, 1);
    embedded.embd = embeddings.data();
    EXPECT_EQ(harp_decode(context.get(), embedded), -1);
    error_mentions("pos is NULL");
    EXPECT_EQ(harp_get_logits_ith(context.get(), 0), nullptr);
    harp_step step{};
    EXPECT_FALSE(harp_get_step(context.get(), 0, &step));
    error_mentions("row 0");
    EXPECT_FALSE(harp_set_sequence_params(context.get(), 5, harp_default_params()));
    error_mentions("sequence id 5");
    harp_params two = harp_default_params();
    two.reframings = 2;
    EXPECT_FALSE(harp_set_sequence_params(context.get(), 0, two));
    error_mentions("reframings");

    ASSERT_EQ(decode(context.get(), once_upon_a_time), 0);
    EXPECT_STREQ(harp_last_error(), "");
    EXPECT_TRUE(harp_get_step(context.get(), -1, &step));
    EXPECT_GT(step.entropy, 0.0);
    std::vector<llama_token> full(252, 300);
    EXPECT_EQ(decode(context.get(), full), 1);  // no room
    error_mentions("n_ctx");
    EXPECT_EQ(harp_memory_seq_pos_max(llama_get_memory(context.get()), 0), 4);
}

TEST_F(CApi, AnAbortIsTwo) {
    static bool stop = false;
    stop = false;
    llama_context_params params = small_context(256);
    params.abort_callback = [](void *) { return stop; };
    const Context context = create(params);
    stop = true;
    EXPECT_EQ(decode(context.get(), once_upon_a_time), 2);
    stop = false;
    EXPECT_EQ(decode(context.get(), once_upon_a_time), 0);
}

TEST_F(CApi, SequenceParamsHold) {
    const Context context = create();
    harp_params never = harp_default_params();
    never.threshold = std::numeric_limits<double>::infinity();
    ASSERT_TRUE(harp_set_sequence_params(context.get(), 0, never)) << harp_last_error();
    const llama_context_ptr plain(llama_init_from_model(model_, small_context(256)));
    EXPECT_EQ(greedy_by_c(context.get(), 10).logits, greedy_by_c(plain.get(), 10).logits);
}

TEST_F(CApi, PromptEndHolds) {
    const auto second_pass_rows = [&](bool is_set) {
        const Context context = create();
        harp_params params = harp_default_params();
        params.scope = HARP_SCOPE_GENERATED;
        params.threshold = 0;
        EXPECT_TRUE(harp_set_sequence_params(context.get(), 0, params));
        if (is_set) harp_set_prompt_end(context.get(), 0, 9);
        for (llama_token t = 300; t < 310; ++t) EXPECT_EQ(decode(context.get(), {t}), 0);
        return find_pass(context.get())->statistics().second_pass_rows;
    };
    EXPECT_EQ(second_pass_rows(true), 1U);
    EXPECT_EQ(second_pass_rows(false), 9U);
}

TEST_F(CApi, SamplersSeeTheMix) {
    harp_params params = harp_default_params();
    params.threshold = 0;
    ASSERT_TRUE(harp_set_default_params(&params));
    const Context context = create();
    llama_sampler_ptr greedy(llama_sampler_init_greedy());
    EXPECT_FALSE(harp_set_sampler(context.get(), 0, greedy.get())) << "in the graph it would sample before the mix";
    EXPECT_TRUE(harp_set_sampler(context.get(), 0, nullptr));
    std::vector<llama_token> tokens = once_upon_a_time;
    llama_batch batch = llama_batch_init(16, 0, 1);
    batch.n_tokens = static_cast<int32_t>(tokens.size());
    for (int32_t i = 0; i < batch.n_tokens; ++i) {
        batch.token[i] = tokens[static_cast<size_t>(i)];
        batch.pos[i] = i;
        batch.n_seq_id[i] = 1;
        batch.seq_id[i][0] = 0;
        batch.logits[i] = i % 2 == 0 ? 1 : 0;
    }
    ASSERT_EQ(harp_decode(context.get(), batch), 0) << harp_last_error();
    for (int32_t i = 0; i < batch.n_tokens; ++i) {
        const std::vector<float> logits = row(context.get(), i);
        const llama_token expected =
            logits.empty() ? LLAMA_TOKEN_NULL
                           : static_cast<llama_token>(std::max_element(logits.begin(), logits.end()) - logits.begin());
        EXPECT_EQ(harp_sampler_sample(greedy.get(), context.get(), i), expected) << "row " << i;
    }
    llama_batch_free(batch);
    llama_sampler_ptr temperature(llama_sampler_init_temp(0.5F));
    EXPECT_EQ(harp_sampler_sample(temperature.get(), context.get(), 0), LLAMA_TOKEN_NULL) << "it chooses nothing";
}

TEST_F(CApi, MemoryCallsReachTheTwins) {
    const Context context = create(small_context(512, 2));
    llama_memory_t memory = llama_get_memory(context.get());
    (void)greedy_by_c(context.get(), 12);
    const ForwardPass & pass = *find_pass(context.get());
    harp_memory_seq_cp(memory, 0, 1, -1, -1);
    EXPECT_STREQ(harp_last_error(), "");
    EXPECT_EQ(harp_memory_seq_pos_max(memory, 1), 15);
    EXPECT_TRUE(harp_memory_seq_rm(memory, 0, 4, 8));
    harp_memory_seq_add(memory, 0, 8, -1, -4);
    EXPECT_EQ(harp_memory_seq_pos_max(memory, 0), 11);
    EXPECT_EQ(pass.check_invariant(), "");
    harp_memory_seq_cp(memory, 0, 1, 0, 4);  // a part, which separate streams cannot copy
    EXPECT_NE(std::string(harp_last_error()), "");
    harp_memory_seq_div(memory, 0, 0, -1, 2);
    EXPECT_EQ(harp_memory_seq_pos_max(memory, 0), 5);
    harp_memory_seq_keep(memory, 0);
    EXPECT_EQ(harp_memory_seq_pos_max(memory, 1), -1);
    EXPECT_EQ(pass.check_invariant(), "");
    harp_memory_clear(memory, true);
    EXPECT_EQ(harp_memory_seq_pos_min(memory, 0), -1);
    EXPECT_EQ(pass.check_invariant(), "");
}

TEST_F(CApi, ProcessIsDecode) {
    const Context by_decode = create();
    const Context by_process = create();
    llama_batch_ext * batch = llama_batch_ext_init(by_process.get());
    std::vector<llama_token> next = once_upon_a_time;
    llama_pos position = 0;
    for (int step = 0; step < 20; ++step) {
        llama_batch_ext_clear(batch);
        for (const llama_token token : next) {
            const int32_t i = llama_batch_ext_add_token(batch, 0, token);
            ASSERT_GE(i, 0);
            llama_batch_ext_set_pos(batch, i, &position);
            ++position;
            llama_batch_ext_set_output_logits(batch, i, i + 1 == static_cast<int32_t>(next.size()));
        }
        ASSERT_EQ(decode(by_decode.get(), next), 0) << harp_last_error();
        ASSERT_EQ(harp_process(by_process.get(), LLAMA_PROCESS_TYPE_DECODE, batch), 0) << harp_last_error();
        ASSERT_EQ(row(by_process.get()), row(by_decode.get())) << step;
        const std::vector<float> logits = row(by_decode.get());
        next = {static_cast<llama_token>(std::max_element(logits.begin(), logits.end()) - logits.begin())};
    }
    EXPECT_GT(find_pass(by_process.get())->statistics().hesitations, 0U);
    // embedding rows work too
    llama_batch_ext_clear(batch);
    std::vector<float> embedding(64, 0.3F);
    const int32_t added = llama_batch_ext_add_embd(batch, 0, {embedding.data(), 1, 64});
    ASSERT_GE(added, 0);
    llama_batch_ext_set_pos(batch, added, &position);
    llama_batch_ext_set_output_logits(batch, added, true);
    ASSERT_EQ(harp_process(by_process.get(), LLAMA_PROCESS_TYPE_DECODE, batch), 0) << harp_last_error();
    llama_batch embedded{};
    embedded.n_tokens = 1;
    embedded.embd = embedding.data();
    embedded.pos = &position;
    ASSERT_EQ(harp_decode(by_decode.get(), embedded), 0) << harp_last_error();
    EXPECT_EQ(row(by_process.get()), row(by_decode.get()));
    llama_batch_ext_free(batch);
    // with plain contexts the calls are llama.cpp's

    const llama_context_ptr plain(llama_init_from_model(model_, small_context(256)));
    batch = llama_batch_ext_init(plain.get());
    position = 0;
    ASSERT_EQ(llama_batch_ext_add_token(batch, 0, 1), 0);
    llama_batch_ext_set_pos(batch, 0, &position);
    llama_batch_ext_set_output_logits(batch, 0, true);
    EXPECT_EQ(harp_process(plain.get(), LLAMA_PROCESS_TYPE_DECODE, batch), 0);
    EXPECT_NE(llama_get_logits_ith(plain.get(), 0), nullptr);
    llama_batch_ext_free(batch);
}

}  // namespace
}  // namespace harp::testing
