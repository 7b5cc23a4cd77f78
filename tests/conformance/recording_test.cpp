// Broken recordings: each is refused with an error that names the file and the field.
#include <unistd.h>

#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <sstream>

#include "conformance/replays.h"

namespace harp::testing {
namespace {

using nlohmann::json;

std::string read_text(const std::filesystem::path & path) {
    std::ostringstream text;
    text << std::ifstream(path, std::ios::binary).rdbuf();
    return text.str();
}

/// Works on copies of recordings in a temporary folder.
class BrokenRecording : public ::testing::Test {
  protected:
    void SetUp() override {
        HARP_REQUIRE_GOLDEN(inline_masks);
        HARP_REQUIRE_GOLDEN(archived_masks);
        folder_ = std::filesystem::path(::testing::TempDir()) / ("harp-recordings-" + std::to_string(getpid()));
        std::filesystem::create_directory(folder_);
        file_ = folder_ / "copy.json";
        archive_ = folder_ / "smollm2-135m.plain.harp.masks.npz";
    }
    void TearDown() override { std::filesystem::remove_all(folder_); }

    void write(const std::string & text, const std::filesystem::path & path) const {
        std::ofstream(path, std::ios::binary) << text;
    }
    void write(const std::string & text) const { write(text, file_); }

    /// Reads file_; the error must have the code and contain all of `parts`.
    void expect_error(ErrorCode code, const std::vector<std::string> & parts) const {
        try {
            (void)decoding::read_recording(file_);
            FAIL() << "accepted, expected: " << parts.back();
        } catch (const Error & e) {
            EXPECT_EQ(e.code(), code) << e.what();
            EXPECT_EQ(std::string(e.what()).find('\n'), std::string::npos) << e.what();
            for (const std::string & part : parts) {
                EXPECT_NE(std::string(e.what()).find(part), std::string::npos) << e.what() << "\n  lacks: " << part;
            }
        }
    }
    void expect_field_error(const std::string & field, const std::string & problem,
                            const std::function<void(json &)> & change) const {
        SCOPED_TRACE(field + ": " + problem);
        json content = json::parse(read_text(golden(inline_masks)));
        change(content);
        write(content.dump());
        expect_error(ErrorCode::invalid_input, {file_.string() + ": ", field + ": ", problem});
    }

