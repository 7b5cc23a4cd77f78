#include "decoding/replay.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <sstream>
#include <utility>

#include "decoding/feed.h"

namespace harp::decoding {
namespace {

using Row = std::span<const float>;  // [n_vocab]

llama_token arg_max(Row logits) {
    return static_cast<llama_token>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

double margin_of(Row logits) {
    const auto best = std::max_element(logits.begin(), logits.end());
    double second = -std::numeric_limits<double>::infinity();
    for (auto it = logits.begin(); it != logits.end(); ++it) {
        if (it != best) second = std::max(second, static_cast<double>(*it));
    }
    return static_cast<double>(*best) - second;
}

/// The largest difference at the recorded tokens, or the amount by which another token exceeds the smallest of them.
double difference(Row logits, const std::vector<RecordedLogit> & top) {
    std::vector<float> rest(logits.begin(), logits.end());
    double largest = 0;
    for (const RecordedLogit & recorded : top) {
        const auto id = static_cast<size_t>(recorded.id);
        largest = std::max(largest, std::fabs(static_cast<double>(logits[id]) - static_cast<double>(recorded.logit)));
        rest[id] = -std::numeric_limits<float>::infinity();
    }
    const float best_of_rest = *std::max_element(rest.begin(), rest.end());
    return std::max(largest, static_cast<double>(best_of_rest) - static_cast<double>(top.back().logit));
}

/// A replay in progress.
class Replay {
  public:
    Replay(llama_model & model, const Recording & recording, const ReplaySettings & settings)
        : recording_(recording),
          settings_(settings),
          pass_(model, replay_context(recording.prompt.size() + recording.steps.size(), settings.n_threads),
                recording.options) {
        llama_set_abort_callback(pass_.context(), settings.should_stop, nullptr);
        result_.smallest_margin = std::numeric_limits<double>::infinity();
        if (!recording.options) return;
        result_.smallest_gate_distance = std::numeric_limits<double>::infinity();
        pass_.set_row_perturbation([this](const RowToPerturb & row, std::span<float> factors) { mask(row, factors); });
        pass_.set_observer([this](const StepObservation & observation) { compare_second_pass(observation); });
    }

    ReplayResult run() {
        std::vector<llama_token> next = recording_.prompt;
        llama_pos position = 0;
        for (step_ = 0; step_ < recording_.steps.size(); ++step_) {
            // back ends other than the CPU's do not ask within a batch
            if (settings_.should_stop != nullptr && settings_.should_stop(nullptr))
                throw Error(ErrorCode::aborted, "the replay was stopped");
            step_failed_ = false;
            decode_feed(pass_, {.tokens = next, .first = position, .n_silent = next.size() - 1});
            position += static_cast<llama_pos>(next.size());
            compare_first_pass(pass_.step(-1));
            ++result_.n_steps;
            if (step_failed_) ++result_.n_failures;
            next = {recorded().token};
        }
        return result_;
    }

  private:
    [[nodiscard]] const RecordedStep & recorded() const { return recording_.steps[step_]; }

    /// Zeroes what the authors' run dropped at this step. If only our run hesitates at a step, there is no mask for it.
    void mask(const RowToPerturb & row, std::span<float> factors) {
        const RecordedStep & step = recorded();
        if (row.draw != result_.n_hesitations) {  // n_hesitations counts only earlier steps here
            fail("the masks of draw " + std::to_string(row.draw) + " were asked for, not those of draw " +
                 std::to_string(result_.n_hesitations));
        }
        if (step.hesitated && row.ordinal >= static_cast<size_t>(step.n_positions)) {
            fail("position " + std::to_string(row.ordinal) + " has no mask");
        } else if (step.hesitated) {
            for (size_t i = 0; i < factors.size(); ++i) {
                if (!step.keeps(row.ordinal, i, factors.size())) factors[i] = 0.0F;
            }
        }
        if (settings_.after_mask) settings_.after_mask(row, factors);
    }

    /// Called by the observer, the only place that sees vanilla, reframed and mixed logits.
    void compare_second_pass(const StepObservation & observation) {
        compare("vanilla", observation.vanilla, recorded().vanilla, result_.vanilla_difference);
        if (!observation.record.hesitated || !recorded().hesitated) return;
        if (observation.reframed.empty()) return fail("no second pass was mixed");
        compare("reframed", observation.reframed, recorded().reframed, result_.reframed_difference);
        compare("mixed", observation.mixed, recorded().mixed, result_.mixed_difference);
    }

    void compare_first_pass(const StepRecord & record) {
        const Row final(pass_.logits(-1), static_cast<size_t>(pass_.n_vocab()));
        if (!recording_.options) compare("vanilla", final, recorded().vanilla, result_.vanilla_difference);

        const double entropy_difference = std::fabs(record.entropy - recorded().entropy);
        result_.entropy_difference = std::max(result_.entropy_difference, entropy_difference);
        if (!(entropy_difference <= settings_.tolerances.entropy)) {
            fail("entropy " + text(record.entropy) + ", recorded " + text(recorded().entropy) + " bits");
        }
        if (recording_.options) {
            const double threshold = recording_.options->threshold;
            result_.smallest_gate_distance =
                std::min(result_.smallest_gate_distance, std::fabs(record.entropy - threshold));
            result_.n_hesitations += record.hesitated ? 1 : 0;
            if (record.hesitated != recorded().hesitated) {
                ++result_.n_gate_mismatches;
                fail(std::string(record.hesitated ? "hesitated" : "did not hesitate") + ", unlike the recorded run (" +
                     text(record.entropy) + " bits, threshold " + text(threshold) + ")");
            }
        }
        const llama_token token = arg_max(final);
        result_.smallest_margin = std::min(result_.smallest_margin, margin_of(final));
        if (token != recorded().token) {
            ++result_.n_token_mismatches;
            fail("chose token " + std::to_string(token) + ", recorded " + std::to_string(recorded().token));
        }
    }

    void compare(const char * what, Row logits, const std::vector<RecordedLogit> & top, double & largest) {
        const double d = difference(logits, top);
        largest = std::max(largest, d);
        if (!(d <= settings_.tolerances.logits)) fail(std::string(what) + " logits differ by " + text(d));
    }

    void fail(const std::string & problem) {
        step_failed_ = true;
        if (result_.first_mismatch.empty()) {
            result_.first_mismatch = "step " + std::to_string(step_) + ": " + problem;
        }
    }

    static std::string text(double value) {
        std::ostringstream stream;
        stream << value;
        return stream.str();
    }

    const Recording & recording_;
    const ReplaySettings & settings_;
    ReplayResult result_;
    size_t step_ = 0;
    bool step_failed_ = false;
    ForwardPass pass_;  // last, because its callbacks use the members above
};

}  // namespace

llama_context_params replay_context(size_t n_tokens, int32_t n_threads) {
    llama_context_params params = llama_context_default_params();
    params.n_ctx = params.n_batch = static_cast<uint32_t>(n_tokens);
    params.n_threads = params.n_threads_batch = n_threads;
    // rounding K and V to float16 moves logits by 1e-3
    params.type_k = params.type_v = GGML_TYPE_F32;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    return params;
}

void check_model(const llama_model & model, const Recording & recording) {
    const auto check = [&](const char * field, int32_t recorded, int32_t of_model) {
        if (recorded == of_model) return;
        throw Error(ErrorCode::invalid_input, recording.file.string() + ": " + field + ": recorded with " +
                                                  std::to_string(recorded) + ", the model has " +
                                                  std::to_string(of_model) + "; it is a run of " + recording.model);
    };
    check("n_vocab", recording.n_vocab, llama_vocab_n_tokens(llama_model_get_vocab(&model)));
    check("n_embd", recording.n_embd, llama_model_n_embd(&model));
}

ReplayResult replay(llama_model & model, const Recording & recording, const ReplaySettings & settings) {
    check_model(model, recording);
    return Replay(model, recording, settings).run();
}

}  // namespace harp::decoding
