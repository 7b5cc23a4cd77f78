// The order in which llama.cpp computes rows, against llama.cpp's own splitter on random batches.
#include "forward/row_order.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "llama-batch.h"
#include "llama-vocab.h"

namespace harp::forward {
namespace {

constexpr llama_token n_vocab = 1000;
constexpr llama_seq_id n_seq_max = 8;

/// What llama_batch_allocr makes of the batch, as its memories call it.
std::vector<size_t> order_of_llama(BatchRows & rows, SplitPolicy policy, uint32_t n_ubatch) {
    static const llama_vocab vocab;  // only printed from
    llama_batch_ext extended(4096, 1, 1, n_seq_max, nullptr, n_vocab, 1);
    llama_batch_compat::init(extended, rows.view());
    llama_batch_allocr splitter(1);
    std::vector<size_t> order;
    if (!splitter.init(extended, vocab, /*output_all=*/false)) {
        ADD_FAILURE() << "llama.cpp refused a batch of the test";
        return order;
    }
    while (true) {
        const llama_ubatch micro_batch = policy == SplitPolicy::in_order
                                             ? splitter.split_simple(n_ubatch)
                                             : splitter.split_equal(n_ubatch, policy == SplitPolicy::equal_sequential,
                                                                    /*n_keep_tail=*/0);
        if (micro_batch.n_tokens == 0) return order;
        for (const int32_t i : micro_batch.data->batch_idxs) order.push_back(static_cast<size_t>(i));
    }
}

std::string describe(const BatchRows & rows, uint32_t n_ubatch) {
    std::string text = "n_ubatch " + std::to_string(n_ubatch) + ", sequences";
    for (size_t i = 0; i < rows.size(); ++i) {
        text += ' ';
        for (const llama_seq_id id : rows.sequences(i)) text += std::to_string(id) + '+';
        text.pop_back();
    }
    return text;
}

class RowOrder : public ::testing::TestWithParam<SplitPolicy> {
  protected:
    size_t number(size_t low, size_t high) { return std::uniform_int_distribution<size_t>(low, high)(random_); }

    void add(llama_pos position, std::vector<llama_seq_id> ids) {
        rows_.add(static_cast<llama_token>(number(0, n_vocab - 1)), position, ids, number(0, 1) == 1);
    }

    /// Rows of 1..6 sequences, each with its own number of rows, dealt in random order.
    void interleaved_batch() {
        std::vector<llama_seq_id> ids(n_seq_max);
        std::iota(ids.begin(), ids.end(), 0);
        std::shuffle(ids.begin(), ids.end(), random_);
        ids.resize(number(1, 6));
        std::vector<llama_seq_id> deck;
        for (const llama_seq_id id : ids) deck.insert(deck.end(), number(1, 9), id);
        if (number(0, 2) > 0) std::shuffle(deck.begin(), deck.end(), random_);  // else sequence after sequence
        std::vector<llama_pos> next(n_seq_max, 0);
        for (const llama_seq_id id : deck) add(next[static_cast<size_t>(id)]++, {id});
    }

    /// Sequences that begin with rows in common and then part, in several groups.
    void coupled_batch() {
        std::vector<llama_pos> next(n_seq_max, 0);
        const size_t n_rows = number(1, 30);
        std::vector<std::vector<llama_seq_id>> groups{{0, 1, 2}, {3, 4}, {5}, {6, 7}};
        groups.resize(number(1, groups.size()));
        for (size_t i = 0; i < n_rows; ++i) {
            const size_t g = number(0, groups.size() - 1);
            if (number(0, 5) == 0 && groups[g].size() > 1) {  // part: each sequence goes on alone
                for (const llama_seq_id id : groups[g]) groups.push_back({id});
                groups[g] = groups.back();
                groups.pop_back();
            }
            std::vector<llama_seq_id> ids = groups[g];
            if (number(0, 1) == 1) std::reverse(ids.begin(), ids.end());
            const llama_pos position = next[static_cast<size_t>(ids[0])];
            add(position, ids);
            for (const llama_seq_id id : ids) next[static_cast<size_t>(id)] = position + 1;
        }
    }

    void expect_order(uint32_t n_ubatch) {
        ASSERT_EQ(computation_order(rows_, GetParam(), n_ubatch), order_of_llama(rows_, GetParam(), n_ubatch))
            << describe(rows_, n_ubatch);
    }

    std::mt19937 random_{12345};
    BatchRows rows_;
};

TEST_P(RowOrder, IsLlamaCppsOnInterleavedSequences) {
    for (int round = 0; round < 4000 && !HasFatalFailure(); ++round) {
        rows_.clear();
        interleaved_batch();
        expect_order(static_cast<uint32_t>(number(1, 16)));
    }
}

TEST_P(RowOrder, IsLlamaCppsOnCoupledSequences) {
    if (GetParam() == SplitPolicy::equal_sequential) GTEST_SKIP() << "llama.cpp refuses coupled sequences there";
    for (int round = 0; round < 4000 && !HasFatalFailure(); ++round) {
        rows_.clear();
        coupled_batch();
        expect_order(static_cast<uint32_t>(number(1, 16)));
    }
}

TEST_P(RowOrder, TakesEachRowOnce) {
    for (int round = 0; round < 500; ++round) {
        rows_.clear();
        interleaved_batch();
        const auto order = computation_order(rows_, GetParam(), static_cast<uint32_t>(number(1, 64)));
        ASSERT_EQ(order.size(), rows_.size());
        ASSERT_EQ(std::set<size_t>(order.begin(), order.end()).size(), rows_.size());
    }
}

TEST_P(RowOrder, OfACleanRowAndItsTwinIsThatOfTheBatch) {
    // what decoding does all the time: consecutive ids, a row each
    for (llama_seq_id id = 0; id < 6; ++id) add(3, {id});
    std::vector<size_t> in_order(6);
    std::iota(in_order.begin(), in_order.end(), size_t{0});
    EXPECT_EQ(computation_order(rows_, GetParam(), 512), in_order);
}

TEST_P(RowOrder, OfAnEmptyBatchIsEmpty) {
    EXPECT_TRUE(computation_order(rows_, GetParam(), 512).empty());
}

TEST(RowOrderByHand, EqualSplitsByHand) {
    BatchRows rows;
    llama_pos position = 0;
    for (const llama_seq_id id : {1, 1, 0, 1, 0, 2}) rows.add(1, position++, {&id, 1}, false);
    using Order = std::vector<size_t>;
    EXPECT_EQ(computation_order(rows, SplitPolicy::in_order, 2), (Order{0, 1, 2, 3, 4, 5}));
    // one row of each of 1, 0, 2, then what is left of 1 and 0
    EXPECT_EQ(computation_order(rows, SplitPolicy::equal, 16), (Order{0, 2, 5, 1, 4, 3}));
    // 1 cannot be followed by 0; 2 follows 1
    EXPECT_EQ(computation_order(rows, SplitPolicy::equal_sequential, 16), (Order{0, 5, 1, 3, 2, 4}));
}

INSTANTIATE_TEST_SUITE_P(Policies, RowOrder,
                         ::testing::Values(SplitPolicy::in_order, SplitPolicy::equal, SplitPolicy::equal_sequential),
                         [](const auto & param_info) -> std::string {
                             switch (param_info.param) {
                                 case SplitPolicy::in_order: return "InOrder";
                                 case SplitPolicy::equal: return "Equal";
                                 default: return "EqualSequential";
                             }
                         });

}  // namespace
}  // namespace harp::forward
