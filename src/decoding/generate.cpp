#include "decoding/generate.h"

#include <algorithm>
#include <optional>
#include <string>

#include "stopwatch.h"

namespace harp::decoding {

Generator::Generator(ForwardPass & pass, Drafter * drafter) : pass_(pass), drafter_(drafter) {
    pass_.memory_clear(false);
    for (uint32_t s = 0; s < pass_.n_seq_max(); ++s) slots_.emplace_back(pass_, drafter_, static_cast<llama_seq_id>(s));
}

// ---------------------------------------------------------------------------------------------------------------------
// Requests

size_t Generator::submit(Request request) {
    validate(request, pass_);
    if (request.beams && drafter_ != nullptr)
        throw Error(ErrorCode::unsupported_call, "beam search does not speculate; leave out the draft");
    waiting_.emplace_back(n_submitted_, std::move(request));
    return n_submitted_++;
}

void Generator::cancel(size_t request) {
    // in the order of their numbers: one that waits again (make_room) is older than all that have not begun
    const auto queued = std::lower_bound(waiting_.begin(), waiting_.end(), request,
                                         [](const auto & one, size_t number) { return one.first < number; });
    if (queued != waiting_.end() && queued->first == request) {
        waiting_.erase(queued);
    } else {
        release(request);
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

/// Best first: those that hold most of the request's prompt; among equals those that lose the fewest cells.
std::vector<Slot *> Generator::free_slots(const Request & request) {
    std::vector<Slot *> free;
    for (Slot & slot : slots_) {
        if (slot.is_free()) free.push_back(&slot);
    }
    const auto worth = [&](const Slot * slot) {
        return std::pair(slot->common_prefix(request), -static_cast<std::ptrdiff_t>(slot->n_cells()));
    };
    std::stable_sort(free.begin(), free.end(), [&](auto * a, auto * b) { return worth(a) > worth(b); });
    return free;
}

void Generator::begin_waiting() {
    while (!waiting_.empty()) {
        const size_t n_prompt = waiting_.front().second.prompt.size();
        const size_t n_sequences = waiting_.front().second.n_sequences();
        std::vector<Slot *> slots = free_slots(waiting_.front().second);
        const size_t n_at_work = n_cells(/*of_free_slots=*/false);
        if (slots.size() < n_sequences || (n_at_work > 0 && n_at_work + n_prompt >= pass_.n_ctx())) return;
        for (size_t i = slots.size() - 1; i > 0; --i) {  // kept prefixes make room
            const size_t n_kept = n_cells(/*of_free_slots=*/true) - slots[0]->n_cells();
            if (n_at_work + n_kept + n_prompt >= pass_.n_ctx()) slots[i]->empty();
        }
        auto [number, request] = std::move(waiting_.front());
        waiting_.pop_front();
        slots[0]->begin(number, std::move(request));
        for (size_t i = 1; i < n_sequences; ++i) slots[i]->join(*slots[0]);
    }
}

/// Takes a request out of its slots. @return its answer; null if it had none
std::shared_ptr<Answer> Generator::release(size_t number) {
    std::shared_ptr<Answer> answer;
    for (Slot & slot : slots_) {
        if (slot.is_at(number)) answer = slot.leave();
    }
    return answer;
}

void Generator::end(const Slot & slot, StopReason reason, const Events & events) {
    const std::shared_ptr<Answer> answer = release(slot.answer().number());
    events.on_result(answer->number(), answer->finish(reason));
}

// ---------------------------------------------------------------------------------------------------------------------
// Batches

void Generator::next_batch(const Events & events) {
    // if a callback threw, rows of the last batch are still there to be sampled
    const bool has_rows = std::any_of(slots_.begin(), slots_.end(), [](const Slot & slot) { return slot.has_row(); });
    if (!has_rows) decode(events);
    for (Slot & slot : slots_) {
        if (!slot.has_row()) continue;
        Answer & answer = slot.answer();
        const Stopwatch watch;
        const auto stop =
            answer.search() != nullptr
                ? search(answer, events)
                : slot.sample([&](const GeneratedToken & token) { return events.on_token(answer.number(), token); });
        answer.result().seconds += watch.seconds();
        if (stop) end(slot, *stop, events);
    }
}

/// Takes a step of a beam search. @return why it ends here
std::optional<StopReason> Generator::search(Answer & answer, const Events & events) {
    std::vector<int32_t> rows;
    for (const llama_seq_id beam : answer.beams()) rows.push_back(slot_of(beam).take_row());
    const auto & branches = answer.advance(rows);
    const auto stop = answer.stop_reason();
    if (!stop) follow(answer, branches);
    if (events.on_step && !events.on_step(answer.number(), *answer.search())) return StopReason::interrupted;
    return stop;
}

/// Beams share the cells of the prompt and of the tokens they have in common (unified cache: a copy only marks cells).
/// A beam's first continuation keeps its sequence. Its other continuations are copied to sequences of beams that died.
///
///   before   0:A  1:B  2:C      the step keeps A·x, A·y, C·z
///   after    0:A  1:A' 2:C      sequence 1 is emptied and becomes a copy of 0
void Generator::follow(Answer & answer, const std::vector<BeamSearch::Branch> & branches) {
    const std::vector<llama_seq_id> parents = std::exchange(answer.beams(), {});
    std::vector<llama_seq_id> dead;
    for (Slot & slot : slots_) {
        const auto continues = [&](const auto & branch) { return parents[branch.parent] == slot.sequence(); };
        if (!slot.is_at(answer.number()) || std::any_of(branches.begin(), branches.end(), continues)) continue;
        slot.empty();
        dead.push_back(slot.sequence());
    }
    for (const auto & branch : branches) {
        const Slot & parent = slot_of(parents[branch.parent]);
        const bool is_first = parent.n_pending() == 0;
        const llama_seq_id beam = is_first ? parent.sequence() : dead.back();
        if (!is_first) {
            dead.pop_back();
            slot_of(beam).copy(parent);
        }
        slot_of(beam).push(branch.token);
        answer.beams().push_back(beam);
    }
}

/// Decodes one batch: the latest tokens of the answers, with drafts, then as much of the prompts as still fits.
void Generator::decode(const Events & events) {
    const Stopwatch watch;
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
    for (const Slot & slot : slots_) {  // decoded before the beams branch, so that their twins share the prompt too
        if (slot.has_row() && slot.reads_prompt() && slot.answer().request().n_sequences() > 1)
            pass_.prepare_twins(slot.sequence());
    }
    if (drafter_ != nullptr) drafter_->follow(rows_.view());
    const double seconds_of_a_row = watch.seconds() / static_cast<double>(rows_.size());
    for (Slot & slot : slots_) {
        if (slot.n_rows() == 0) continue;
        GenerationResult & result = slot.answer().result();
        (slot.reads_prompt() ? result.prompt_seconds : result.seconds) +=
            seconds_of_a_row * static_cast<double>(slot.n_rows());
        if (!slot.reads_prompt()) {
            result.n_rows += slot.n_rows();
        } else if (events.on_prompt) {
            events.on_prompt(slot.answer().number(), result.n_prompt - slot.n_pending(), result.n_prompt);
        }
    }
}

/// Drafts for all answers; each may use an equal share of the batch.
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
    for (const Slot & slot : slots_) {
        if (!slot.is_answering() || slot.answer().beams().front() != slot.sequence()) continue;
        for (const llama_seq_id beam : slot.answer().beams()) slot_of(beam).add_rows(rows_, room);
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
        for (Slot & slot : slots_) slot.take_row();
        throw;
    }
}

/// Rows count up to the last useful one, because ForwardPass takes a number of leading rows.
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

/// After a batch for which the context was full: drops the drafts; if there are none, the kept prefixes; if there are
/// none, the latest request.
/// @return false if there was nothing to drop
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
    Slot * last = nullptr;
    for (Slot & slot : slots_) {
        if (!slot.is_free() && (last == nullptr || slot.answer().number() > last->answer().number())) last = &slot;
    }
    if (last == nullptr) return false;
    const size_t number = last->answer().number();
    const auto is_beside = [&](const Slot & slot) { return !slot.is_free() && !slot.is_at(number); };
    if (last->reads_prompt() && std::any_of(slots_.begin(), slots_.end(), is_beside)) {
        const auto answer = release(number);
        waiting_.emplace_front(number, std::move(answer->request()));
        last->empty();
    } else {
        end(*last, StopReason::context_full, events);
    }
    return true;
}

// ---------------------------------------------------------------------------------------------------------------------
// A single request

GenerationResult Generator::answer(Request request, Events events) {
    if (!is_idle()) throw Error(ErrorCode::unsupported_call, "other answers are in progress");
    std::optional<GenerationResult> answered;
    events.on_result = [&](size_t /*request*/, const GenerationResult & result) { answered = result; };
    const size_t number = submit(std::move(request));
    try {
        while (!answered) next_batch(events);
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

GenerationResult Generator::answer(Request request, const std::function<bool(const GeneratedToken &)> & on_token,
                                   const std::function<void(size_t done, size_t total)> & on_prompt) {
    Events events;
    events.on_token = [&](size_t /*request*/, const GeneratedToken & token) { return on_token(token); };
    if (on_prompt) events.on_prompt = [&](size_t /*request*/, size_t done, size_t total) { on_prompt(done, total); };
    return answer(std::move(request), std::move(events));
}

}  // namespace harp::decoding
