// Pass for Python: its functions with lists, tuples and arrays instead of C++'s.
#include <algorithm>
#include <exception>
#include <limits>
#include <memory>
#include <utility>

#include "common.h"
#include "decoding/feed.h"
#include "engine.h"
#include "harp/harp.h"
#include "harp/registration.h"

namespace harp::python {

using namespace nb::literals;

namespace {

using decoding::GeneratedToken;
using decoding::GenerationResult;
using decoding::ScoreResult;

nb::bytes bytes_of(const std::string & text) {
    return nb::bytes(text.data(), text.size());
}

nb::tuple token_tuple(llama_token id, const std::string & piece, llama_pos position, const StepRecord & record) {
    return nb::make_tuple(id, bytes_of(piece), position, record.entropy, record.hesitated);
}

/// Ends a call that Python was told to end (Ctrl-C), between batches. The interpreter lock is not held.
void check_signals() {
    const LockTaken taken;
    if (PyErr_CheckSignals() != 0) throw nb::python_error();
}

/// Runs one batch of generation. Appends to `events` (request, token) and (request, None, result): in here, because what is
/// returned is lost if a signal's handler raises.
void generate_batch(Pass & self, nb::list & events) {
    std::vector<std::pair<size_t, GeneratedToken>> tokens;
    std::vector<std::pair<size_t, GenerationResult>> results;
    std::exception_ptr failure;
    try {
        const LockReleased released;
        const Pass::Call call(self);
        self.generator().next_batch(
            {.on_token =
                 [&](size_t request, const GeneratedToken & token) {
                     tokens.emplace_back(request, token);
                     return true;
                 },
             .on_result = [&](size_t request, const GenerationResult & r) { results.emplace_back(request, r); }});
    } catch (...) {  // the tokens before are the answers' all the same
        failure = std::current_exception();
    }
    for (const auto & [request, token] : tokens)
        events.append(nb::make_tuple(request, token_tuple(token.id, token.piece, token.position, token.record)));
    for (const auto & [request, r] : results) {
        events.append(nb::make_tuple(request, nb::none(),
                                     nb::make_tuple(decoding::to_string(r.reason), bytes_of(r.text), r.n_steps,
                                                    r.n_hesitations, r.prompt_seconds + r.seconds)));
    }
    if (failure) std::rethrow_exception(failure);
}

nb::tuple score_tuple(const ScoreResult & result) {
    std::vector<double> vanilla, harp, entropy;
    nb::list hesitated;
    for (const auto & token : result.tokens) {
        vanilla.push_back(token.vanilla);
        harp.push_back(token.harp);
        entropy.push_back(token.record.entropy);
        hesitated.append(token.record.hesitated);
    }
    return nb::make_tuple(vanilla, harp, entropy, hesitated, result.is_greedy, result.is_vanilla_greedy,
                          result.seconds);
}

/// Runs one batch of scoring. @return [(request, [for each of its options (vanilla, harp, entropy, hesitated lists,
/// is_greedy, is_vanilla_greedy, seconds)])]
nb::list score_batch(Pass & self) {
    std::vector<std::pair<size_t, std::vector<ScoreResult>>> finished;
    {
        const LockReleased released;
        const Pass::Call call(self);
        self.scorer().step([&](size_t request, std::span<const ScoreResult> results) {
            finished.emplace_back(request, std::vector<ScoreResult>(results.begin(), results.end()));
        });
    }
    nb::list list;
    for (const auto & [request, results] : finished) {
        nb::list scores;
        for (const ScoreResult & result : results) scores.append(score_tuple(result));
        list.append(nb::make_tuple(request, scores));
    }
    return list;
}

/// Logits of some rows; Python will own them.
struct Rows {
    std::unique_ptr<std::vector<float>> logits;  // [records, n_vocab]
    std::vector<StepRecord> records;
};

/// Appends tokens to sequence 0. @return all rows, or only the last
Rows append(ForwardPass & pass, const std::vector<llama_token> & tokens, bool all) {
    if (tokens.empty()) throw Error(ErrorCode::invalid_input, "there are no tokens");
    if (all && tokens.size() > pass.n_batch()) {
        throw Error(ErrorCode::invalid_input, std::to_string(tokens.size()) + " rows of logits; allowed: 1.." +
                                                  std::to_string(pass.n_batch()) + " (a batch) in one call");
    }
    const llama_pos first = pass.memory_seq_pos_max(0) + 1;
    try {
        decoding::decode_feed(pass, {.tokens = tokens, .first = first, .n_silent = all ? 0 : tokens.size() - 1},
                              [](size_t /*n_done*/) {
                                  check_signals();
                                  return true;
                              });
    } catch (...) {  // also takes back the batches before the failed one
        (void)decoding::cut_sequence(pass, 0, first);
        throw;
    }
    Rows rows;
    const auto n_outputs = static_cast<int32_t>(all ? tokens.size() : 1);
    for (int32_t i = -n_outputs; i < 0; ++i) rows.records.push_back(pass.step(i));
    const float * logits = all ? pass.all_logits() : pass.logits(-1);
    const size_t size = rows.records.size() * static_cast<size_t>(pass.n_vocab());
    rows.logits = std::make_unique<std::vector<float>>(logits, logits + size);
    return rows;
}

/// @return (logits [n, n_vocab], entropies, hesitated)
nb::tuple forward(Pass & self, const std::vector<llama_token> & tokens, bool all) {
    Rows rows;
    {
        const LockReleased released;
        const Pass::Call call(self);
        rows = append(self.direct(), tokens, all);
    }
    nb::list entropies, hesitated;
    for (const StepRecord & record : rows.records) {
        entropies.append(record.entropy);
        hesitated.append(record.hesitated);
    }
    const float * logits = rows.logits->data();
    const nb::capsule owner(rows.logits.release(),
                            [](void * owned) noexcept { delete static_cast<std::vector<float> *>(owned); });
    const size_t n_vocab = static_cast<size_t>(self.pass().n_vocab());
    return nb::make_tuple(
        nb::ndarray<nb::numpy, const float, nb::ndim<2>>(logits, {rows.records.size(), n_vocab}, owner), entropies,
        hesitated);
}

/// @throws Error{invalid_input} if `n` is not in 0..n_past, Error{unsupported_call} if the memory cannot go back
void truncate(Pass & self, int64_t n) {
    const Pass::Call call(self);
    ForwardPass & pass = self.direct();
    const llama_pos n_past = pass.memory_seq_pos_max(0) + 1;
    if (n < 0 || n > n_past) {
        throw Error(ErrorCode::invalid_input,
                    "n: " + std::to_string(n) + " tokens; allowed: 0.." + std::to_string(n_past) + " (n_past)");
    }
    const auto end = static_cast<llama_pos>(n);
    if (end < n_past && (!pass.can_continue_at(0, end) || !pass.memory_seq_rm(0, end, -1))) {
        throw Error(ErrorCode::unsupported_call,
                    "n: this model's memory no longer holds what a token after the first " + std::to_string(n) +
                        " needs (a sliding window that has moved on, or recurrent state); truncate(0) empties it");
    }
}

nb::list beam_search(Pass & self, const std::vector<llama_token> & prompt, int max_tokens, uint32_t beams,
                     uint32_t candidates, double length_penalty, const OptionTexts & options, uint32_t mask_family,
                     const std::vector<llama_token> & negative_prompt) {
    GenerationResult result;
    {
        const LockReleased released;
        const Pass::Call call(self);
        decoding::Request request{
            .prompt = prompt,
            .limits = {max_tokens, {}},
            .beams = decoding::BeamOptions{.beams = beams, .candidates = candidates, .alpha = length_penalty},
            .options = self.read(options),
            .mask_family = mask_family,
            .negative_prompt = negative_prompt};
        validate(request, self.pass());
        decoding::Generator::Events events;
        events.on_prompt = [](size_t, size_t, size_t) { check_signals(); };
        events.on_step = [](size_t, const decoding::BeamSearch &) {
            check_signals();
            return true;
        };
        result = decoding::Generator(self.taken_over()).answer(std::move(request), std::move(events));
    }
    nb::list hypotheses;
    for (const auto & hypothesis : result.hypotheses) {
        nb::list tokens;
        for (size_t i = 0; i < hypothesis.tokens.size(); ++i) {
            const llama_token id = hypothesis.tokens[i];
            tokens.append(token_tuple(id, common_token_to_piece(&self.model().loaded().vocab(), id, /*special=*/false),
                                      static_cast<llama_pos>(prompt.size() + i), hypothesis.records[i]));
        }
        hypotheses.append(nb::make_tuple(tokens, hypothesis.score, hypothesis.sum, hypothesis.is_finished,
                                         result.prompt_seconds + result.seconds));
    }
    return hypotheses;
}

nb::dict statistics(const Pass & self) {
    const auto [s, speculation] = self.counts();
    nb::dict dict;
    dict["steps"] = s.steps;
    dict["hesitations"] = s.hesitations;
    dict["clean_rows"] = s.clean_rows;
    dict["second_pass_rows"] = s.second_pass_rows;
    dict["total_seconds"] = s.total_seconds;
    dict["second_pass_seconds"] = s.second_pass_seconds;
    dict["drafted"] = speculation.drafted;
    dict["accepted"] = speculation.accepted;
    return dict;
}

}  // namespace

void bind_pass(nb::module_ & module) {
    module.attr("max_sequences") = llama_max_parallel_sequences();
    nb::class_<Sampling>(module, "Sampling")
        .def(
            "__init__",
            [](Sampling * self, float temperature, int top_k, float top_p, float min_p, float repeat_penalty,
               uint32_t seed, const std::string & grammar) {
                new (self) Sampling{temperature, top_k, top_p, min_p, repeat_penalty, seed, grammar};
            },
            "temperature"_a, "top_k"_a, "top_p"_a, "min_p"_a, "repeat_penalty"_a, "seed"_a, "grammar"_a);

    nb::class_<Pass>(module, "Pass")
        .def(
            "__init__",
            [](Pass * self, const Model & model, const OptionTexts & options, uint64_t n_ctx, uint64_t n_sequences,
               bool is_unified, uint64_t n_ctx_twin) {
                new (self) Pass(model, read_options(options), Pass::Size{n_ctx, n_sequences, is_unified, n_ctx_twin});
            },
            "model"_a, "options"_a.none(), "n_ctx"_a, "n_sequences"_a, "is_unified"_a, "n_ctx_twin"_a,
            nb::keep_alive<1, 2>(), WithoutLock())
        .def_prop_ro("n_ctx", [](const Pass & self) { return self.pass().n_ctx_seq(); })
        .def_prop_ro("n_sequences", [](const Pass & self) { return self.pass().n_seq_max(); })
        .def_prop_ro("n_batch", [](const Pass & self) { return self.pass().n_batch(); })
        .def_prop_ro("n_past", &Pass::n_past)
        .def("statistics", &statistics)
        .def(
            "submit",
            [](Pass & self, const std::vector<llama_token> & prompt, int max_tokens,
               const std::vector<std::string> & stop, const Sampling & sampling, const OptionTexts & options,
               uint32_t mask_family, const std::vector<llama_token> & negative_prompt, bool reuses_prefix) {
                const Pass::Call call(self);
                decoding::Request request{.prompt = prompt,
                                          .limits = {max_tokens, stop},
                                          .sampler = self.new_sampler(sampling),
                                          .options = self.read(options),
                                          .mask_family = mask_family,
                                          .negative_prompt = negative_prompt,
                                          .reuses_prefix = reuses_prefix};
                validate(request, self.pass());  // before a generator empties what forward() has decoded
                return self.generator().submit(std::move(request));
            },
            "prompt"_a, "max_tokens"_a, "stop"_a, "sampling"_a, "options"_a.none(), "mask_family"_a,
            "negative_prompt"_a, "reuses_prefix"_a, InPlainLocale())
        .def("cancel", &Pass::cancel, "request"_a)
        .def("generate_batch", &generate_batch, "events"_a, InPlainLocale())
        .def(
            "submit_score",
            [](Pass & self, const std::vector<llama_token> & tokens, size_t n_context,
               const std::vector<std::map<std::string, std::string>> & options, uint32_t mask_family,
               const std::vector<llama_token> & negative_prompt) {
                std::vector<Options> sets;
                for (const auto & texts : options) sets.push_back(*self.read(texts));
                const Pass::Call call(self);
                decoding::ScoreRequest request{tokens, n_context, std::move(sets), mask_family, negative_prompt};
                validate(request, self.pass());
                return self.scorer().submit(std::move(request));
            },
            "tokens"_a, "n_context"_a, "options"_a, "mask_family"_a, "negative_prompt"_a, InPlainLocale())
        .def("score_batch", &score_batch, "[(request, result)] of one batch", InPlainLocale())
        .def("abandon_scores",
             [](Pass & self) {
                 const Pass::Call call(self);
                 self.abandon_scores();
             })
        .def("forward", &forward, "tokens"_a, "all"_a, InPlainLocale())
        .def("truncate", &truncate, "n"_a)
        .def("beam_search", &beam_search, "prompt"_a, "max_tokens"_a, "beams"_a, "candidates"_a, "length_penalty"_a,
             "options"_a.none(), "mask_family"_a, "negative_prompt"_a, InPlainLocale());
}

}  // namespace harp::python
