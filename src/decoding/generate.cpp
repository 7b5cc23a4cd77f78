#include "decoding/generate.h"

#include <algorithm>
#include <chrono>
#include <string>

namespace harp::decoding {

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
}

size_t common_prefix(const std::vector<llama_token> & a, const std::vector<llama_token> & b) {
    return static_cast<size_t>(std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first - a.begin());
}

}  // namespace

Generator::Generator(ForwardPass & pass, Drafter * drafter) : pass_(pass), drafter_(drafter), slots_(pass.n_seq_max()) {
    pass_.memory_clear(false);
    for (size_t s = 0; s < slots_.size() && drafter_ != nullptr; ++s)
        drafter_->truncate(static_cast<llama_seq_id>(s), 0);
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
    waiting_.emplace_back(n_submitted_, std::move(request));
    return n_submitted_++;
}

void Generator::cancel(size_t request) {
    std::erase_if(waiting_, [&](const auto & queued) { return queued.first == request; });
    for (size_t s = 0; s < slots_.size(); ++s) {
        if (slots_[s].work && slots_[s].work->request == request) leave(s);
    }
}

bool Generator::is_idle() const noexcept {
    return waiting_.empty() &&
           std::none_of(slots_.begin(), slots_.end(), [](const Slot & slot) { return slot.work.has_value(); });
}

/// Cells that sequences at work hold or are about to, or those that are merely kept.
size_t Generator::n_cells(bool of_work) const {
    size_t n = 0;
    for (const Slot & slot : slots_) {
        if (slot.work.has_value() == of_work) n += slot.tokens.size() + (of_work ? slot.work->pending.size() : 0);
    }
    return n;
}

/// The free sequence that holds most of the request's prompt, and of those the one that loses least.
std::optional<size_t> Generator::free_slot(const Request & request) const {
    std::optional<size_t> best;
    size_t best_prefix = 0;
    for (size_t s = 0; s < slots_.size(); ++s) {
        if (slots_[s].work) continue;
        const size_t prefix = request.reuses_prefix ? common_prefix(slots_[s].tokens, request.prompt) : 0;
        const bool loses_less = best && slots_[s].tokens.size() < slots_[*best].tokens.size();
        if (best && (prefix < best_prefix || (prefix == best_prefix && !loses_less))) continue;
        best = s;
        best_prefix = prefix;
    }
    return best;
}

void Generator::begin_waiting() {
    while (!waiting_.empty()) {
        const size_t n_prompt = waiting_.front().second.prompt.size();
        const auto s = free_slot(waiting_.front().second);
        if (!s || (n_cells(/*of_work=*/true) > 0 && n_cells(/*of_work=*/true) + n_prompt >= pass_.n_ctx())) return;
        for (size_t other = 0; other < slots_.size(); ++other) {
            const bool is_full = n_cells(true) + n_cells(false) - slots_[*s].tokens.size() + n_prompt >= pass_.n_ctx();
            if (is_full && other != *s && !slots_[other].work) empty(other);
        }
        auto [number, request] = std::move(waiting_.front());
        waiting_.pop_front();
        begin(*s, number, std::move(request));
    }
}

void Generator::begin(size_t s, size_t number, Request request) {
    Slot & slot = slots_[s];
    const auto sequence = static_cast<llama_seq_id>(s);
    const auto & prompt = request.prompt;
    // at least one row is decoded, for its logits
    const size_t n_same = request.reuses_prefix ? std::min(common_prefix(slot.tokens, prompt), prompt.size() - 1) : 0;
    const llama_pos n_kept = cut_sequence(pass_, sequence, static_cast<llama_pos>(n_same));
    slot.tokens.resize(static_cast<size_t>(n_kept));
    if (drafter_ != nullptr) drafter_->truncate(sequence, n_kept);
    if (request.options) pass_.set_sequence_options(sequence, *request.options, request.mask_sequence);
    pass_.set_prompt_end(sequence, static_cast<llama_pos>(prompt.size()));

    Sampler sampler = request.sampler.clone();  // the request may have to begin once more
    sampler.begin(prompt);
    Answer answer(pass_, std::move(sampler), request.limits, request.records);
    std::vector<llama_token> pending(prompt.begin() + n_kept, prompt.end());
    answer.result().n_prompt = pending.size();
    slot.work.emplace(Work{number, std::move(request), std::move(answer), std::move(pending)});
}

