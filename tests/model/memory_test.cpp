// Operations on the KV cache, mirrored on twins and rows: after each, decoding continues as a law requires.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "forward/batch_rows.h"
#include "support/models.h"
#include "support/text.h"

namespace harp::testing {
namespace {

/// Decodes the text's tokens [begin, end) one by one. @param shift position minus place in the text
void decode_each(ForwardPass & pass, llama_pos begin, llama_pos end, llama_seq_id sequence = 0, llama_pos shift = 0) {
    for (llama_pos p = begin; p < end; ++p) decode(pass, {token_at(p)}, p + shift, sequence);
}

struct Layout {
    const char * name;
    Schedule schedule;
    bool unified;
    uint32_t redraw;
};

class Memory : public ::testing::TestWithParam<Layout> {
  protected:
    void SetUp() override {
        model_ = load(stories260k());
        if (model_ == nullptr) GTEST_SKIP() << "model not there: " << stories260k().string();
    }
    [[nodiscard]] static Options options() {
        Options options;
        options.schedule = GetParam().schedule;
        options.redraw = GetParam().redraw;
        options.seed = 7;
        return options;
    }
    [[nodiscard]] ForwardPass pass(uint32_t n_seq_max, const std::optional<Options> & o = options()) const {
        llama_context_params params = small_context(256 * n_seq_max, n_seq_max);
        params.kv_unified = GetParam().unified;
        return {*model_, params, o};
    }
    llama_model * model_ = nullptr;
};

TEST_P(Memory, ACopiedSequenceGoesOnLikeItsSource) {
    ForwardPass p = pass(3);
    decode(p, text_of(0, 10), 0);
    decode_each(p, 10, 16);
    p.memory_seq_cp(0, 1, -1, -1);
    EXPECT_EQ(p.check_invariant(), "");
    EXPECT_EQ(p.memory_seq_pos_max(1), 15);
    p.memory_seq_cp(1, 2, 0, 16);  // a copy of the copy, with an explicit range
    EXPECT_EQ(p.check_invariant(), "");
    const auto source = go_on(p, 16, 30, 0);
    expect_same_steps(go_on(p, 16, 30, 1), source, LOGIT_TOLERANCE);
    expect_same_steps(go_on(p, 16, 30, 2), source, LOGIT_TOLERANCE);
    EXPECT_TRUE(std::any_of(source.begin(), source.end(), [](const Step & r) { return r.record.hesitated; }));
}

TEST_P(Memory, ACopiedSequenceIsNotTouchedByItsSource) {
    ForwardPass p = pass(2);
    ForwardPass alone = pass(1);
    decode(p, text_of(0, 16), 0, 0);
    decode(alone, text_of(0, 16), 0);
    p.memory_seq_cp(0, 1, -1, -1);
    (void)go_on(p, 40, 52, 0, -24);  // another text in the source
    ASSERT_TRUE(p.memory_seq_rm(0, -1, -1));
    EXPECT_EQ(p.check_invariant(), "");
    expect_same_steps(go_on(p, 16, 28, 1), go_on(alone, 16, 28), LOGIT_TOLERANCE);
}

TEST_P(Memory, APartOfASequenceIsCopiedWithAUnifiedCacheOnly) {
    ForwardPass p = pass(2);
    decode(p, text_of(0, 10), 0);
    decode_each(p, 10, 16);
    if (!GetParam().unified) {
        try {
            p.memory_seq_cp(0, 1, 0, 12);
            ADD_FAILURE() << "not refused";
        } catch (const Error & error) {
            EXPECT_EQ(error.code(), ErrorCode::unsupported_call);
        }
        EXPECT_EQ(p.check_invariant(), "");
        EXPECT_EQ(p.memory_seq_pos_max(1), -1);
        return;
    }
    p.memory_seq_cp(0, 1, 0, 12);
    EXPECT_EQ(p.check_invariant(), "");
    EXPECT_EQ(p.memory_seq_pos_max(1), 11);
    ForwardPass alone = pass(1);
    decode(alone, text_of(0, 10), 0);
    decode_each(alone, 10, 12);
    expect_same_steps(go_on(p, 12, 24, 1), go_on(alone, 12, 24), LOGIT_TOLERANCE);
    // another part after existing rows: the cells are the source's, so the copy holds what the source held there
    ForwardPass whole = pass(2);
    decode(whole, text_of(0, 12), 0, 0);
    whole.memory_seq_cp(0, 1, 0, 8);
    whole.memory_seq_cp(0, 1, 8, -1);
    EXPECT_EQ(whole.check_invariant(), "");
    expect_same_steps(go_on(whole, 12, 18, 1), go_on(whole, 12, 18, 0), LOGIT_TOLERANCE);
}

TEST_P(Memory, ACopyOverAnotherSequenceReplacesIt) {
    ForwardPass p = pass(2);
    decode(p, text_of(0, 10), 0, 0);
    decode(p, text_of(50, 70), 0, 1);
    if (GetParam().unified) {
        ASSERT_TRUE(p.memory_seq_rm(1, -1, -1));  // otherwise a copy is added to what is there
    }
    p.memory_seq_cp(0, 1, -1, -1);
    EXPECT_EQ(p.check_invariant(), "");
    EXPECT_EQ(p.memory_seq_pos_max(1), 9);
    expect_same_steps(go_on(p, 10, 18, 1), go_on(p, 10, 18, 0), LOGIT_TOLERANCE);
}

TEST_P(Memory, CopyingNothingOrOntoItselfIsNothing) {
    ForwardPass p = pass(2);
    p.memory_seq_cp(0, 1, -1, -1);  // both empty
    EXPECT_EQ(p.check_invariant(), "");
    decode(p, text_of(0, 10), 0);
    p.memory_seq_cp(0, 0, -1, -1);
    EXPECT_EQ(p.check_invariant(), "");
    ForwardPass alone = pass(1);
    decode(alone, text_of(0, 10), 0);
    expect_same_steps(go_on(p, 10, 16), go_on(alone, 10, 16), LOGIT_TOLERANCE);
}

TEST_P(Memory, KeepLeavesOneSequence) {
    ForwardPass p = pass(3);
    for (const llama_seq_id s : {0, 1, 2}) decode(p, text_of(10 * s, 10 * s + 12), 0, s);
    p.memory_seq_keep(1);
    EXPECT_EQ(p.check_invariant(), "");
    EXPECT_EQ(p.memory_seq_pos_max(0), -1);
    EXPECT_EQ(p.memory_seq_pos_max(1), 11);
    EXPECT_EQ(p.memory_seq_pos_max(2), -1);
    ForwardPass alone = pass(1);
    alone.set_sequence_options(0, options(), 1);
    decode(alone, text_of(10, 22), 0);
    expect_same_steps(go_on(p, 22, 34, 1, -10), go_on(alone, 22, 34, 0, -10), LOGIT_TOLERANCE);
    decode(p, text_of(0, 5), 0, 0);  // the other sequences begin anew
    EXPECT_EQ(p.check_invariant(), "");
}

TEST_P(Memory, APromptThatIsStillToComeIsNotTouchedByKeep) {
    Options generated = options();
    generated.scope = Scope::generated;
    generated.threshold = 0;
    const auto answer = [&](bool keeps) {
        ForwardPass p = pass(2, generated);
        decode(p, text_of(0, 12), 0, 0);
        p.set_prompt_end(1, 8);
        if (keeps) p.memory_seq_keep(0);
        return go_on(p, 0, 12, 1);
    };
    expect_same_steps(answer(true), answer(false), LOGIT_TOLERANCE);
}

TEST_P(Memory, RemovingAllSequencesAtOnce) {
    ForwardPass p = pass(2);
    decode(p, text_of(0, 12), 0, 0);
    decode(p, text_of(0, 12), 0, 1);
    EXPECT_TRUE(p.memory_seq_rm(-1, 6, -1));
    EXPECT_EQ(p.check_invariant(), "");
    EXPECT_EQ(p.memory_seq_pos_max(0), 5);
    EXPECT_EQ(p.memory_seq_pos_max(1), 5);
    p.memory_clear(true);
    EXPECT_EQ(p.check_invariant(), "");
    EXPECT_EQ(p.memory_seq_pos_max(0), -1);
    EXPECT_EQ(p.memory_seq_pos_min(0), -1);
}

/// What llama.cpp's programs do when a context is full: keep a few tokens, discard half of the rest.
void shift_context(ForwardPass & pass, llama_pos n_past, llama_pos n_keep, llama_pos n_discard) {
    ASSERT_TRUE(pass.memory_seq_rm(0, n_keep, n_keep + n_discard));
    pass.memory_seq_add(0, n_keep + n_discard, n_past, -n_discard);
    EXPECT_EQ(pass.check_invariant(), "");
}

TEST_P(Memory, AContextShiftIsLlamaCpps) {
    Options never = options();
    never.threshold = std::numeric_limits<double>::infinity();
    ForwardPass p = pass(1, never);
    llama_context_params params = small_context(256);
    const llama_context_ptr plain(llama_init_from_model(model_, params));
    llama_memory_t memory = llama_get_memory(plain.get());
    std::vector<llama_token> text = text_of(0, 40);
    decode(p, text, 0);
    ASSERT_EQ(llama_decode(plain.get(), llama_batch_get_one(text.data(), 40)), 0);
    shift_context(p, 40, 4, 18);
    llama_memory_seq_rm(memory, 0, 4, 22);
    llama_memory_seq_add(memory, 0, 22, 40, -18);
    for (llama_pos i = 40; i < 50; ++i) {
        llama_token token = token_at(i);
        decode(p, {token}, i - 18);
        ASSERT_EQ(llama_decode(plain.get(), llama_batch_get_one(&token, 1)), 0);
        const float * logits = llama_get_logits_ith(plain.get(), -1);
        ASSERT_LE(largest_difference(row(p), {logits, logits + p.n_vocab()}), LOGIT_TOLERANCE) << i;
    }
}

TEST_P(Memory, AContextShiftOfTwinsThatKeptUpDoesNotDependOnTheSchedule) {
    // if every step hesitates, the twins hold all rows with every schedule
    Options always = options();
    always.threshold = 0;
    Options other = always;
    other.schedule = always.schedule == Schedule::lazy ? Schedule::fused : Schedule::lazy;
    ForwardPass a = pass(1, always);
    ForwardPass b = pass(1, other);
    for (ForwardPass * p : {&a, &b}) {
        decode(*p, text_of(0, 40), 0, 0, /*all_outputs=*/true);
        shift_context(*p, 40, 4, 18);
    }
    expect_same_steps(go_on(a, 40, 55, 0, -18), go_on(b, 40, 55, 0, -18), 10 * LOGIT_TOLERANCE);
    // and a second time
    for (ForwardPass * p : {&a, &b}) shift_context(*p, 37, 4, 10);
    expect_same_steps(go_on(a, 55, 60, 0, -28), go_on(b, 55, 60, 0, -28), 10 * LOGIT_TOLERANCE);
}

TEST_P(Memory, AContextShiftDoesNotDependOnTheSchedule) {
    // the clean rows have attended to the discarded rows, so the twins' pending rows must too
    Options lazy = options();
    lazy.schedule = Schedule::lazy;
    lazy.threshold = 0;
    Options fused = lazy;
    fused.schedule = Schedule::fused;
    std::vector<std::vector<Step>> rows;
    for (Options o : {lazy, fused}) {
        ForwardPass p = pass(1, o);
        decode(p, text_of(0, 10), 0);
        decode_each(p, 10, 24);
        o.threshold = 50;  // bits: no step hesitates, and the lazy twin falls behind
        p.set_sequence_options(0, o);
        decode_each(p, 24, 40);
        shift_context(p, 40, 4, 18);
        o.threshold = 0;
        p.set_sequence_options(0, o);
        rows.push_back(go_on(p, 40, 55, 0, -18));
    }
    expect_same_steps(rows[0], rows[1], 10 * LOGIT_TOLERANCE);
}

TEST_P(Memory, AContextShiftKeepsTheMasksOfRowsAndNoTwoShareOne) {
    Options always = options();
    always.threshold = 0;
    always.redraw = 0;
    ForwardPass p = pass(1, always);
    decode(p, text_of(0, 20), 0, 0, true);
    shift_context(p, 20, 4, 8);
    std::vector<uint32_t> asked;
    p.set_row_perturbation([&](const RowToPerturb & where, std::span<float>) { asked.push_back(where.ordinal); });
    Options other = always;
    other.seed = 8;
    p.set_sequence_options(0, other);  // the twin begins anew, so all its rows are perturbed again
    (void)go_on(p, 20, 21, 0, -8);
    EXPECT_EQ(asked, (std::vector<uint32_t>{0, 1, 2, 3, 12, 13, 14, 15, 16, 17, 18, 19, 20}));
}

TEST_P(Memory, AContextShiftOfASharedPromptMovesItOnce) {
    // with Scope::generated and a unified cache the twin shares the clean stream's cells of the prompt
    Options generated = options();
    generated.scope = Scope::generated;
    generated.threshold = 0;
    const auto run = [&](bool unified) {
        llama_context_params params = small_context(256);
        params.kv_unified = unified;
        ForwardPass p(*model_, params, generated);
        decode(p, text_of(0, 30), 0);
        decode_each(p, 30, 36);
        shift_context(p, 36, 4, 6);  // rows 10 .. 35 to 4 .. 29
        return go_on(p, 36, 46, 0, -6);
    };
    expect_same_steps(run(GetParam().unified), run(false), 10 * LOGIT_TOLERANCE);
}

TEST_P(Memory, AShiftOfACopyLeavesItsSourceAlone) {
    ForwardPass p = pass(2);
    ForwardPass alone = pass(1);
    for (ForwardPass * q : {&p, &alone}) {
        decode(*q, text_of(0, 10), 0);
        decode_each(*q, 10, 20);
    }
    p.memory_seq_cp(0, 1, -1, -1);  // in a unified cache both have the same cells
    ASSERT_TRUE(p.memory_seq_rm(1, 4, 10));
    p.memory_seq_add(1, 10, 20, -6);
    EXPECT_EQ(p.check_invariant(), "");
    EXPECT_EQ(p.memory_seq_pos_max(1), 13);
    (void)go_on(p, 40, 44, 1, -26);
    expect_same_steps(go_on(p, 20, 30), go_on(alone, 20, 30), LOGIT_TOLERANCE);
}

TEST_P(Memory, AShiftOfACopyWithoutRoomIsRefused) {
    if (!GetParam().unified) GTEST_SKIP() << "copies share cells in a unified cache only";
    llama_context_params params = small_context(256, 2);
    params.kv_unified = true;
    Options never = options();
    never.threshold = std::numeric_limits<double>::infinity();
    ForwardPass p(*model_, params, never);
    decode(p, text_of(0, 200), 0);
    decode(p, text_of(200, 300), 200);
    p.memory_seq_cp(0, 1, -1, -1);  // 300 cells of 512, twice
    ASSERT_TRUE(p.memory_seq_rm(1, 4, 10));
    EXPECT_THROW(p.memory_seq_add(1, 10, -1, -6), Error);
    EXPECT_EQ(p.check_invariant(), "");
    EXPECT_EQ(p.memory_seq_pos_max(1), 299);
    ASSERT_TRUE(p.memory_seq_rm(0, -1, -1));
    p.memory_seq_add(1, 10, -1, -6);
    EXPECT_EQ(p.memory_seq_pos_max(1), 293);
}

TEST_P(Memory, DividedPositionsGoOn) {
    ForwardPass p = pass(1);
    decode(p, text_of(0, 10), 0);
    decode_each(p, 10, 32);
    p.memory_seq_div(0, 0, 32, 2);  // self-extend: two rows at each position
    EXPECT_EQ(p.check_invariant(), "");
    EXPECT_EQ(p.memory_seq_pos_max(0), 15);
    for (const Step & r : go_on(p, 32, 44, 0, -16)) {
        for (const float x : r.logits) ASSERT_TRUE(std::isfinite(x));
    }
}

TEST_P(Memory, DivisionIsLlamaCpps) {
    Options never = options();
    never.threshold = std::numeric_limits<double>::infinity();
    ForwardPass p = pass(1, never);
    ForwardPass off = pass(1, std::nullopt);
    for (ForwardPass * q : {&p, &off}) {
        decode(*q, text_of(0, 32), 0);
        q->memory_seq_div(0, 8, 32, 2);
        q->memory_seq_add(0, 0, 4, 0);
    }
    EXPECT_EQ(p.memory_seq_pos_max(0), off.memory_seq_pos_max(0));
    expect_same_steps(go_on(p, 32, 40, 0, -16), go_on(off, 32, 40, 0, -16), LOGIT_TOLERANCE);
}

TEST_P(Memory, AllLogitsAndObserversAreInBatchOrder) {
    ForwardPass p = pass(4);
    for (llama_seq_id s = 0; s < 4; ++s) decode(p, text_of(7 * s, 7 * s + 9), 0, s);
    struct Seen {
        llama_seq_id sequence;
        llama_pos position;
        std::vector<float> mixed;
    };
    std::vector<Seen> seen;
    p.set_observer([&](const StepObservation & o) {
        seen.push_back({o.sequence, o.position, {o.mixed.begin(), o.mixed.end()}});
        EXPECT_EQ(o.vanilla.size(), o.mixed.size());
        EXPECT_TRUE(o.record.hesitated || o.reframed.empty());
    });
    for (llama_pos step = 0; step < 8; ++step) {
        seen.clear();
        forward::BatchRows rows;
        std::vector<int32_t> outputs;
        for (const llama_seq_id s : {2, 0, 3, 1}) {
            for (llama_pos k = 0; k < 2; ++k) {  // two rows each, not all of them outputs
                const bool is_output = k == 1 || s == 0 || (s == 3 && step % 2 == 0);
                if (is_output) outputs.push_back(static_cast<int32_t>(rows.size()));
                rows.add(token_at(9 + 2 * step + k), 9 + 2 * step + k, {&s, 1}, is_output);
            }
        }
        const llama_batch batch = rows.view();
        p.decode(batch);
        EXPECT_EQ(p.check_invariant(), "");
        const auto n_vocab = static_cast<size_t>(p.n_vocab());
        ASSERT_EQ(seen.size(), outputs.size());
        std::vector<std::vector<float>> one_by_one;
        for (size_t j = 0; j < outputs.size(); ++j) {
            const int32_t i = outputs[j];
            EXPECT_EQ(seen[j].sequence, batch.seq_id[i][0]);
            EXPECT_EQ(seen[j].position, batch.pos[i]);
            EXPECT_EQ(seen[j].mixed, row(p, i));
            EXPECT_EQ(row(p, static_cast<int32_t>(j) - static_cast<int32_t>(outputs.size())), row(p, i));
            one_by_one.push_back(row(p, i));
        }
        const float * all = p.all_logits();
        for (size_t j = 0; j < outputs.size(); ++j) {
            EXPECT_EQ(one_by_one[j], std::vector<float>(all + j * n_vocab, all + (j + 1) * n_vocab));
            EXPECT_EQ(one_by_one[j], row(p, outputs[j]));
        }
    }
}

INSTANTIATE_TEST_SUITE_P(Layouts, Memory,
                         ::testing::Values(Layout{"LazyStreams", Schedule::lazy, false, 0},
                                           Layout{"FusedStreams", Schedule::fused, false, 0},
                                           Layout{"LazyUnified", Schedule::lazy, true, 0},
                                           Layout{"FusedUnified", Schedule::fused, true, 0},
                                           Layout{"LazyStreamsRedraw3", Schedule::lazy, false, 3},
                                           Layout{"FusedUnifiedRedraw3", Schedule::fused, true, 3}),
                         [](const auto & param_info) { return std::string(param_info.param.name); });

}  // namespace
}  // namespace harp::testing