    static constexpr const char * inline_masks = "stories260K.lily.harp";  // step 0 hesitates
    static constexpr const char * archived_masks = "smollm2-135m.plain.harp";
    std::filesystem::path folder_, file_, archive_;
};

TEST_F(BrokenRecording, TheCopyItselfIsFine) {
    write(read_text(golden(inline_masks)));
    const auto recording = decoding::read_recording(file_);
    EXPECT_EQ(recording.steps.size(), 48U);
    EXPECT_EQ(recording.n_hesitations(), 32U);
    EXPECT_EQ(recording.n_embd, 64);
    ASSERT_TRUE(recording.options.has_value());
    EXPECT_EQ(recording.options->redraw, 1U);
    EXPECT_EQ(recording.options->schedule, Schedule::lazy);
}

TEST_F(BrokenRecording, MissingFile) {
    file_ = folder_ / "absent.json";
    expect_error(ErrorCode::io, {"absent.json: no such file"});
}

TEST_F(BrokenRecording, Folder) {
    file_ = folder_;
    expect_error(ErrorCode::io, {folder_.string() + ": cannot be read"});
}

TEST_F(BrokenRecording, CutOffAnywhere) {
    const std::string text = read_text(golden(inline_masks));
    for (size_t n = 0; n + 2 < text.size(); n += n < 300 ? 1 : 501) {
        write(text.substr(0, n));
        SCOPED_TRACE(n);
        expect_error(n == 0 ? ErrorCode::io : ErrorCode::invalid_input, {file_.string() + ": "});
    }
}

TEST_F(BrokenRecording, NotJson) {
    for (const char * text : {"GGUF\x03", "\xff\xfe", "{\"method\": harp}", "{\"a\": 1e999}", "[[[["}) {
        write(text);
        SCOPED_TRACE(text);
        expect_error(ErrorCode::invalid_input, {file_.string() + ": not a JSON file"});
    }
    write("[1, 2]");
    expect_error(ErrorCode::invalid_input, {file_.string() + ": not an object"});
    write("null");
    expect_error(ErrorCode::invalid_input, {file_.string() + ": not an object"});
}

TEST_F(BrokenRecording, MissingField) {
    for (const char * key :
         {"method", "model", "dtype", "params", "n_embd", "n_vocab", "prompt_ids", "generated_ids", "steps"}) {
        expect_field_error(key, "missing", [&](json & j) { j.erase(key); });
    }
    for (const char * key : {"theta", "delta", "beta", "processor", "eos_tokens_id"}) {
        expect_field_error(std::string("params.") + key, "missing", [&](json & j) { j["params"].erase(key); });
    }
    for (const char * key : {"step", "positions", "entropy", "hesitated", "token", "margin", "vanilla_top8",
                             "reframed_top8", "mixed_top8", "kept", "mask"}) {
        expect_field_error(std::string("steps[0].") + key, "missing", [&](json & j) { j["steps"][0].erase(key); });
    }
}

TEST_F(BrokenRecording, WrongType) {
    for (const char * key :
         {"method", "model", "dtype", "params", "n_embd", "n_vocab", "prompt_ids", "generated_ids", "steps"}) {
        expect_field_error(key, "not a", [&](json & j) { j[key] = nullptr; });
    }
    for (const char * key : {"step", "positions", "entropy", "hesitated", "token", "margin", "vanilla_top8",
                             "reframed_top8", "mixed_top8", "kept", "mask"}) {
        expect_field_error(std::string("steps[0].") + key, "not a",
                           [&](json & j) { j["steps"][0][key] = json::object(); });
    }
    expect_field_error("steps[3]", "not an object", [](json & j) { j["steps"][3] = 5; });
    expect_field_error("masks_file", "not a string", [](json & j) { j["masks_file"] = 5; });
}

TEST_F(BrokenRecording, ValueOutOfRange) {
    expect_field_error("method", "\"sampling\" is not known", [](json & j) { j["method"] = "sampling"; });
    expect_field_error("dtype", "only float32", [](json & j) { j["dtype"] = "float16"; });
    expect_field_error("params.processor", "greedy", [](json & j) { j["params"]["processor"] = "top_k"; });
    expect_field_error("params", "threshold", [](json & j) { j["params"]["theta"] = -1.0; });
    expect_field_error("params", "beta", [](json & j) { j["params"]["beta"] = 9; });
    expect_field_error("params", "strength", [](json & j) { j["params"]["delta"] = 2; });
    expect_field_error("n_vocab", "0 is out of range", [](json & j) { j["n_vocab"] = 0; });
    expect_field_error("n_vocab", "out of range", [](json & j) { j["n_vocab"] = uint64_t{1} << 63; });
    expect_field_error("n_embd", "out of range", [](json & j) { j["n_embd"] = -64; });
    expect_field_error("n_embd", "not a multiple of 8", [](json & j) { j["n_embd"] = 63; });
    expect_field_error("prompt_ids[1]", "512 is out of range; allowed: 0..511",
                       [](json & j) { j["prompt_ids"][1] = 512; });
    expect_field_error("prompt_ids[0]", "not an integer", [](json & j) { j["prompt_ids"][0] = 1.5; });
    expect_field_error("prompt_ids", "empty", [](json & j) { j["prompt_ids"] = json::array(); });
    expect_field_error("steps", "empty", [](json & j) { j["steps"] = json::array(); });
    expect_field_error("steps[2].token", "-1 is out of range", [](json & j) { j["steps"][2]["token"] = -1; });
    expect_field_error("steps[1].vanilla_top8[2][0]", "out of range",
                       [](json & j) { j["steps"][1]["vanilla_top8"][2][0] = 100000; });
    expect_field_error("masks_file", "same folder", [](json & j) { j["masks_file"] = "../masks.npz"; });
}

TEST_F(BrokenRecording, ContradictsItself) {
    expect_field_error("steps[0].positions", "6 is out of range; allowed: 5..5",
                       [](json & j) { j["steps"][0]["positions"] = 6; });
    expect_field_error("steps[1].step", "out of range", [](json & j) { j["steps"].erase(1); });
    expect_field_error("steps[0].token", "not the largest", [](json & j) { j["steps"][0]["token"] = 261; });
    expect_field_error("generated_ids", "not the tokens", [](json & j) { j["generated_ids"].erase(3); });
    expect_field_error("steps[0].mixed_top8", "7 entries, expected 8",
                       [](json & j) { j["steps"][0]["mixed_top8"].erase(7); });
    expect_field_error("steps[0].mixed_top8[4]", "larger than the logit before it",
                       [](json & j) { j["steps"][0]["mixed_top8"][4][1] = 99.0; });
    expect_field_error("steps[0].mixed_top8[4]", "token 265 is there twice",
                       [](json & j) { j["steps"][0]["mixed_top8"][4][0] = 265; });
    expect_field_error("steps[0].mixed_top8[4]", "not a pair",
                       [](json & j) { j["steps"][0]["mixed_top8"][4].push_back(1); });
}

TEST_F(BrokenRecording, WrongMask) {
    const auto set_mask = [](const std::string & mask) { return [mask](json & j) { j["steps"][0]["mask"] = mask; }; };
    expect_field_error("steps[0].mask", "0 bytes, expected 40", set_mask(""));
    expect_field_error("steps[0].mask", "3 bytes, expected 40", set_mask("K/V+"));
    expect_field_error("steps[0].mask", "not base64", set_mask("K/V+ not base64!"));
    expect_field_error("steps[0].mask", "bytes, expected 40",
                       [](json & j) { j["steps"][0]["mask"] = j["steps"][44]["mask"]; });
    expect_field_error("steps[0].kept", "the mask, which keeps", [](json & j) { j["steps"][0]["kept"] = 17; });
}

TEST_F(BrokenRecording, BeamSearchComesLater) {
    HARP_REQUIRE_GOLDEN("stories260K.once.beam3");
    for (const char * name : {"stories260K.once.beam3", "stories260K.dog.beam3-stop426"}) {
        write(read_text(golden(name)));
        expect_error(ErrorCode::unsupported_call, {file_.string(), "not read step by step"});
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Masks in an archive

TEST_F(BrokenRecording, ArchiveIsReadBesideTheFile) {
    write(read_text(golden(archived_masks)));
    expect_error(ErrorCode::io, {archive_.string(), "No such file"});
    write(read_text(golden(archived_masks).parent_path() / archive_.filename()), archive_);
    const auto recording = decoding::read_recording(file_);
    EXPECT_EQ(recording.n_hesitations(), 37U);
    EXPECT_EQ(recording.steps[0].mask.size(), 11U * 576 / 8);
}

TEST_F(BrokenRecording, ArchiveOfAnotherRun) {
    HARP_REQUIRE_GOLDEN("smollm2-135m.question.harp");
    write(read_text(golden(archived_masks)));
    write(read_text(golden(archived_masks).parent_path() / "smollm2-135m.question.harp.masks.npz"), archive_);
    expect_error(ErrorCode::invalid_input,
                 {archive_.string(), "array step_00", "of shape (57, 72), expected (11, 72)"});
}

TEST_F(BrokenRecording, ArchiveIsDamaged) {
    write(read_text(golden(archived_masks)));
    const std::string bytes = read_text(golden(archived_masks).parent_path() / archive_.filename());
    write("", archive_);
    expect_error(ErrorCode::invalid_input, {archive_.string()});
    write("PK not a zip", archive_);
    expect_error(ErrorCode::invalid_input, {archive_.string()});
    for (size_t n = 1; n < bytes.size(); n += bytes.size() / 37) {
        write(bytes.substr(0, n), archive_);
        SCOPED_TRACE("cut off at " + std::to_string(n));
        expect_error(ErrorCode::invalid_input, {archive_.string()});
    }
    // flips one bit in the data of the first array, which the checksum detects
    std::string flipped = bytes;
    flipped[500] = static_cast<char>(flipped[500] ^ 0x10);
    write(flipped, archive_);
    expect_error(ErrorCode::invalid_input, {archive_.string(), "array step_00"});
}

TEST_F(BrokenRecording, ArrayIsNotThere) {
    // rename step_05.npy, which occurs once before its data and once in the directory
    write(read_text(golden(archived_masks)));
    std::string bytes = read_text(golden(archived_masks).parent_path() / archive_.filename());
    for (size_t at = 0; (at = bytes.find("step_05.npy", at)) != std::string::npos;) bytes[at] = 'x';
    write(bytes, archive_);
    expect_error(ErrorCode::invalid_input, {archive_.string(), "array step_05: not in the archive"});
}

}  // namespace
}  // namespace harp::testing