void Generator::end(size_t s, StopReason reason, const OnResult & on_result) {
    Work & work = *slots_[s].work;
    const size_t request = work.request;
    GenerationResult result = std::move(work.answer.result());
    result.reason = reason;
    leave(s);
    on_result(request, result);
}

/// The sequence is free from here on.
void Generator::leave(size_t s) {
    const bool is_kept = slots_[s].work->asked.reuses_prefix;
    slots_[s].work.reset();
    if (is_kept) {
        settle(s);
    } else {
        empty(s);
    }
}

/// Takes what was not confirmed of a draft out of the sequence.
void Generator::settle(size_t s) {
    Slot & slot = slots_[s];
    if (slot.n_drafted == 0) return;
    const auto sequence = static_cast<llama_seq_id>(s);
    const auto end = static_cast<llama_pos>(slot.tokens.size());
    if (slot.n_confirmed < slot.n_drafted) pass_.memory_seq_rm(sequence, end, -1);
    drafter_->accept(sequence, slot.n_confirmed, end);
    slot.n_drafted = slot.n_confirmed = 0;
}

void Generator::empty(size_t s) {
    settle(s);
    pass_.memory_seq_rm(static_cast<llama_seq_id>(s), -1, -1);
    slots_[s].tokens.clear();
}

// ---------------------------------------------------------------------------------------------------------------------
// Steps

void Generator::step(const Events & events) {
    // rows are left where a callback has thrown
    const auto has_row = [](const Slot & slot) { return slot.work && slot.work->row >= 0; };
    if (std::none_of(slots_.begin(), slots_.end(), has_row)) decode(events);
    for (size_t s = 0; s < slots_.size(); ++s) {
        if (!has_row(slots_[s])) continue;
        const auto stop = sample(s, events.on_token);
        if (stop) end(s, *stop, events.on_result);
    }
}

/// One batch: of answers the tokens sampled last, with drafts; what is left goes to prompts.
void Generator::decode(const Events & events) {
    const auto start = Clock::now();
    for (size_t s = 0; s < slots_.size(); ++s) settle(s);
    begin_waiting();
    draft();
    while (true) {
        try {
            decode_batch();
            break;
        } catch (const Error & error) {
            if (error.code() != ErrorCode::context_full || !make_room(events.on_result)) throw;
        }
    }
    if (rows_.size() == 0) return;
    for (Slot & slot : slots_) {
        if (slot.work) take_rows(slot);
    }
    if (drafter_ != nullptr) drafter_->follow(rows_.view());
    const double seconds_of_a_row = seconds_since(start) / static_cast<double>(rows_.size());
    for (Slot & slot : slots_) {
        if (!slot.work || slot.work->n_rows == 0) continue;
        GenerationResult & result = slot.work->answer.result();
        const double seconds = seconds_of_a_row * static_cast<double>(slot.work->n_rows);
        (slot.work->reads_prompt() ? result.prompt_seconds : result.seconds) += seconds;
        if (events.on_prompt && slot.work->reads_prompt())
            events.on_prompt(slot.work->request, result.n_prompt - slot.work->pending.size(), result.n_prompt);
    }
}

