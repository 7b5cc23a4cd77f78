#include "decoding/recording.h"

#include <algorithm>
#include <bit>
#include <numeric>

#include "base64.hpp"
#include "decoding/npz.h"
#include "decoding/recording_field.h"

namespace harp::decoding {
namespace {

constexpr size_t n_top = 8;  // logits recorded for each row

/// The kind of run. @return true for HARP, false for vanilla
bool read_method(const Field & root, const std::filesystem::path & file) {
    const Field method = root["method"];
    if (method.text() == "beam") {
        throw Error(ErrorCode::unsupported_call, file.string() + ": a recorded beam search is not read step by step");
    }
    if (method.text() != "harp" && method.text() != "vanilla") {
        method.fail("\"" + method.text() + "\" is not known; allowed: harp, vanilla");
    }
    return method.text() == "harp";
}

Options read_options(const Field & params) {
    Options options;
    options.threshold = params["theta"].number();
    options.beta = static_cast<float>(params["beta"].number());
    options.strength = static_cast<float>(params["delta"].number());
    options.perturbation = Perturbation::dropout;
    // like the authors' code: at each hesitation new masks, and the whole sequence computed anew
    options.redraw = 1;
    options.schedule = Schedule::lazy;
    try {
        validate(options);
    } catch (const Error & e) {
        params.fail(e.what());
    }
    return options;
}

/// The recorded largest logits of a row: different ids, largest first.
std::vector<RecordedLogit> read_top(const Field & list, int32_t n_vocab) {
    const size_t expected = std::min(n_top, static_cast<size_t>(n_vocab));
    std::vector<RecordedLogit> top;
    for (const Field & pair : list.elements()) {
        const std::vector<Field> parts = pair.elements();
        if (parts.size() != 2) pair.fail("not a pair of token id and logit");
        const RecordedLogit entry{parts[0].integer(0, n_vocab - 1), static_cast<float>(parts[1].number())};
        if (!top.empty() && entry.logit > top.back().logit) pair.fail("larger than the logit before it");
        for (const RecordedLogit & other : top) {
            if (other.id == entry.id) pair.fail("token " + std::to_string(entry.id) + " is there twice");
        }
        top.push_back(entry);
    }
    if (top.size() != expected) {
        list.fail(std::to_string(top.size()) + " entries, expected " + std::to_string(expected));
    }
    return top;
}

std::vector<uint8_t> read_base64(const Field & field) {
    try {
        const std::string bytes = base64::decode(field.text(), base64::alphabet::standard);
        return {bytes.begin(), bytes.end()};
    } catch (const base64_error & e) {
        field.fail(std::string("not base64: ") + e.what());
    }
}

/// The mask of step `index`, from the recording itself or from the archive beside it.
std::vector<uint8_t> read_mask(const Field & step, size_t index, llama_pos n_positions, int32_t n_embd,
                               const std::optional<NpzArchive> & archive) {
    const auto n_rows = static_cast<size_t>(n_positions);
    const size_t n_row_bytes = static_cast<size_t>(n_embd) / 8;
    std::vector<uint8_t> mask;
    if (archive) {
        const std::string number = std::to_string(index);
        mask = archive->bytes((index < 10 ? "step_0" : "step_") + number, n_rows, n_row_bytes);
    } else {
        mask = read_base64(step["mask"]);
        if (mask.size() != n_rows * n_row_bytes) {
            step["mask"].fail(std::to_string(mask.size()) + " bytes, expected " + std::to_string(n_rows * n_row_bytes) +
                              " (positions * n_embd / 8)");
        }
    }
    const int n_kept =
        std::accumulate(mask.begin(), mask.end(), 0, [](int n, uint8_t b) { return n + std::popcount(b); });
    if (step["kept"].integer(0, INT32_MAX) != n_kept) {
        step["kept"].fail("does not agree with the mask, which keeps " + std::to_string(n_kept));
    }
    return mask;
}

RecordedStep read_step(const Field & field, size_t index, const Recording & recording,
                       const std::optional<NpzArchive> & archive) {
    const auto number = static_cast<int32_t>(index);
    const llama_pos n_positions = static_cast<llama_pos>(recording.prompt.size()) + number;
    RecordedStep step;
    (void)field["step"].integer(number, number);
    step.n_positions = field["positions"].integer(n_positions, n_positions);
    step.entropy = field["entropy"].number();
    step.token = field["token"].integer(0, recording.n_vocab - 1);
    step.margin = field["margin"].number();
    step.vanilla = read_top(field["vanilla_top8"], recording.n_vocab);
    step.hesitated = recording.options && field["hesitated"].boolean();
    if (step.hesitated) {
        step.reframed = read_top(field["reframed_top8"], recording.n_vocab);
        step.mixed = read_top(field["mixed_top8"], recording.n_vocab);
        step.mask = read_mask(field, index, n_positions, recording.n_embd, archive);
    }
    const auto & final = step.hesitated ? step.mixed : step.vanilla;
    if (step.token != final.front().id) field["token"].fail("not the largest of the final logits");
    return step;
}

std::optional<NpzArchive> open_masks(const Field & root, const std::filesystem::path & file) {
    if (!root.has("masks_file")) return std::nullopt;
    const std::filesystem::path name = root["masks_file"].text();
    if (name.empty() || name != name.filename() || name == "." || name == "..") {
        root["masks_file"].fail("not the name of a file in the same folder");
    }
    return NpzArchive(file.parent_path() / name);
}

/// The authors' function returned the chosen tokens, without a stop token at the end.
void check_generated(const Field & root, const Recording & recording) {
    const Field generated = root["generated_ids"];
    const std::vector<llama_token> ids = read_tokens(generated, recording.n_vocab);
    std::vector<llama_token> chosen;
    for (const RecordedStep & step : recording.steps) chosen.push_back(step.token);
    const std::vector<llama_token> stops = read_tokens(root["params"]["eos_tokens_id"], recording.n_vocab);
    if (std::find(stops.begin(), stops.end(), chosen.back()) != stops.end()) chosen.pop_back();
    if (ids != chosen) generated.fail("not the tokens of the steps");
}

}  // namespace

size_t Recording::n_hesitations() const {
    return static_cast<size_t>(
        std::count_if(steps.begin(), steps.end(), [](const RecordedStep & step) { return step.hesitated; }));
}

Recording read_recording(const std::filesystem::path & file) {
    const json content = parse_json_file(file);
    return read_recording(Field(file, content));
}

Recording read_recording(const Field & root) {
    const std::filesystem::path & file = root.file();
    Recording recording;
    recording.file = file;
    const bool is_harp = read_method(root, file);
    recording.model = root["model"].text();
    if (root["dtype"].text() != "float32") root["dtype"].fail("only float32 runs can be replayed");
    if (root["params"]["processor"].text() != "greedy") root["params"]["processor"].fail("allowed: greedy");
    if (is_harp) recording.options = read_options(root["params"]);
    recording.n_vocab = root["n_vocab"].integer(1, INT32_MAX);
    recording.n_embd = root["n_embd"].integer(8, 1 << 20);
    if (recording.n_embd % 8 != 0) root["n_embd"].fail("not a multiple of 8");
    recording.prompt = read_tokens(root["prompt_ids"], recording.n_vocab);
    if (recording.prompt.empty()) root["prompt_ids"].fail("empty");

    const std::optional<NpzArchive> archive = is_harp ? open_masks(root, file) : std::nullopt;
    for (const Field & step : root["steps"].elements()) {
        recording.steps.push_back(read_step(step, recording.steps.size(), recording, archive));
    }
    if (recording.steps.empty()) root["steps"].fail("empty");
    check_generated(root, recording);
    return recording;
}

}  // namespace harp::decoding
