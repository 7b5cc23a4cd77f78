#include "beams.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "common.h"
#include "decoding/generate.h"
#include "flags/terminal.h"
#include "model/interrupt.h"
#include "model/report.h"

namespace harp::cli {

namespace {

using decoding::BeamVariant;
using decoding::EarlyStopping;
using decoding::GenerationResult;
using decoding::Hypothesis;
using decoding::LengthNorm;
using nlohmann::json;

const std::map<std::string, LengthNorm> length_norms = {{"gnmt", LengthNorm::gnmt}, {"length", LengthNorm::length}};
const std::map<std::string, BeamVariant> variants = {{"standard", BeamVariant::standard},
                                                     {"authors", BeamVariant::authors}};
const std::map<std::string, EarlyStopping> early_stoppings = {
    {"first", EarlyStopping::first}, {"heuristic", EarlyStopping::heuristic}, {"never", EarlyStopping::never}};

template <typename T>
std::string name_of(const std::map<std::string, T> & names, T value) {
    for (const auto & [name, other] : names) {
        if (other == value) return name;
    }
    return "unknown";
}

/// A choice among names. (CLI11's own transformer would print its numbers.)
template <typename T>
void add_choice(CLI::App & app, const std::string & flag, T & value, const std::map<std::string, T> & names,
                const std::string & help, const char * group) {
    std::vector<std::string> allowed;
    for (const auto & [name, unused] : names) allowed.push_back(name);
    app.add_option_function<std::string>(
           flag, [&value, &names](const std::string & name) { value = names.at(name); }, help)
        ->check(CLI::IsMember(allowed).description(""))
        ->default_str(name_of(names, value))
        ->group(group);
}

json beams_json(const BeamFlags & flags) {
    const decoding::BeamOptions & o = flags.options;
    return {{"beams", o.beams},
            {"candidates", o.candidates},
            {"length_penalty", o.alpha},
            {"length_norm", name_of(length_norms, o.norm)},
            {"early_stopping", name_of(early_stoppings, o.early_stopping)},
            {"variant", name_of(variants, o.variant)}};
}

json hypothesis_json(LoadedModel & loaded, const Hypothesis & hypothesis) {
    json tokens = json::array();
    std::string text;
    for (size_t i = 0; i < hypothesis.tokens.size(); ++i) {
        const llama_token id = hypothesis.tokens[i];
        const std::string piece = common_token_to_piece(&loaded.vocab(), id, false);
        tokens.push_back(token_json(id, piece, hypothesis.records[i]));
        text += piece;
    }
    return {{"text", text},
            {"score", hypothesis.score},
            {"log_probability", hypothesis.sum},
            {"finished", hypothesis.is_finished},
            {"tokens", tokens}};
}

void print_hypotheses(LoadedModel & loaded, const GenerationResult & result, size_t n_best) {
    for (size_t i = 0; i < std::min(n_best, result.hypotheses.size()); ++i) {
        const Hypothesis & hypothesis = result.hypotheses[i];
        if (n_best > 1) {
            write_out(styled(stdout, Style::bold,
                             fmt::format("[{}] score {:.4f}, log-probability {:.3f}, {} tokens{}", i + 1,
                                         hypothesis.score, hypothesis.sum, hypothesis.tokens.size(),
                                         hypothesis.is_finished ? "" : ", unfinished")) +
                      "\n");
        }
        TokenPrinter printer;
        for (size_t k = 0; k < hypothesis.tokens.size(); ++k) {
            printer.print(common_token_to_piece(&loaded.vocab(), hypothesis.tokens[k], false), hypothesis.records[k]);
        }
        printer.finish();
    }
}

void print_beam_summary(LoadedModel & loaded, const FormattedPrompt & prompt, size_t n_prompt,
                        const GenerationResult & result, const BeamFlags & flags) {
    std::string text = fmt::format(
        "\n{} steps of {} beams in {:.2f} s ({:.1f} steps/s, {} rows); prompt {} tokens in {:.2f} s ({}); ended: {}\n",
        result.n_steps, flags.options.beams, result.seconds, result.seconds > 0 ? result.n_steps / result.seconds : 0.0,
        result.n_rows, n_prompt, result.prompt_seconds, prompt.why, to_string(result.reason));
    text +=
        fmt::format("beam search: {} candidates a beam, length penalty {} ({}), early stopping {}, {}\n",
                    flags.options.candidates, flags.options.alpha, name_of(length_norms, flags.options.norm),
                    name_of(early_stoppings, flags.options.early_stopping), name_of(variants, flags.options.variant));
    text += hesitation_text(loaded.pass(), loaded.options());
    text += fmt::format("harp: {}", options_text(loaded.options()));
    print_err("{}\n", styled(stderr, Style::dim, text));
}

}  // namespace

void BeamFlags::add_to(CLI::App & app, bool prints_several) {
    const char * group = "Beam search (instead of sampling: the sampler's flags have no effect)";
    app.add_option("--beams", options.beams, "beams; 1 = no beam search [1..256]")
        ->check(CLI::Range(1U, static_cast<uint32_t>(llama_max_parallel_sequences())).description(""))
        ->capture_default_str()
        ->group(group);
    app.add_option("--beam-candidates", options.candidates, "best continuations considered of each beam [1..1000]")
        ->check(CLI::Range(1U, 1000U).description(""))
        ->capture_default_str()
        ->group(group);
    app.add_option("--length-penalty", options.alpha, "alpha: above 0 favours longer answers [0..100]")
        ->check(number_in(0, 100))
        ->capture_default_str()
        ->group(group);
    add_choice(app, "--length-norm", options.norm, length_norms,
               "a sum of L log-probabilities is divided by: gnmt, ((5 + L) / 6)^alpha; length, L^alpha (Hugging Face)",
               group);
    add_choice(app, "--early-stopping", options.early_stopping, early_stoppings,
               "with enough finished answers end: first, at once; heuristic, when no running beam scores better now; "
               "never, when none can",
               group);
    add_choice(app, "--beam-variant", options.variant, variants,
               "standard, or authors: as the HARP authors' code counts lengths and ends beams", group);
    if (!prints_several) return;
    app.add_option("--n-best", n_best, "print the best N answers, with scores [1..beams]")
        ->check(CLI::Range(1U, static_cast<uint32_t>(llama_max_parallel_sequences())).description(""))
        ->capture_default_str()
        ->group(group);
}

void check_sequences(uint32_t beams, const std::optional<Options> & harp) {
    const size_t streams = harp ? 1 + harp->reframings : 1;
    if (beams * streams <= llama_max_parallel_sequences()) return;
    throw Error(ErrorCode::invalid_option,
                fmt::format("option '--beams': {} beams with {} reframings each are too many; allowed: beams * "
                            "(1 + reframings) <= {}",
                            beams, streams - 1, llama_max_parallel_sequences()));
}

void BeamFlags::prepare(common_params & params, const std::optional<Options> & harp) const {
    if (n_best > options.beams) {
        throw Error(
            ErrorCode::invalid_option,
            fmt::format("option '--n-best': {} is out of range [1..{}], the number of beams", n_best, options.beams));
    }
    if (!is_on()) return;
    decoding::validate(options);
    check_sequences(options.beams, harp);
    if (!common_grammar_value(params.sampling.grammar).empty()) {
        throw Error(ErrorCode::invalid_option,
                    "option '--grammar' or '--json-schema': beam search does not support grammars; leave out --beams");
    }
    if (decoding::asks_for_speculation(params))
        throw Error(ErrorCode::invalid_option,
                    "option '--beams': beam search does not speculate; leave out --spec-type, -md");
    if (!params.antiprompt.empty())
        throw Error(ErrorCode::invalid_option,
                    "option '--reverse-prompt': beam search does not support stop strings; leave it out");
    if (params.n_predict == 0)
        throw Error(ErrorCode::invalid_option, "option '-n': 0 tokens leave beam search nothing to do");
    params.n_parallel = static_cast<int32_t>(options.beams);
    params.kv_unified = true;
}

int generate_beams(LoadedModel & loaded, const FormattedPrompt & prompt, decoding::Request request,
                   const BeamFlags & flags, bool as_json) {
    const size_t n_prompt = request.prompt.size();
    ProgressLine progress;
    progress.show(fmt::format("prompt: {} tokens", n_prompt));
    decoding::Generator::Events events;
    events.on_prompt = [&](size_t /*request*/, size_t done, size_t total) {
        if (done < total) progress.show(fmt::format("prompt: {} of {} tokens", done, total));
    };
    events.on_step = [&](size_t /*request*/, const decoding::BeamSearch & search) {
        if (!search.beams().empty()) {
            progress.show(
                fmt::format("step {}, {} beams running", search.beams().front().tokens.size(), search.n_running()));
        }
        return !interrupt_requested;
    };
    request.limits = {loaded.params().n_predict, {}};
    if (loaded.params().sampling.ignore_eos) request.limits.is_end = [](llama_token) { return false; };
    request.beams = flags.options;
    const GenerationResult result = decoding::Generator(loaded.pass()).answer(std::move(request), events);
    const bool is_interrupted = result.reason == decoding::StopReason::interrupted;
    progress.clear();
    if (as_json) {
        json hypotheses = json::array();
        for (size_t i = 0; i < std::min<size_t>(flags.n_best, result.hypotheses.size()); ++i)
            hypotheses.push_back(hypothesis_json(loaded, result.hypotheses[i]));
        const json output = {{"text", result.text},
                             {"hypotheses", hypotheses},
                             {"beam_search", beams_json(flags)},
                             {"steps", result.n_steps},
                             {"rows", result.n_rows},
                             {"seconds", {{"prompt", result.prompt_seconds}, {"search", result.seconds}}},
                             {"interrupted", is_interrupted},
                             {"prompt", prompt_json(prompt, n_prompt)},
                             {"harp", options_json(loaded.options())},
                             {"statistics", statistics_json(loaded.pass().statistics())},
                             {"model", model_json(loaded.model(), loaded.params().model.path)},
                             {"build", build_json()}};
        write_out(dump(output, 2) + "\n");
    } else {
        print_hypotheses(loaded, result, flags.n_best);
    }
    print_beam_summary(loaded, prompt, n_prompt, result, flags);
    return is_interrupted ? exit_interrupted : exit_ok;
}

}  // namespace harp::cli
