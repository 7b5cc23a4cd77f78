// The border of the C API: exceptions become return values, and batches arrive as the caller made them.
#include <gtest/gtest.h>
#include <unistd.h>

#include <array>
#include <cmath>
#include <filesystem>
#include <limits>
#include <new>
#include <string>

#include "capi/batch_conversion.h"
#include "harp/harp.h"
#include "harp/registration.h"
#include "llama-batch.h"
#include "support/c_context.h"
#include "support/models.h"

namespace harp::testing {
namespace {

constexpr size_t n_embd = 64;  // of the model

class CBoundary : public CContexts {
  protected:
    [[nodiscard]] harp_params defaults() const override {
        harp_params params = harp_default_params();
        params.threshold = 0;
        params.schedule = HARP_SCHEDULE_LAZY;
        return params;
    }
};

bool has_message() {
    return *harp_last_error() != '\0';
}

[[noreturn]] void throw_out_of_memory() {
    throw std::bad_alloc();
}
[[noreturn]] void throw_a_number() {
    throw 42;  // NOLINT(hicpp-exception-baseclass): this is tested
}
constexpr std::array throwers = {throw_out_of_memory, throw_a_number};

TEST_F(CBoundary, WhatAnObserverThrowsIsAFailedDecode) {
    for (const auto thrower : throwers) {
        const Context context = create();
        find_pass(context.get())->set_observer([&](const StepObservation &) { thrower(); });
        EXPECT_EQ(decode(context.get(), {1, 403}), -3);
        EXPECT_TRUE(has_message());
        const llama_batch_ext_ptr batch(llama_batch_ext_init(context.get()));
        const llama_pos position = 0;
        ASSERT_EQ(llama_batch_ext_add_token(batch.get(), 0, 1), 0);
        llama_batch_ext_set_pos(batch.get(), 0, &position);
        llama_batch_ext_set_output_logits(batch.get(), 0, true);
        EXPECT_EQ(harp_process(context.get(), LLAMA_PROCESS_TYPE_DECODE, batch.get()), -3);
        EXPECT_TRUE(has_message());
        find_pass(context.get())->set_observer(nullptr);
        EXPECT_EQ(decode(context.get(), {1, 403}), 0) << harp_last_error();
        EXPECT_FALSE(has_message());
    }
}

/// Removing and moving rows may decode pending rows of the twins, so they can fail by an exception of a row
/// perturbation too.
TEST_F(CBoundary, WhatARowPerturbationThrowsStaysInside) {
    for (const auto thrower : throwers) {
        const Context context = create();
        llama_memory_t memory = llama_get_memory(context.get());
        ASSERT_EQ(decode(context.get(), once_upon_a_time), 0) << harp_last_error();
        harp_params never = harp_default_params();
        never.schedule = HARP_SCHEDULE_LAZY;
        never.threshold = HUGE_VAL;
        ASSERT_TRUE(harp_set_sequence_params(context.get(), 0, never));
        ASSERT_EQ(decode(context.get(), {310, 311, 312}), 0) << harp_last_error();  // pending rows
        find_pass(context.get())->set_row_perturbation([&](const RowToPerturb &, std::span<float>) { thrower(); });
        EXPECT_TRUE(harp_memory_seq_rm(memory, 0, 2, 3) || has_message());
        harp_memory_seq_add(memory, 0, 4, -1, -1);
        harp_memory_seq_div(memory, 0, 4, -1, 2);
        find_pass(context.get())->set_row_perturbation(nullptr);
        EXPECT_EQ(find_pass(context.get())->check_invariant(), "");
        harp_memory_clear(memory, true);
        EXPECT_EQ(decode(context.get(), {1, 403}), 0) << harp_last_error();
    }
}

TEST_F(CBoundary, WhatASamplerThrowsIsNoToken) {
    static void (*thrower)() = nullptr;
    llama_sampler_i throwing{};
    throwing.apply = [](llama_sampler *, llama_token_data_array *) { thrower(); };
    for (const auto each : throwers) {
        thrower = each;
        const llama_sampler_ptr sampler(llama_sampler_init(&throwing, nullptr));
        const Context context = create();
        ASSERT_EQ(decode(context.get(), {1, 403}), 0) << harp_last_error();
        EXPECT_EQ(harp_sampler_sample(sampler.get(), context.get(), -1), LLAMA_TOKEN_NULL);
        EXPECT_TRUE(has_message());
        ASSERT_TRUE(harp_set_default_params(nullptr));
        const Context off = create();
        ASSERT_EQ(decode(off.get(), {1, 403}), 0);
        EXPECT_EQ(harp_sampler_sample(sampler.get(), off.get(), -1), LLAMA_TOKEN_NULL);
        EXPECT_TRUE(has_message());
        const harp_params params = harp_default_params();
        ASSERT_TRUE(harp_set_default_params(&params));
    }
}

TEST_F(CBoundary, SequenceIdsOutOfRangeAreErrors) {
    const Context context = create(small_context(256, 2));
    llama_memory_t memory = llama_get_memory(context.get());
    ASSERT_EQ(decode(context.get(), {1, 403, 407}), 0) << harp_last_error();
    std::vector<uint8_t> state(harp_state_seq_get_size(context.get(), 0));
    ASSERT_EQ(harp_state_seq_get_data(context.get(), state.data(), state.size(), 0), state.size());
    const std::string file = ::testing::TempDir() + "harp-sequence-ids-" + std::to_string(::getpid());
    for (const llama_seq_id id : {2, 7, -2, std::numeric_limits<llama_seq_id>::max()}) {
        SCOPED_TRACE(id);
        const auto expect_failure = [](bool failed) {
            EXPECT_TRUE(failed);
            EXPECT_TRUE(has_message());
        };
        if (id >= 0) expect_failure(!harp_memory_seq_rm(memory, id, 0, -1));  // a negative id means all sequences
        harp_memory_seq_cp(memory, 0, id, -1, -1);
        expect_failure(true);
        harp_memory_seq_cp(memory, id, 0, -1, -1);
        expect_failure(true);
        harp_memory_seq_keep(memory, id);
        expect_failure(true);
        harp_memory_seq_add(memory, id, 0, -1, 1);
        expect_failure(true);
        harp_memory_seq_div(memory, id, 0, -1, 2);
        expect_failure(true);
        expect_failure(harp_memory_seq_pos_min(memory, id) == -1);
        expect_failure(harp_memory_seq_pos_max(memory, id) == -1);
        harp_set_prompt_end(context.get(), id, 3);
        expect_failure(true);
        expect_failure(!harp_set_sequence_params(context.get(), id, harp_default_params()));
        expect_failure(harp_state_seq_get_size(context.get(), id) == 0);
        expect_failure(harp_state_seq_get_data(context.get(), state.data(), state.size(), id) == 0);
        expect_failure(harp_state_seq_set_data(context.get(), state.data(), state.size(), id) == 0);
        expect_failure(harp_state_seq_save_file(context.get(), file.c_str(), id, nullptr, 0) == 0);
        EXPECT_EQ(find_pass(context.get())->check_invariant(), "");
        EXPECT_EQ(harp_memory_seq_pos_max(memory, 0), 2);
    }
}

TEST_F(CBoundary, HarpOffProcessesEmbeddingsAsLlama) {
    ASSERT_TRUE(harp_set_default_params(nullptr));
    const Context off = create();
    const llama_context_ptr plain(llama_init_from_model(model_, small_context(256)));
    const auto logits_of = [](llama_context * context, auto * process) {
        const llama_batch_ext_ptr batch(llama_batch_ext_init(context));
        for (llama_pos position = 0; position < 5; ++position) {
            std::vector<float> row(n_embd);
            for (size_t i = 0; i < n_embd; ++i)
                row[i] = std::sin(static_cast<float>(i + 7 * static_cast<size_t>(position)));
            const int32_t index = llama_batch_ext_add_embd(batch.get(), 0, {row.data(), 1, n_embd});
            EXPECT_EQ(index, position);
            llama_batch_ext_set_pos(batch.get(), index, &position);
            llama_batch_ext_set_output_logits(batch.get(), index, position == 4);
        }
        EXPECT_EQ(process(context, LLAMA_PROCESS_TYPE_DECODE, batch.get()), 0);
        const float * logits = harp_get_logits_ith(context, -1);
        return logits != nullptr ? std::vector<float>(logits, logits + 512) : std::vector<float>();
    };
    const std::vector<float> expected = logits_of(plain.get(), llama_process);
    ASSERT_FALSE(expected.empty());
    EXPECT_EQ(logits_of(off.get(), harp_process), expected);
}

TEST_F(CBoundary, StateFilesAreWrittenThroughLinksAndWithLongNames) {
    const std::filesystem::path folder = ::testing::TempDir() + "harp-state-links-" + std::to_string(::getpid());
    std::filesystem::create_directory(folder);
    const std::filesystem::path link = folder / "link";
    const std::filesystem::path target = folder / std::string(255, 'n');  // no other name can be made of it
    std::filesystem::create_symlink(target, link);                        // as a link to a device, which must stay one
    const Context context = create();
    ASSERT_EQ(decode(context.get(), {1, 403}), 0) << harp_last_error();
    const size_t n_bytes = harp_state_seq_save_file(context.get(), link.c_str(), 0, nullptr, 0);
    EXPECT_GT(n_bytes, 0U) << harp_last_error();
    EXPECT_TRUE(std::filesystem::is_symlink(link));
    EXPECT_EQ(std::filesystem::file_size(target), n_bytes);
    std::filesystem::permissions(target, std::filesystem::perms::owner_read | std::filesystem::perms::owner_write);
    EXPECT_TRUE(harp_state_save_file(context.get(), target.c_str(), nullptr, 0)) << harp_last_error();

    const std::filesystem::path plain = folder / "plain";
    EXPECT_TRUE(harp_state_save_file(context.get(), plain.c_str(), nullptr, 0)) << harp_last_error();
    std::filesystem::permissions(plain, std::filesystem::perms::owner_read | std::filesystem::perms::owner_write);
    EXPECT_TRUE(harp_state_save_file(context.get(), plain.c_str(), nullptr, 0)) << harp_last_error();
    EXPECT_EQ(std::filesystem::status(plain).permissions(),
              std::filesystem::perms::owner_read | std::filesystem::perms::owner_write);
    EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder), {}), 3) << "nothing is left beside them";
    std::filesystem::remove_all(folder);
}

