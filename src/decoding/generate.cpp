#include "decoding/generate.h"

#include <algorithm>
#include <chrono>

#include "common.h"
#include "forward/batch_rows.h"
#include "sampling.h"

namespace harp::decoding {

Generator::Generator(ForwardPass & pass, common_sampler & sampler, Drafter * drafter)
    : pass_(pass), sampler_(sampler), drafter_(drafter) {}

void Generator::decode_prompt(const llama_token * tokens, size_t n, bool last_is_output) {
    const auto first = static_cast<llama_pos>(tokens_.size());
    forward::BatchRows rows;
    for (size_t i = 0; i < n; ++i) {
        rows.add(tokens[i], first + static_cast<llama_pos>(i), {&sequence_, 1}, last_is_output && i + 1 == n);
    }
    pass_.decode(rows.view());
    tokens_.insert(tokens_.end(), tokens, tokens + n);
    if (drafter_ != nullptr) drafter_->follow(tokens, n, first);
    logits_row_ = static_cast<int32_t>(n) - 1;
}

size_t Generator::keep_common_prefix(const std::vector<llama_token> & tokens) {
    const auto [mine, theirs] = std::mismatch(tokens_.begin(), tokens_.end(), tokens.begin(), tokens.end());
    auto n_kept = static_cast<size_t>(mine - tokens_.begin());
    n_kept = std::min(n_kept, tokens.size() - 1);  // at least one row is decoded, for its logits
    if (n_kept < tokens_.size() && !pass_.memory_seq_rm(sequence_, static_cast<llama_pos>(n_kept), -1)) {
        pass_.memory_seq_rm(sequence_, -1, -1);  // recurrent state cannot be cut
        n_kept = 0;
    }
    tokens_.resize(n_kept);
    if (drafter_ != nullptr) drafter_->truncate(static_cast<llama_pos>(n_kept));
    return n_kept;
}

size_t Generator::set_prompt(const std::vector<llama_token> & tokens, const OnProgress & on_progress) {
    check_prompt(pass_, tokens);
    const size_t n_kept = keep_common_prefix(tokens);
    pass_.set_prompt_end(sequence_, static_cast<llama_pos>(tokens.size()));
    accept_prompt(sampler_, tokens);

    const size_t total = tokens.size() - n_kept;
    for (size_t done = 0; done < total;) {
        const size_t n = std::min<size_t>(total - done, pass_.n_batch());
        decode_prompt(tokens.data() + n_kept + done, n, done + n == total);
        done += n;
        if (on_progress) on_progress(done, total);
    }
    if (drafter_ != nullptr) drafter_->begin(tokens_);
    return total;
}

/// Makes the logits after `token` ready: they are there if the token was drafted, else it is decoded, with a new draft.
///
///   batch    t  d1 d2 d3        rows 0 .. 3
///   sampled  d1 d2 x            d1 and d2 are confirmed; x is not d3: row 3 is taken back, x begins the next batch
void Generator::advance(llama_token token, size_t n_draft_max) {
    if (n_confirmed_ < draft_.size() && draft_[n_confirmed_] == token) {
        ++n_confirmed_;
        ++logits_row_;
        tokens_.push_back(token);
    } else {
        resolve_draft();
        decode_with_draft(token, n_draft_max);
    }
}

void Generator::decode_with_draft(llama_token token, size_t n_draft_max) {
    std::vector<llama_token> batch = {token};
    if (drafter_ != nullptr) {
        draft_ = drafter_->draft(tokens_, token, n_draft_max);
        batch.insert(batch.end(), draft_.begin(), draft_.end());
    }
    const auto first = static_cast<llama_pos>(tokens_.size());
    forward::BatchRows rows;
    for (size_t i = 0; i < batch.size(); ++i)
        rows.add(batch[i], first + static_cast<llama_pos>(i), {&sequence_, 1}, true);
    try {
        pass_.decode(
            rows.view(), draft_.empty() ? CountUsefulOutputs{} : [this] { return count_useful_rows(); });
    } catch (...) {
        draft_.clear();  // nothing of the batch stays behind
        throw;
    }
    tokens_.push_back(token);
    logits_row_ = 0;
    if (drafter_ != nullptr) drafter_->follow(batch.data(), batch.size(), first);
}

/// Draws ahead, with the logits as they are now: rows behind the first token that differs from the draft will be taken back.
/// (A draw that a second pass may still change counts as it is; ForwardPass asks again after that pass.)
size_t Generator::count_useful_rows() const {
    const common_sampler_ptr ahead(common_sampler_clone(&sampler_));
    for (size_t i = 0; i < draft_.size(); ++i) {
        const llama_token drawn = common_sampler_sample(ahead.get(), pass_.context(), static_cast<int>(i));
        if (drawn != draft_[i]) return i + 1;
        common_sampler_accept(ahead.get(), drawn, /*is_generated=*/true);
    }
    return draft_.size() + 1;
}

/// Takes what was not confirmed out of the sequence.
void Generator::resolve_draft() {
    if (draft_.empty()) return;
    const auto end = static_cast<llama_pos>(tokens_.size());
    if (n_confirmed_ < draft_.size()) pass_.memory_seq_rm(sequence_, end, -1);
    drafter_->accept(n_confirmed_, end);
    draft_.clear();
    n_confirmed_ = 0;
}

size_t Generator::room_for_draft(const GenerationLimits & limits, int n_generated) const {
    // beside the token itself: room in the context, in a batch, and of what is still to be generated all but the last
    const size_t used = tokens_.size() + 1;
    size_t room = pass_.n_ctx_seq() > used ? pass_.n_ctx_seq() - used : 0;
    room = std::min<size_t>(room, pass_.n_batch() - 1);
    if (limits.n_predict >= 0)
        room = std::min(room, static_cast<size_t>(std::max(0, limits.n_predict - n_generated - 1)));
    return room;
}

GenerationResult Generator::generate(const GenerationLimits & limits, const OnToken & on_token) {
    struct DraftGuard {  // however the generation ends, the sequence holds what was generated and no more
        Generator & generator;
        ~DraftGuard() { generator.resolve_draft(); }
    } const guard{*this};
    return run(limits, on_token);
}

GenerationResult Generator::run(const GenerationLimits & limits, const OnToken & on_token) {
    using Clock = std::chrono::steady_clock;
    Answer answer(pass_, sampler_, limits);
    const auto start = Clock::now();
    const auto finish = [&](StopReason reason) {
        GenerationResult result = answer.result();
        result.reason = reason;
        result.seconds = std::chrono::duration<double>(Clock::now() - start).count();
        return result;
    };

    auto stop = answer.stop_reason();
    while (!stop) {
        const auto token = answer.draw(pass_, logits_row_, static_cast<llama_pos>(tokens_.size()));
        if (!token) return finish(StopReason::end_of_text);
        if (!on_token(*token)) return finish(StopReason::interrupted);
        stop = answer.stop_reason();
        if (stop) break;
        if (tokens_.size() + 1 >= pass_.n_ctx_seq()) return finish(StopReason::context_full);
        try {
            advance(token->id, room_for_draft(limits, answer.result().n_generated));
        } catch (const Error & error) {
            if (error.code() == ErrorCode::context_full) return finish(StopReason::context_full);
            if (error.code() == ErrorCode::aborted) return finish(StopReason::interrupted);
            throw;
        }
    }
    return finish(*stop);
}

}  // namespace harp::decoding
