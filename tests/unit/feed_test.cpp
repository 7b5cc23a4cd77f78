// Tokens as rows of batches: positions, outputs, and what a batch has room for.
#include "decoding/feed.h"

#include <gtest/gtest.h>

#include <vector>

namespace harp::testing {
namespace {

using decoding::add_rows;
using decoding::Feed;
using decoding::Room;

const std::vector<llama_token> tokens = {10, 11, 12, 13, 14};

TEST(Feed, GoesOnWhereItStopped) {
    Feed feed{.sequence = 3, .tokens = tokens, .first = 7, .n_silent = 4};
    forward::BatchRows rows;
    Room room{.rows = 3};
    EXPECT_EQ(add_rows(rows, room, feed), 3U);
    EXPECT_EQ(room.rows, 0U);
    EXPECT_EQ(add_rows(rows, room, feed), 0U);

    feed.n_done = 3;
    rows.clear();
    room = {.rows = 3};
    EXPECT_EQ(add_rows(rows, room, feed), 2U);
    EXPECT_EQ(room.rows, 1U);
    const llama_batch batch = rows.view();
    EXPECT_EQ(batch.token[0], 13);
    EXPECT_EQ(batch.pos[0], 10);
    EXPECT_EQ(batch.seq_id[0][0], 3);
    EXPECT_EQ(batch.logits[0], 0);
    EXPECT_EQ(batch.logits[1], 1);
}

TEST(Feed, StopsAtTheFirstOutputThatHasNoRoom) {
    forward::BatchRows rows;
    Room room{.rows = 10, .outputs = 1};
    EXPECT_EQ(add_rows(rows, room, {.tokens = tokens, .n_silent = 2}), 3U);
    EXPECT_EQ(room.outputs, 0U);
    EXPECT_EQ(add_rows(rows, room, {.sequence = 1, .tokens = tokens, .n_silent = 2}), 2U);
    EXPECT_EQ(room.rows, 5U);
}

}  // namespace
}  // namespace harp::testing