TEST_F(CBoundary, StateFilesWithoutAPathAreErrors) {
    const Context context = create();
    size_t n = 0;
    EXPECT_FALSE(harp_state_save_file(context.get(), nullptr, nullptr, 0));
    EXPECT_TRUE(has_message());
    EXPECT_EQ(harp_state_seq_save_file(context.get(), nullptr, 0, nullptr, 0), 0U);
    EXPECT_TRUE(has_message());
    EXPECT_FALSE(harp_state_load_file(context.get(), nullptr, nullptr, 0, &n));
    EXPECT_TRUE(has_message());
    EXPECT_EQ(harp_state_seq_load_file(context.get(), nullptr, 0, nullptr, 0, &n), 0U);
    EXPECT_TRUE(has_message());
}

TEST_F(CBoundary, NoMemoryIsNoContexts) {
    HARP_REQUIRE_MODEL(bert, test_models() / "random-bert.gguf");
    ASSERT_TRUE(harp_set_default_params(nullptr));
    const Context context(harp_init_from_model(&bert, small_context()));
    ASSERT_NE(context, nullptr) << harp_last_error();
    ASSERT_EQ(llama_get_memory(context.get()), nullptr);
    EXPECT_EQ(harp_memory_seq_pos_max(nullptr, 99), -1);
    EXPECT_FALSE(has_message()) << "NULL was taken for the memory of a context: " << harp_last_error();
}

