#include "decoding/batch_score.h"

#include <algorithm>
#include <limits>
#include <optional>
#include <string>
#include <utility>

#include "decoding/feed.h"
#include "method/entropy.h"
#include "method/mixing.h"
#include "stopwatch.h"

namespace harp::decoding {

namespace {

/// A distribution of which several tokens are asked.
class Distribution {
  public:
    explicit Distribution(std::span<const float> logits)
        : logits_(logits), summary_(method::summarise_softmax(logits)) {}

    [[nodiscard]] double log_probability(llama_token token) const noexcept {
        return static_cast<double>(logits_[static_cast<size_t>(token)]) - summary_.log_sum_exp;
    }
    [[nodiscard]] bool is_greedy(llama_token token) const noexcept {
        return logits_[static_cast<size_t>(token)] == summary_.largest;
    }

  private:
    std::span<const float> logits_;
    method::SoftmaxSummary summary_;
};

void add_score(ScoreResult & result, const Distribution & vanilla, const Distribution & mixed,
               const StepRecord & record, llama_token token) {
    result.tokens.push_back({vanilla.log_probability(token), mixed.log_probability(token), record});
    result.is_greedy = result.is_greedy && mixed.is_greedy(token);
    result.is_vanilla_greedy = result.is_vanilla_greedy && vanilla.is_greedy(token);
}

/// Whether the noise depends on where the model hesitates, and so on the gate.
bool depends_on_gate(const Options & options) {
    return has_masks(options.view) && (options.perturbation == Perturbation::uniform || options.redraw != 0);
}

/// Options that serve several at once: they hesitate where any of them does, and give the reframed logits unmixed.
Options shared_reading(std::span<const Options> asked) {
    std::optional<Options> reading;
    for (const Options & options : asked) {
        if (options.is_vanilla()) continue;
        if (!reading) {
            reading = options;
            reading->beta = 0;
            reading->plausibility = 0;
        } else if (!can_share_reading(*reading, options)) {
            throw Error(
                ErrorCode::invalid_option,
                depends_on_gate(options)
                    ? "perturbation " + get_option(options, "perturbation") + ", redraw " +
                          get_option(options, "redraw") +
                          ": several options for one reading may differ in beta and plausibility, and in gate and "
                          "threshold "
                          "only with perturbation dropout or gaussian and redraw 0: else the noise depends on where it "
                          "hesitates"
                    : "options: several for one reading may differ in gate, threshold, beta and plausibility");
        } else if (reading->gate == options.gate) {
            reading->threshold = std::min(reading->threshold, options.threshold);
        } else {  // wherever the ratio is above 0 so is the entropy
            reading->gate = Gate::entropy;
            reading->threshold = 0;
        }
    }
    if (reading) return *reading;
    Options vanilla;
    vanilla.threshold = std::numeric_limits<double>::infinity();
    return vanilla;
}

/// The second pass reads the continuation too, perhaps behind a negative prompt or with less room.
void check_second_pass_room(const ScoreRequest & request, const Options & options, const ForwardPass & pass) {
    const size_t n_rows = request.tokens.size() - 1;  // the last token is not read
    const size_t n_most = pass.max_rows(options, request.n_context, request.negative_prompt);
    if (n_rows <= n_most) return;
    const std::string negative =
        request.negative_prompt.empty()
            ? ""
            : ", and the negative prompt " + std::to_string(request.negative_prompt.size()) + " tokens";
    throw Error(ErrorCode::invalid_input, "context and continuation have " + std::to_string(request.tokens.size()) +
                                              " tokens" + negative + "; the second pass has room for " +
                                              std::to_string(n_most + 1) + " of them (n_ctx, n_ctx_twin)");
}

}  // namespace

bool can_share_reading(const Options & a, const Options & b) {
    Options other = b;
    other.beta = a.beta;
    other.plausibility = a.plausibility;
    if (!depends_on_gate(a)) {
        other.gate = a.gate;
        other.threshold = a.threshold;
    }
    return a == other;
}

void validate(const ScoreRequest & request, const ForwardPass & pass) {
    if (request.n_context == 0)
        throw Error(ErrorCode::invalid_input, "the context is empty: nothing predicts the first token");
    if (request.n_context >= request.tokens.size()) throw Error(ErrorCode::invalid_input, "the continuation is empty");
    if (request.tokens.size() - 1 > pass.n_ctx_seq()) {  // the last one is not read
        throw Error(ErrorCode::invalid_input, "context and continuation have " + std::to_string(request.tokens.size()) +
                                                  " tokens; allowed: 2.." + std::to_string(pass.n_ctx_seq() + 1) +
                                                  " (n_ctx, and the last token)");
    }
    for (const Options & options : request.options) {
        validate(options);
        if (!options.is_vanilla()) check_negative_prompt(request.negative_prompt, options);
        check_second_pass_room(request, options, pass);
    }
    if (request.options.empty() && pass.enabled()) check_second_pass_room(request, pass.sequence_options(0), pass);
    if (request.options.size() > 1) (void)shared_reading(request.options);
}

std::vector<Reading> group_by_reading(std::span<const Options> sets) {
    std::vector<Reading> readings;
    for (size_t i = 0; i < sets.size(); ++i) {
        if (sets[i].is_vanilla()) continue;
        auto reading = std::find_if(readings.begin(), readings.end(), [&](const Reading & known) {
            return can_share_reading(known.options.front(), sets[i]);
        });
        if (reading == readings.end()) reading = readings.insert(readings.end(), Reading{});
        reading->members.push_back(i);
        reading->options.push_back(sets[i]);
    }
    return readings;
}

size_t BatchScorer::Group::n_cells() const {
    const size_t n_answer = rows().size() - asked.n_context;
    return std::max(rows().size(), asked.negative_prompt.size() + n_answer);
}

BatchScorer::BatchScorer(ForwardPass & pass)
    : pass_(pass), mixed_(static_cast<size_t>(pass.n_vocab())), slots_(pass.n_seq_max()) {
    pass_.memory_clear(false);
    for (size_t s = 0; s < slots_.size(); ++s) {
        pass_.keep_vanilla_logits(static_cast<llama_seq_id>(s), true);
    }
}

BatchScorer::~BatchScorer() {
    for (size_t s = 0; s < slots_.size(); ++s) {
        pass_.keep_vanilla_logits(static_cast<llama_seq_id>(s), false);
    }
}

size_t BatchScorer::submit(ScoreRequest request) {
    validate(request, pass_);
    Options reading;
    if (request.options.size() == 1) reading = request.options.front();
    if (request.options.size() > 1) reading = shared_reading(request.options);
    const Member member{n_submitted_, request.tokens.back()};
    std::vector<llama_token> prefix(request.tokens.begin(), request.tokens.end() - 1);
    std::weak_ptr<Group> & known = by_prefix_[std::move(prefix)];
    const std::shared_ptr<Group> group = known.lock();
    if (group && group->asked.n_context == request.n_context && group->asked.options == request.options &&
        group->asked.mask_family == request.mask_family && group->asked.negative_prompt == request.negative_prompt) {
        group->members.push_back(member);
    } else {
        const std::vector<ScoreResult> common(std::max<size_t>(1, request.options.size()));
        waiting_.push_back(std::make_shared<Group>(Group{std::move(request), {member}, reading, common, {}, 0, 0}));
        known = waiting_.back();
    }
    return n_submitted_++;
}

bool BatchScorer::is_idle() const noexcept {
    return waiting_.empty() &&
           std::none_of(slots_.begin(), slots_.end(), [](const auto & slot) { return slot != nullptr; });
}

/// Whether a group waits, and the pool of cells has room for it beside the groups at work.
bool BatchScorer::has_room_for_next() const {
    if (waiting_.empty()) return false;
    size_t n_cells = waiting_.front()->n_cells();
    for (const auto & group : slots_) n_cells += group ? group->n_cells() : 0;
    return n_cells <= pass_.n_ctx();
}

/// Gives the first waiting group to a free sequence.
void BatchScorer::begin(llama_seq_id sequence) {
    auto & slot = slots_[static_cast<size_t>(sequence)];
    slot = std::exchange(waiting_.front(), nullptr);
    waiting_.pop_front();
    const ScoreRequest & asked = slot->asked;
    by_prefix_.erase({asked.tokens.begin(), asked.tokens.end() - 1});
    if (!asked.options.empty()) pass_.set_sequence_options(sequence, slot->reading, asked.mask_family);
    pass_.set_negative_prompt(sequence, asked.negative_prompt);
    pass_.set_prompt_end(sequence, static_cast<llama_pos>(asked.n_context));
}

void BatchScorer::score_row(Group & group, int32_t row, size_t position) {
    const std::span<const float> vanilla_logits(pass_.vanilla_logits(row), mixed_.size());
    const std::span<const float> logits(pass_.logits(row), mixed_.size());
    const auto & tokens = group.asked.tokens;
    const bool is_last = position + 2 == tokens.size();
    if (is_last) group.results.assign(group.members.size(), group.common);

    const Distribution vanilla(vanilla_logits);
    const auto add = [&](size_t set, const Distribution & mixed, const StepRecord & record) {
        if (!is_last) return add_score(group.common[set], vanilla, mixed, record, tokens[position + 1]);
        for (size_t i = 0; i < group.members.size(); ++i)
            add_score(group.results[i][set], vanilla, mixed, record, group.members[i].last);
    };
    const StepRecord record = pass_.step(row);
    const bool is_mixed = logits.data() != vanilla_logits.data();
    const auto & options = group.asked.options;
    if (options.size() < 2) return add(0, is_mixed ? Distribution(logits) : vanilla, record);
    std::vector<size_t> mixing;  // sets whose row is a mix that is still to be made
    for (size_t set = 0; set < options.size(); ++set) {
        StepRecord own = record;
        own.hesitated = record.gate(options[set].gate) > options[set].threshold;
        if (own.hesitated && is_mixed && !options[set].is_vanilla()) {
            mixing.push_back(set);
        } else {
            add(set, vanilla, own);
        }
    }
    StepRecord hesitating = record;
    hesitating.hesitated = true;
    while (!mixing.empty()) {  // sets that differ in their gates alone share a mix
        const method::Mix mix{options[mixing.front()].beta, options[mixing.front()].plausibility};
        method::mix_logits(vanilla_logits, logits, mix, mixed_);
        const Distribution mixed(mixed_);
        std::erase_if(mixing, [&](size_t set) {
            if (options[set].beta != mix.beta || options[set].plausibility != mix.plausibility) return false;
            add(set, mixed, hesitating);
            return true;
        });
    }
}

void BatchScorer::finish(Group & group, const OnResult & on_result) {
    const auto n_members = static_cast<double>(group.members.size());
    for (size_t i = 0; i < group.members.size(); ++i) {
        for (size_t set = 0; set < group.common.size(); ++set)
            group.results[i][set].seconds = group.common[set].seconds / n_members;
        on_result(group.members[i].request, group.results[i]);
    }
}

void BatchScorer::step(const OnResult & on_result) {
    const Stopwatch watch;
    forward::BatchRows rows;
    Room room{pass_.n_batch(), output_rows_per_batch(pass_)};
    for (size_t s = 0; s < slots_.size(); ++s) {
        const auto sequence = static_cast<llama_seq_id>(s);
        if (!slots_[s] && has_room_for_next()) begin(sequence);
        if (!slots_[s]) continue;
        Group & group = *slots_[s];
        group.n_rows = add_rows(rows, room,
                                {.sequence = sequence,
                                 .tokens = group.rows(),
                                 .n_silent = group.asked.n_context - 1,
                                 .n_done = group.n_decoded});
    }
    if (rows.size() == 0) return;
    const double second_passes_before = pass_.statistics().second_pass_seconds;
    pass_.decode(rows.view());
    n_decoded_ += rows.size();

    int32_t row = 0;
    for (const auto & group : slots_) {
        if (!group) continue;
        for (size_t i = 0; i < group->n_rows; ++i, ++row) {
            const size_t position = group->n_decoded + i;
            if (position + 1 >= group->asked.n_context) score_row(*group, row, position);
        }
        group->n_decoded += group->n_rows;
    }
    const double seconds = watch.seconds();
    const double of_second_passes = pass_.statistics().second_pass_seconds - second_passes_before;
    for (size_t s = 0; s < slots_.size(); ++s) {
        if (!slots_[s]) continue;
        Group & group = *slots_[s];
        const double share = static_cast<double>(group.n_rows) / static_cast<double>(rows.size());
        const auto & options = group.asked.options;
        for (size_t set = 0; set < group.common.size(); ++set) {
            const bool is_vanilla = options.size() > 1 && options[set].is_vanilla();
            group.common[set].seconds += share * (is_vanilla ? seconds - of_second_passes : seconds);
        }
        if (group.n_decoded < group.rows().size()) continue;
        pass_.memory_seq_rm(static_cast<llama_seq_id>(s), -1, -1);
        finish(*std::exchange(slots_[s], nullptr), on_result);
    }
}

}  // namespace harp::decoding
