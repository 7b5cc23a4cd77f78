// Edge cases of creation: sizes whose products overflow, and models that only look as if they could not be reframed.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <memory>

#include "ggml-cpp.h"
#include "gguf.h"
#include "support/models.h"

namespace harp::testing {
namespace {

/// The message of the error that creating a pass throws. Fails the test if there is none or its code is another.
std::string refusal_of(llama_model & model, const llama_context_params & params, const Options & options) {
    try {
        const ForwardPass pass(model, params, options);
    } catch (const Error & error) {
        EXPECT_EQ(error.code(), ErrorCode::invalid_option) << error.what();
        return error.what();
    }
    ADD_FAILURE() << "not refused";
    return {};
}

TEST(Creation, OfMoreCellsThanCanBeCountedIsRefused) {
    HARP_REQUIRE_MODEL(model, stories260k());
    Options options;
    options.reframings = 2;
    llama_context_params params = small_context(1431655766);  // three times this exceeds 32 bits by 2
    const std::string message = refusal_of(model, params, options);
    EXPECT_NE(message.find("n_ctx"), std::string::npos) << message;
    EXPECT_NE(message.find("1431655766"), std::string::npos) << message;
    options.reframings = 1;
    params.n_ctx = 1U << 31;
    EXPECT_NE(refusal_of(model, params, options).find("n_ctx"), std::string::npos);
}

TEST(Creation, OfALargerBatchThanCanBeCountedWorksOrIsRefused) {
    HARP_REQUIRE_MODEL(model, stories260k());
    llama_context_params params = small_context(256);
    params.n_batch = 1U << 31;
    try {
        ForwardPass pass(model, params, Options{});
        (void)greedy(pass, once_upon_a_time, 4);
    } catch (const Error & error) {
        EXPECT_NE(std::string(error.what()).find("n_batch"), std::string::npos) << error.what();
    }
}

/// A copy of a model with zero embeddings for the first tokens, as some models have them for tokens never trained.
llama_model_ptr with_first_embeddings_zero(const std::filesystem::path & path, size_t n_tokens) {
    std::ifstream file(path, std::ios::binary);
    std::vector<char> bytes{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
    ggml_context * tensors = nullptr;
    const gguf_context_ptr layout(gguf_init_from_file(path.c_str(), {/*no_alloc=*/true, &tensors}));
    const ggml_context_ptr owner(tensors);
    const ggml_tensor * table = ggml_get_tensor(tensors, "token_embd.weight");
    const auto begin =
        bytes.begin() +
        static_cast<std::ptrdiff_t>(gguf_get_data_offset(layout.get()) +
                                    gguf_get_tensor_offset(layout.get(), gguf_find_tensor(layout.get(), table->name)));
    std::fill_n(begin, n_tokens * ggml_row_size(table->type, table->ne[0]), '\0');
    const std::unique_ptr<std::FILE, int (*)(std::FILE *)> copy(std::tmpfile(), &std::fclose);
    EXPECT_EQ(std::fwrite(bytes.data(), 1, bytes.size(), copy.get()), bytes.size());
    std::rewind(copy.get());
    llama_model_params params = llama_model_default_params();
    params.load_mode = LLAMA_LOAD_MODE_NONE;  // the file is not found by its name
    return llama_model_ptr(llama_model_load_from_file_ptr(copy.get(), params));
}

TEST(Creation, OfAModelWhoseFirstEmbeddingsAreZerosWorks) {
    const std::filesystem::path path = stories260k();
    if (!exists(path)) GTEST_SKIP() << "model not there: " << path.string();
    for (const size_t n_tokens : {size_t{1}, size_t{3}}) {  // without and with the beginning-of-sequence token
        const llama_model_ptr model = with_first_embeddings_zero(path, n_tokens);
        ASSERT_NE(model, nullptr);
        ASSERT_NO_THROW(ForwardPass(*model, small_context(256), Options{})) << n_tokens;
        ForwardPass pass(*model, small_context(256), Options{});
        const Continuation run = greedy(pass, once_upon_a_time, 20);
        EXPECT_TRUE(std::any_of(run.records.begin(), run.records.end(), [](StepRecord r) { return r.hesitated; }));
    }
}

}  // namespace
}  // namespace harp::testing
