// What HARP cannot be used with is refused by name: models, adapters, options, sizes.
#include <gtest/gtest.h>

#include <filesystem>
#include <limits>
#include <random>

#include "ggml-cpp.h"
#include "gguf.h"
#include "support/models.h"

namespace harp::testing {
namespace {

struct Refusal {
    ErrorCode code = ErrorCode::io;
    std::string message;
};

Refusal refusal_of(llama_model & model, const llama_context_params & params, const std::optional<Options> & options) {
    try {
        const ForwardPass pass(model, params, options);
    } catch (const Error & error) {
        return {error.code(), error.what()};
    }
    ADD_FAILURE() << "not refused";
    return {};
}

void expect_mentions(const Refusal & refusal, ErrorCode code, const std::vector<std::string> & parts) {
    EXPECT_EQ(refusal.code, code) << refusal.message;
    for (const std::string & part : parts) {
        EXPECT_NE(refusal.message.find(part), std::string::npos) << "'" << part << "' in: " << refusal.message;
    }
}

TEST(Refusals, EncoderDecoderModels) {
    HARP_REQUIRE_MODEL(model, test_models() / "random-t5.gguf");
    expect_mentions(refusal_of(model, small_context(), Options{}), ErrorCode::unsupported_model, {"t5", "encoder"});
}

TEST(Refusals, ModelsWithoutCausalAttention) {
    HARP_REQUIRE_MODEL(model, test_models() / "random-bert.gguf");
    expect_mentions(refusal_of(model, small_context(), Options{}), ErrorCode::unsupported_model, {"bert", "causal"});
    llama_context_params params = small_context();
    params.embeddings = true;
    expect_mentions(refusal_of(model, params, Options{}), ErrorCode::unsupported_model, {"bert"});
    (void)ForwardPass(model, params, std::nullopt);  // with HARP off llama.cpp decides about models
}

TEST(Refusals, ObserversThatDecode) {
    HARP_REQUIRE_MODEL(model, stories260k());
    ForwardPass pass(model, small_context(), Options{});
    pass.set_observer([&](const StepObservation & o) { decode(pass, {310}, o.position + 1); });
    try {
        decode(pass, once_upon_a_time, 0);
        ADD_FAILURE() << "not refused";
    } catch (const Error & error) {
        expect_mentions({error.code(), error.what()}, ErrorCode::unsupported_call, {"observer"});
    }
    int n_calls = 0;
    pass.set_observer([&](const StepObservation &) {
        ++n_calls;
        pass.set_observer(nullptr);
    });
    decode(pass, once_upon_a_time, 0);
    decode(pass, {310}, static_cast<llama_pos>(once_upon_a_time.size()));
    EXPECT_EQ(n_calls, 1) << "an observer can take itself away";
}

TEST(Refusals, ContextsForOtherPurposes) {
    HARP_REQUIRE_MODEL(model, stories260k());
    llama_context_params embeddings = small_context();
    embeddings.embeddings = true;
    expect_mentions(refusal_of(model, embeddings, Options{}), ErrorCode::unsupported_model, {"llama", "embeddings"});
    llama_context_params not_causal = small_context();
    not_causal.attention_type = LLAMA_ATTENTION_TYPE_NON_CAUSAL;
    expect_mentions(refusal_of(model, not_causal, Options{}), ErrorCode::unsupported_model, {"llama", "causal"});
}

TEST(Refusals, TooManySequences) {
    HARP_REQUIRE_MODEL(model, stories260k());
    Options options;
    expect_mentions(refusal_of(model, small_context(512, 129), options), ErrorCode::invalid_option,
                    {"n_seq_max", "129", "256"});
    options.reframings = 8;
    expect_mentions(refusal_of(model, small_context(512, 29), options), ErrorCode::invalid_option, {"n_seq_max", "29"});
    const ForwardPass most(model, small_context(512, 128), Options{});
    EXPECT_EQ(most.n_seq_max(), 128U);
}

TEST(Refusals, OptionsOutOfRange) {
    HARP_REQUIRE_MODEL(model, stories260k());
    Options options;
    options.threshold = -1;
    expect_mentions(refusal_of(model, small_context(), options), ErrorCode::invalid_option, {"threshold", "-1"});
    options = {};
    options.reframings = 9;
    expect_mentions(refusal_of(model, small_context(), options), ErrorCode::invalid_option, {"reframings", "9"});

    ForwardPass pass(model, small_context(512, 2), Options{});
    const auto code_of = [](ForwardPass & p, llama_seq_id sequence, const Options & o) {
        try {
            p.set_sequence_options(sequence, o);
        } catch (const Error & error) {
            return error.code();
        }
        ADD_FAILURE() << "not refused";
        return ErrorCode::io;
    };
    Options two;
    two.reframings = 2;
    EXPECT_EQ(code_of(pass, 0, two), ErrorCode::invalid_option);
    EXPECT_EQ(pass.sequence_options(0).reframings, 1U);
    EXPECT_EQ(code_of(pass, 2, Options{}), ErrorCode::invalid_input);
    EXPECT_EQ(code_of(pass, -1, Options{}), ErrorCode::invalid_input);
    Options bad;
    bad.beta = 9.0F;
    EXPECT_EQ(code_of(pass, 0, bad), ErrorCode::invalid_option);
    ForwardPass off(model, small_context(), std::nullopt);
    EXPECT_EQ(code_of(off, 0, Options{}), ErrorCode::invalid_option);
}

// ---------------------------------------------------------------------------------------------------------------------
// LoRA

/// A folder that is deleted with its files.
class TemporaryFolder {
  public:
    TemporaryFolder() {
        std::random_device random;
        path_ = std::filesystem::temp_directory_path() / ("harp-test-" + std::to_string(random()));
        std::filesystem::create_directories(path_);
    }
    ~TemporaryFolder() { std::filesystem::remove_all(path_); }
    TemporaryFolder(const TemporaryFolder &) = delete;
    TemporaryFolder & operator=(const TemporaryFolder &) = delete;
    [[nodiscard]] std::string file(const char * name) const { return (path_ / name).string(); }

