#include "decoding/batch_generate.h"

#include <algorithm>
#include <string>
#include <utility>

#include "forward/batch_rows.h"

namespace harp::decoding {

BatchGenerator::BatchGenerator(ForwardPass & pass) : pass_(pass), slots_(pass.n_seq_max()) {
    pass_.memory_clear(false);
}

size_t BatchGenerator::submit(BatchRequest request) {
    check_prompt(pass_, request.prompt);
    if (request.options) validate(*request.options);
    waiting_.emplace_back(n_submitted_, std::move(request));
    return n_submitted_++;
}

void BatchGenerator::cancel(size_t request) {
    std::erase_if(waiting_, [&](const auto & queued) { return queued.first == request; });
    for (size_t s = 0; s < slots_.size(); ++s) {
        if (!slots_[s] || slots_[s]->request != request) continue;
        pass_.memory_seq_rm(static_cast<llama_seq_id>(s), -1, -1);
        slots_[s].reset();
    }
}

bool BatchGenerator::is_idle() const noexcept {
    return waiting_.empty() &&
           std::none_of(slots_.begin(), slots_.end(), [](const auto & slot) { return slot != nullptr; });
}

/// Gives the first waiting request to a free sequence.
void BatchGenerator::begin(llama_seq_id sequence) {
    auto slot = std::make_unique<Slot>();
    slot->request = waiting_.front().first;
    slot->asked = std::move(waiting_.front().second);
    waiting_.pop_front();
    const auto & prompt = slot->asked.prompt;
    if (slot->asked.options) pass_.set_sequence_options(sequence, *slot->asked.options, slot->asked.mask_sequence);
    pass_.set_prompt_end(sequence, static_cast<llama_pos>(prompt.size()));
    accept_prompt(*slot->asked.sampler, prompt);
    slot->pending = prompt;
    slots_[static_cast<size_t>(sequence)] = std::move(slot);
}

void BatchGenerator::end(llama_seq_id sequence, StopReason reason, const OnResult & on_result) {
    const std::unique_ptr<Slot> slot = std::exchange(slots_[static_cast<size_t>(sequence)], nullptr);
    pass_.memory_seq_rm(sequence, -1, -1);
    GenerationResult result = slot->answer->result();
    result.reason = reason;
    result.seconds = slot->seconds;
    on_result(slot->request, result);
}

void BatchGenerator::draw(llama_seq_id sequence, const OnToken & on_token, const OnResult & on_result) {
    Slot & slot = *slots_[static_cast<size_t>(sequence)];
    if (!slot.answer) slot.answer.emplace(pass_, *slot.asked.sampler, slot.asked.limits);
    auto stop = slot.answer->stop_reason();
    if (!stop) {
        const auto token = slot.answer->draw(pass_, slot.row, static_cast<llama_pos>(slot.n_decoded));
        if (token) {
            on_token(slot.request, *token);
            slot.pending = {token->id};
            stop = slot.answer->stop_reason();
            if (!stop && slot.n_decoded + 1 >= pass_.n_ctx_seq()) stop = StopReason::context_full;
        } else {
            stop = StopReason::end_of_text;
        }
    }
    if (stop) end(sequence, *stop, on_result);
}

void BatchGenerator::step(const OnToken & on_token, const OnResult & on_result) {
    using Clock = std::chrono::steady_clock;
    const auto start = Clock::now();
    for (size_t s = 0; s < slots_.size() && !waiting_.empty(); ++s) {
        if (!slots_[s]) begin(static_cast<llama_seq_id>(s));
    }

    // answers first, with one row each; what is left of the batch goes to prompts
    forward::BatchRows rows;
    const auto add_rows = [&](bool of_prompts) {
        for (size_t s = 0; s < slots_.size(); ++s) {
            if (!slots_[s] || slots_[s]->answer.has_value() == of_prompts) continue;
            Slot & slot = *slots_[s];
            const auto sequence = static_cast<llama_seq_id>(s);
            slot.n_rows = std::min(slot.pending.size(), pass_.n_batch() - rows.size());
            slot.row = -1;
            for (size_t i = 0; i < slot.n_rows; ++i) {
                const bool is_last = i + 1 == slot.pending.size();
                if (is_last) slot.row = static_cast<int32_t>(rows.size());
                rows.add(slot.pending[i], static_cast<llama_pos>(slot.n_decoded + i), {&sequence, 1}, is_last);
            }
        }
    };
    add_rows(/*of_prompts=*/false);
    add_rows(/*of_prompts=*/true);
    if (rows.size() == 0) return;
    pass_.decode(rows.view());

    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    for (size_t s = 0; s < slots_.size(); ++s) {
        if (!slots_[s]) continue;
        Slot & slot = *slots_[s];
        slot.seconds += seconds * static_cast<double>(slot.n_rows) / static_cast<double>(rows.size());
        slot.n_decoded += slot.n_rows;
        slot.pending.erase(slot.pending.begin(), slot.pending.begin() + static_cast<std::ptrdiff_t>(slot.n_rows));
        if (slot.row >= 0) draw(static_cast<llama_seq_id>(s), on_token, on_result);
    }
}

}  // namespace harp::decoding
