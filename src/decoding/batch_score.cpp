#include "decoding/batch_score.h"

#include <algorithm>
#include <chrono>
#include <span>
#include <string>
#include <utility>

#include "forward/batch_rows.h"

namespace harp::decoding {

namespace {

void add_score(ScoreResult & result, std::span<const float> vanilla, std::span<const float> mixed,
               const StepRecord & record, llama_token token) {
    const auto is_largest = [&](std::span<const float> logits) {
        const float mine = logits[static_cast<size_t>(token)];
        return std::all_of(logits.begin(), logits.end(), [&](float other) { return other <= mine; });
    };
    result.tokens.push_back(score_token(vanilla, mixed, record, token));
    const bool is_greedy = is_largest(mixed);
    const bool is_vanilla_greedy = vanilla.data() == mixed.data() ? is_greedy : is_largest(vanilla);
    result.is_greedy = result.is_greedy && is_greedy;
    result.is_vanilla_greedy = result.is_vanilla_greedy && is_vanilla_greedy;
}

}  // namespace

BatchScorer::BatchScorer(ForwardPass & pass) : pass_(pass), slots_(pass.n_seq_max()) {
    pass_.memory_clear(false);
    for (size_t s = 0; s < slots_.size(); ++s) {
        pass_.keep_vanilla_logits(static_cast<llama_seq_id>(s), true);
    }
}

size_t BatchScorer::submit(ScoreRequest request) {
    if (request.n_context == 0)
        throw Error(ErrorCode::invalid_input, "the context is empty: nothing predicts the first token");
    if (request.n_context >= request.tokens.size()) throw Error(ErrorCode::invalid_input, "the continuation is empty");
    if (request.tokens.size() > pass_.n_ctx_seq()) {
        throw Error(ErrorCode::invalid_input, "context and continuation have " + std::to_string(request.tokens.size()) +
                                                  " tokens and the context room for " +
                                                  std::to_string(pass_.n_ctx_seq()));
    }
    if (request.options) validate(*request.options);
    const Member member{n_submitted_, request.tokens.back()};
    std::vector<llama_token> prefix(request.tokens.begin(), request.tokens.end() - 1);
    std::weak_ptr<Group> & known = by_prefix_[std::move(prefix)];
    const std::shared_ptr<Group> group = known.lock();
    if (group && group->asked.n_context == request.n_context && group->asked.options == request.options &&
        group->asked.mask_sequence == request.mask_sequence) {
        group->members.push_back(member);
    } else {
        waiting_.push_back(std::make_shared<Group>(Group{std::move(request), {member}, {}, {}, 0, 0}));
        known = waiting_.back();
    }
    return n_submitted_++;
}

bool BatchScorer::is_idle() const noexcept {
    return waiting_.empty() &&
           std::none_of(slots_.begin(), slots_.end(), [](const auto & slot) { return slot != nullptr; });
}

/// Gives the first waiting group to a free sequence.
void BatchScorer::begin(llama_seq_id sequence) {
    auto & slot = slots_[static_cast<size_t>(sequence)];
    slot = std::exchange(waiting_.front(), nullptr);
    waiting_.pop_front();
    const ScoreRequest & asked = slot->asked;
    by_prefix_.erase({asked.tokens.begin(), asked.tokens.end() - 1});
    if (asked.options) pass_.set_sequence_options(sequence, *asked.options, asked.mask_sequence);
    pass_.set_prompt_end(sequence, static_cast<llama_pos>(asked.n_context));
}

void BatchScorer::score_row(Group & group, int32_t row, size_t position) {
    const auto n_vocab = static_cast<size_t>(pass_.n_vocab());
    const std::span<const float> vanilla(pass_.vanilla_logits(row), n_vocab);
    const std::span<const float> mixed(pass_.logits(row), n_vocab);
    const StepRecord record = pass_.step(row);
    const auto & tokens = group.asked.tokens;
    if (position + 2 < tokens.size()) {
        add_score(group.common, vanilla, mixed, record, tokens[position + 1]);
        return;
    }
    for (const Member & member : group.members) {
        group.results.push_back(group.common);
        add_score(group.results.back(), vanilla, mixed, record, member.last);
    }
}

void BatchScorer::finish(Group & group, const OnResult & on_result) {
    for (size_t i = 0; i < group.members.size(); ++i) {
        group.results[i].seconds = group.common.seconds / static_cast<double>(group.members.size());
        on_result(group.members[i].request, group.results[i]);
    }
}

void BatchScorer::step(const OnResult & on_result) {
    using Clock = std::chrono::steady_clock;
    const auto start = Clock::now();
    forward::BatchRows rows;
    size_t n_outputs = 0;
    const size_t most_outputs = output_rows_per_batch(pass_);
    for (size_t s = 0; s < slots_.size(); ++s) {
        const auto sequence = static_cast<llama_seq_id>(s);
        if (!slots_[s] && !waiting_.empty()) begin(sequence);
        if (!slots_[s]) continue;
        Group & group = *slots_[s];
        const auto & tokens = group.asked.tokens;
        group.n_rows = 0;
        for (size_t i = group.n_decoded; i + 1 < tokens.size() && rows.size() < pass_.n_batch(); ++i) {
            const bool is_output = i + 1 >= group.asked.n_context;
            if (is_output && n_outputs == most_outputs) break;
            n_outputs += is_output ? 1 : 0;
            rows.add(tokens[i], static_cast<llama_pos>(i), {&sequence, 1}, is_output);
            ++group.n_rows;
        }
    }
    if (rows.size() == 0) return;
    pass_.decode(rows.view());

    int32_t row = 0;
    for (const auto & group : slots_) {
        if (!group) continue;
        for (size_t i = 0; i < group->n_rows; ++i, ++row) {
            const size_t position = group->n_decoded + i;
            if (position + 1 >= group->asked.n_context) score_row(*group, row, position);
        }
        group->n_decoded += group->n_rows;
    }
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    for (size_t s = 0; s < slots_.size(); ++s) {
        if (!slots_[s]) continue;
        Group & group = *slots_[s];
        group.common.seconds += seconds * static_cast<double>(group.n_rows) / static_cast<double>(rows.size());
        if (group.n_decoded + 1 < group.asked.tokens.size()) continue;
        pass_.memory_seq_rm(static_cast<llama_seq_id>(s), -1, -1);
        finish(*std::exchange(slots_[s], nullptr), on_result);
    }
}

}  // namespace harp::decoding