  private:
    std::filesystem::path path_;
};

/// Copies a model, giving it a separate output matrix: llama.cpp cannot apply a LoRA to embeddings that serve as both.
void write_untied(const std::string & from, const std::string & to) {
    ggml_context * tensors = nullptr;
    const gguf_context_ptr source(gguf_init_from_file(from.c_str(), {/*no_alloc=*/false, &tensors}));
    ASSERT_NE(source, nullptr);
    const ggml_context_ptr owner(tensors);
    const gguf_context_ptr copy(gguf_init_empty());
    gguf_set_kv(copy.get(), source.get());
    for (ggml_tensor * t = ggml_get_first_tensor(tensors); t != nullptr; t = ggml_get_next_tensor(tensors, t)) {
        if (gguf_find_tensor(source.get(), ggml_get_name(t)) >= 0) gguf_add_tensor(copy.get(), t);
    }
    ggml_tensor output = *ggml_get_tensor(tensors, "token_embd.weight");
    ggml_set_name(&output, "output.weight");
    gguf_add_tensor(copy.get(), &output);
    ASSERT_TRUE(gguf_write_to_file(copy.get(), to.c_str(), /*only_meta=*/false));
}

struct Shape {
    int64_t columns, rows;
};

/// Writes a LoRA for one tensor, with random weights.
void write_lora(const std::string & path, const std::string & tensor, Shape a, Shape b) {
    const ggml_context_ptr context(ggml_init({1 << 20, nullptr, /*no_alloc=*/false}));
    const gguf_context_ptr file(gguf_init_empty());
    gguf_set_val_str(file.get(), "general.type", "adapter");
    gguf_set_val_str(file.get(), "general.architecture", "llama");
    gguf_set_val_str(file.get(), "adapter.type", "lora");
    gguf_set_val_f32(file.get(), "adapter.lora.alpha", 8.0F);
    std::mt19937 random(5);
    std::normal_distribution<float> normal(0.0F, 0.1F);
    const auto add = [&](const std::string & name, Shape shape) {
        ggml_tensor * t = ggml_new_tensor_2d(context.get(), GGML_TYPE_F32, shape.columns, shape.rows);
        ggml_set_name(t, name.c_str());
        auto * values = static_cast<float *>(t->data);
        for (int64_t i = 0; i < shape.columns * shape.rows; ++i) values[i] = normal(random);
        gguf_add_tensor(file.get(), t);
    };
    add(tensor + ".lora_a", a);
    add(tensor + ".lora_b", b);
    ASSERT_TRUE(gguf_write_to_file(file.get(), path.c_str(), /*only_meta=*/false));
}

/// A model and a LoRA for one of its tensors.
struct Adapted {
    TemporaryFolder folder;
    llama_model * model = nullptr;
    llama_adapter_lora * adapter = nullptr;

