#include "decoding/request.h"

#include <algorithm>

#include "decoding/feed.h"

namespace harp::decoding {

namespace {

/// Refuses what no sequence of the pass can take: later, in the batch that begins the request, it would be lost.
void validate_second_pass(const Request & request, const ForwardPass & pass) {
    if (request.options) pass.check_options(*request.options);
    if (!pass.enabled()) return;
    check_negative_prompt(request.negative_prompt, request.options.value_or(pass.sequence_options(0)));
    if (request.negative_prompt.size() < pass.n_ctx_twin()) return;
    throw Error(ErrorCode::invalid_input, "the negative prompt has " + std::to_string(request.negative_prompt.size()) +
                                              " tokens; allowed: 0.." + std::to_string(pass.n_ctx_twin() - 1));
}

}  // namespace

size_t room_for_answer(const Request & request, const ForwardPass & pass) {
    const size_t n_prompt = request.prompt.size();
    if (n_prompt > pass.n_ctx_seq()) return 0;
    size_t room = std::min(pass.n_ctx_seq() - n_prompt, (pass.n_ctx() - n_prompt) / request.n_sequences());
    if (pass.enabled()) {
        const Options & options = request.options ? *request.options : pass.sequence_options(0);
        const size_t n_most = pass.max_rows(options, n_prompt, request.negative_prompt);
        room = std::min(room, n_most - std::min(n_prompt, n_most));
    }
    return 1 + room;
}

void validate(const Request & request, const ForwardPass & pass) {
    const auto refuse = [](ErrorCode code, const std::string & text) { throw Error(code, text); };
    const std::string prompt = "the prompt has " + std::to_string(request.prompt.size()) + " tokens";
    if (request.prompt.empty()) refuse(ErrorCode::invalid_input, "the prompt is empty");
    validate_second_pass(request, pass);
    if (request.sampler.has_value() == request.beams.has_value())
        refuse(ErrorCode::invalid_option, "an answer is sampled or searched by beams: give one of the two");
    if (!request.beams && request.prompt.size() >= pass.n_ctx_seq()) {
        refuse(ErrorCode::invalid_input,
               prompt + "; the context has room for " + std::to_string(pass.n_ctx_seq()) +
                   " with the answer; shorten the prompt or raise the context size (n_ctx, -c)");
    }
    if (!request.beams) return;

    validate(*request.beams);
    const int n_predict = request.limits.n_predict;
    const std::string n_beams = std::to_string(request.n_sequences());
    if (request.n_sequences() > pass.n_seq_max())
        refuse(ErrorCode::invalid_option,
               "option 'beams': " + n_beams + "; this context was created for 1.." + std::to_string(pass.n_seq_max()));
    if (n_predict == 0) refuse(ErrorCode::invalid_option, "0 tokens leave beam search nothing to do");
    if (!request.limits.stop_strings.empty())
        refuse(ErrorCode::invalid_option, "beam search does not support stop strings");
    const auto wanted = static_cast<size_t>(std::max(1, n_predict));
    const size_t room = room_for_answer(request, pass);
    if (wanted > room) {
        refuse(ErrorCode::invalid_input,
               prompt + ", and " + n_beams + " beams of " + std::to_string(wanted) +
                   " tokens do not fit beside it in a context of " + std::to_string(pass.n_ctx()) +
                   "; there is room for " + std::to_string(room) + " each; raise the context size (n_ctx, -c), " +
                   (pass.n_ctx_twin() < pass.n_ctx_seq() ? "the room of the second pass (n_ctx_twin), " : "") +
                   "or ask for fewer tokens or beams");
    }
}

}  // namespace harp::decoding
