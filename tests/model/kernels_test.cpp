// Models loaded with our kernels compared with the same models on ggml's: equal distributions up to the rounding of
// sums, for any batch size and number of threads; with the kernels switched off equal to ggml bit for bit.
#include "harp/kernels.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <map>
#include <string_view>
#include <vector>

#include "forward/batch_rows.h"
#include "kernels/multiply.h"
#include "support/agreement.h"
#include "support/models.h"

namespace harp::testing {
namespace {

constexpr int PROMPT = 12;  // tokens of each sequence before the batch that is compared
#ifdef HARP_SANITIZED
constexpr bool is_sanitized = true;  // ten times as slow: fewer sizes, and nothing that is about precision alone
#else
constexpr bool is_sanitized = false;
#endif

void be_silent() {
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
}

llama_model_ptr load_new(const std::filesystem::path & path, bool use_extra_buffers = true) {
    llama_model_params params = llama_model_default_params();
    params.use_extra_bufts = use_extra_buffers;
    return llama_model_ptr(llama_model_load_from_file(path.c_str(), params));
}

/// Logits of a batch that has the next token of each of `n_rows` sequences, [n_rows][n_vocab].
std::vector<std::vector<float>> logits_of(llama_model & model, int n_rows, int n_threads) {
    llama_context_params params = small_context(static_cast<uint32_t>(n_rows * 32), static_cast<uint32_t>(n_rows));
    params.n_threads = params.n_threads_batch = n_threads;
    const llama_context_ptr context(llama_init_from_model(&model, params));
    const llama_token n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(&model));
    forward::BatchRows rows;
    for (llama_seq_id sequence = 0; sequence < n_rows; ++sequence) {
        for (int i = 0; i < PROMPT; ++i) rows.add((100 + 37 * sequence + 11 * i) % n_vocab, i, {&sequence, 1}, false);
    }
    EXPECT_EQ(llama_decode(context.get(), rows.view()), 0);
    rows.clear();
    for (llama_seq_id sequence = 0; sequence < n_rows; ++sequence) rows.add(99, PROMPT, {&sequence, 1}, true);
    EXPECT_EQ(llama_decode(context.get(), rows.view()), 0);
    std::vector<std::vector<float>> logits;
    for (int i = 0; i < n_rows; ++i) {
        const float * row = llama_get_logits_ith(context.get(), i);
        logits.emplace_back(row, row + n_vocab);
    }
    return logits;
}

// Must be the first test: its child process must not know the buffer type yet.
TEST(KernelsSwitchedOff, IsGgmlBitForBit) {
    be_silent();
    const std::filesystem::path path = smollm2_q4();
    if (!exists(path)) GTEST_SKIP() << "model not there: " << path.string();
    std::FILE * file = std::tmpfile();
    ASSERT_NE(file, nullptr);
    if (::fork() == 0) {
        const std::vector<float> plain = logits_of(*load_new(path), 1, 1).front();
        const bool is_written = std::fwrite(plain.data(), sizeof(float), plain.size(), file) == plain.size();
        ::_exit(std::fflush(file) == 0 && is_written ? 0 : 1);
    }
    int status = 1;
    ::wait(&status);
    ASSERT_EQ(status, 0);
    EXPECT_FALSE(harp_set_kernels(false));
    const std::vector<float> off = logits_of(*load_new(path), 1, 1).front();
    std::vector<float> plain(off.size());
    std::rewind(file);
    ASSERT_EQ(std::fread(plain.data(), sizeof(float), plain.size(), file), plain.size());
    std::fclose(file);
    EXPECT_EQ(plain, off);
    const bool has_kernels = harp_set_kernels(true);
    EXPECT_EQ(has_kernels, std::string_view(harp_kernel_instructions()) != "none");
    EXPECT_EQ(logits_of(*load_new(path), 1, 1).front() != off, has_kernels);
}

class Kernels : public ::testing::TestWithParam<std::filesystem::path (*)()> {
  protected:
    void SetUp() override {
        be_silent();
        harp_set_kernels(true);
    }
    void TearDown() override { harp_set_kernel_instructions(best_); }

