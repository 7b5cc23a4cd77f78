// Generation of many texts: one loop for one answer or several, speculation, kept prefixes, full caches,
// faults.
#include "decoding/generate.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>

#include "common.h"
#include "method/entropy.h"
#include "support/models.h"
#include "support/pool.h"

namespace harp::testing {
namespace {

using decoding::Drafter;
using decoding::GeneratedToken;
using decoding::GenerationResult;
using decoding::Generator;
using decoding::Request;
using decoding::StopReason;

decoding::Sampler greedy_sampler(const llama_model & model) {
    common_params_sampling params;
    params.temp = 0;
    return {model, params};
}

/// Temperature 0 takes the most probable token (the first of equals) with any other settings, except those that change
/// logits or may remove the best token.
TEST(Sampling, WithoutTemperature) {
    llama_model * model = load(stories260k());
    if (model == nullptr) GTEST_SKIP() << "stories260K not there";
    const auto n_vocab = static_cast<size_t>(llama_vocab_n_tokens(llama_model_get_vocab(model)));
    std::vector<float> logits(n_vocab);
    for (size_t i = 0; i < n_vocab; ++i) logits[i] = static_cast<float>(i * 37 % 91) / 10;
    const llama_token best = 340, next = 350;
    logits[best] = logits[best + 1] = 10;
    logits[next] = 9.9F;
    struct Case {
        const char * name;
        void (*set)(common_params_sampling &);
        llama_token expected;
    };
    const Case cases[] = {
        {"nothing", [](auto &) {}, best},
        {"the usual limits", [](auto & p) { p.top_k = 40, p.top_p = 0.5F, p.min_p = 0.2F, p.top_n_sigma = 1; }, best},
        {"other order", [](auto & p) { std::ranges::reverse(p.samplers); }, best},
        {"a bias",
         [](auto & p) {
             p.logit_bias = {{350, 5.0F}};
         },
         next},
        {"repetition", [](auto & p) { p.penalty_repeat = 2; }, next},
        {"presence", [](auto & p) { p.penalty_present = 5; }, next},
        {"frequency", [](auto & p) { p.penalty_freq = 5; }, next},
    };
    for (const Case & c : cases) {
        SCOPED_TRACE(c.name);
        common_params_sampling params;
        params.temp = 0;
        c.set(params);
        decoding::Sampler sampler(*model, params);
        for (const llama_token token : {best, best + 1}) sampler.accept(token);  // so they would be repetitions
        EXPECT_EQ(sampler.clone().sample(logits), c.expected);
    }
    common_params_sampling params;
    params.temp = 0;
    params.grammar = {COMMON_GRAMMAR_TYPE_USER, "root ::= [x]"};
    const llama_token token = decoding::Sampler(*model, params).sample(logits);
    EXPECT_EQ(common_token_to_piece(llama_model_get_vocab(model), token), "x");
}

common_params look_up() {
    common_params params;
    params.speculative.types = {COMMON_SPECULATIVE_TYPE_NGRAM_SIMPLE};
    params.speculative.ngram_simple.size_n = 2;
    params.speculative.ngram_simple.size_m = 6;
    return params;
}

using Tokens = std::vector<llama_token>;

/// Generates one answer. @return its tokens
Tokens answer(Generator & generator, const llama_model & model, const Tokens & prompt, int n,
              bool reuses_prefix = false, const std::function<void(size_t, size_t)> & on_prompt = {}) {
    Tokens tokens;
    generator.answer(
        {.prompt = prompt, .limits = {n, {}}, .sampler = greedy_sampler(model), .reuses_prefix = reuses_prefix},
        [&](const GeneratedToken & token) {
            tokens.push_back(token.id);
            return true;
        },
        on_prompt);
    return tokens;
}

struct Answers {
    std::map<size_t, Tokens> tokens;
    std::map<size_t, GenerationResult> results;
};

/// Runs batches until everything is answered; the test fails if that does not end.
Answers run(Generator & generator) {
    Answers answers;
    for (int step = 0; step < 5000 && !generator.is_idle(); ++step) {
        generator.next_batch(
            {.on_token =
                 [&](size_t request, const GeneratedToken & token) {
                     answers.tokens[request].push_back(token.id);
                     return true;
                 },
             .on_result = [&](size_t request, const GenerationResult & result) { answers.results[request] = result; }});
    }
    EXPECT_TRUE(generator.is_idle());
    return answers;
}

std::vector<float> log_probabilities(std::vector<float> logits) {
    const double log_sum_exp = method::summarise_softmax(logits).log_sum_exp;
    for (float & logit : logits) logit = static_cast<float>(static_cast<double>(logit) - log_sum_exp);
    return logits;
}

TEST(Generation, SamplesFromTheRowsOfAPassThatIsInNoRegistry) {
    HARP_REQUIRE_MODEL(model, stories260k());
    ForwardPass reference(model, small_context(), hesitant());
    const auto expected = greedy(reference, once_upon_a_time, 40);
    ASSERT_GT(reference.statistics().hesitations, 10U);

    ForwardPass pass(model, small_context(), hesitant());
    Generator generator(pass);
    EXPECT_EQ(answer(generator, model, once_upon_a_time, 40), expected.tokens);
}

TEST(Generation, SpeculationGivesTheSameTokensForOneAndForMany) {
    HARP_REQUIRE_MODEL(model, stories260k());
    const std::vector<Tokens> prompts = {once_upon_a_time, meaningless_text(30, 300, 5), meaningless_text(24, 400, 3)};
    for (const bool hesitates : {false, true}) {
        const auto options = hesitates ? std::optional(hesitant()) : std::nullopt;
        ForwardPass plain_pass(model, small_context(), options);
        Generator plain(plain_pass);
        ForwardPass pass(model, small_context(512 * 2, 2), options);
        const auto drafter = Drafter::make(pass, look_up());
        Generator generator(pass, drafter.get());
        for (const Tokens & prompt : prompts) {
            generator.submit({.prompt = prompt,
                              .limits = {48, {}},
                              .sampler = greedy_sampler(model),
                              .options = options});  // also gives all requests the same masks
        }
        const Answers answers = run(generator);
        for (size_t i = 0; i < prompts.size(); ++i) {
            EXPECT_EQ(answers.tokens.at(i), answer(plain, model, prompts[i], 48)) << "prompt " << i;
        }
        EXPECT_GT(drafter->statistics().accepted, 0U);
        EXPECT_GT(drafter->statistics().drafted, drafter->statistics().accepted);
        EXPECT_EQ(pass.check_invariant(), "");
    }
}

TEST(Generation, ACallbackThatThrowsLeavesNothingOfADraftBehind) {
    HARP_REQUIRE_MODEL(model, stories260k());
    ForwardPass pass(model, small_context(), hesitant());
    const auto drafter = Drafter::make(pass, look_up());
    Generator generator(pass, drafter.get());
    const Tokens prompt = meaningless_text(30, 300, 5);
    const Tokens whole = answer(generator, model, prompt, 40);
    for (size_t n_wanted = 1; n_wanted < 40; n_wanted += 3) {
        size_t n = 0;
        const auto throws = [&](const GeneratedToken &) -> bool {
            if (++n == n_wanted) throw Error(ErrorCode::io, "the disk is full");
            return true;
        };
        EXPECT_THROW(
            generator.answer(
                {.prompt = prompt, .limits = {40, {}}, .sampler = greedy_sampler(model), .reuses_prefix = true},
                throws),
            Error);
        EXPECT_LE(pass.memory_seq_pos_max(0), static_cast<llama_pos>(prompt.size() + n_wanted) - 1);
        EXPECT_EQ(pass.check_invariant(), "");
        EXPECT_EQ(answer(generator, model, prompt, 40, /*reuses_prefix=*/true), whole) << "after " << n_wanted;
    }
}

TEST(Generation, ACommonPrefixIsDecodedOnce) {
    HARP_REQUIRE_MODEL(model, stories260k());
    ForwardPass pass(model, small_context(1024, 2), hesitant());
    Generator generator(pass);
    const Tokens first = meaningless_text(60);
    Tokens second = first;
    const Tokens said = answer(generator, model, first, 10, /*reuses_prefix=*/true);
    second.insert(second.end(), said.begin(), said.end() - 1);
    second.insert(second.end(), {403, 407, 261});
    size_t n_decoded = 0;
    const Tokens tokens =
        answer(generator, model, second, 20, /*reuses_prefix=*/true, [&](size_t, size_t total) { n_decoded = total; });
    EXPECT_EQ(n_decoded, 3U);

    ForwardPass fresh_pass(model, small_context(), hesitant());
    Generator fresh(fresh_pass);
    EXPECT_EQ(tokens, answer(fresh, model, second, 20));
    answer(generator, model, second, 1, /*reuses_prefix=*/false, [&](size_t, size_t total) { n_decoded = total; });
    EXPECT_EQ(n_decoded, second.size());
}

TEST(Generation, APrefixThatASlidingWindowHasLostIsDecodedAnew) {
    HARP_REQUIRE_MODEL(model, gemma3_q4());
    llama_context_params params = small_context(2048);
    params.swa_full = false;                // as in llama.cpp's programs
    params.n_batch = params.n_ubatch = 64;  // the cache then has 768 cells for the window of 512
    const Tokens before = meaningless_text(810, 2000, 991);
    Tokens after(before.begin(), before.begin() + 60);
    for (const llama_token token : {4000, 4001, 4002, 4003}) after.push_back(token);
    for (const auto & options : {std::optional<Options>(), std::optional(hesitant(0))}) {
        ForwardPass pass(model, params, options);
        Generator generator(pass);
        answer(generator, model, before, 1, /*reuses_prefix=*/true);
        std::vector<float> reused;
        answer(generator, model, after, 1, /*reuses_prefix=*/true, [&](size_t done, size_t total) {
            if (done == total) reused = row(pass);
        });
        ForwardPass fresh_pass(model, params, options);
        Generator fresh_generator(fresh_pass);
        std::vector<float> fresh;
        answer(fresh_generator, model, after, 1, false, [&](size_t done, size_t total) {
            if (done == total) fresh = row(fresh_pass);
        });
        EXPECT_LT(largest_difference(log_probabilities(reused), log_probabilities(fresh)), 1e-3);
    }
}

TEST(Generation, TwoPromptsThatFitApartShareAPool) {
    HARP_REQUIRE_MODEL(model, stories260k());
    const std::vector<Tokens> prompts = {meaningless_text(200, 300), meaningless_text(190, 310), once_upon_a_time};
    ForwardPass alone_pass(model, small_context(), std::nullopt);
    Generator alone(alone_pass);
    ForwardPass pass(model, pool(256, 3), std::nullopt);
    Generator generator(pass);
    for (const Tokens & prompt : prompts) {
        generator.submit({.prompt = prompt, .limits = {12, {}}, .sampler = greedy_sampler(model)});
    }
    const Answers answers = run(generator);
    for (size_t i = 0; i < prompts.size(); ++i) {
        EXPECT_EQ(answers.tokens.at(i), answer(alone, model, prompts[i], 12)) << i;
        EXPECT_EQ(answers.results.at(i).reason, StopReason::length) << i;
    }
}

TEST(Generation, InAFullPoolTheRequestThatCameLastEnds) {
    HARP_REQUIRE_MODEL(model, stories260k());
    for (const bool hesitates : {false, true}) {
        ForwardPass pass(model, pool(256, 2), hesitates ? std::optional(hesitant()) : std::nullopt);
        Generator generator(pass);
        common_params_sampling params;
        params.temp = 0;
        params.logit_bias = {{llama_vocab_eos(llama_model_get_vocab(&model)), -INFINITY},
                             {llama_vocab_bos(llama_model_get_vocab(&model)), -INFINITY}};
        const auto request = [&](llama_token first, int n) {
            return Request{
                .prompt = meaningless_text(100, first), .limits = {n, {}}, .sampler = decoding::Sampler(model, params)};
        };
        generator.submit(request(300, 120));
        generator.submit(request(310, 120));
        const Answers answers = run(generator);
        EXPECT_EQ(answers.results.at(0).reason, StopReason::length);
        EXPECT_EQ(answers.tokens.at(0).size(), 120U);
        EXPECT_EQ(answers.results.at(1).reason, StopReason::context_full);
        EXPECT_EQ(pass.check_invariant(), "");
    }
}

TEST(Generation, WithoutHarpRecordsAreMadeWhereTheyAreAskedFor) {
    HARP_REQUIRE_MODEL(model, stories260k());
    for (const bool records : {false, true}) {
        ForwardPass pass(model, small_context(), std::nullopt);
        Generator generator(pass);
        double sum = 0;
        generator.answer(
            {.prompt = once_upon_a_time, .limits = {8, {}}, .sampler = greedy_sampler(model), .records = records},
            [&](const GeneratedToken & token) {
                sum += token.record.entropy;
                return true;
            });
        EXPECT_EQ(sum > 0, records);
    }
}

/// Not by the batch with which the request begins, which would lose it.
TEST(Generation, WhatNoSequenceCanTakeIsRefusedAtSubmission) {
    HARP_REQUIRE_MODEL(model, stories260k());
    ForwardPass off(model, small_context(), std::nullopt);
    Generator without_harp(off);
    EXPECT_THROW(
        without_harp.submit(
            {.prompt = once_upon_a_time, .limits = {}, .sampler = greedy_sampler(model), .options = hesitant()}),
        Error);

    Options guidance = hesitant(0);
    guidance.view = View::guidance;
    ForwardPass on(model, small_context(), guidance);
    Generator generator(on);
    const std::vector<llama_token> too_long = meaningless_text(on.n_ctx_seq(), 310);
    EXPECT_THROW(
        generator.submit(
            {.prompt = once_upon_a_time, .limits = {}, .sampler = greedy_sampler(model), .negative_prompt = too_long}),
        Error);
    EXPECT_TRUE(generator.is_idle());
}

TEST(Cutting, EmptiesASequenceOfRecurrentState) {
    HARP_REQUIRE_MODEL(model, random_mamba());
    ForwardPass pass(model, small_context(), std::nullopt);
    decoding::decode_feed(pass, {.tokens = once_upon_a_time});
    EXPECT_EQ(decoding::cut_sequence(pass, 0, 5), 5);
    EXPECT_EQ(decoding::cut_sequence(pass, 0, 3), 0);
    EXPECT_EQ(pass.memory_seq_pos_max(0), -1);
}

}  // namespace
}  // namespace harp::testing