    explicit Adapted(bool of_embeddings) {
        llama_model * tied = load(stories260k());
        if (tied == nullptr) return;
        const int64_t n_embd = llama_model_n_embd(tied);
        write_untied(stories260k().string(), folder.file("model.gguf"));
        model = load(folder.file("model.gguf"));
        if (of_embeddings) {
            write_lora(folder.file("lora.gguf"), "token_embd.weight", {4, 512}, {4, n_embd});
        } else {
            write_lora(folder.file("lora.gguf"), "blk.1.attn_q.weight", {n_embd, 4}, {4, n_embd});
        }
        adapter = llama_adapter_lora_init(model, folder.file("lora.gguf").c_str());
    }
    void apply(ForwardPass & pass) {
        float scale = 1.0F;
        EXPECT_EQ(llama_set_adapters_lora(pass.context(), &adapter, 1, &scale), 0);
    }
};

TEST(Lora, OfEmbeddingsOrElsewhereIsPartOfBothPasses) {
    for (const bool of_embeddings : {true, false}) {
        SCOPED_TRACE(of_embeddings ? "token_embd.weight" : "attn_q.weight");
        Adapted adapted(of_embeddings);
        if (adapted.model == nullptr) GTEST_SKIP() << "model not there: " << stories260k().string();
        ASSERT_NE(adapted.adapter, nullptr);
        const auto run = [&](const std::optional<Options> & options, bool with_adapter) {
            ForwardPass pass(*adapted.model, small_context(), options);
            if (with_adapter) adapted.apply(pass);
            const Continuation result = greedy(pass, once_upon_a_time, 20);
            EXPECT_EQ(pass.check_invariant(), "");
            return result;
        };
        Options lazy;
        lazy.schedule = Schedule::lazy;
        Options fused;
        fused.schedule = Schedule::fused;
        Options never;
        never.threshold = std::numeric_limits<double>::infinity();
        EXPECT_NE(run(std::nullopt, true).logits, run(std::nullopt, false).logits);
        EXPECT_EQ(run(never, true).logits, run(std::nullopt, true).logits);
        const Continuation a = run(lazy, true);
        const Continuation b = run(fused, true);
        EXPECT_EQ(a.tokens, b.tokens);
        for (size_t i = 0; i < a.logits.size(); ++i) {
            expect_same_step(a.logits[i], a.records[i], b.logits[i], b.records[i], 2e-4);
        }
    }
}

TEST(Lora, OfEmbeddingsIsPerturbedWithThem) {
    Adapted adapted(/*of_embeddings=*/true);
    if (adapted.model == nullptr) GTEST_SKIP() << "model not there: " << stories260k().string();
    Options options;
    options.threshold = 0;
    // zeroed embeddings hide the adapter too
    const auto reframed = [&](bool with_adapter) {
        ForwardPass pass(*adapted.model, small_context(), options);
        if (with_adapter) adapted.apply(pass);
        pass.set_row_perturbation(
            [](const RowToPerturb &, std::span<float> factors) { std::fill(factors.begin(), factors.end(), 0.0F); });
        std::vector<float> logits;
        pass.set_observer([&](const StepObservation & o) { logits.assign(o.reframed.begin(), o.reframed.end()); });
        decode(pass, once_upon_a_time, 0);
        return logits;
    };
    const std::vector<float> without = reframed(false);
    ASSERT_FALSE(without.empty());
    EXPECT_EQ(reframed(true), without);
}

}  // namespace
}  // namespace harp::testing
