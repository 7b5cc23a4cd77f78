// harp verify: replays recorded runs of the authors' code and compares every step.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>
#include <variant>

#include "commands.h"
#include "decoding/beam_replay.h"
#include "decoding/replay.h"
#include "flags/command_line.h"
#include "flags/terminal.h"
#include "harp/error.h"
#include "llama-cpp.h"
#include "model/interrupt.h"
#include "model/loaded_model.h"
#include "model/report.h"

namespace harp::cli {

namespace {

using decoding::BeamRecording;
using decoding::BeamReplayResult;
using decoding::Recording;
using decoding::ReplayResult;
using nlohmann::json;

json result_json(const std::string & file, const Recording & recording, const ReplayResult & r) {
    return {{"file", file},
            {"passed", r.passed()},
            {"steps", r.n_steps},
            {"hesitations", r.n_hesitations},
            {"recorded_hesitations", recording.n_hesitations()},
            {"gate_mismatches", r.n_gate_mismatches},
            {"token_mismatches", r.n_token_mismatches},
            {"largest_difference",
             {{"entropy", r.entropy_difference},
              {"vanilla", r.vanilla_difference},
              {"reframed", r.reframed_difference},
              {"mixed", r.mixed_difference}}},
            {"smallest_margin", r.smallest_margin},
            {"first_mismatch", r.first_mismatch}};
}

json beam_result_json(const std::string & file, const BeamReplayResult & r, double tolerance) {
    return {{"file", file},
            {"passed", r.passed(tolerance)},
            {"steps", r.n_steps},
            {"same_result", r.same_result},
            {"states_differing", r.n_states_differing},
            {"largest_difference", {{"score", r.score_difference}}},
            {"first_mismatch", r.first_mismatch}};
}

std::string verdict(bool passed) {
    return passed ? styled(stdout, Style::green, "PASS") : styled(stdout, Style::red, "FAIL");
}

void print_beam_row(const std::string & file, const BeamReplayResult & r, double tolerance) {
    std::string text =
        fmt::format("{} {:>5} beam search: {}, scores differ by at most {:.1e}{:12}{}\n", verdict(r.passed(tolerance)),
                    r.n_steps, r.same_result ? "same result" : "OTHER RESULT", r.score_difference, "",
                    std::filesystem::path(file).filename().string());
    if (!r.first_mismatch.empty()) text += "     " + r.first_mismatch + "\n";
    write_out(text);
}

void print_row(const std::string & file, const ReplayResult & r) {
    std::string text = fmt::format(
        "{} {:>5} {:>5} {:>6} {:>7} {:>9.1e} {:>9.1e} {:>9.1e} {:>9.1e}  {}\n", verdict(r.passed()), r.n_steps,
        r.n_hesitations, r.n_gate_mismatches, r.n_token_mismatches, r.entropy_difference, r.vanilla_difference,
        r.reframed_difference, r.mixed_difference, std::filesystem::path(file).filename().string());
    if (!r.first_mismatch.empty()) text += "     " + r.first_mismatch + "\n";
    write_out(text);
}

llama_model_ptr load_model(const std::string & path) {
    check_model_file("model", path);
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    ProgressLine progress;
    progress.show("loading the model");
    llama_model_params params = llama_model_default_params();
    params.progress_callback = on_load_progress;
    params.progress_callback_user_data = &progress;
    llama_model_ptr model(llama_model_load_from_file(path.c_str(), params));
    if (interrupt_requested) stop_interrupted();
    if (!model)
        throw Error(ErrorCode::invalid_input,
                    fmt::format("model '{}' cannot be loaded (is it a whole GGUF file?)", path));
    return model;
}

int verify(const std::string & model_path, const std::vector<std::string> & files,
           const decoding::ReplaySettings & settings, bool as_json) {
    // reads all recordings before the first replay, so that bad input gives one line, not a line below half a table
    std::vector<std::variant<Recording, BeamRecording>> recordings;
    for (const std::string & file : files) {
        if (interrupt_requested) stop_interrupted();
        recordings.push_back(decoding::read_any_recording(file));
    }
    const llama_model_ptr model = load_model(model_path);
    for (const auto & recording : recordings)
        std::visit([&](const auto & one) { decoding::check_model(*model, one); }, recording);

    bool all_passed = true;
    json results = json::array();
    if (!as_json) write_out("     steps hesit   gate   token   entropy   vanilla  reframed     mixed\n");
    for (size_t i = 0; i < files.size(); ++i) {
        ProgressLine progress;
        progress.show("replaying " + files[i]);
        if (const auto * beams = std::get_if<BeamRecording>(&recordings[i])) {
            const BeamReplayResult result =
                decoding::replay_beams(*model, *beams, settings.n_threads, settings.should_stop);
            progress.clear();
            all_passed = all_passed && result.passed(settings.tolerances.logits);
            if (as_json) {
                results.push_back(beam_result_json(files[i], result, settings.tolerances.logits));
            } else {
                print_beam_row(files[i], result, settings.tolerances.logits);
            }
            continue;
        }
        const auto & recording = std::get<Recording>(recordings[i]);
        const ReplayResult result = decoding::replay(*model, recording, settings);
        progress.clear();
        all_passed = all_passed && result.passed();
        if (as_json) {
            results.push_back(result_json(files[i], recording, result));
        } else {
            print_row(files[i], result);
        }
    }
    if (as_json) {
        const json output = {{"passed", all_passed},
                             {"recordings", results},
                             {"model", model_json(*model, model_path)},
                             {"build", build_json()}};
        write_out(dump(output, 2) + "\n");
    }
    return all_passed ? exit_ok : exit_failure;
}

}  // namespace

int verify_command(int argc, char ** argv) {
    CLI::App app(
        "Replays recorded runs of the authors' code, with their masks, and compares every step: gate, token, entropy, "
        "logits.\n"
        "Exit code 0: all agree; 1: a difference; 2: bad input.",
        "harp verify");
    std::string model_path;
    std::vector<std::string> files;
    bool as_json = false;
    decoding::ReplaySettings settings;
    settings.should_stop = abort_if_interrupted;
    app.add_option("-m,--model", model_path, "the recording's weights as a float32 GGUF")->required();
    app.add_option("recording", files, "recorded runs (JSON)")->required();
    app.add_option("--entropy-tolerance", settings.tolerances.entropy,
                   "largest difference of entropies, bits [0..1000]")
        ->check(number_in(0, 1000))
        ->capture_default_str();
    app.add_option("--logit-tolerance", settings.tolerances.logits, "largest difference of logits [0..1000]")
        ->check(number_in(0, 1000))
        ->capture_default_str();
    app.add_option("-t,--threads", settings.n_threads, "threads")->check(CLI::Range(1, 512))->capture_default_str();
    app.add_flag("--json", as_json, "print one JSON object");
    if (const auto code = parse_flags(app, {argv + 1, argv + argc})) return *code;

    try {
        return verify(model_path, files, settings, as_json);
    } catch (const Error & error) {
        if (error.code() == ErrorCode::aborted) throw;
        // exit code 1 means only that a run differs; anything that cannot be replayed is bad input
        throw Error(ErrorCode::invalid_input, error.what());
    }
}

}  // namespace harp::cli
