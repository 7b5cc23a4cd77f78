#include "decoding/answer.h"

#include <algorithm>
#include <utility>

#include "common.h"

namespace harp::decoding {

namespace {

/// Whether one of the stop strings ends in the last `n_new` bytes of the text.
bool ends_within(const std::string & text, size_t n_new, const std::vector<std::string> & stop_strings) {
    return std::any_of(stop_strings.begin(), stop_strings.end(), [&](const std::string & stop) {
        if (stop.empty()) return false;
        const size_t looked_at = std::min(text.size(), n_new + stop.size() - 1);
        return text.find(stop, text.size() - looked_at) != std::string::npos;
    });
}

const llama_vocab * vocab_of(ForwardPass & pass) {
    return llama_model_get_vocab(llama_get_model(pass.context()));
}

}  // namespace

const char * to_string(StopReason reason) noexcept {
    switch (reason) {
        case StopReason::end_of_text: return "end_of_text";
        case StopReason::stop_string: return "stop_string";
        case StopReason::length: return "length";
        case StopReason::context_full: return "context_full";
        case StopReason::interrupted: return "interrupted";
    }
    return "unknown";
}

Answer::Answer(ForwardPass & pass, size_t number, Request request)
    : pass_(pass), number_(number), request_(std::move(request)) {
    auto & is_end = request_.limits.is_end;
    if (!is_end) is_end = [vocab = vocab_of(pass)](llama_token token) { return llama_vocab_is_eog(vocab, token); };
    if (request_.beams) {
        const int n_predict = limits().n_predict;
        search_.emplace(*request_.beams,
                        n_predict < 0 ? room_for_answer(request_, pass) : static_cast<size_t>(n_predict), is_end);
    } else {
        sampler_ = request_.sampler->clone();
        sampler_->begin(request_.prompt);
    }
}

std::span<const float> Answer::logits(int32_t row) const {
    return {pass_.logits(row), static_cast<size_t>(pass_.n_vocab())};
}

/// Counts the step's hesitation. @return the step's record; empty if nobody wants it and it would cost an entropy
StepRecord Answer::record(int32_t row) {
    const StepRecord record = request_.records || pass_.enabled() ? pass_.step(row) : StepRecord{};
    result_.n_hesitations += record.hesitated ? 1 : 0;
    return record;
}

std::string Answer::piece(llama_token token) const {
    return common_token_to_piece(vocab_of(pass_), token, /*special=*/false);
}

std::optional<StopReason> Answer::stop_reason() const {
    if (search_ && !search_->is_done()) return std::nullopt;
    if (search_ && search_->best(1).front().is_finished) return StopReason::end_of_text;
    if (search_) return limits().n_predict < 0 ? StopReason::context_full : StopReason::length;
    if (has_stop_string_) return StopReason::stop_string;
    if (limits().n_predict >= 0 && result_.n_generated >= limits().n_predict) return StopReason::length;
    return std::nullopt;
}

GenerationResult Answer::finish(StopReason reason) {
    result_.reason = reason;
    if (search_) result_.hypotheses = search_->best(request_.beams->beams);
    if (!result_.hypotheses.empty()) {
        const std::vector<llama_token> & best = result_.hypotheses.front().tokens;
        result_.n_generated = static_cast<int>(best.size());
        for (const llama_token token : best) result_.text += piece(token);
    }
    return std::move(result_);
}

// ---------------------------------------------------------------------------------------------------------------------
// Samples

std::optional<GeneratedToken> Answer::sample(int32_t row, llama_pos position) {
    GeneratedToken token;
    token.id = sampler_->sample(logits(row));
    token.position = position;
    token.record = record(row);
    ++result_.n_steps;
    sampler_->accept(token.id);
    if (limits().is_end(token.id)) return std::nullopt;

    token.piece = piece(token.id);
    result_.text += token.piece;
    has_stop_string_ = ends_within(result_.text, token.piece.size(), limits().stop_strings);
    ++result_.n_generated;
    return token;
}

/// A sample counts even if a second pass may still change it: ForwardPass asks again after that pass.
size_t Answer::count_useful_rows(int32_t row, std::span<const llama_token> draft) const {
    Sampler ahead = sampler_->clone();
    for (size_t i = 0; i < draft.size(); ++i) {
        const llama_token token = ahead.sample(logits(row + static_cast<int32_t>(i)));
        if (token != draft[i]) return i + 1;
        ahead.accept(token);
    }
    return draft.size() + 1;
}

// ---------------------------------------------------------------------------------------------------------------------
// Beams

const std::vector<BeamSearch::Branch> & Answer::advance(std::span<const int32_t> rows) {
    std::vector<std::vector<BeamCandidate>> candidates;
    std::vector<StepRecord> records;
    for (const int32_t row : rows) {
        candidates.push_back(top_candidates(logits(row), search_->n_candidates()));
        records.push_back(record(row));
    }
    ++result_.n_steps;
    return search_->advance(candidates, records);
}

}  // namespace harp::decoding
