// Reading a caller's batch: the NULL rules of llama_batch, and each rejection with its message.
#include "forward/batch_rows.h"

#include <gtest/gtest.h>

#include <array>
#include <string>
#include <vector>

#include "harp/error.h"

namespace harp::forward {
namespace {

constexpr BatchLimits limits{.n_batch = 8, .n_seq_max = 3, .n_vocab = 512, .n_embd = 2};

llama_pos from_zero(llama_seq_id /*sequence*/) {
    return 0;
}

/// "token@position:sequences", with "*" for an output row.
std::string text(const std::vector<CallerRow> & rows) {
    std::string out;
    for (const CallerRow & row : rows) {
        if (!out.empty()) out += ' ';
        out += std::to_string(row.token) + '@' + std::to_string(row.position) + ':';
        for (const llama_seq_id id : row.sequences) out += std::to_string(id);
        if (row.is_output) out += '*';
    }
    return out;
}

struct Rejection {
    ErrorCode code = ErrorCode::io;
    std::string message;
};

Rejection rejection_of(const llama_batch & batch, const std::function<llama_pos(llama_seq_id)> & next = from_zero) {
    try {
        (void)read_rows(batch, limits, next);
    } catch (const Error & error) {
        return {error.code(), error.what()};
    }
    ADD_FAILURE() << "not rejected";
    return {};
}

void expect_invalid(const llama_batch & batch, const std::string & message) {
    const Rejection rejection = rejection_of(batch);
    EXPECT_EQ(rejection.code, ErrorCode::invalid_batch) << rejection.message;
    EXPECT_EQ(rejection.message, message);
}

class ReadRows : public ::testing::Test {
  protected:
    /// A batch with all arrays: rows 5@0, 6@1, 7@2 of sequence 0.
    ReadRows() {
        for (size_t i = 0; i < 3; ++i) pointers_[i] = ids_[i].data();
        batch_.n_tokens = 3;
        batch_.token = tokens_.data();
        batch_.pos = positions_.data();
        batch_.n_seq_id = n_ids_.data();
        batch_.seq_id = pointers_.data();
        batch_.logits = outputs_.data();
    }
    std::array<llama_token, 3> tokens_{5, 6, 7};
    std::array<llama_pos, 3> positions_{0, 1, 2};
    std::array<int32_t, 3> n_ids_{1, 1, 1};
    std::array<std::array<llama_seq_id, 3>, 3> ids_{};
    std::array<llama_seq_id *, 3> pointers_{};
    std::array<int8_t, 3> outputs_{0, 1, 0};
    llama_batch batch_{};
};

TEST_F(ReadRows, WithAllArrays) {
    EXPECT_EQ(text(read_rows(batch_, limits, from_zero)), "5@0:0 6@1:0* 7@2:0");
}

TEST_F(ReadRows, NoOutputFlagsMeanTheLastRow) {
    batch_.logits = nullptr;
    EXPECT_EQ(text(read_rows(batch_, limits, from_zero)), "5@0:0 6@1:0 7@2:0*");
}

TEST_F(ReadRows, NoSequenceIdsMeanSequenceZero) {
    ids_[0] = ids_[1] = ids_[2] = {2, 2, 2};
    batch_.seq_id = nullptr;
    EXPECT_EQ(text(read_rows(batch_, limits, from_zero)), "5@0:0 6@1:0* 7@2:0");
}

TEST_F(ReadRows, NoPositionsContinueEachSequence) {
    batch_.pos = nullptr;
    ids_[1] = {1, 0, 0};
    const auto next = [](llama_seq_id sequence) { return sequence == 0 ? 10 : 20; };
    EXPECT_EQ(text(read_rows(batch_, limits, next)), "5@10:0 6@20:1* 7@11:0");
}

TEST_F(ReadRows, OfTokensAlone) {
    const llama_batch batch = llama_batch_get_one(tokens_.data(), 3);
    EXPECT_EQ(text(read_rows(batch, limits, [](llama_seq_id) { return 4; })), "5@4:0 6@5:0 7@6:0*");
}

TEST_F(ReadRows, OfSeveralSequences) {
    n_ids_[0] = 3;
    ids_[0] = {0, 1, 2};
    positions_ = {0, 1, 1};
    ids_[2] = {2, 0, 0};
    EXPECT_EQ(text(read_rows(batch_, limits, from_zero)), "5@0:012 6@1:0* 7@1:2");
}

TEST_F(ReadRows, PositionsMayJump) {  // for M-RoPE; otherwise llama_decode rejects it
    positions_ = {3, 4, 9};
    EXPECT_EQ(text(read_rows(batch_, limits, from_zero)), "5@3:0 6@4:0* 7@9:0");
}

TEST_F(ReadRows, RejectsWrongSizes) {
    batch_.n_tokens = 0;
    expect_invalid(batch_, "the batch is empty (n_tokens = 0)");
    batch_.n_tokens = -1;
    expect_invalid(batch_, "the batch is empty (n_tokens = -1)");
    batch_.n_tokens = 9;
    expect_invalid(batch_, "the batch has 9 rows; allowed: 1..8 (n_batch)");
}

TEST_F(ReadRows, OfEmbeddings) {
    std::array<float, 6> embeddings{1, 2, 3, 4, 5, 6};
    batch_.token = nullptr;
    batch_.embd = embeddings.data();
    const std::vector<CallerRow> rows = read_rows(batch_, limits, from_zero);
    EXPECT_EQ(text(rows), "-1@0:0 -1@1:0* -1@2:0");
    EXPECT_EQ(rows[2].embedding.index, 2U);
    EXPECT_EQ(rows[2].embedding.chunk, rows[0].embedding.chunk);
    EXPECT_EQ(rows[0].embedding.chunk->values, (std::vector<float>{1, 2, 3, 4, 5, 6}));
    EXPECT_EQ(rows[0].embedding.chunk->positions, (std::vector<llama_pos>{0, 1, 2}));
    // and back to a llama_batch
    BatchRows back;
    for (const size_t i : {1U, 2U}) back.add(rows[i].embedding, rows[i].position, rows[i].sequences, rows[i].is_output);
    const llama_batch view = back.view();
    EXPECT_EQ(view.token, nullptr);
    EXPECT_EQ(std::vector<float>(view.embd, view.embd + 4), (std::vector<float>{3, 4, 5, 6}));
    EXPECT_EQ(std::vector<llama_pos>(view.pos, view.pos + 2), (std::vector<llama_pos>{1, 2}));
}

TEST_F(ReadRows, OfAPictureWithFourPositionsARow) {
    std::array<float, 6> embeddings{1, 2, 3, 4, 5, 6};
    // [n_pos][rows]: all rows at time 7, then y, x and a fourth position
    std::array<llama_pos, 12> positions{7, 7, 7, 7, 7, 8, 7, 8, 7, 0, 0, 0};
    batch_.token = nullptr;
    batch_.embd = embeddings.data();
    batch_.pos = positions.data();
    BatchLimits with_four = limits;
    with_four.n_pos = 4;
    const std::vector<CallerRow> rows = read_rows(batch_, with_four, from_zero);
    EXPECT_EQ(text(rows), "-1@7:0 -1@7:0* -1@7:0");
    BatchRows back;
    for (const size_t i : {1U, 2U}) back.add(rows[i].embedding, rows[i].position, rows[i].sequences, false);
    const llama_batch view = back.view();
    EXPECT_EQ(std::vector<llama_pos>(view.pos, view.pos + 8), (std::vector<llama_pos>{7, 7, 7, 8, 8, 7, 0, 0}));
    // a second part of the picture follows at the same time
    EXPECT_EQ(text(read_rows(batch_, with_four, [](llama_seq_id) { return 8; })), text(rows));
    EXPECT_THROW((void)read_rows(batch_, with_four, [](llama_seq_id) { return 9; }), Error);
}

TEST_F(ReadRows, RejectsEmbeddingsBesideTokens) {  // llama.cpp adds them if a model accepts both
    std::array<float, 6> embeddings{};
    batch_.embd = embeddings.data();
    expect_invalid(batch_, "the batch has tokens and embeddings; allowed: one of them");
    batch_.token = nullptr;
    batch_.pos = nullptr;
    expect_invalid(batch_, "a batch of embeddings needs positions (llama_batch.pos is NULL)");
}

TEST_F(ReadRows, RejectsBadTokens) {
    tokens_[1] = 512;
    expect_invalid(batch_, "batch row 1: token 512; allowed: 0..511");
    tokens_[1] = -1;
    expect_invalid(batch_, "batch row 1: token -1; allowed: 0..511");
    tokens_[1] = 511;
    EXPECT_EQ(read_rows(batch_, limits, from_zero)[1].token, 511);
}

TEST_F(ReadRows, RejectsBadSequences) {
    ids_[2] = {3, 0, 0};
    expect_invalid(batch_, "batch row 2: sequence id 3; allowed: 0..2");
    ids_[2] = {-1, 0, 0};
    expect_invalid(batch_, "batch row 2: sequence id -1; allowed: 0..2");
    ids_[2] = {0, 5, 0};
    n_ids_[2] = 2;
    expect_invalid(batch_, "batch row 2: sequence id 5; allowed: 0..2");
    n_ids_[2] = 0;
    expect_invalid(batch_, "batch row 2: belongs to no sequence");
}

TEST_F(ReadRows, RejectsNegativeSequenceCounts) {
    n_ids_[2] = -1;
    expect_invalid(batch_, "batch row 2: belongs to no sequence");
}

TEST_F(ReadRows, RejectsPositionsThatDoNotFollow) {
    positions_[2] = 1;
    expect_invalid(batch_, "batch row 2: position 1 of sequence 0; allowed: 2 or above");
    positions_ = {-1, 1, 2};
    expect_invalid(batch_, "batch row 0: position -1 of sequence 0; allowed: 0 or above");
    positions_ = {4, 5, 6};
    const auto next = [](llama_seq_id) { return 5; };
    const Rejection rejection = rejection_of(batch_, next);
    EXPECT_EQ(rejection.message, "batch row 0: position 4 of sequence 0; allowed: 5 or above");
    // a row of two sequences, one of which is already further on
    positions_ = {0, 1, 1};
    n_ids_[2] = 2;
    ids_[2] = {1, 0, 0};
    expect_invalid(batch_, "batch row 2: position 1 of sequence 0; allowed: 2 or above");
}

TEST_F(ReadRows, RejectsTheSameSequenceTwiceInARow) {
    n_ids_[0] = 2;
    ids_[0] = {0, 0, 0};
    EXPECT_EQ(rejection_of(batch_).code, ErrorCode::invalid_batch);
}

TEST(BatchRows, BuildsALlamaBatch) {
    BatchRows rows;
    const std::array<llama_seq_id, 2> both{0, 1};
    const llama_seq_id second = 1;
    rows.add(5, 0, both, false);
    rows.add(6, 1, {&second, 1}, true);
    EXPECT_EQ(rows.size(), 2U);
    const llama_batch batch = rows.view();
    EXPECT_EQ(batch.embd, nullptr);
    EXPECT_EQ(text(read_rows(batch, limits, from_zero)), "5@0:01 6@1:1*");
    rows.clear();
    EXPECT_EQ(rows.size(), 0U);
    rows.add(7, 2, {&second, 1}, true);
    EXPECT_EQ(text(read_rows(rows.view(), limits, from_zero)), "7@2:1*");
}

TEST(BatchRows, EmbeddingsAreWhereTheirRowsHaveMoved) {
    const llama_seq_id id = 0;
    for (const size_t n_pos : {size_t{1}, size_t{4}}) {  // 4: M-RoPE's time, height, width, and one that is not used
        EmbeddingChunk chunk;
        chunk.n_embd = 1;
        chunk.n_pos = n_pos;
        chunk.values = {0.5F, 0.25F};
        chunk.positions = n_pos == 1 ? std::vector<llama_pos>{8, 9} : std::vector<llama_pos>{8, 8, 8, 0, 8, 9, 8, 0};
        const auto shared = std::make_shared<const EmbeddingChunk>(chunk);
        BatchRows rows;
        rows.add({shared, 0}, 5, {&id, 1}, false);
        rows.add({shared, 1}, chunk.positions[n_pos] - 3, {&id, 1}, false);
        const llama_batch batch = rows.view();
        const std::vector<llama_pos> found(batch.pos, batch.pos + 2 * n_pos);
        EXPECT_EQ(found,
                  n_pos == 1 ? (std::vector<llama_pos>{5, 6}) : (std::vector<llama_pos>{5, 5, 5, 6, 5, 5, 0, 0}));
    }
}

TEST(BatchRows, ViewsFollowGrowth) {
    BatchRows rows;
    for (llama_pos p = 0; p < 1000; ++p) {
        const llama_seq_id id = p % 3;
        rows.add(p % 512, p / 3, {&id, 1}, p == 999);
        (void)rows.view();
    }
    const auto read = read_rows(rows.view(), {.n_batch = 1000, .n_seq_max = 3, .n_vocab = 512}, from_zero);
    for (llama_pos p = 0; p < 1000; ++p) {
        EXPECT_EQ(read[static_cast<size_t>(p)].sequences, std::vector<llama_seq_id>{p % 3});
    }
}

}  // namespace
}  // namespace harp::forward