// --- ConvertedBatch

/// A batch without a context, for a model with `n_pos` positions per embedding row.
llama_batch_ext empty_batch(size_t n_pos) {
    return {/*n_tokens_max=*/8,
            /*n_embd_inp=*/2,
            /*n_embd_inp_enc=*/3,
            /*n_seq_max=*/4,      nullptr,
            /*n_vocab=*/10,       n_pos};
}

int32_t add_embedding(llama_batch_ext & batch, std::array<float, 2> row, std::array<llama_pos, 4> positions) {
    const int32_t index = llama_batch_ext_add_embd(&batch, 1, {row.data(), 1, row.size()});
    llama_batch_ext_set_pos(&batch, index, positions.data());
    return index;
}

TEST(ConvertedBatch, TokenRowsKeepPositionsSequencesAndOutputs) {
    llama_batch_ext batch = empty_batch(4);
    for (const llama_pos position : {5, 6, 7}) {
        const int32_t index = llama_batch_ext_add_token(&batch, 3, position + 1);
        llama_batch_ext_set_pos(&batch, index, &position);
    }
    llama_batch_ext_add_seq(&batch, 1, 0);
    llama_batch_ext_set_output_logits(&batch, 1, true);
    const capi::ConvertedBatch converted(batch);
    const llama_batch & view = converted.batch();
    ASSERT_EQ(view.n_tokens, 3);
    EXPECT_EQ(view.embd, nullptr);
    for (int32_t i = 0; i < 3; ++i) {
        EXPECT_EQ(view.token[i], 6 + i);
        EXPECT_EQ(view.pos[i], 5 + i);
        EXPECT_EQ(view.n_seq_id[i], i == 1 ? 2 : 1);
        EXPECT_EQ(view.seq_id[i][0], i == 1 ? 0 : 3);
        EXPECT_EQ(view.logits[i] != 0, i == 1);
    }
    EXPECT_EQ(view.seq_id[1][1], 3);
}

