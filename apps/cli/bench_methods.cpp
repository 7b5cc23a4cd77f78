#include "bench_methods.h"

#include <fmt/format.h>

#include "common.h"
#include "model/interrupt.h"
#include "stopwatch.h"

namespace harp::cli {

namespace {

using Draft = BenchKind::Draft;

std::optional<Options> options_of(const BenchKind & kind, const Options & base) {
    if (!kind.hesitates) return std::nullopt;
    Options options = base;
    if (kind.schedule) options.schedule = *kind.schedule;
    if (kind.redraw) options.redraw = *kind.redraw;
    return options;
}

/// Speculation as the flags ask for. A look-up that they do not describe is a short one: it searches 3 tokens and
/// drafts 8.
common_params with_draft(common_params params, Draft draft) {
    auto & speculation = params.speculative;
    if (draft == Draft::lookup) {
        speculation.draft.mparams = {};
        if (!decoding::asks_for_speculation(params)) {
            speculation.types = {COMMON_SPECULATIVE_TYPE_NGRAM_SIMPLE};
            speculation.ngram_simple.size_n = 3;
            speculation.ngram_simple.size_m = 8;
        }
    } else {
        speculation.types = {COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE};
    }
    return params;
}

}  // namespace

const std::vector<BenchKind> & bench_kinds() {
    static const std::vector<BenchKind> kinds = {
        {.name = "vanilla", .meaning = "greedy, HARP off: plain llama.cpp"},
        {.name = "harp", .meaning = "greedy with HARP, as the --harp- flags say", .hesitates = true},
        {.name = "harp-lazy", .meaning = "schedule lazy", .hesitates = true, .schedule = Schedule::lazy},
        {.name = "harp-fused", .meaning = "schedule fused", .hesitates = true, .schedule = Schedule::fused},
        {.name = "harp-redraw1",
         .meaning = "new masks at each hesitation, exactly as in the paper",
         .hesitates = true,
         .redraw = 1},
        {.name = "nucleus", .meaning = "sampling with the sampler's flags, HARP off", .samples = true},
        {.name = "harp-nucleus", .meaning = "the same with HARP", .hesitates = true, .samples = true},
        {.name = "beam", .meaning = "beam search, HARP off", .beams = true},
        {.name = "harp-beam", .meaning = "beam search with HARP", .hesitates = true, .beams = true},
        {.name = "lookup",
         .meaning = "speculation by look-up of n-grams, HARP off",
         .draft = Draft::lookup,
         .reference = "vanilla"},
        {.name = "harp-lookup",
         .meaning = "the same with HARP",
         .hesitates = true,
         .draft = Draft::lookup,
         .reference = "harp"},
        {.name = "draft",
         .meaning = "speculation by a draft model (-md), HARP off",
         .draft = Draft::model,
         .reference = "vanilla"},
        {.name = "harp-draft",
         .meaning = "the same with HARP",
         .hesitates = true,
         .draft = Draft::model,
         .reference = "harp"},
        {.name = "pause", .meaning = "10 pause tokens before the answer, HARP off", .pause = 10},
        {.name = "stock",
         .meaning = "vanilla with --harp-kernels off; the model is loaded a second time for it",
         .stock = true},
    };
    return kinds;
}

BenchMethod::BenchMethod(LoadedModel & loaded, const BenchKind & kind, const Settings & settings)
    : kind_(kind),
      settings_(settings),
      loaded_(loaded),
      pass_(loaded.add_pass(options_of(kind, settings.options), kind.beams ? settings.beams.beams : 1)),
      sampling_(loaded.params().sampling) {
    if (!kind.samples) sampling_.temp = 0;
    sampling_.logit_bias.insert(sampling_.logit_bias.end(), sampling_.logit_bias_eog.begin(),
                                sampling_.logit_bias_eog.end());
    if (kind.draft == Draft::none) return;
    try {
        drafter_ = decoding::Drafter::make(pass_, with_draft(loaded.params(), kind.draft));
    } catch (const Error & error) {
        if (error.code() != ErrorCode::unsupported_call) throw;
        throw Error(ErrorCode::invalid_option,
                    fmt::format("option '--methods': {} cannot be measured with this model ({}); name others",
                                kind.name, error.what()));
    }
}

BenchRun BenchMethod::run(const std::vector<llama_token> & prompt) {
    std::vector<llama_token> tokens = prompt;
    append_pauses(tokens, loaded_.vocab(), kind_.pause, ".");
    return kind_.beams ? run_beams(tokens) : run_sampling(tokens);
}

/// Counts what happened since `before`, the statistics at the end of the prompt.
void BenchMethod::count(const Statistics & before, BenchRun & run) const {
    const Statistics & now = pass_.statistics();
    run.n_judged = now.steps - before.steps;
    run.n_hesitations = now.hesitations - before.hesitations;
    run.n_twin_rows = now.second_pass_rows - before.second_pass_rows;
}

/// Every answer must have as many tokens, or times of whole answers could not be compared.
void BenchMethod::check_length(const decoding::GenerationResult & result) const {
    using decoding::StopReason;
    if (result.reason == StopReason::interrupted) stop_interrupted();
    if (static_cast<size_t>(result.n_generated) == settings_.n_predict) return;
    std::string advice = "token 0 ends it: leave out --beam-variant authors";
    if (result.reason == StopReason::context_full)
        advice = fmt::format("the context of {} is full; raise its size (-c) or lower -n", pass_.n_ctx_seq());
    throw Error(ErrorCode::invalid_option, fmt::format("option '-n': {}; an answer of {} has only {} tokens; {}",
                                                       settings_.n_predict, kind_.name, result.n_generated, advice));
}

BenchRun BenchMethod::run_beams(const std::vector<llama_token> & prompt) {
    BenchRun run;
    const Stopwatch watch;
    Statistics before;
    decoding::Generator::Events events;
    events.on_step = [&](size_t /*request*/, const decoding::BeamSearch &) {
        if (run.n_steps++ == 0) {
            run.first_token_seconds = watch.seconds();
            before = pass_.statistics();
        }
        return !interrupt_requested;
    };
    const auto never_ends = [](llama_token) { return false; };
    const auto result =
        decoding::Generator(pass_).answer({.prompt = prompt,
                                           .limits = {static_cast<int>(settings_.n_predict), {}, never_ends},
                                           .beams = settings_.beams,
                                           .records = false},
                                          events);
    check_length(result);
    run.prompt_seconds = result.prompt_seconds;
    run.decode_seconds = result.seconds;
    run.tokens = result.hypotheses.front().tokens;
    count(before, run);
    return run;
}

BenchRun BenchMethod::run_sampling(const std::vector<llama_token> & prompt) {
    BenchRun run;
    const Stopwatch watch;
    decoding::Generator generator(pass_, drafter_.get());
    Statistics before;
    const auto on_prompt = [&](size_t done, size_t total) {
        if (done < total) return;
        // the twins would read the prompt at the first hesitation; they do it here, so that it counts as prompt
        if (kind_.hesitates) pass_.prepare_twins(0);
        run.prompt_seconds = watch.seconds();
        before = pass_.statistics();
    };
    const auto on_token = [&](const decoding::GeneratedToken & token) {
        if (run.tokens.empty()) run.first_token_seconds = watch.seconds();
        run.tokens.push_back(token.id);
        return !interrupt_requested;
    };
    const auto result = generator.answer({.prompt = prompt,
                                          .limits = {static_cast<int>(settings_.n_predict), {}},
                                          .sampler = loaded_.new_sampler(sampling_),
                                          .records = false},
                                         on_token, on_prompt);
    check_length(result);
    count(before, run);
    run.n_steps = run.tokens.size();
    run.decode_seconds = result.seconds;
    return run;
}

}  // namespace harp::cli
