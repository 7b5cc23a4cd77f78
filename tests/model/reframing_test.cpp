// The rows for which the graph calls back: distinguished by sequence, and in batch order within each.
#include "forward/reframing.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <stdexcept>
#include <vector>

#include "forward/batch_rows.h"
#include "support/models.h"

namespace harp::forward {
namespace {

/// A context with a Reframing, on the tiny model.
struct Context {
    explicit Context(llama_model & model, bool with_noise = false, bool is_unified = false) {
        llama_context_params params = testing::small_context(64, 4);
        params.kv_unified = is_unified;
        params.n_ubatch = 3;  // batches are split
        context.reset(llama_init_from_model(&model, params));
        reframing.install(*context, with_noise);
    }
    /// Decodes rows of (token, sequence), each sequence at positions 0, 1, ... @return logits of all rows
    std::vector<std::vector<float>> decode(const std::vector<std::pair<llama_token, llama_seq_id>> & rows) {
        llama_memory_clear(llama_get_memory(context.get()), true);
        BatchRows batch;
        std::array<llama_pos, 4> next{};
        for (const auto & [token, id] : rows) batch.add(token, next[static_cast<size_t>(id)]++, {&id, 1}, true);
        EXPECT_EQ(llama_decode(context.get(), batch.view()), 0);
        const auto n_vocab =
            static_cast<size_t>(llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(context.get()))));
        std::vector<std::vector<float>> logits;
        for (size_t i = 0; i < rows.size(); ++i) {
            const float * row = llama_get_logits_ith(context.get(), static_cast<int32_t>(i));
            logits.emplace_back(row, row + n_vocab);
        }
        return logits;
    }
    Reframing reframing;
    llama_context_ptr context;
};

void half(const method::RowChange & change) {
    for (size_t i = 0; i < change.factors.size(); i += 2) change.factors[i] = 0.0F;
}

const std::vector<std::pair<llama_token, llama_seq_id>> rows = {{1, 0},   {1, 1},   {403, 0}, {403, 1}, {407, 0},
                                                                {407, 1}, {261, 2}, {9, 3},   {8, 3}};

TEST(Reframing, ChangesTheRowsOfTheSequenceThatWasAnnounced) {
    HARP_REQUIRE_MODEL(model, testing::stories260k());
    for (const bool is_unified : {false, true}) {
        for (const bool with_noise : {false, true}) {
            SCOPED_TRACE(is_unified);
            Context plain(model, false, is_unified);
            llama_set_embd_row_callback(plain.context.get(), nullptr, nullptr, false);
            const auto expected = plain.decode(rows);
            Context context(model, with_noise, is_unified);
            EXPECT_EQ(context.decode(rows), expected) << "rows that nobody perturbs are as without it, bit for bit";
            EXPECT_EQ(context.reframing.finish(), std::nullopt);

            for (llama_pos p = 0; p < 3; ++p) context.reframing.expect(1, p, half);
            const auto changed = context.decode(rows);
            EXPECT_EQ(context.reframing.finish(), std::nullopt);
            for (size_t i = 0; i < rows.size(); ++i) {
                EXPECT_EQ(changed[i] == expected[i], rows[i].second != 1) << "row " << i;
            }
            EXPECT_EQ(context.decode(rows), expected) << "and again as without it";
        }
    }
}

TEST(Reframing, AddsNoise) {
    HARP_REQUIRE_MODEL(model, testing::stories260k());
    Context context(model, true);
    const auto expected = context.decode(rows);
    const auto with = [&](float noise, float relative) {
        context.reframing.expect(0, 0, [=](const method::RowChange & change) {
            std::fill(change.noise.begin(), change.noise.end(), noise);
            change.relative_noise[3] = relative;
        });
        context.reframing.expect(0, 1, {});
        context.reframing.expect(0, 2, {});
        auto logits = context.decode(rows);
        EXPECT_EQ(context.reframing.finish(), std::nullopt);
        return logits;
    };
    EXPECT_EQ(with(0, 0), expected);
    EXPECT_NE(with(0.1F, 0)[0], expected[0]);
    EXPECT_NE(with(0, 0.1F)[0], expected[0]);
    EXPECT_EQ(with(0.1F, 0)[1], expected[1]) << "another sequence";
}

TEST(Reframing, SaysWhatWentWrong) {
    HARP_REQUIRE_MODEL(model, testing::stories260k());
    Context context(model);
    context.reframing.expect(1, 0, half);
    context.reframing.expect(1, 7, half);
    (void)context.decode(rows);
    EXPECT_NE(context.reframing.finish(), std::nullopt) << "position 1 came, 7 did not";
    EXPECT_EQ(context.reframing.finish(), std::nullopt) << "told once";
    context.reframing.expect(1, 0, [](const method::RowChange &) { throw std::domain_error("no"); });
    for (const llama_pos p : {1, 2}) context.reframing.expect(1, p, {});
    (void)context.decode(rows);
    EXPECT_THROW((void)context.reframing.finish(), std::domain_error);
}

TEST(Reframing, KeepsGraphsReusedAndTheCallersCallback) {
    HARP_REQUIRE_MODEL(model, testing::stories260k());
    Context context(model);
    const std::vector<std::pair<llama_token, llama_seq_id>> step = {{5, 0}, {5, 1}};
    (void)context.decode(step);
    const int before = llama_perf_context(context.context.get()).n_reused;
    for (int i = 0; i < 10; ++i) {
        context.reframing.expect(1, 0, half);
        (void)context.decode(step);
        EXPECT_EQ(context.reframing.finish(), std::nullopt);
    }
    EXPECT_GE(llama_perf_context(context.context.get()).n_reused - before, 9);
}

}  // namespace
}  // namespace harp::forward