void Generator::draft() {
    if (drafter_ == nullptr) return;
    const auto n_answers = static_cast<size_t>(std::count_if(
        slots_.begin(), slots_.end(), [](const Slot & slot) { return slot.work && !slot.work->reads_prompt(); }));
    for (size_t s = 0; s < slots_.size(); ++s) {
        Slot & slot = slots_[s];
        if (!slot.work || slot.work->reads_prompt() || slot.work->n_draft > 0) continue;
        auto & pending = slot.work->pending;
        const auto draft = drafter_->draft(static_cast<llama_seq_id>(s), slot.tokens, pending.front(),
                                           room_for_draft(slot, n_answers));
        pending.insert(pending.end(), draft.begin(), draft.end());
        slot.work->n_draft = draft.size();
    }
}

/// Beside the token itself: room in the context, in the answers' share of a batch, and of what is still to be generated all but
/// the last.
size_t Generator::room_for_draft(const Slot & slot, size_t n_answers) const {
    const auto less = [](size_t a, size_t b) { return a > b ? a - b : 0; };
    const size_t room = std::min(less(pass_.n_ctx_seq(), slot.tokens.size() + 1), less(pass_.n_batch() / n_answers, 1));
    const int n_predict = slot.work->answer.limits().n_predict;
    if (n_predict < 0) return room;
    return std::min(room, static_cast<size_t>(std::max(0, n_predict - slot.work->answer.result().n_generated - 1)));
}

void Generator::decode_batch() {
    rows_.clear();
    Room room{pass_.n_batch()};
    for (const bool of_prompts : {false, true}) {
        for (size_t s = 0; s < slots_.size(); ++s) {
            auto & work = slots_[s].work;
            if (!work || work->reads_prompt() != of_prompts) continue;
            const size_t n_silent = work->pending.size() - 1 - work->n_draft;
            const auto first_row = static_cast<int32_t>(rows_.size());
            work->n_rows = add_rows(rows_, room,
                                    {.sequence = static_cast<llama_seq_id>(s),
                                     .tokens = work->pending,
                                     .first = static_cast<llama_pos>(slots_[s].tokens.size()),
                                     .n_silent = n_silent});
            work->row = work->n_rows > n_silent ? first_row + static_cast<int32_t>(n_silent) : -1;
        }
    }
    if (rows_.size() == 0) return;
    const bool has_draft = std::any_of(slots_.begin(), slots_.end(),
                                       [](const Slot & slot) { return slot.work && slot.work->n_draft > 0; });
    try {
        pass_.decode(rows_.view(), has_draft ? [this] { return count_useful_rows(); } : CountUsefulOutputs{});
    } catch (...) {
        for (Slot & slot : slots_) {
            if (slot.work) slot.work->row = -1;
        }
        throw;
    }
}

/// Of the batch's output rows: all up to the last that is of use, since they are judged in their order.
size_t Generator::count_useful_rows() const {
    size_t n_outputs = 0;
    size_t n_useful = 0;
    for (const bool of_prompts : {false, true}) {
        for (const Slot & slot : slots_) {
            if (!slot.work || slot.work->reads_prompt() != of_prompts || slot.work->row < 0) continue;
            const Work & work = *slot.work;
            const std::span<const llama_token> draft(work.pending.end() - static_cast<std::ptrdiff_t>(work.n_draft),
                                                     work.pending.end());
            n_useful = n_outputs + work.answer.count_useful_rows(pass_, work.row, draft);
            n_outputs += 1 + work.n_draft;
        }
    }
    return n_useful;
}

