#include "decoding/beam_replay.h"

#include <algorithm>
#include <cmath>

#include "decoding/generate.h"
#include "decoding/recording_field.h"
#include "decoding/replay.h"

namespace harp::decoding {

namespace {

RecordedBeam read_beam(const Field & field, int32_t n_vocab) {
    RecordedBeam beam;
    beam.tokens = read_tokens(field["ids"], n_vocab);
    beam.score = field["score"].number();
    beam.is_finished = !field["finished_at"].is_null();
    return beam;
}

/// Compares the beams after a step. @return what differs, for people; empty if they are the same
std::string compare(const std::vector<Hypothesis> & beams, const std::vector<RecordedBeam> & recorded,
                    double & score_difference) {
    if (beams.size() != recorded.size()) {
        return std::to_string(beams.size()) + " beams, recorded " + std::to_string(recorded.size());
    }
    for (size_t i = 0; i < beams.size(); ++i) {
        const std::string name = "beam " + std::to_string(i);
        if (beams[i].tokens != recorded[i].tokens) return name + " has other tokens";
        if (beams[i].is_finished != recorded[i].is_finished) return name + " is finished in one of the two";
        score_difference = std::max(score_difference, std::fabs(beams[i].score - recorded[i].score));
    }
    return {};
}

BeamRecording read_beams(const Field & root) {
    if (root["method"].text() != "beam") root["method"].fail("allowed: beam");
    if (root["dtype"].text() != "float32") root["dtype"].fail("only float32 runs can be replayed");
    BeamRecording recording;
    recording.file = root.file();
    recording.n_vocab = root["n_vocab"].integer(1, INT32_MAX);
    recording.prompt = read_tokens(root["prompt_ids"], recording.n_vocab);
    if (recording.prompt.empty()) root["prompt_ids"].fail("empty");
    const Field params = root["params"];
    recording.options.variant = BeamVariant::authors;
    recording.options.norm = LengthNorm::gnmt;
    recording.options.beams = static_cast<uint32_t>(params["num_beams"].integer(1, 256));
    recording.options.candidates = static_cast<uint32_t>(params["top_k"].integer(1, recording.n_vocab));
    recording.options.alpha = params["alpha"].number();
    if (params["min_length"].number() != 5.0) params["min_length"].fail("allowed: 5, of ((5 + L) / 6)^alpha");
    recording.stop_tokens = read_tokens(params["eos_tokens_id"], recording.n_vocab);
    for (const Field & step : root["steps"].elements()) {
        std::vector<RecordedBeam> beams;
        for (const Field & beam : step["beams"].elements()) beams.push_back(read_beam(beam, recording.n_vocab));
        if (beams.size() != recording.options.beams) step["beams"].fail("not as many as num_beams");
        recording.steps.push_back(std::move(beams));
    }
    if (recording.steps.empty()) root["steps"].fail("empty");
    recording.result = read_tokens(root["generated_ids"], recording.n_vocab);
    return recording;
}

}  // namespace

BeamRecording read_beam_recording(const std::filesystem::path & file) {
    const json content = parse_json_file(file);
    return read_beams(Field(file, content));
}

std::variant<Recording, BeamRecording> read_any_recording(const std::filesystem::path & file) {
    const json content = parse_json_file(file);
    const Field root(file, content);
    if (root["method"].text() == "beam") return read_beams(root);
    return read_recording(root);
}

void check_model(const llama_model & model, const BeamRecording & recording) {
    const int32_t n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(&model));
    if (n_vocab == recording.n_vocab) return;
    throw Error(ErrorCode::invalid_input, recording.file.string() + ": n_vocab: recorded with " +
                                              std::to_string(recording.n_vocab) + ", the model has " +
                                              std::to_string(n_vocab));
}

BeamReplayResult replay_beams(llama_model & model, const BeamRecording & recording, int32_t n_threads,
                              ggml_abort_callback should_stop) {
    check_model(model, recording);
    BeamReplayResult result;
    llama_context_params params =
        replay_context(recording.prompt.size() + recording.options.beams * recording.steps.size(), n_threads);
    params.n_seq_max = recording.options.beams;
    params.kv_unified = true;
    ForwardPass pass(model, params, std::nullopt);
    llama_set_abort_callback(pass.context(), should_stop, nullptr);
    const auto on_step = [&](size_t /*request*/, const BeamSearch & search) {
        const size_t step = result.n_steps++;
        const std::string difference = step < recording.steps.size()
                                           ? compare(search.beams(), recording.steps[step], result.score_difference)
                                           : "the recorded search has ended";
        if (!difference.empty() && result.n_states_differing++ == 0) {
            result.first_state_differing = step;
            result.first_mismatch = "step " + std::to_string(step) + ": " + difference;
        }
        return should_stop == nullptr || !should_stop(nullptr);
    };
    const auto is_stop = [&](llama_token token) {
        return std::find(recording.stop_tokens.begin(), recording.stop_tokens.end(), token) !=
               recording.stop_tokens.end();
    };
    const auto found = Generator(pass).answer({.prompt = recording.prompt,
                                               .limits = {static_cast<int>(recording.steps.size()), {}, is_stop},
                                               .beams = recording.options},
                                              Generator::Events{.on_step = on_step});
    if (found.reason == StopReason::interrupted) throw Error(ErrorCode::aborted, "the replay was stopped");
    if (result.n_states_differing == 0) result.first_state_differing = result.n_steps;
    result.same_result = found.hypotheses.front().tokens == recording.result;
    if (!result.same_result && result.first_mismatch.empty()) result.first_mismatch = "the result is another";
    return result;
}

}  // namespace harp::decoding
