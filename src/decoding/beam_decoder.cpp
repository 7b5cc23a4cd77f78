#include "decoding/beam_decoder.h"

#include <algorithm>
#include <chrono>

#include "decoding/feed.h"

namespace harp::decoding {

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
}

/// Tokens that each of the beams can have: they share the prompt's cells, and need one of their own for all but the last.
size_t room_for(const ForwardPass & pass, size_t n_prompt, size_t beams) {
    if (n_prompt > pass.n_ctx_seq()) return 0;
    return 1 + std::min(pass.n_ctx_seq() - n_prompt, (pass.n_ctx() - n_prompt) / beams);
}

size_t checked_length(const ForwardPass & pass, size_t n_prompt, size_t n_predict, const BeamOptions & options) {
    validate(options);
    if (options.beams > pass.n_seq_max()) {
        throw Error(ErrorCode::invalid_option, "option 'beams': " + std::to_string(options.beams) +
                                                   "; this context was created for 1.." +
                                                   std::to_string(pass.n_seq_max()));
    }
    if (n_prompt == 0) throw Error(ErrorCode::invalid_input, "the prompt is empty");
    const size_t room = room_for(pass, n_prompt, options.beams);
    if (room == 0 || n_predict > room) {
        throw Error(ErrorCode::invalid_input,
                    "the prompt has " + std::to_string(n_prompt) + " tokens, and " + std::to_string(options.beams) +
                        " beams of " + std::to_string(n_predict) + " tokens do not fit beside it in a context of " +
                        std::to_string(pass.n_ctx()) + ": room is for " + std::to_string(room) +
                        " each; raise the context size (-c), or ask for fewer tokens (-n) or beams");
    }
    return n_predict == 0 ? room : n_predict;
}

/// Which sequence holds each running beam.
class BeamSequences {
  public:
    BeamSequences(ForwardPass & pass, size_t n) : pass_(pass), n_(n) {}

    [[nodiscard]] llama_seq_id operator[](size_t beam) const { return ids_[beam]; }

    /// Follows a step of the search: a beam's first continuation keeps its sequence, its others get copies in sequences of
    /// beams that died.
    ///
    ///   before   0:A  1:B  2:C      the step keeps A·x, A·y, C·z
    ///   after    0:A  1:A' 2:C      sequence 1 is emptied and becomes a copy of 0
    void follow(const std::vector<BeamSearch::Branch> & branches) {
        std::vector<bool> used(n_, false);
        std::vector<llama_seq_id> next(branches.size(), -1);
        for (size_t i = 0; i < branches.size(); ++i) {
            const auto own = static_cast<size_t>(ids_[branches[i].parent]);
            if (!used[own]) next[i] = ids_[branches[i].parent];
            used[own] = true;
        }
        std::vector<llama_seq_id> free;
        for (size_t s = 0; s < n_; ++s) {
            if (used[s]) continue;
            free.push_back(static_cast<llama_seq_id>(s));
            pass_.memory_seq_rm(free.back(), -1, -1);
        }
        for (size_t i = 0; i < branches.size(); ++i) {
            if (next[i] >= 0) continue;
            next[i] = free.back();
            free.pop_back();
            pass_.memory_seq_cp(ids_[branches[i].parent], next[i], -1, -1);
        }
        ids_ = std::move(next);
    }

  private:
    ForwardPass & pass_;
    size_t n_;
    std::vector<llama_seq_id> ids_ = {0};  // [running beams]
};

void decode_prompt(ForwardPass & pass, const std::vector<llama_token> & prompt, const BeamCallbacks & callbacks) {
    pass.memory_clear(false);
    pass.set_prompt_end(0, static_cast<llama_pos>(prompt.size()));
    decode_feed(pass, {.tokens = prompt, .n_silent = prompt.size() - 1}, [&](size_t n_done) {
        if (callbacks.on_prompt) callbacks.on_prompt(n_done, prompt.size());
        return true;
    });
}

}  // namespace

BeamResult beam_decode(ForwardPass & pass, const std::vector<llama_token> & prompt, size_t n_predict,
                       const BeamOptions & options, const BeamSearch::IsEnd & is_end, const BeamCallbacks & callbacks) {
    const size_t length = checked_length(pass, prompt.size(), n_predict, options);
    BeamResult result;
    BeamSearch search(options, length, is_end);
    BeamSequences sequences(pass, options.beams);
    try {
        const auto prompt_start = Clock::now();
        decode_prompt(pass, prompt, callbacks);
        // the beams' twins share the prompt too, if it is decoded for one of them before they branch
        if (options.beams > 1) pass.prepare_twins(0);
        result.prompt_seconds = seconds_since(prompt_start);

        const auto start = Clock::now();
        const bool has_records = options.records || pass.enabled();
        forward::BatchRows rows;
        int32_t first_row = -1;  // of the running beams' logits; at first the last one of the prompt
        while (!search.is_done()) {
            std::vector<std::vector<BeamCandidate>> candidates;
            std::vector<StepRecord> records;
            for (int32_t i = 0; i < static_cast<int32_t>(search.n_running()); ++i) {
                const std::span<const float> logits(pass.logits(first_row + i), static_cast<size_t>(pass.n_vocab()));
                candidates.push_back(top_candidates(logits, search.n_candidates()));
                records.push_back(has_records ? pass.step(first_row + i) : StepRecord{});
            }
            const auto & branches = search.advance(candidates, records);
            ++result.n_steps;
            result.seconds = seconds_since(start);
            if (callbacks.on_step && !callbacks.on_step(search)) {
                result.is_interrupted = true;
                break;
            }
            if (search.is_done()) break;
            sequences.follow(branches);
            rows.clear();
            const auto position = static_cast<llama_pos>(prompt.size() + result.n_steps - 1);
            for (size_t i = 0; i < branches.size(); ++i) {
                const llama_seq_id sequence = sequences[i];
                rows.add(branches[i].token, position, {&sequence, 1}, true);
            }
            pass.decode(rows.view());
            result.n_rows += rows.size();
            first_row = 0;
        }
    } catch (const Error & error) {
        if (error.code() != ErrorCode::aborted || result.n_steps == 0) throw;
        result.is_interrupted = true;
    }
    result.hypotheses = search.best(options.beams);
    return result;
}

}  // namespace harp::decoding
