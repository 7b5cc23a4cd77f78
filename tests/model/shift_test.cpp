// After a context shift (rows in the middle removed, the rest moved down) each row keeps its role and mask: the prompt
// is prompt, generated rows are reframed, no two rows have one mask. Rows that the shift discards are not computed.
#include <gtest/gtest.h>

#include <cstdlib>

#include "support/text.h"

namespace harp::testing {
namespace {

class Shift : public ::testing::TestWithParam<bool> {  // a unified cache
  protected:
    void SetUp() override {
        model_ = load(stories260k());
        if (model_ == nullptr) GTEST_SKIP() << "model not there: " << stories260k().string();
    }
    /// Each step hesitates.
    [[nodiscard]] static Options options(Scope scope = Scope::all, uint32_t redraw = 0) {
        Options options;
        options.threshold = 0;
        options.scope = scope;
        options.redraw = redraw;
        options.schedule = Schedule::lazy;
        return options;
    }
    [[nodiscard]] ForwardPass pass(const Options & o) const {
        llama_context_params params = small_context(256);
        params.kv_unified = GetParam();
        return {*model_, params, o};
    }
    /// Removes rows [begin, end) and moves the rows after them down.
    static void shift(ForwardPass & p, llama_pos begin, llama_pos end) {
        ASSERT_TRUE(p.memory_seq_rm(0, begin, end));
        p.memory_seq_add(0, end, -1, begin - end);
        EXPECT_EQ(p.check_invariant(), "");
    }
    llama_model * model_ = nullptr;
};

/// Counts the rows of twins that are perturbed.
struct PerturbedRows {
    explicit PerturbedRows(ForwardPass & p) {
        p.set_row_perturbation([this](auto &&...) { ++n; });
    }
    size_t n = 0;
};

TEST_P(Shift, OfTheGeneratedScopeReframesWhatComesAfter) {
    ForwardPass p = pass(options(Scope::generated));
    PerturbedRows perturbed(p);
    p.set_prompt_end(0, 10);
    read(p, 0, 10);
    (void)go_on(p, 10, 20);
    EXPECT_EQ(perturbed.n, 10U);
    shift(p, 4, 16);
    perturbed.n = 0;
    (void)go_on(p, 20, 23, 0, -12);  // at positions 8, 9, 10
    EXPECT_EQ(perturbed.n, 3U);
}

TEST_P(Shift, OfTheGeneratedScopeLeavesTheRestOfThePromptClean) {
    ForwardPass p = pass(options(Scope::generated));
    PerturbedRows perturbed(p);
    p.set_prompt_end(0, 10);
    read(p, 0, 10);
    (void)go_on(p, 10, 20);
    shift(p, 2, 6);  // six rows of the prompt are left, and ten rows after it
    Options other = options(Scope::generated);
    other.seed = 8;
    p.set_sequence_options(0, other);  // the twin begins anew
    perturbed.n = 0;
    (void)go_on(p, 20, 21, 0, -4);
    EXPECT_EQ(perturbed.n, 11U);
    // the same if the prompt is determined anew
    p.set_sequence_options(0, options(Scope::all));
    p.set_sequence_options(0, options(Scope::generated));
    perturbed.n = 0;
    (void)go_on(p, 21, 22, 0, -4);
    EXPECT_EQ(perturbed.n, 12U);
}

/// Two rows with the same token, the second appended after a shift. With equal masks the twin's rows would be equal,
/// attention to them would give one value, and a second shift by one row would give the same logits again.
TEST_P(Shift, GivesNoRowTheMaskOfAnother) {
    Options with_mask = options();
    with_mask.strength = 0.4F;
    Options other = with_mask;
    other.seed = 8;
    ForwardPass p = pass(with_mask);
    std::vector<float> reframed;
    p.set_observer([&](const StepObservation & o) { reframed.assign(o.reframed.begin(), o.reframed.end()); });
    constexpr llama_token token = 403;
    decode(p, {token}, 0);
    decode(p, {token}, 1);
    const auto reframed_behind_a_shift = [&] {
        shift(p, 0, 1);
        p.set_sequence_options(0, other);  // changing options and back makes the twin read both rows anew
        p.set_sequence_options(0, with_mask);
        decode(p, {token}, 1);
        return reframed;
    };
    const auto first = reframed_behind_a_shift();
    const auto second = reframed_behind_a_shift();
    EXPECT_GT(largest_difference(first, second), 0.01);
}

/// NEFTune's noise is scaled by the length at the draw's first hesitation, and stays so when that row is gone.
TEST_P(Shift, KeepsTheScaleOfUniformNoise) {
    Options uniform = options();
    uniform.perturbation = Perturbation::uniform;
    uniform.strength = 5;
    const auto run = [&](Schedule schedule) {
        uniform.schedule = schedule;
        ForwardPass p = pass(uniform);
        read(p, 0, 10);
        (void)go_on(p, 10, 20);
        shift(p, 4, 16);  // the row of the first hesitation goes
        const uint64_t n_before = p.statistics().second_pass_rows;
        auto steps = go_on(p, 20, 26, 0, -12);
        EXPECT_EQ(p.statistics().second_pass_rows, n_before + 6) << "a row a step";
        return steps;
    };
    expect_same_steps(run(Schedule::lazy), run(Schedule::fused), 1e-3);
}

TEST_P(Shift, RunsNoSecondPassThatEachHesitationWouldDrawAnew) {
    Options each = options(Scope::all, /*redraw=*/1);
    ForwardPass p = pass(each);
    read(p, 0, 10);
    (void)go_on(p, 10, 14);
    each.threshold = 50;  // bits: the twin falls behind
    p.set_sequence_options(0, each);
    (void)go_on(p, 14, 20);
    const uint64_t n_before = p.statistics().second_pass_rows;
    shift(p, 4, 8);
    EXPECT_EQ(p.statistics().second_pass_rows, n_before);
    each.threshold = 0;
    p.set_sequence_options(0, each);
    (void)go_on(p, 20, 22, 0, -4);
    EXPECT_EQ(p.statistics().second_pass_rows, n_before + 17 + 18);
}

struct KeysCase {
    const char * name;
    std::filesystem::path (*path)();
    ggml_type type;
    const char * are_plain;  // "1": quantised as they are, as where a head's size is no multiple of 64
};

class ShiftOfKeys : public ::testing::TestWithParam<KeysCase> {};

/// llama.cpp's part of a shift. It ended the process where keys were in bf16, or quantised as they are.
TEST_P(ShiftOfKeys, MovesThemLikeThoseInFloat32) {
    HARP_REQUIRE_MODEL(model, GetParam().path());
    ::setenv("LLAMA_ATTN_ROT_DISABLE", GetParam().are_plain, 1);
    const auto run = [&](ggml_type type) {
        llama_context_params params = small_context(256);
        params.type_k = type;
        Options options;
        options.schedule = Schedule::lazy;
        options.threshold = 0;
        ForwardPass p(model, params, options);
        read(p, 0, 20);
        EXPECT_TRUE(p.memory_seq_rm(0, 4, 12));
        p.memory_seq_add(0, 12, -1, -8);
        return go_on(p, 20, 26, 0, -8);
    };
    expect_agreement(run(GetParam().type), run(GGML_TYPE_F32), 0.02);
    ::unsetenv("LLAMA_ATTN_ROT_DISABLE");
}

INSTANTIATE_TEST_SUITE_P(Types, ShiftOfKeys,
                         ::testing::Values(KeysCase{"Bf16", stories260k, GGML_TYPE_BF16, "0"},
                                           KeysCase{"Q8Plain", smollm2_q4, GGML_TYPE_Q8_0, "1"},
                                           KeysCase{"Q8Rotated", smollm2_q4, GGML_TYPE_Q8_0, "0"}),
                         [](const auto & param_info) { return std::string(param_info.param.name); });

INSTANTIATE_TEST_SUITE_P(Layouts, Shift, ::testing::Bool(),
                         [](const auto & param_info) { return std::string(param_info.param ? "Unified" : "Streams"); });

}  // namespace
}  // namespace harp::testing
