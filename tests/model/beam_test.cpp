// Beam search on the tiny model: Hugging Face's results, laws with HARP, and faults.
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>

#include "common.h"
#include "decoding/generate.h"
#include "method/entropy.h"
#include "support/models.h"

namespace harp::testing {
namespace {

using decoding::BeamOptions;
using decoding::EarlyStopping;
using decoding::GenerationResult;
using decoding::Generator;
using decoding::Hypothesis;
using decoding::LengthNorm;
using decoding::Request;
using decoding::StopReason;
using nlohmann::json;

const std::vector<llama_token> dog = {1, 291, 400, 428};  // "The dog"
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

GenerationResult beam_decode(ForwardPass & pass, const std::vector<llama_token> & prompt, int n_predict,
                             const BeamOptions & beams, bool (*is_end)(llama_token),
                             const Generator::Events & events = {}) {
    return Generator(pass).answer({.prompt = prompt, .limits = {n_predict, {}, is_end}, .beams = beams}, events);
}

GenerationResult search(llama_model & model, const std::optional<Options> & options, const BeamOptions & beams,
                        bool unified = true, int n_predict = 24, const std::vector<llama_token> & negative = {}) {
    ForwardPass pass(model, beam_context(beams.beams, unified), options);
    Generator::Events events;
    events.on_step = [&](size_t, const decoding::BeamSearch &) {
        EXPECT_EQ(pass.check_invariant(), "");
        return true;
    };
    GenerationResult result = Generator(pass).answer({.prompt = once_upon_a_time,
                                                      .limits = {n_predict, {}, ends_at_full_stop},
                                                      .beams = beams,
                                                      .negative_prompt = negative},
                                                     events);
    EXPECT_EQ(pass.check_invariant(), "");
    return result;
}

void expect_same(const GenerationResult & a, const GenerationResult & b, double tolerance) {
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
        const GenerationResult result = Generator(pass).answer(
            {.prompt = recorded["runs"][run]["prompt_ids"],
             .limits = {settings["max_new_tokens"], {}, [&](llama_token token) { return token == eos; }},
             .beams = options},
            Generator::Events{});
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
        const auto found = beam_decode(pass, once_upon_a_time, 30, one, never_ends).hypotheses.front();
        ForwardPass other(model, beam_context(1), options);
        const Continuation expected = greedy(other, once_upon_a_time, 30);
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
        const GenerationResult lazy = search(model, options, beams);
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
        const GenerationResult generated = search(model, options, beams);
        options.schedule = Schedule::lazy;
        expect_same(generated, search(model, options, beams, /*unified=*/false), 1e-4);
    }
}

/// The law that detects a wrong copy, a wrong mask and a stale twin: a hypothesis has the score that its tokens get if
/// they are decoded alone, one after another.
TEST(Beams, ScoresAreThoseOfTheTokensDecodedAlone) {
    HARP_REQUIRE_MODEL(model, stories260k());
    struct Case {
        std::optional<Options> options;
        std::vector<llama_token> negative;
    };
    const auto guided = [](Schedule schedule) {
        return Options{.threshold = 0, .beta = 2, .view = View::guidance, .schedule = schedule};
    };
    const std::vector<Case> cases = {{std::nullopt, {}},
                                     {Options{.schedule = Schedule::lazy}, {}},
                                     {Options{.schedule = Schedule::fused}, {}},
                                     {Options{.threshold = 0, .beta = 2, .view = View::last, .view_tokens = 3}, {}},
                                     {guided(Schedule::lazy), {}},
                                     {guided(Schedule::lazy), dog},
                                     {guided(Schedule::fused), dog}};
    for (const auto & [options, negative] : cases) {
        for (const bool unified : {true, false}) {
            BeamOptions beams;
            beams.beams = 5;
            for (const Hypothesis & hypothesis : search(model, options, beams, unified, 24, negative).hypotheses) {
                ForwardPass pass(model, beam_context(1), options);
                pass.set_negative_prompt(0, negative);
                pass.set_prompt_end(0, static_cast<llama_pos>(once_upon_a_time.size()));
                std::vector<llama_token> next = once_upon_a_time;
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
    const GenerationResult result =
        beam_decode(pass, dog, 48, beams, ends_at_full_stop);  // the beams end at different steps
    EXPECT_LT(result.n_rows, static_cast<size_t>(result.n_steps - 1) * beams.beams);
}

TEST(Beams, TwinsShareThePromptToo) {
    HARP_REQUIRE_MODEL(model, stories260k());
    Options options;
    options.schedule = Schedule::fused;
    std::vector<llama_token> prompt = once_upon_a_time;
    for (int i = 0; i < 20; ++i) prompt.insert(prompt.end(), once_upon_a_time.begin() + 1, once_upon_a_time.end());
    ForwardPass pass(model, beam_context(4), options);
    const GenerationResult result = beam_decode(pass, prompt, 12, {.beams = 4}, never_ends);
    // each row of a beam has its twin row, and the prompt was read once by one twin
    EXPECT_EQ(pass.statistics().second_pass_rows, prompt.size() + result.n_rows);
}

TEST(Beams, PromptInSeveralBatches) {
    HARP_REQUIRE_MODEL(model, stories260k());
    llama_context_params params = beam_context(3);
    params.n_batch = 3;
    for (const std::optional<Options> & options : {std::optional<Options>{}, std::optional<Options>{Options{}}}) {
        ForwardPass pass(model, params, options);
        GenerationResult result = beam_decode(pass, once_upon_a_time, 24, {}, ends_at_full_stop);
        expect_same(result, search(model, options, {}), 1e-4);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// The generation loop

const Generator::Events quiet = {.on_token = [](size_t, const decoding::GeneratedToken &) { return true; }};

Request searched(bool (*is_end)(llama_token), bool reuses_prefix = false) {
    return {
        .prompt = once_upon_a_time, .limits = {24, {}, is_end}, .beams = BeamOptions{}, .reuses_prefix = reuses_prefix};
}

Request sampled(const llama_model & model, const std::vector<llama_token> & prompt, int n_predict) {
    common_params_sampling greedy;
    greedy.temp = 0;
    return {.prompt = prompt,
            .limits = {n_predict, {}, never_ends},
            .sampler = decoding::Sampler(model, greedy),
            .reuses_prefix = true};
}

TEST(Beams, AreSearchedBesideOtherAnswers) {
    HARP_REQUIRE_MODEL(model, stories260k());
    for (const std::optional<Options> & options : {std::optional<Options>{}, std::optional<Options>{Options{}}}) {
        const GenerationResult alone = search(model, options, {});
        ForwardPass one(model, beam_context(1), options);
        const std::string expected = Generator(one).answer(sampled(model, dog, 40), quiet).text;

        ForwardPass pass(model, beam_context(5), options);
        Generator generator(pass);
        for (int i = 0; i < 2; ++i) {  // two searches do not fit at the same time, so the second waits
            Request request = sampled(model, dog, 40);
            request.options = options;  // also gives it mask family 0 in any sequence
            generator.submit(std::move(request));
            request = searched(ends_at_full_stop);
            request.options = options;
            generator.submit(std::move(request));
        }
        const size_t stopped = generator.submit(searched(ends_at_full_stop));
        std::map<size_t, GenerationResult> results;
        Generator::Events events = quiet;
        events.on_result = [&](size_t request, const GenerationResult & result) { results[request] = result; };
        events.on_step = [&](size_t request, const decoding::BeamSearch & step) {
            return request != stopped || step.beams().front().tokens.size() < 4;
        };
        for (int step = 0; step < 500 && !generator.is_idle(); ++step) {
            generator.next_batch(events);
            EXPECT_EQ(pass.check_invariant(), "");
        }
        ASSERT_EQ(results.size(), 5U);
        for (const size_t request : {0U, 2U}) EXPECT_EQ(results[request].text, expected);
        for (const size_t request : {1U, 3U}) {
            expect_same(results[request], alone, 1e-4);
            EXPECT_EQ(results[request].text, alone.text);
            EXPECT_EQ(results[request].reason, alone.reason);
        }
        EXPECT_EQ(results[stopped].reason, StopReason::interrupted);
        EXPECT_EQ(results[stopped].n_generated, 4);
    }
}

TEST(Beams, ThatAreCancelledLeaveTheirSequences) {
    HARP_REQUIRE_MODEL(model, stories260k());
    ForwardPass pass(model, beam_context(3), Options{});
    Generator generator(pass);
    const size_t first = generator.submit(searched(never_ends));
    for (int step = 0; step < 5; ++step) generator.next_batch(quiet);
    EXPECT_GT(pass.memory_seq_pos_max(2), 0);
    generator.cancel(first);
    EXPECT_TRUE(generator.is_idle());
    for (llama_seq_id sequence = 0; sequence < 3; ++sequence) EXPECT_EQ(pass.memory_seq_pos_max(sequence), -1);
    expect_same(generator.answer(searched(ends_at_full_stop), quiet), search(model, Options{}, {}), 1e-6);
}

TEST(Beams, UseAPrefixThatWasKept) {
    HARP_REQUIRE_MODEL(model, stories260k());
    for (const std::optional<Options> & options : {std::optional<Options>{}, std::optional<Options>{Options{}}}) {
        ForwardPass pass(model, beam_context(3), options);
        Generator generator(pass);
        (void)generator.answer(sampled(model, once_upon_a_time, 5), quiet);
        const auto result = generator.answer(searched(ends_at_full_stop, /*reuses_prefix=*/true), quiet);
        EXPECT_EQ(result.n_prompt, 1U);
        expect_same(result, search(model, options, {}), 1e-4);
        EXPECT_EQ(pass.check_invariant(), "");
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
    const auto run = [&](const std::vector<llama_token> & prompt, int n, const BeamOptions & options) {
        (void)beam_decode(pass, prompt, n, options, never_ends);
    };
    expect_error(ErrorCode::invalid_option, {"beams", "4", "1..3"}, [&] { run(once_upon_a_time, 4, {.beams = 4}); });
    expect_error(ErrorCode::invalid_option, {"length-penalty"}, [&] { run(once_upon_a_time, 4, {.alpha = -1}); });
    expect_error(ErrorCode::invalid_input, {"empty"}, [&] { run({}, 4, {}); });
    const std::string n_ctx = std::to_string(pass.n_ctx());
    const int room = 1 + static_cast<int>((pass.n_ctx() - once_upon_a_time.size()) / 3);
    expect_error(ErrorCode::invalid_input, {n_ctx, "-c", std::to_string(room) + " each"},
                 [&] { run(once_upon_a_time, room + 1, {}); });
    EXPECT_NO_THROW(run(once_upon_a_time, room, {}));
    EXPECT_EQ(pass.check_invariant(), "");
    const auto all = beam_decode(pass, once_upon_a_time, -1, {}, never_ends);  // as many tokens as there is room for
    EXPECT_EQ(all.n_generated, room);
    EXPECT_EQ(all.reason, StopReason::context_full);
    EXPECT_EQ(beam_decode(pass, once_upon_a_time, room, {}, never_ends).reason, StopReason::length);
    expect_error(ErrorCode::invalid_input, {"do not fit"},
                 [&] { run(std::vector<llama_token>(pass.n_ctx() + 1, 403), 1, {}); });
    const auto submit = [&](decoding::GenerationLimits limits, const std::optional<BeamOptions> & beams,
                            decoding::Drafter * drafter = nullptr) {
        Generator(pass, drafter).submit({.prompt = once_upon_a_time, .limits = std::move(limits), .beams = beams});
    };
    expect_error(ErrorCode::invalid_option, {"stop strings"}, [&] { submit({4, {"end"}}, BeamOptions{}); });
    expect_error(ErrorCode::invalid_option, {"0 tokens"}, [&] { submit({0, {}}, BeamOptions{}); });
    expect_error(ErrorCode::invalid_option, {"one of the two"}, [&] { submit({4, {}}, std::nullopt); });
    common_params look_up;
    look_up.speculative.types = {COMMON_SPECULATIVE_TYPE_NGRAM_SIMPLE};
    const auto drafter = decoding::Drafter::make(pass, look_up);
    expect_error(ErrorCode::unsupported_call, {"does not speculate"}, [&] {
        submit({4, {}}, BeamOptions{}, drafter.get());
    });
    // beams and reframings share the available sequences
    Options eight;
    eight.reframings = 8;
    expect_error(ErrorCode::invalid_option, {"256"}, [&] { ForwardPass(model, beam_context(60), eight); });
}

TEST(BeamFaults, StopInTheMiddleLeavesThePassUsable) {
    HARP_REQUIRE_MODEL(model, stories260k());
    ForwardPass pass(model, beam_context(3), Options{});
    const GenerationResult whole = beam_decode(pass, once_upon_a_time, 20, {}, never_ends);
    Generator::Events events;
    events.on_step = [n = 0](size_t, const decoding::BeamSearch &) mutable { return ++n < 7; };
    const GenerationResult stopped = beam_decode(pass, once_upon_a_time, 20, {}, never_ends, events);
    EXPECT_EQ(stopped.reason, StopReason::interrupted);
    EXPECT_EQ(stopped.hypotheses.front().tokens.size(), 7U);
    // an abort inside llama_decode
    static int calls_left;
    calls_left = 2000;
    llama_set_abort_callback(
        pass.context(), [](void *) { return --calls_left < 0; }, nullptr);
    GenerationResult aborted;
    try {
        aborted = beam_decode(pass, once_upon_a_time, 20, {}, never_ends);
        EXPECT_EQ(aborted.reason, StopReason::interrupted);
    } catch (const Error & error) {
        EXPECT_EQ(error.code(), ErrorCode::aborted);
    }
    EXPECT_EQ(pass.check_invariant(), "");
    llama_set_abort_callback(pass.context(), nullptr, nullptr);
    expect_same(whole, beam_decode(pass, once_upon_a_time, 20, {}, never_ends), 1e-6);
}

}  // namespace
}  // namespace harp::testing