/// After a batch that found the context full: drafts go first, then what is kept for later requests, then the request that
/// came last.
/// @return false if there is nothing that could go
bool Generator::make_room(const OnResult & on_result) {
    bool has_room = false;
    size_t n_at_work = 0;
    std::optional<size_t> last;
    for (size_t s = 0; s < slots_.size(); ++s) {
        auto & work = slots_[s].work;
        if (!work) continue;
        ++n_at_work;
        has_room = has_room || work->n_draft > 0;
        work->pending.resize(work->pending.size() - work->n_draft);
        work->n_draft = 0;
        if (!last || work->request > slots_[*last].work->request) last = s;
    }
    if (has_room) return true;
    for (size_t s = 0; s < slots_.size(); ++s) {
        has_room = has_room || (!slots_[s].work && !slots_[s].tokens.empty());
        if (!slots_[s].work) empty(s);
    }
    if (has_room || !last) return has_room;
    Work & work = *slots_[*last].work;
    if (work.reads_prompt() && n_at_work > 1) {
        waiting_.emplace_front(work.request, std::move(work.asked));
        empty(*last);
        slots_[*last].work.reset();
    } else {
        end(*last, StopReason::context_full, on_result);
    }
    return true;
}

/// The latest batch's rows are in the sequence now.
void Generator::take_rows(Slot & slot) {
    Work & work = *slot.work;
    const auto begin = work.pending.begin();
    const auto n_sure = static_cast<std::ptrdiff_t>(work.n_rows - work.n_draft);
    slot.tokens.insert(slot.tokens.end(), begin, begin + n_sure);
    work.pending.erase(begin, begin + n_sure);
    slot.n_drafted = work.n_draft;
}

/// Samples behind the rows just decoded: one token, and more where they confirm a draft.
///
///   batch    t  d1 d2 d3        rows 0 .. 3
///   sampled  d1 d2 x            d1 and d2 are confirmed; x is not d3: row 3 is taken back, x begins the next batch
///
/// @return why the answer ends here
std::optional<StopReason> Generator::sample(size_t s, const OnToken & on_token) {
    const auto start = Clock::now();
    Slot & slot = slots_[s];
    Work & work = *slot.work;
    if (drafter_ != nullptr && work.reads_prompt()) drafter_->begin(static_cast<llama_seq_id>(s), slot.tokens);
    const std::vector<llama_token> draft = std::exchange(work.pending, {});
    int32_t row = std::exchange(work.row, -1);
    work.n_draft = 0;
    auto stop = work.answer.stop_reason();
    while (!stop) {
        const auto token = work.answer.sample(pass_, row++, static_cast<llama_pos>(slot.tokens.size()));
        if (!token) {
            stop = StopReason::end_of_text;
            break;
        }
        work.pending = {token->id};
        if (!on_token(work.request, *token)) {
            stop = StopReason::interrupted;
            break;
        }
        stop = work.answer.stop_reason();
        if (!stop && slot.tokens.size() + 1 >= pass_.n_ctx_seq()) stop = StopReason::context_full;
        if (stop || slot.n_confirmed == draft.size() || draft[slot.n_confirmed] != token->id) break;
        slot.tokens.push_back(token->id);
        ++slot.n_confirmed;
    }
    work.answer.result().seconds += seconds_since(start);
    return stop;
}

// ---------------------------------------------------------------------------------------------------------------------
// One alone

GenerationResult Generator::answer(Request request, const std::function<bool(const GeneratedToken &)> & on_token,
                                   const std::function<void(size_t done, size_t total)> & on_prompt) {
    if (!is_idle()) throw Error(ErrorCode::unsupported_call, "other answers are under way");
    std::optional<GenerationResult> answered;
    const OnResult on_result = [&](size_t /*request*/, const GenerationResult & result) { answered = result; };
    const Events events = {
        .on_token = [&](size_t /*request*/, const GeneratedToken & token) { return on_token(token); },
        .on_result = on_result,
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
            std::find_if(slots_.begin(), slots_.end(), [](const Slot & one) { return one.work.has_value(); });
        if (error.code() != ErrorCode::aborted || slot == slots_.end() || slot->work->answer.result().n_steps == 0) {
            cancel(number);
            throw;
        }
        end(static_cast<size_t>(slot - slots_.begin()), StopReason::interrupted, on_result);
    } catch (...) {
        cancel(number);
        throw;
    }
    return *answered;
}

}  // namespace harp::decoding
