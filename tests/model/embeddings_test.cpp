// Batches of embeddings (pictures): twins decode them like tokens.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <limits>
#include <random>
#include <span>
#include <vector>

#include "forward/batch_rows.h"
#include "support/models.h"

namespace harp::testing {
namespace {

constexpr size_t n_picture = 12;  // rows
const std::vector<llama_token> before = {1, 403, 407, 261};
const std::vector<llama_token> behind = {378, 432, 383, 286, 261};

/// A batch of random embeddings, at positions from `first` on.
struct Picture {
    std::vector<float> values;
    std::vector<llama_pos> positions;

    Picture(llama_model & model, llama_pos first, uint32_t seed = 3) {
        std::mt19937 random(seed);
        std::normal_distribution<float> normal(0.0F, 0.5F);
        values.resize(n_picture * static_cast<size_t>(llama_model_n_embd_inp(&model)));
        for (float & value : values) value = normal(random);
        for (size_t i = 0; i < n_picture; ++i) positions.push_back(first + static_cast<llama_pos>(i));
    }
    llama_batch batch() {
        outputs.assign(n_picture, 0);
        llama_batch batch{};
        batch.n_tokens = n_picture;
        batch.embd = values.data();
        batch.pos = positions.data();
        batch.logits = outputs.data();
        return batch;
    }
    std::vector<int8_t> outputs;
};

void decode_without_outputs(ForwardPass & pass, const std::vector<llama_token> & tokens) {
    constexpr llama_seq_id id = 0;
    forward::BatchRows rows;
    for (const llama_token token : tokens) rows.add(token, static_cast<llama_pos>(rows.size()), {&id, 1}, false);
    pass.decode(rows.view());
}

/// Decodes embeddings like mtmd does for models whose pictures attend to themselves.
void decode_picture(ForwardPass & pass, Picture & picture, bool is_causal) {
    if (!is_causal) llama_set_causal_attn(pass.context(), false);
    pass.decode(picture.batch());
    if (!is_causal) llama_set_causal_attn(pass.context(), true);
}

struct EmbeddingStep {
    std::vector<float> logits;
    StepRecord record;
};

struct EmbeddingsCase {
    const char * name;
    bool is_causal;
    bool is_unified;
};

class Embeddings : public ::testing::TestWithParam<EmbeddingsCase> {
  protected:
    void SetUp() override {
        model_ = load(stories260k());
        if (model_ == nullptr) GTEST_SKIP() << "model not there: " << stories260k().string();
    }
    [[nodiscard]] ForwardPass pass(const std::optional<Options> & options) const {
        llama_context_params params = small_context(256);
        params.kv_unified = GetParam().is_unified;
        return {*model_, params, options};
    }
    /// Decodes text, a picture, and then text token by token.
    std::vector<EmbeddingStep> run(ForwardPass & p) const {
        Picture picture(*model_, static_cast<llama_pos>(before.size()));
        decode(p, before, 0);
        decode_picture(p, picture, GetParam().is_causal);
        std::vector<EmbeddingStep> steps;
        auto position = static_cast<llama_pos>(before.size() + n_picture);
        for (const llama_token token : behind) {
            decode(p, {token}, position++);
            steps.push_back({row(p), p.step(-1)});
            EXPECT_EQ(p.check_invariant(), "");
        }
        return steps;
    }
    std::vector<EmbeddingStep> run(const std::optional<Options> & options) const {
        ForwardPass p = pass(options);
        return run(p);
    }
    static Options always(Schedule schedule = Schedule::lazy) {
        Options options;
        options.threshold = 0;
        options.schedule = schedule;
        return options;
    }
    static void expect_same(const std::vector<EmbeddingStep> & a, const std::vector<EmbeddingStep> & b) {
        ASSERT_EQ(a.size(), b.size());
        for (size_t i = 0; i < a.size(); ++i) {
            SCOPED_TRACE("step " + std::to_string(i));
            expect_same_step(a[i].logits, a[i].record, b[i].logits, b[i].record, LOGIT_TOLERANCE);
        }
    }
    llama_model * model_ = nullptr;
};

TEST_P(Embeddings, InfiniteThresholdIsVanillaBitForBit) {
    Options never;
    never.threshold = std::numeric_limits<double>::infinity();
    const std::vector<EmbeddingStep> off = run(std::nullopt);
    const std::vector<EmbeddingStep> with = run(never);
    for (size_t i = 0; i < off.size(); ++i) EXPECT_EQ(with[i].logits, off[i].logits) << i;
}

TEST_P(Embeddings, WithoutPerturbationTheTwinIsTheCleanStream) {
    Options options = always();
    options.strength = 0;
    const std::vector<EmbeddingStep> off = run(std::nullopt);
    const std::vector<EmbeddingStep> twin = run(options);
    for (size_t i = 0; i < off.size(); ++i)
        EXPECT_LE(largest_difference(twin[i].logits, off[i].logits), LOGIT_TOLERANCE) << i;
}

TEST_P(Embeddings, ArePerturbedAsTokensAre) {
    std::vector<uint32_t> asked;
    ForwardPass p = pass(always());
    p.set_row_perturbation([&](const RowToPerturb & r, std::span<float>) { asked.push_back(r.ordinal); });
    (void)run(p);
    std::vector<uint32_t> all;
    // the hesitation at the end of the first text decodes four rows for the twin, the first one after the picture all
    // rows since
    for (uint32_t i = 0; i < before.size() + n_picture + behind.size(); ++i) all.push_back(i);
    EXPECT_EQ(asked, all);
    EXPECT_NE(run(always()).back().logits, run(std::nullopt).back().logits);
}

TEST_P(Embeddings, SchedulesAndReframingsAgree) {
    for (const uint32_t reframings : {1U, 2U}) {
        Options lazy = always(Schedule::lazy);
        lazy.reframings = reframings;
        Options fused = lazy;
        fused.schedule = Schedule::fused;
        expect_same(run(lazy), run(fused));
    }
}

TEST_P(Embeddings, StayCleanUnderScopeGenerated) {
    Options options = always();
    options.scope = Scope::generated;
    ForwardPass p = pass(options);
    std::vector<uint32_t> asked;
    p.set_row_perturbation([&](const RowToPerturb & r, std::span<float>) { asked.push_back(r.ordinal); });
    p.set_prompt_end(0, static_cast<llama_pos>(before.size() + n_picture + 1));
    (void)run(p);
    ASSERT_FALSE(asked.empty());
    EXPECT_EQ(asked.front(), before.size() + n_picture + 1);
}

TEST_P(Embeddings, AStateHasThem) {
    ForwardPass a = pass(always());
    ForwardPass b = pass(always());
    Picture picture(*model_, static_cast<llama_pos>(before.size()));
    decode(a, before, 0);
    decode_picture(a, picture, GetParam().is_causal);
    const std::vector<uint8_t> state = a.state_seq_get(0);
    EXPECT_EQ(state.size(), a.state_seq_size(0));
    b.state_seq_set(state, 0);
    const auto position = static_cast<llama_pos>(before.size() + n_picture);
    for (ForwardPass * p : {&a, &b}) decode(*p, {378}, position);
    EXPECT_TRUE(b.step(-1).hesitated);
    EXPECT_LE(largest_difference(row(a), row(b)), LOGIT_TOLERANCE);
}

/// A whole state whose rows of embeddings are half as long: reading one would go beyond its end.
TEST_P(Embeddings, AStateWithThoseOfAnotherSizeIsRefused) {
    ForwardPass p = pass(always());
    Picture picture(*model_, 0);
    decode_picture(p, picture, GetParam().is_causal);
    std::vector<uint8_t> state = p.state_seq_get(0);
    const auto n_embd = static_cast<uint64_t>(llama_model_n_embd_inp(model_));
    const std::array<uint64_t, 2> sizes = {n_embd, 1};
    const auto bytes = std::as_bytes(std::span(sizes));
    const auto at = std::search(state.begin(), state.end(), bytes.begin(), bytes.end(),
                                [](uint8_t a, std::byte b) { return std::byte{a} == b; });
    ASSERT_NE(at, state.end());
    const auto place = at - state.begin();
    const uint64_t half = n_embd / 2, n_values = n_picture * half;
    const auto values = place + 3 * static_cast<std::ptrdiff_t>(sizeof(uint64_t)) + 1;  // sizes, causal, count
    std::memcpy(state.data() + place, &half, sizeof(half));
    std::memcpy(state.data() + values - sizeof(n_values), &n_values, sizeof(n_values));
    state.erase(state.begin() + values, state.begin() + values + static_cast<std::ptrdiff_t>(n_values * sizeof(float)));
    try {
        p.state_seq_set(state, 0);
        FAIL() << "not refused";
    } catch (const Error & error) {
        EXPECT_EQ(error.code(), ErrorCode::invalid_state);
        EXPECT_NE(std::string(error.what()).find(std::to_string(half) + " numbers"), std::string::npos) << error.what();
    }
}

TEST_P(Embeddings, MoveWithAShift) {
    Options never;
    never.threshold = std::numeric_limits<double>::infinity();
    Options always;
    always.threshold = 0;
    ForwardPass shifted = pass(never);
    decode(shifted, before, 0);
    Picture picture(*model_, static_cast<llama_pos>(before.size()));
    decode_picture(shifted, picture, GetParam().is_causal);
    decode(shifted, behind, static_cast<llama_pos>(before.size() + n_picture));
    shifted.memory_seq_rm(0, 1, 3);
    shifted.memory_seq_add(0, 3, -1, -2);
    shifted.set_sequence_options(0, always);
    EXPECT_NO_THROW(decode(shifted, {300}, shifted.memory_seq_pos_max(0) + 1));  // the twin reads the picture only now
    EXPECT_TRUE(shifted.step(-1).hesitated);
    EXPECT_EQ(shifted.check_invariant(), "");
}

/// Tokens that wait for a second pass are read causally, also if it comes with a picture whose rows attend to each other.
TEST_P(Embeddings, TokensBeforeAPictureThatHesitatesAreReadCausally) {
    ForwardPass prepared = pass(always()), waiting = pass(always());
    for (ForwardPass * p : {&prepared, &waiting}) decode_without_outputs(*p, before);
    prepared.prepare_twins(0);
    for (ForwardPass * p : {&prepared, &waiting}) {
        Picture picture(*model_, static_cast<llama_pos>(before.size()));
        llama_batch batch = picture.batch();
        picture.outputs.back() = 1;
        llama_set_causal_attn(p->context(), GetParam().is_causal);
        p->decode(batch);
        llama_set_causal_attn(p->context(), true);
        EXPECT_TRUE(p->step(-1).hesitated);
    }
    EXPECT_LE(largest_difference(row(prepared), row(waiting)), LOGIT_TOLERANCE);
}

TEST_P(Embeddings, AFailedBatchLeavesNothing) {
    ForwardPass p = pass(always());
    Picture picture(*model_, static_cast<llama_pos>(before.size()));
    decode(p, before, 0);
    picture.positions[5] = 0;
    EXPECT_THROW(p.decode(picture.batch()), Error);
    EXPECT_EQ(p.check_invariant(), "");
    EXPECT_EQ(p.memory_seq_pos_max(0), static_cast<llama_pos>(before.size()) - 1);
}

INSTANTIATE_TEST_SUITE_P(Kinds, Embeddings,
                         ::testing::Values(EmbeddingsCase{"CausalStreams", true, false},
                                           EmbeddingsCase{"CausalUnified", true, true},
                                           EmbeddingsCase{"NonCausalStreams", false, false},
                                           EmbeddingsCase{"NonCausalUnified", false, true}),
                         [](const auto & tested) { return std::string(tested.param.name); });

}  // namespace
}  // namespace harp::testing
