// States of a Sequence on a fake of each kind of memory: saved, loaded, and refused where they are damaged or do not fit.
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "forward/sequence.h"
#include "support/fake_pass.h"

namespace harp::forward {
namespace {

using testing::FakePass;
using testing::n_vocab;
using testing::options_with;
using testing::rows_as_text;
using Kind = testing::FakeMemory::Kind;

TEST(Sequence, ALoadedStateReplacesTwinsThatAreInUse) {
    for (const Kind kind : {Kind::unified, Kind::streams, Kind::sliding_window, Kind::recurrent, Kind::hybrid}) {
        FakePass pass(kind, 1, options_with(Scope::all));
        pass.decode_many(0, 100, 5);
        const auto saved = pass.save(0);  // twins empty
        pass.decode(0, 200, true, true);
        pass.decode(0, 201, true, true);
        pass.load(0, saved);
        EXPECT_EQ(rows_as_text(pass[0]), "100@0 101@1 102@2 103@3 104@4");
        EXPECT_EQ(pass[0].n_twin(), 0U);
        EXPECT_EQ(pass.memory.last(pass[0].ids().twins[0]), -1);
    }
}

TEST(Sequence, DamagedStatesAreRefused) {
    FakePass pass(Kind::streams, 1, options_with(Scope::generated));
    pass.decode_many(0, 100, 6);
    pass.complete(0, {});
    const std::vector<uint8_t> good = pass.save(0);
    size_t n_refused = 0;
    for (size_t i = 0; i < good.size(); ++i) {
        for (const unsigned bit : {0x01U, 0x80U}) {
            std::vector<uint8_t> bad = good;
            bad[i] = static_cast<uint8_t>(bad[i] ^ bit);
            try {
                pass.load(0, bad);
                for (const Row & row : pass[0].rows()) {
                    ASSERT_TRUE(row.token >= 0 && row.token < n_vocab && row.position >= 0) << i;
                }
                ASSERT_LE(pass[0].n_twin(), pass[0].size());
            } catch (const Error & error) {
                ++n_refused;
                ASSERT_EQ(error.code(), ErrorCode::invalid_state);
                ASSERT_EQ(pass[0].size(), 0U) << "empty after it";
                ASSERT_EQ(pass.memory.last(pass[0].ids().clean), -1);
            }
            ASSERT_EQ(pass[0].disagreement(), "");
        }
        std::vector<uint8_t> cut(good.begin(), good.begin() + static_cast<std::ptrdiff_t>(i));
        EXPECT_THROW(pass.load(0, cut), Error) << i;
    }
    EXPECT_GT(n_refused, good.size() / 4);
    std::vector<uint8_t> longer = good;  // a buffer may go on behind the state
    longer.push_back(0);
    EXPECT_NO_THROW(pass.load(0, longer));
    EXPECT_EQ(pass[0].size(), 6U);
    Writer no_room(std::span<uint8_t>{});
    EXPECT_THROW(pass[0].save_rows(no_room), Error);
}

TEST(Sequence, APartialStateGoesBackToRowsThatAreStillHere) {
    constexpr llama_state_seq_flags partial = LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY;
    for (const Kind kind : {Kind::sliding_window, Kind::hybrid}) {
        FakePass pass(kind, 1, options_with(Scope::all));
        pass.decode_many(0, 100, 10);
        pass.complete(0, {});
        pass.decode(0, 110);
        const std::string clean = pass.memory.contents(0);
        const std::string twin = pass.memory.contents(1);
        const auto saved = pass.save(0, partial);
        pass.decode_many(0, 200, 15);
        pass.decode(0, 215, true, true);
        pass.load(0, saved, partial);
        EXPECT_EQ(pass[0].size(), 11U);
        EXPECT_EQ(pass[0].n_twin(), 10U);
        EXPECT_EQ(pass.memory.contents(0), clean);
        EXPECT_EQ(pass.memory.contents(1), twin);
        pass.decode(0, 111, true, true);
        EXPECT_EQ(pass[0].n_twin(), 12U);

        // twins that began anew with another draw cannot go back: they begin anew again
        Options other = options_with(Scope::all);
        other.seed = 5;
        pass[0].set_options(other, 0);
        pass.load(0, saved, partial);
        EXPECT_EQ(pass[0].size(), 11U);
        EXPECT_EQ(pass[0].n_twin(), 0U);
        EXPECT_EQ(pass.memory.last(1), -1);

        // rows other than the saved ones: refused, and the sequence is emptied
        pass[0].clear();
        pass.decode_many(0, 300, 12);
        EXPECT_THROW(pass.load(0, saved, partial), Error);
        EXPECT_EQ(pass[0].size(), 0U);
    }
}

}  // namespace
}  // namespace harp::forward
