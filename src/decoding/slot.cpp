#include "decoding/slot.h"

#include <algorithm>
#include <utility>

namespace harp::decoding {

Slot::Slot(ForwardPass & pass, Drafter * drafter, llama_seq_id sequence)
    : pass_(&pass), drafter_(drafter), sequence_(sequence) {
    if (drafter_ != nullptr) drafter_->truncate(sequence_, 0);
}

// ---------------------------------------------------------------------------------------------------------------------
// The sequence

size_t Slot::common_prefix(const Request & request) const {
    if (!request.reuses_prefix) return 0;
    const auto & prompt = request.prompt;
    const auto mine = std::mismatch(tokens_.begin(), tokens_.end(), prompt.begin(), prompt.end()).first;
    // at least one row is decoded, for its logits
    return std::min(static_cast<size_t>(mine - tokens_.begin()), prompt.size() - 1);
}

void Slot::settle() {
    if (n_drafted_ == 0) return;
    const auto end = static_cast<llama_pos>(tokens_.size());
    if (n_confirmed_ < n_drafted_) pass_->memory_seq_rm(sequence_, end, -1);
    drafter_->accept(sequence_, n_confirmed_, end);
    n_drafted_ = n_confirmed_ = 0;
}

void Slot::empty() {
    settle();
    pass_->memory_seq_rm(sequence_, -1, -1);
    tokens_.clear();
}

// ---------------------------------------------------------------------------------------------------------------------
// The request

void Slot::begin(size_t number, Request request) {
    const llama_pos n_kept = cut_sequence(*pass_, sequence_, static_cast<llama_pos>(common_prefix(request)));
    tokens_.resize(static_cast<size_t>(n_kept));
    if (drafter_ != nullptr) drafter_->truncate(sequence_, n_kept);
    const auto & prompt = request.prompt;
    if (request.options) pass_->set_sequence_options(sequence_, *request.options, request.mask_sequence);
    pass_->set_negative_prompt(sequence_, request.negative_prompt);
    pass_->set_prompt_end(sequence_, static_cast<llama_pos>(prompt.size()));

    Sampler sampler = request.sampler.clone();  // the request may have to begin once more
    sampler.begin(prompt);
    Answer answer(*pass_, std::move(sampler), request.limits, request.records);
    std::vector<llama_token> pending(prompt.begin() + n_kept, prompt.end());
    answer.result().n_prompt = pending.size();
    work_.emplace(Work{number, std::move(request), std::move(answer), std::move(pending)});
}

Request Slot::leave() {
    Request request = std::move(work_->asked);
    work_.reset();
    if (request.reuses_prefix) {
        settle();
    } else {
        empty();
    }
    return request;
}

// ---------------------------------------------------------------------------------------------------------------------
// A batch

/// Beside the token itself there must be room in the context; and of the tokens still wanted nobody asks what follows the last.
void Slot::draft(size_t n_max) {
    if (work_->n_draft > 0) return;
    n_max = std::min(n_max, pass_->n_ctx_seq() - std::min<size_t>(tokens_.size() + 1, pass_->n_ctx_seq()));
    const int n_predict = work_->answer.limits().n_predict;
    const int n_wanted = n_predict - work_->answer.result().n_generated;
    if (n_predict >= 0) n_max = std::min(n_max, static_cast<size_t>(std::max(1, n_wanted) - 1));
    const auto draft = drafter_->draft(sequence_, tokens_, work_->pending.front(), n_max);
    work_->pending.insert(work_->pending.end(), draft.begin(), draft.end());
    work_->n_draft = draft.size();
}

bool Slot::drop_draft() {
    if (!work_) return false;
    work_->pending.resize(work_->pending.size() - work_->n_draft);
    return std::exchange(work_->n_draft, 0) > 0;
}

void Slot::add_rows(forward::BatchRows & rows, Room & room) {
    const size_t n_silent = work_->pending.size() - 1 - work_->n_draft;
    const size_t first_row = rows.size();
    work_->n_rows = decoding::add_rows(rows, room,
                                       {.sequence = sequence_,
                                        .tokens = work_->pending,
                                        .first = static_cast<llama_pos>(tokens_.size()),
                                        .n_silent = n_silent});
    work_->row = work_->n_rows > n_silent ? static_cast<int32_t>(first_row + n_silent) : -1;
}

void Slot::forget_rows() noexcept {
    if (work_) work_->row = -1;
}

void Slot::take_rows() {
    if (!work_) return;
    const auto begin = work_->pending.begin();
    const auto n_sure = static_cast<std::ptrdiff_t>(work_->n_rows - work_->n_draft);
    tokens_.insert(tokens_.end(), begin, begin + n_sure);
    work_->pending.erase(begin, begin + n_sure);
    n_drafted_ = work_->n_draft;
}

size_t Slot::count_useful_rows() const {
    const std::span<const llama_token> draft(work_->pending.end() - static_cast<std::ptrdiff_t>(work_->n_draft),
                                             work_->pending.end());
    return work_->answer.count_useful_rows(*pass_, work_->row, draft);
}

///   batch    t  d1 d2 d3        rows 0 .. 3
///   sampled  d1 d2 x            d1 and d2 are confirmed; x is not d3: row 3 is taken back, x begins the next batch
std::optional<StopReason> Slot::sample(const std::function<bool(const GeneratedToken &)> & on_token) {
    Work & work = *work_;
    if (drafter_ != nullptr && reads_prompt()) drafter_->begin(sequence_, tokens_);
    const std::vector<llama_token> draft = std::exchange(work.pending, {});
    int32_t row = std::exchange(work.row, -1);
    work.n_draft = 0;
    while (true) {
        if (const auto stop = work.answer.stop_reason()) return stop;
        const auto token = work.answer.sample(*pass_, row++, static_cast<llama_pos>(tokens_.size()));
        if (!token) return StopReason::end_of_text;
        work.pending = {token->id};
        if (!on_token(*token)) return StopReason::interrupted;
        if (const auto stop = work.answer.stop_reason()) return stop;
        if (tokens_.size() + 1 >= pass_->n_ctx_seq()) return StopReason::context_full;
        if (n_confirmed_ == draft.size() || draft[n_confirmed_] != token->id) return std::nullopt;
        tokens_.push_back(token->id);
        ++n_confirmed_;
    }
}

}  // namespace harp::decoding
