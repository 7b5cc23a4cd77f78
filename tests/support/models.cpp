#include "support/models.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <map>

#include "forward/batch_rows.h"

namespace harp::testing {

namespace {

std::filesystem::path folder(const char * variable, const char * fallback) {
    const char * value = std::getenv(variable);
    std::filesystem::path path = value != nullptr ? value : fallback;
    return std::filesystem::is_directory(path) ? path : std::filesystem::path();
}

}  // namespace

std::filesystem::path shared_data() {
    return folder("HARP_SHARED_DATA", HARP_SOURCE_DIR "/../shared/data");
}
std::filesystem::path test_models() {
    return folder("HARP_TEST_MODELS", HARP_SOURCE_DIR "/.deps/models");
}

std::filesystem::path stories260k() {
    return shared_data() / "models/stories260K/stories260K-f32.gguf";
}
std::filesystem::path smollm2_q4() {
    return test_models() / "SmolLM2-135M-Instruct.Q4_1.gguf";
}
std::filesystem::path smollm2_f32() {
    return test_models() / "SmolLM2-135M-Instruct-F32.gguf";
}
std::filesystem::path gemma3_q4() {
    return test_models() / "gemma-3-270m-Q4_K_M.gguf";
}
std::filesystem::path random_mamba() {
    return test_models() / "random-mamba.gguf";
}
std::filesystem::path random_hybrid() {
    return test_models() / "random-lfm2.gguf";
}
std::filesystem::path random_windowed() {
    return test_models() / "random-gemma3.gguf";
}

std::filesystem::path random_mixture() {
    return test_models() / "random-mixture.gguf";
}

llama_model * load(const std::filesystem::path & path) {
    static std::map<std::string, llama_model_ptr> models;
    if (!std::filesystem::exists(path)) return nullptr;
    auto & model = models[path.string()];
    if (!model) {
        llama_log_set(
            [](ggml_log_level level, const char * text, void *) {
                if (level == GGML_LOG_LEVEL_ERROR) std::fputs(text, stderr);
            },
            nullptr);
        model.reset(llama_model_load_from_file(path.c_str(), llama_model_default_params()));
    }
    return model.get();
}

llama_context_params small_context(uint32_t n_ctx, uint32_t n_seq_max) {
    llama_context_params params = llama_context_default_params();
    params.n_ctx = n_ctx;
    params.n_batch = 512;
    params.n_seq_max = n_seq_max;
    params.n_threads = 1;
    params.n_threads_batch = 1;
    params.type_k = params.type_v = GGML_TYPE_F32;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    return params;
}

void steer(llama_context & context, std::optional<float> each) {
    const llama_model & model = *llama_get_model(&context);
    const int32_t n_embd = llama_model_n_embd(&model), n_layers = llama_model_n_layer(&model);
    const std::vector<float> vector(static_cast<size_t>(n_embd) * static_cast<size_t>(n_layers), each.value_or(0.0F));
    llama_set_adapter_cvec(&context, each ? vector.data() : nullptr, vector.size(), n_embd, 1, n_layers);
}

llama_context_params windowed_context(uint32_t n_ctx, uint32_t n_seq_max) {
    llama_context_params params = small_context(n_ctx, n_seq_max);
    params.swa_full = false;
    params.n_ubatch = 32;  // the cache holds a window and a micro-batch
    return params;
}

void decode(ForwardPass & pass, const std::vector<llama_token> & tokens, llama_pos first, llama_seq_id sequence,
            bool all_outputs, const CountUsefulOutputs & count_useful) {
    forward::BatchRows rows;
    for (size_t i = 0; i < tokens.size(); ++i) {
        const bool is_output = all_outputs || i + 1 == tokens.size();
        rows.add(tokens[i], first + static_cast<llama_pos>(i), {&sequence, 1}, is_output);
    }
    pass.decode(rows.view(), count_useful);
}

std::vector<float> row(ForwardPass & pass, int32_t i) {
    const float * logits = pass.logits(i);
    if (logits == nullptr) return {};
    return {logits, logits + pass.n_vocab()};
}

Continuation greedy(ForwardPass & pass, const std::vector<llama_token> & prompt, int n, llama_seq_id sequence) {
    Continuation run;
    std::vector<llama_token> next = prompt;
    llama_pos position = 0;
    for (int i = 0; i < n; ++i) {
        decode(pass, next, position, sequence);
        position += static_cast<llama_pos>(next.size());
        run.logits.push_back(row(pass));
        run.records.push_back(pass.step(-1));
        const auto best = std::max_element(run.logits.back().begin(), run.logits.back().end());
        next = {static_cast<llama_token>(best - run.logits.back().begin())};
        run.tokens.push_back(next[0]);
    }
    return run;
}

void expect_same_step(const std::vector<float> & a, StepRecord ra, const std::vector<float> & b, StepRecord rb,
                      double tolerance) {
    if (ra.hesitated != rb.hesitated) {
        // rounding moved the entropy across the threshold: only one of the two rows is mixed
        EXPECT_NEAR(ra.entropy, rb.entropy, tolerance);
        return;
    }
    EXPECT_LE(largest_difference(a, b), tolerance);
}

double largest_difference(const std::vector<float> & a, const std::vector<float> & b) {
    EXPECT_EQ(a.size(), b.size());
    double largest = 0;
    for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
        largest = std::max(largest, std::fabs(static_cast<double>(a[i]) - static_cast<double>(b[i])));
    }
    return largest;
}

}  // namespace harp::testing
