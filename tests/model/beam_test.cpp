// Beam search on the tiny model: Hugging Face's results, laws with HARP, and faults.
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>

#include "decoding/beam_decoder.h"
#include "method/entropy.h"
#include "support/models.h"

namespace harp::testing {
namespace {

using decoding::beam_decode;
using decoding::BeamOptions;
using decoding::BeamResult;
using decoding::EarlyStopping;
using decoding::Hypothesis;
using decoding::LengthNorm;
using nlohmann::json;

const std::vector<llama_token> once = {1, 403, 407, 261, 378};  // "Once upon a time"
constexpr llama_token full_stop = 426;

llama_context_params beam_context(uint32_t beams, bool unified = true, uint32_t n_ctx = 1024) {
    llama_context_params params = small_context(n_ctx, beams);
    params.kv_unified = unified;
    return params;
}

bool ends_at_full_stop(llama_token token) {
    return token == full_stop;
}
bool never_ends(llama_token) {
    return false;
}

BeamResult search(llama_model & model, const std::optional<Options> & options, const BeamOptions & beams,
                  bool unified = true, size_t n_predict = 24) {
    ForwardPass pass(model, beam_context(beams.beams, unified), options);
    decoding::BeamCallbacks callbacks;
    callbacks.on_step = [&](const decoding::BeamSearch &) {
        EXPECT_EQ(pass.check_invariant(), "");
        return true;
    };
    BeamResult result = beam_decode(pass, once, n_predict, beams, ends_at_full_stop, callbacks);
    EXPECT_EQ(pass.check_invariant(), "");
    return result;
}

void expect_same(const BeamResult & a, const BeamResult & b, double tolerance) {
    ASSERT_EQ(a.hypotheses.size(), b.hypotheses.size());
    for (size_t i = 0; i < a.hypotheses.size(); ++i) {
        EXPECT_EQ(a.hypotheses[i].tokens, b.hypotheses[i].tokens) << i;
        EXPECT_NEAR(a.hypotheses[i].score, b.hypotheses[i].score, tolerance) << i;
    }
}

TEST(Beams, AreHuggingFaces) {
    HARP_REQUIRE_MODEL(model, stories260k());
    std::ifstream file(HARP_SOURCE_DIR "/tests/data/hf_beams.json");
    const json recorded = json::parse(file);
    ASSERT_GT(recorded["runs"].size(), 80U);
    for (size_t run = 0; run < recorded["runs"].size(); ++run) {
        const json & settings = recorded["runs"][run]["settings"];
        SCOPED_TRACE("run " + std::to_string(run) + ": " + settings.dump());
        BeamOptions options;
        options.beams = settings["num_beams"];
        options.candidates = 2 * options.beams;
        options.alpha = settings["length_penalty"];
        options.norm = LengthNorm::length;
        const json & stopping = settings["early_stopping"];
        options.early_stopping = stopping == "never" ? EarlyStopping::never
                                 : stopping == true  ? EarlyStopping::first
                                                     : EarlyStopping::heuristic;
        const llama_token eos = settings["eos_token_id"];
        ForwardPass pass(model, beam_context(options.beams), std::nullopt);
        const BeamResult result = beam_decode(pass, recorded["runs"][run]["prompt_ids"], settings["max_new_tokens"],
                                              options, [&](llama_token token) { return token == eos; });
        const json & expected = recorded["runs"][run]["hypotheses"];
        ASSERT_GE(result.hypotheses.size(), expected.size());
        for (size_t i = 0; i < expected.size(); ++i) {
            EXPECT_EQ(result.hypotheses[i].tokens, expected[i]["ids"].get<std::vector<llama_token>>()) << i;
            EXPECT_NEAR(result.hypotheses[i].score, expected[i]["score"].get<double>(), 1e-4) << i;
        }
    }
}

TEST(Beams, OneIsGreedy) {
    HARP_REQUIRE_MODEL(model, stories260k());
    for (const std::optional<Options> & options : {std::optional<Options>{}, std::optional<Options>{Options{}}}) {
        BeamOptions one;
        one.beams = 1;
        ForwardPass pass(model, beam_context(1), options);
        const auto found = beam_decode(pass, once, 30, one, never_ends).hypotheses.front();
        ForwardPass other(model, beam_context(1), options);
        const Continuation expected = greedy(other, once, 30);
        EXPECT_EQ(found.tokens, expected.tokens);
        for (size_t i = 0; i < 30; ++i) EXPECT_EQ(found.records[i].hesitated, expected.records[i].hesitated) << i;
    }
}

TEST(Beams, WithoutHesitationAreVanilla) {
    HARP_REQUIRE_MODEL(model, stories260k());
    Options never;
    never.threshold = std::numeric_limits<double>::infinity();
    expect_same(search(model, std::nullopt, {}), search(model, never, {}), 1e-6);
}

TEST(Beams, SchedulesAndCachesAgree) {
    HARP_REQUIRE_MODEL(model, stories260k());
    for (const uint32_t reframings : {1U, 2U}) {
        Options options;
        options.reframings = reframings;
        options.schedule = Schedule::lazy;
        BeamOptions beams;
        beams.beams = 4;
        const BeamResult lazy = search(model, options, beams);
        size_t hesitations = 0;
        for (const StepRecord & record : lazy.hypotheses.front().records) hesitations += record.hesitated ? 1U : 0U;
        EXPECT_GT(hesitations, 0U);
        expect_same(lazy, search(model, options, beams, /*unified=*/false), 1e-4);
        options.schedule = Schedule::fused;
        expect_same(lazy, search(model, options, beams), 1e-4);
        expect_same(lazy, search(model, options, beams, /*unified=*/false), 1e-4);
        options.schedule = Schedule::automatic;
        expect_same(lazy, search(model, options, beams), 1e-4);
        options.scope = Scope::generated;
        const BeamResult generated = search(model, options, beams);
        options.schedule = Schedule::lazy;
        expect_same(generated, search(model, options, beams, /*unified=*/false), 1e-4);
    }
}

/// The law that catches a wrong copy, a wrong mask and a stale twin: a hypothesis has the score that its tokens get when they
/// are decoded alone, one after the other.
TEST(Beams, ScoresAreThoseOfTheTokensDecodedAlone) {
    HARP_REQUIRE_MODEL(model, stories260k());
    for (const bool harp : {false, true}) {
        for (const Schedule schedule : {Schedule::lazy, Schedule::fused}) {
            std::optional<Options> options;
            if (harp) options.emplace().schedule = schedule;
            BeamOptions beams;
            beams.beams = 5;
            for (const Hypothesis & hypothesis : search(model, options, beams).hypotheses) {
                ForwardPass pass(model, beam_context(1), options);
                std::vector<llama_token> next = once;
                llama_pos position = 0;
                double sum = 0;
                for (size_t i = 0; i < hypothesis.tokens.size(); ++i) {
                    decode(pass, next, position);
                    position += static_cast<llama_pos>(next.size());
                    const std::vector<float> logits = row(pass);
                    const llama_token token = hypothesis.tokens[i];
                    sum += static_cast<double>(logits[static_cast<size_t>(token)]) -
                           method::summarise_softmax(logits).log_sum_exp;
                    EXPECT_EQ(pass.step(-1).hesitated, hypothesis.records[i].hesitated) << i;
                    next = {token};
                }
                EXPECT_NEAR(sum, hypothesis.sum, 1e-3);
            }
        }
    }
}

TEST(Beams, DecodeOnlyWhatGoesOn) {
    HARP_REQUIRE_MODEL(model, stories260k());
    BeamOptions beams;
    beams.variant = decoding::BeamVariant::authors;
    ForwardPass pass(model, beam_context(3), std::nullopt);
    const std::vector<llama_token> dog = {1, 291, 400, 428};  // "The dog": its beams end at different steps
    const BeamResult result = beam_decode(pass, dog, 48, beams, ends_at_full_stop);
    EXPECT_LT(result.n_rows, (result.n_steps - 1) * beams.beams);
}

TEST(Beams, TwinsShareThePromptToo) {
    HARP_REQUIRE_MODEL(model, stories260k());
    Options options;
    options.schedule = Schedule::fused;
    std::vector<llama_token> prompt = once;
    for (int i = 0; i < 20; ++i) prompt.insert(prompt.end(), once.begin() + 1, once.end());
    ForwardPass pass(model, beam_context(4), options);
    const BeamResult result = beam_decode(pass, prompt, 12, {.beams = 4}, never_ends);
    // each row of a beam has its twin row, and the prompt was read once by one twin
    EXPECT_EQ(pass.statistics().second_pass_rows, prompt.size() + result.n_rows);
}

TEST(Beams, PromptInSeveralBatches) {
    HARP_REQUIRE_MODEL(model, stories260k());
    llama_context_params params = beam_context(3);
    params.n_batch = 3;
    for (const std::optional<Options> & options : {std::optional<Options>{}, std::optional<Options>{Options{}}}) {
        ForwardPass pass(model, params, options);
        BeamResult result = beam_decode(pass, once, 24, {}, ends_at_full_stop);
        expect_same(result, search(model, options, {}), 1e-4);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Faults

template <typename F>
void expect_error(ErrorCode code, const std::vector<std::string> & parts, F f) {
    try {
        f();
        FAIL() << "no error";
    } catch (const Error & error) {
        EXPECT_EQ(error.code(), code) << error.what();
        for (const std::string & part : parts)
            EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    }
}

TEST(BeamFaults, AreRefused) {
    HARP_REQUIRE_MODEL(model, stories260k());
    ForwardPass pass(model, beam_context(3, true, 64), Options{});
    const auto run = [&](const std::vector<llama_token> & prompt, size_t n, const BeamOptions & options) {
        (void)beam_decode(pass, prompt, n, options, never_ends);
    };
    expect_error(ErrorCode::invalid_option, {"beams", "4", "1..3"}, [&] { run(once, 4, {.beams = 4}); });
    expect_error(ErrorCode::invalid_option, {"length-penalty"}, [&] { run(once, 4, {.alpha = -1}); });
    expect_error(ErrorCode::invalid_input, {"empty"}, [&] { run({}, 4, {}); });
    const std::string n_ctx = std::to_string(pass.n_ctx());
    const size_t room = 1 + (pass.n_ctx() - once.size()) / 3;
    expect_error(ErrorCode::invalid_input, {n_ctx, "-c", std::to_string(room) + " each"},
                 [&] { run(once, room + 1, {}); });
    EXPECT_NO_THROW(run(once, room, {}));
    EXPECT_EQ(pass.check_invariant(), "");
    const auto all = beam_decode(pass, once, 0, {}, never_ends);  // as many as there is room for
    EXPECT_EQ(all.hypotheses.front().tokens.size(), room);
    expect_error(ErrorCode::invalid_input, {"do not fit"},
                 [&] { run(std::vector<llama_token>(pass.n_ctx() + 1, 403), 1, {}); });
    // beams and reframings share the sequences
    Options eight;
    eight.reframings = 8;
    expect_error(ErrorCode::invalid_option, {"256"}, [&] { ForwardPass(model, beam_context(60), eight); });
}

TEST(BeamFaults, StopInTheMiddleLeavesThePassUsable) {
    HARP_REQUIRE_MODEL(model, stories260k());
    ForwardPass pass(model, beam_context(3), Options{});
    const BeamResult whole = beam_decode(pass, once, 20, {}, never_ends);
    decoding::BeamCallbacks callbacks;
    callbacks.on_step = [n = 0](const decoding::BeamSearch &) mutable { return ++n < 7; };
    const BeamResult stopped = beam_decode(pass, once, 20, {}, never_ends, callbacks);
    EXPECT_TRUE(stopped.is_interrupted);
    EXPECT_EQ(stopped.hypotheses.front().tokens.size(), 7U);
    // an abort inside llama_decode
    static int calls_left;
    calls_left = 2000;
    llama_set_abort_callback(
        pass.context(), [](void *) { return --calls_left < 0; }, nullptr);
    BeamResult aborted;
    try {
        aborted = beam_decode(pass, once, 20, {}, never_ends);
        EXPECT_TRUE(aborted.is_interrupted);
    } catch (const Error & error) {
        EXPECT_EQ(error.code(), ErrorCode::aborted);
    }
    EXPECT_EQ(pass.check_invariant(), "");
    llama_set_abort_callback(pass.context(), nullptr, nullptr);
    expect_same(whole, beam_decode(pass, once, 20, {}, never_ends), 1e-6);
}

}  // namespace
}  // namespace harp::testing
