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
    // at least one row must be decoded, to get its logits
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
    n_rows_ = 0;
}

// ---------------------------------------------------------------------------------------------------------------------
// The request

void Slot::begin(size_t number, Request request) {
    auto answer = std::make_shared<Answer>(*pass_, number, std::move(request));
    const Request & asked = answer->request();
    const llama_pos n_kept = cut_sequence(*pass_, sequence_, static_cast<llama_pos>(common_prefix(asked)));
    tokens_.resize(static_cast<size_t>(n_kept));
    if (drafter_ != nullptr) drafter_->truncate(sequence_, n_kept);
    if (asked.options) pass_->set_sequence_options(sequence_, *asked.options, asked.mask_family);
    pass_->set_negative_prompt(sequence_, asked.negative_prompt);
    pass_->set_prompt_end(sequence_, static_cast<llama_pos>(asked.prompt.size()));
    pending_.assign(asked.prompt.begin() + n_kept, asked.prompt.end());
    answer->result().n_prompt = pending_.size();
    answer->beams() = {sequence_};
    answer_ = std::move(answer);
}

void Slot::join(const Slot & other) {
    empty();
    answer_ = other.answer_;
}

void Slot::copy(const Slot & beam) {
    pass_->memory_seq_cp(beam.sequence_, sequence_, -1, -1);
    tokens_ = beam.tokens_;
}

std::shared_ptr<Answer> Slot::leave() {
    pending_.clear();
    n_draft_ = n_rows_ = 0;
    row_ = -1;
    if (answer_->request().reuses_prefix) {
        settle();
    } else {
        empty();
    }
    return std::move(answer_);
}

// ---------------------------------------------------------------------------------------------------------------------
// A batch

/// A draft must leave room in the context for the token before it. Of n tokens still wanted at most n - 1 are drafted,
/// since the logits after the last one are not needed.
void Slot::draft(size_t n_max) {
    if (n_draft_ > 0) return;
    const size_t n_most = pass_->max_rows(sequence_);
    n_max = std::min(n_max, n_most - std::min(tokens_.size() + 1, n_most));
    const int n_predict = answer_->limits().n_predict;
    const int n_wanted = n_predict - answer_->result().n_generated;
    if (n_predict >= 0) n_max = std::min(n_max, static_cast<size_t>(std::max(1, n_wanted) - 1));
    const auto draft = drafter_->draft(sequence_, tokens_, pending_.front(), n_max);
    pending_.insert(pending_.end(), draft.begin(), draft.end());
    n_draft_ = draft.size();
}

bool Slot::drop_draft() {
    pending_.resize(pending_.size() - n_draft_);
    return std::exchange(n_draft_, 0) > 0;
}

void Slot::add_rows(forward::BatchRows & rows, Room & room) {
    n_rows_ = 0;
    if (pending_.empty()) return;
    const size_t n_silent = pending_.size() - 1 - n_draft_;
    const size_t first_row = rows.size();
    n_rows_ = decoding::add_rows(rows, room,
                                 {.sequence = sequence_,
                                  .tokens = pending_,
                                  .first = static_cast<llama_pos>(tokens_.size()),
                                  .n_silent = n_silent});
    row_ = n_rows_ > n_silent ? static_cast<int32_t>(first_row + n_silent) : -1;
}

void Slot::take_rows() {
    const auto begin = pending_.begin();
    const auto n_sure = static_cast<std::ptrdiff_t>(n_rows_ - n_draft_);
    tokens_.insert(tokens_.end(), begin, begin + n_sure);
    pending_.erase(begin, begin + n_sure);
    n_drafted_ = n_draft_;
}

size_t Slot::count_useful_rows() const {
    return answer_->count_useful_rows(row_, std::span(pending_).last(n_draft_));
}

///   batch    t  d1 d2 d3        rows 0 .. 3
///   sampled  d1 d2 x            d1 and d2 are confirmed; x is not d3: row 3 is taken back, and x begins the next batch
std::optional<StopReason> Slot::sample(const std::function<bool(const GeneratedToken &)> & on_token) {
    if (drafter_ != nullptr && reads_prompt()) drafter_->begin(sequence_, tokens_);
    const std::vector<llama_token> draft = std::exchange(pending_, {});
    int32_t row = take_row();
    n_draft_ = 0;
    while (true) {
        if (const auto stop = answer_->stop_reason()) return stop;
        const auto token = answer_->sample(row++, static_cast<llama_pos>(tokens_.size()));
        if (!token) return StopReason::end_of_text;
        push(token->id);
        if (!on_token(*token)) return StopReason::interrupted;
        if (const auto stop = answer_->stop_reason()) return stop;
        if (tokens_.size() + 1 >= pass_->max_rows(sequence_)) return StopReason::context_full;
        if (n_confirmed_ == draft.size() || draft[n_confirmed_] != token->id) return std::nullopt;
        tokens_.push_back(token->id);
        ++n_confirmed_;
    }
}

}  // namespace harp::decoding