    const char * best_ = harp_kernel_instructions();
};

/// Mean divergence of distributions over the rows, nats.
double mean_divergence(const std::vector<std::vector<float>> & a, const std::vector<std::vector<float>> & b) {
    Agreement agreement;
    for (size_t i = 0; i < a.size(); ++i) agreement.add(a[i], b[i]);
    return agreement.mean();
}

/// A quantised activation that rounds the other way changes more than another order of summation does, and makes others
/// round the other way in the next layer. Even ggml's own two ways, plain and repacked, differ. Ours may differ as
/// much.
TEST_P(Kernels, DistributionsAreGgmls) {
    const std::filesystem::path path = GetParam()();
    if (!exists(path)) GTEST_SKIP() << "model not there: " << path.string();
    const llama_model_ptr plain = load_new(path, false);
    harp_set_kernels(false);
    const llama_model_ptr repacked = load_new(path);
    harp_set_kernels(true);
    const llama_model_ptr ours = load_new(path);
    const std::vector<int> sizes = is_sanitized ? std::vector{2, 9} : std::vector{1, 2, 3, 8, 9, 16};
    double of_repacked = 0;
    std::map<std::string_view, double> of_ours;  // instructions with the same activations as ggml
    for (const int n_rows : sizes) {
        const auto expected = logits_of(*plain, n_rows, 2);
        of_repacked += mean_divergence(expected, logits_of(*repacked, n_rows, 2)) / static_cast<double>(sizes.size());
        for (const char * instructions : {"avx2", "vnni"}) {
            if (!harp_set_kernel_instructions(instructions)) continue;
            of_ours[instructions] +=
                mean_divergence(expected, logits_of(*ours, n_rows, 2)) / static_cast<double>(sizes.size());
        }
    }
    for (const auto & [instructions, divergence] : of_ours) {
        std::printf("divergence from plain ggml: repacked %.4f, ours with %s %.4f nats\n", of_repacked,
                    instructions.data(), divergence);
        EXPECT_LT(divergence, 2 * of_repacked + 0.01) << instructions;
    }
}

/// A mixture of experts, most of whose weights are multiplied by MUL_MAT_ID. With two or more tokens experts get
/// unequal numbers.
TEST(Mixture, DistributionsAreGgmls) {
    be_silent();
    const std::filesystem::path path = random_mixture();
    if (!exists(path)) GTEST_SKIP() << "model not there: " << path.string();
    const std::filesystem::path quantized = std::filesystem::path(::testing::TempDir()) / "harp-mixture-Q8_0.gguf";
    llama_model_quantize_params params = llama_model_quantize_default_params();
    params.ftype = LLAMA_FTYPE_MOSTLY_Q8_0;
    ASSERT_EQ(llama_model_quantize(path.c_str(), quantized.c_str(), &params), 0U);
    harp_set_kernels(false);
    const llama_model_ptr ggmls = load_new(quantized);
    harp_set_kernels(true);
    const llama_model_ptr ours = load_new(quantized);
    for (const int n_rows : {1, 2, 9, 40}) {
        const auto expected = logits_of(*ggmls, n_rows, 1), found = logits_of(*ours, n_rows, 1);
        EXPECT_LT(mean_divergence(expected, found), 0.1) << n_rows << " rows";
        EXPECT_EQ(logits_of(*ours, n_rows, 3), found) << n_rows << " rows, three threads";
    }
    std::filesystem::remove(quantized);
}

/// Where activations are rounded differently from ggml's, nothing is lost: compared with the weights in float32.
TEST(ManyTokens, AreAsExactAsGgmls) {
    be_silent();
    if (is_sanitized) GTEST_SKIP() << "about precision alone";
    if (!exists(smollm2_q4()) || !exists(smollm2_f32())) GTEST_SKIP() << "models not there";
    const auto expected = logits_of(*load_new(smollm2_f32()), 16, 2);
    harp_set_kernels(false);
    const double of_ggml = mean_divergence(expected, logits_of(*load_new(smollm2_q4()), 16, 2));
    harp_set_kernels(true);
    const llama_model_ptr ours = load_new(smollm2_q4());
    for (const char * instructions : {"avx2", "vnni", "amx"}) {
        if (!harp_set_kernel_instructions(instructions)) continue;
        const double of_ours = mean_divergence(expected, logits_of(*ours, 16, 2));
        std::printf("divergence from float32: ggml %.5f, ours with %s %.5f nats\n", of_ggml, instructions, of_ours);
        EXPECT_LT(of_ours, 1.5 * of_ggml) << instructions;
    }
}

/// The distribution of outputs over threads changes no sum.
TEST_P(Kernels, ThreadsDoNotMatter) {
    const std::filesystem::path path = GetParam()();
    if (!exists(path)) GTEST_SKIP() << "model not there: " << path.string();
    const llama_model_ptr model = load_new(path);
    const auto expected = logits_of(*model, 3, 1);
    const std::vector<int> numbers = is_sanitized ? std::vector{3} : std::vector{2, 3, 5};
    for (const int n_threads : numbers) EXPECT_EQ(logits_of(*model, 3, n_threads), expected) << n_threads;
}

/// A token's logits are the same bits in any batch. With AMX this holds for decoded tokens, not for long prompts.
TEST_P(Kernels, CompanyDoesNotMatter) {
    const std::filesystem::path path = GetParam()();
    if (!exists(path)) GTEST_SKIP() << "model not there: " << path.string();
    const llama_model_ptr model = load_new(path);
    const std::vector<int> sizes = is_sanitized ? std::vector{3} : std::vector{2, 3, 5, 9, 16, 33};
    for (const char * instructions : {"avx2", "vnni"}) {
        if (!harp_set_kernel_instructions(instructions)) continue;
        SCOPED_TRACE(instructions);
        const auto alone = logits_of(*model, 1, 2).front();
        for (const int n_rows : sizes) EXPECT_EQ(logits_of(*model, n_rows, 2).front(), alone) << n_rows << " rows";
    }
}

TEST_P(Kernels, HarpStandsOnThem) {
    const std::filesystem::path path = GetParam()();
    if (!exists(path)) GTEST_SKIP() << "model not there: " << path.string();
    const llama_model_ptr model = load_new(path);
    const auto run = [&](Schedule schedule) {
        Options options;
        options.schedule = schedule;
        ForwardPass pass(*model, small_context(), options);
        return greedy(pass, {100, 111, 122, 133, 144}, 12);
    };
    const Continuation lazy = run(Schedule::lazy), fused = run(Schedule::fused);
    size_t n_hesitations = 0;
    for (const StepRecord & record : lazy.records) n_hesitations += record.hesitated ? 1 : 0;
    EXPECT_GT(n_hesitations, 0U);
    if (harp_set_kernels(true)) {
        EXPECT_EQ(lazy.logits, fused.logits);
        EXPECT_EQ(lazy.tokens, fused.tokens);
    }
}

INSTANTIATE_TEST_SUITE_P(Models, Kernels, ::testing::Values(&smollm2_q4, &gemma3_q4),
                         [](const auto & tested) { return std::string(tested.index == 0 ? "SmolLM2Q4" : "Gemma3Q4"); });

}  // namespace
}  // namespace harp::testing