TEST(ConvertedBatch, EmbeddingsKeepAllPositionsOfARow) {
    llama_batch_ext batch = empty_batch(4);
    add_embedding(batch, {1, 2}, {10, 11, 12, 13});
    add_embedding(batch, {3, 4}, {20, 21, 22, 23});
    const capi::ConvertedBatch converted(batch);
    const llama_batch & view = converted.batch();
    ASSERT_EQ(view.n_tokens, 2);
    EXPECT_EQ(view.token, nullptr);
    EXPECT_EQ(std::vector<float>(view.embd, view.embd + 4), (std::vector<float>{1, 2, 3, 4}));
    EXPECT_EQ(std::vector<llama_pos>(view.pos, view.pos + 8), (std::vector<llama_pos>{10, 20, 11, 21, 12, 22, 13, 23}));
    EXPECT_EQ(view.seq_id[1][0], 1);

    llama_batch_ext one = empty_batch(1);
    add_embedding(one, {1, 2}, {10});
    add_embedding(one, {3, 4}, {20});
    const capi::ConvertedBatch converted_one(one);
    EXPECT_EQ(std::vector<llama_pos>(converted_one.batch().pos, converted_one.batch().pos + 2),
              (std::vector<llama_pos>{10, 20}));
}

TEST(ConvertedBatch, TokensWithEmbeddingsKeepBoth) {
    llama_batch_ext batch = empty_batch(4);
    std::array<float, 2> row{1, 2};
    const llama_pos position = 9;
    llama_batch_ext_add_token(&batch, 0, 7);
    llama_batch_ext_set_pos(&batch, 0, &position);
    ASSERT_TRUE(llama_batch_ext_set_embd_token(&batch, 0, {row.data(), 1, 2}));
    const capi::ConvertedBatch converted(batch);
    EXPECT_EQ(converted.batch().token[0], 7);
    EXPECT_EQ(converted.batch().embd[1], 2);
    EXPECT_EQ(converted.batch().pos[0], 9);
}

TEST(ConvertedBatch, RefusesWhatLlamaRefuses) {
    llama_batch_ext mixed = empty_batch(1);
    add_embedding(mixed, {1, 2}, {0});
    llama_batch_ext_add_token(&mixed, 0, 7);
    EXPECT_THROW(capi::ConvertedBatch{mixed}, Error);
    llama_batch_ext of_an_encoder = empty_batch(1);
    std::array<float, 3> wide{1, 2, 3};
    ASSERT_EQ(llama_batch_ext_add_embd(&of_an_encoder, 0, {wide.data(), 1, 3}), 0);
    EXPECT_THROW(capi::ConvertedBatch{of_an_encoder}, Error);
    EXPECT_EQ(capi::ConvertedBatch(empty_batch(1)).batch().n_tokens, 0);
}

}  // namespace
}  // namespace harp::testing
