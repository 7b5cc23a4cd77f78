#include "decoding/generate.h"

#include <algorithm>
#include <chrono>
#include <optional>
#include <string>

namespace harp::decoding {

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace

Generator::Generator(ForwardPass & pass, Drafter * drafter) : pass_(pass), drafter_(drafter) {
    pass_.memory_clear(false);
    for (uint32_t s = 0; s < pass_.n_seq_max(); ++s) slots_.emplace_back(pass_, drafter_, static_cast<llama_seq_id>(s));
}

// ---------------------------------------------------------------------------------------------------------------------
// Requests

size_t Generator::submit(Request request) {
    if (request.prompt.empty()) throw Error(ErrorCode::invalid_input, "the prompt is empty");
    if (request.prompt.size() >= pass_.n_ctx_seq()) {
        throw Error(ErrorCode::invalid_input, "the prompt has " + std::to_string(request.prompt.size()) +
                                                  " tokens and the context room for " +
                                                  std::to_string(pass_.n_ctx_seq()) +
                                                  " with the answer; shorten it or raise the context size (-c)");
    }
    if (request.options) validate(*request.options);
    if (pass_.enabled())
        check_negative_prompt(request.negative_prompt, request.options.value_or(pass_.sequence_options(0)));
    waiting_.emplace_back(n_submitted_, std::move(request));
    return n_submitted_++;
}

void Generator::cancel(size_t request) {
    std::erase_if(waiting_, [&](const auto & queued) { return queued.first == request; });
    for (Slot & slot : slots_) {
        if (!slot.is_free() && slot.number() == request) slot.leave();
    }
}

bool Generator::is_idle() const noexcept {
    return waiting_.empty() &&
           std::all_of(slots_.begin(), slots_.end(), [](const Slot & slot) { return slot.is_free(); });
}

size_t Generator::n_cells(bool of_free_slots) const {
    size_t n = 0;
    for (const Slot & slot : slots_) n += slot.is_free() == of_free_slots ? slot.n_cells() : 0;
    return n;
}

/// The one that holds most of the request's prompt, and of those the one that loses least; nullptr if none is free.
Slot * Generator::free_slot(const Request & request) {
    Slot * best = nullptr;
    const auto worth = [&](const Slot & slot) {
        return std::pair(slot.common_prefix(request), -static_cast<std::ptrdiff_t>(slot.n_cells()));
    };
    for (Slot & slot : slots_) {
        if (slot.is_free() && (best == nullptr || worth(slot) > worth(*best))) best = &slot;
    }
    return best;
}

void Generator::begin_waiting() {
    while (!waiting_.empty()) {
        const size_t n_prompt = waiting_.front().second.prompt.size();
        Slot * slot = free_slot(waiting_.front().second);
        const size_t n_at_work = n_cells(/*of_free_slots=*/false);
        if (slot == nullptr || (n_at_work > 0 && n_at_work + n_prompt >= pass_.n_ctx())) return;
        for (Slot & other : slots_) {  // what is kept gives way
            const size_t n_kept = n_cells(/*of_free_slots=*/true) - slot->n_cells();
            if (&other != slot && other.is_free() && n_at_work + n_kept + n_prompt >= pass_.n_ctx()) other.empty();
        }
        auto [number, request] = std::move(waiting_.front());
        waiting_.pop_front();
        slot->begin(number, std::move(request));
    }
}

void Generator::end(Slot & slot, StopReason reason, const Events & events) {
    GenerationResult result = std::move(slot.result());
    result.reason = reason;
    const size_t request = slot.number();
    slot.leave();
    events.on_result(request, result);
}

// ---------------------------------------------------------------------------------------------------------------------
// Steps

void Generator::step(const Events & events) {
    // rows are left where a callback has thrown
    const bool has_rows = std::any_of(slots_.begin(), slots_.end(), [](const Slot & slot) { return slot.has_row(); });
    if (!has_rows) decode(events);
    for (Slot & slot : slots_) {
        if (!slot.has_row()) continue;
        const auto start = Clock::now();
        const auto stop =
            slot.sample([&](const GeneratedToken & token) { return events.on_token(slot.number(), token); });
        slot.result().seconds += seconds_since(start);
        if (stop) end(slot, *stop, events);
    }
}

/// One batch: of answers the tokens sampled last, with drafts; what is left of it goes to prompts.
void Generator::decode(const Events & events) {
    const auto start = Clock::now();
    for (Slot & slot : slots_) slot.settle();
    begin_waiting();
    draft();
    while (true) {
        try {
            decode_batch();
            break;
        } catch (const Error & error) {
            if (error.code() != ErrorCode::context_full || !make_room(events)) throw;
        }
    }
    if (rows_.size() == 0) return;
    for (Slot & slot : slots_) slot.take_rows();
    if (drafter_ != nullptr) drafter_->follow(rows_.view());
    const double seconds_of_a_row = seconds_since(start) / static_cast<double>(rows_.size());
    for (Slot & slot : slots_) {
        if (slot.n_rows() == 0) continue;
        GenerationResult & result = slot.result();
        (slot.reads_prompt() ? result.prompt_seconds : result.seconds) +=
            seconds_of_a_row * static_cast<double>(slot.n_rows());
        if (!events.on_prompt || !slot.reads_prompt()) continue;
        events.on_prompt(slot.number(), result.n_prompt - slot.n_pending(), result.n_prompt);
    }
}

/// Answers have equal shares of the batch.
void Generator::draft() {
    if (drafter_ == nullptr) return;
    const auto n_answers = static_cast<size_t>(
        std::count_if(slots_.begin(), slots_.end(), [](const Slot & slot) { return slot.is_answering(); }));
    for (Slot & slot : slots_) {
        if (slot.is_answering()) slot.draft(std::max<size_t>(pass_.n_batch() / n_answers, 1) - 1);
    }
}

void Generator::decode_batch() {
    rows_.clear();
    Room room{pass_.n_batch()};
    for (Slot & slot : slots_) {
        if (slot.is_answering()) slot.add_rows(rows_, room);
    }
    for (Slot & slot : slots_) {
        if (slot.reads_prompt()) slot.add_rows(rows_, room);
    }
    if (rows_.size() == 0) return;
    const bool has_draft =
        std::any_of(slots_.begin(), slots_.end(), [](const Slot & slot) { return slot.n_outputs() > 1; });
    try {
        pass_.decode(rows_.view(), has_draft ? [this] { return count_useful_rows(); } : CountUsefulOutputs{});
    } catch (...) {
        for (Slot & slot : slots_) slot.forget_rows();
        throw;
    }
}

/// Of the batch's output rows: all up to the last that is of use, since they are judged in their order.
size_t Generator::count_useful_rows() const {
    size_t n_outputs = 0;
    size_t n_useful = 0;
    for (const bool of_prompts : {false, true}) {
        for (const Slot & slot : slots_) {
            if (!slot.has_row() || slot.reads_prompt() != of_prompts) continue;
            n_useful = n_outputs + slot.count_useful_rows();
            n_outputs += slot.n_outputs();
        }
    }
    return n_useful;
}

/// After a batch that found the context full: drafts go first, then what is kept for later requests, then the request that
/// came last.
/// @return false if there is nothing that could go
bool Generator::make_room(const Events & events) {
    bool has_room = false;
    for (Slot & slot : slots_) has_room = slot.drop_draft() || has_room;
    if (has_room) return true;
    if (n_cells(/*of_free_slots=*/true) > 0) {
        for (Slot & slot : slots_) {
            if (slot.is_free()) slot.empty();
        }
        return true;
    }
    size_t n_at_work = 0;
    Slot * last = nullptr;
    for (Slot & slot : slots_) {
        if (slot.is_free()) continue;
        ++n_at_work;
        if (last == nullptr || slot.number() > last->number()) last = &slot;
    }
    if (last == nullptr) return false;
    if (last->reads_prompt() && n_at_work > 1) {
        const size_t number = last->number();
        waiting_.emplace_front(number, last->leave());
        last->empty();
    } else {
        end(*last, StopReason::context_full, events);
    }
    return true;
}

// ---------------------------------------------------------------------------------------------------------------------
// One alone

GenerationResult Generator::answer(Request request, const std::function<bool(const GeneratedToken &)> & on_token,
                                   const std::function<void(size_t done, size_t total)> & on_prompt) {
    if (!is_idle()) throw Error(ErrorCode::unsupported_call, "other answers are under way");
    std::optional<GenerationResult> answered;
    const Events events = {
        .on_token = [&](size_t /*request*/, const GeneratedToken & token) { return on_token(token); },
        .on_result = [&](size_t /*request*/, const GenerationResult & result) { answered = result; },
        .on_prompt =
            [&](size_t /*request*/, size_t done, size_t total) {
                if (on_prompt) on_prompt(done, total);
            },
    };
    const size_t number = submit(std::move(request));
    try {
        while (!answered) step(events);
    } catch (const Error & error) {
        const auto slot =
            std::find_if(slots_.begin(), slots_.end(), [](const Slot & one) { return one.is_answering(); });
        if (error.code() != ErrorCode::aborted || slot == slots_.end()) {
            cancel(number);
            throw;
        }
        end(*slot, StopReason::interrupted, events);
    } catch (...) {
        cancel(number);
        throw;
    }
    return *answered;
}

}  // namespace harp::decoding
