// Models and data for tests. A test whose data is missing is skipped, and says so.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "harp/forward_pass.h"
#include "llama-cpp.h"

namespace harp::testing {

/// Folder of the shared data (environment variable HARP_SHARED_DATA, else ../shared/data), or empty.
std::filesystem::path shared_data();
/// Folder of models fetched or made for tests (HARP_TEST_MODELS, else .deps/models), or empty.
std::filesystem::path test_models();

/// Paths of the models; the file may be missing.
std::filesystem::path stories260k();      // 260 k parameters, F32, vocabulary 512, context 512
std::filesystem::path smollm2_q4();       // SmolLM2-135M-Instruct Q4_1
std::filesystem::path smollm2_f32();      // the same, dequantised
std::filesystem::path gemma3_q4();        // Gemma-3-270M Q4_K_M: sliding window, scaled embeddings
std::filesystem::path random_mamba();     // recurrent, random weights
std::filesystem::path random_hybrid();    // attention and recurrent layers, random weights
std::filesystem::path random_windowed();  // most layers with a sliding window of 16 tokens, random weights
std::filesystem::path random_mixture();   // two of six experts for each token, random weights

/// "Once upon a time" in the vocabulary of stories260K.
inline const std::vector<llama_token> once_upon_a_time = {1, 403, 407, 261, 378};

/// How far logits of a float32 model may differ between batch sizes, and where that adds up over hundreds of rows.
constexpr double LOGIT_TOLERANCE = 2e-4, LONG_TOLERANCE = 2e-3;

/// Loads a model once per process. @return nullptr if the file is missing
llama_model * load(const std::filesystem::path & path);

/// Parameters of a small context on one thread, with a float32 KV cache.
llama_context_params small_context(uint32_t n_ctx = 512, uint32_t n_seq_max = 1);
/// The same, where layers with a sliding window keep little more than the window, as in llama.cpp's programs.
llama_context_params windowed_context(uint32_t n_ctx = 512, uint32_t n_seq_max = 1);
/// Sets a control vector with the same number everywhere, or none.
void steer(llama_context & context, std::optional<float> each);
/// A position at which random_windowed() has dropped cells: it keeps at least 256, for a window of 16 tokens.
constexpr llama_pos BEYOND_WINDOW = 420;

/// Decodes `tokens` at positions from `first` on, with logits for all rows or for the last.
void decode(ForwardPass & pass, const std::vector<llama_token> & tokens, llama_pos first, llama_seq_id sequence = 0,
            bool all_outputs = false, const CountUsefulOutputs & count_useful = {});

/// Copy of a row of final logits.
std::vector<float> row(ForwardPass & pass, int32_t i = -1);

/// Greedy decoding of n tokens after `prompt`, from position 0 on, with the logits that chose each.
struct Continuation {
    std::vector<llama_token> tokens;
    std::vector<std::vector<float>> logits;  // [n][n_vocab]
    std::vector<StepRecord> records;
};
Continuation greedy(ForwardPass & pass, const std::vector<llama_token> & prompt, int n, llama_seq_id sequence = 0);

/// Expects equal logits within `tolerance`, or entropies equal within it on both sides of the threshold.
void expect_same_step(const std::vector<float> & a, StepRecord ra, const std::vector<float> & b, StepRecord rb,
                      double tolerance);

double largest_difference(const std::vector<float> & a, const std::vector<float> & b);

}  // namespace harp::testing

/// Skips the test if a model is missing.
// NOLINTBEGIN(bugprone-macro-parentheses): a declared name takes none
#define HARP_REQUIRE_MODEL(variable, path)                                                 \
    llama_model * variable##_ptr = harp::testing::load(path);                              \
    if (variable##_ptr == nullptr) GTEST_SKIP() << "model not there: " << (path).string(); \
    llama_model & variable = *variable##_ptr
// NOLINTEND(bugprone-macro-parentheses)
