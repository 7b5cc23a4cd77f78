// The history of a sequence: every operation as a table of rows before and after.
#include "forward/token_history.h"

#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "harp/error.h"

namespace harp::forward {
namespace {

/// Rows at positions 0..n-1, tokens 100, 101, ...; the twins hold the first n_twin.
TokenHistory history_of(size_t n, size_t n_twin = 0, const std::vector<size_t> & hesitations = {}) {
    TokenHistory history;
    for (size_t i = 0; i < n; ++i) {
        history.append(100 + static_cast<llama_token>(i), static_cast<llama_pos>(i), Scope::all, true);
    }
    for (const size_t row : hesitations) history.mark_hesitation(row, true);
    history.set_twin(n_twin, {});
    return history;
}

/// "token@position" of each row, a mask position where it differs as "/position", "!" for hesitated, "-" for not reframed.
std::string text(const TokenHistory & history) {
    std::string out;
    for (const HistoryRow & row : history.rows()) {
        if (!out.empty()) out += ' ';
        out.append(std::to_string(row.token)).append("@").append(std::to_string(row.position));
        if (row.mask_position != row.position) out.append("/").append(std::to_string(row.mask_position));
        if (row.hesitated) out += '!';
        if (!row.reframed) out += '-';
    }
    return out;
}

TEST(TokenHistory, AppendsRows) {
    TokenHistory history;
    EXPECT_TRUE(history.empty());
    EXPECT_EQ(history.next_position(), 0);
    history.append(7, 0, Scope::all, false);
    history.append(8, 1, Scope::all, true);
    history.append(9, 5, Scope::all, true);  // M-RoPE models jump
    EXPECT_EQ(text(history), "7@0 8@1 9@5");
    EXPECT_EQ(history.size(), 3U);
    EXPECT_EQ(history.next_position(), 6);
    EXPECT_EQ(history.index_of(0), 0U);
    EXPECT_EQ(history.index_of(5), 2U);
    EXPECT_EQ(history.n_twin(), 0U);
    EXPECT_EQ(history.clean_prefix(), 0U);
}

TEST(TokenHistory, ScopeGeneratedLeavesRowsUpToTheFirstOutputClean) {
    TokenHistory history;
    EXPECT_FALSE(history.would_reframe(0, Scope::generated));
    EXPECT_TRUE(history.would_reframe(0, Scope::all));
    history.append(1, 0, Scope::generated, false);
    history.append(2, 1, Scope::generated, true);  // the first output row is still prompt
    history.append(3, 2, Scope::generated, true);
    history.append(4, 3, Scope::generated, false);
    EXPECT_EQ(text(history), "1@0- 2@1- 3@2 4@3");
    EXPECT_EQ(history.clean_prefix(), 2U);
}

TEST(TokenHistory, ScopeGeneratedWithAPromptEndThatWasSet) {
    TokenHistory history;
    EXPECT_EQ(history.set_prompt_end(3, Scope::generated), 0U);
    for (llama_pos p = 0; p < 5; ++p) history.append(p, p, Scope::generated, /*is_output=*/true);
    EXPECT_EQ(text(history), "0@0- 1@1- 2@2- 3@3 4@4");
    EXPECT_EQ(history.clean_prefix(), 3U);
    // a conversation goes on: what was generated is prompt now
    EXPECT_EQ(history.set_prompt_end(6, Scope::generated), 3U) << "rows that are as before";
    history.append(5, 5, Scope::generated, true);
    history.append(6, 6, Scope::generated, true);
    EXPECT_EQ(text(history), "0@0- 1@1- 2@2- 3@3- 4@4- 5@5- 6@6");
    EXPECT_EQ(history.clean_prefix(), 6U);
    // an earlier end
    EXPECT_EQ(history.set_prompt_end(2, Scope::generated), 2U);
    EXPECT_EQ(text(history), "0@0- 1@1- 2@2 3@3 4@4 5@5 6@6");
    EXPECT_EQ(history.set_prompt_end(2, Scope::generated), 7U) << "nothing changed";
}

TEST(TokenHistory, ScopeCanChange) {
    for (const bool end_is_set : {true, false}) {
        TokenHistory history;
        if (end_is_set) history.set_prompt_end(3, Scope::all);
        for (llama_pos p = 0; p < 5; ++p) history.append(p, p, Scope::all, /*is_output=*/p >= 2);
        EXPECT_EQ(text(history), "0@0 1@1 2@2 3@3 4@4");
        EXPECT_EQ(history.apply_scope(Scope::generated), 0U);
        EXPECT_EQ(text(history), "0@0- 1@1- 2@2- 3@3 4@4");
        EXPECT_EQ(history.apply_scope(Scope::all), 0U);
        EXPECT_EQ(text(history), "0@0 1@1 2@2 3@3 4@4");
    }
}

TEST(TokenHistory, HesitationsOfThePromptAreForgotten) {
    TokenHistory history = history_of(6, 6);
    for (size_t i = 0; i < 6; ++i) history.mark_hesitation(i, true);
    EXPECT_EQ(history.draw_for_hesitation(5, 2).index, 2U);
    EXPECT_EQ(history.set_prompt_end(4, Scope::all), 6U);
    EXPECT_EQ(history.draw_for_hesitation(4, 2), (DrawId{0, 5}));
    EXPECT_EQ(history.draw_for_hesitation(5, 2).index, 0U);
}

TEST(TokenHistory, ScopeAllIgnoresThePromptEnd) {
    TokenHistory history;
    history.set_prompt_end(3, Scope::all);
    history.append(1, 0, Scope::all, false);
    EXPECT_EQ(text(history), "1@0");
}

struct RemoveCase {
    llama_pos p0, p1;
    size_t n_twin_before;
    std::string expected;
    size_t n_twin_after;
};

TEST(TokenHistory, Removes) {
    const std::vector<RemoveCase> cases{
        {4, -1, 0, "100@0 101@1 102@2 103@3", 0},
        {4, -1, 3, "100@0 101@1 102@2 103@3", 3},              // tail behind the twins
        {4, -1, 4, "100@0 101@1 102@2 103@3", 4},              // tail just behind them
        {4, -1, 6, "100@0 101@1 102@2 103@3", 4},              // tail of both
        {5, 6, 6, "100@0 101@1 102@2 103@3 104@4", 5},         // the last row alone
        {1, 3, 0, "100@0 103@3 104@4 105@5", 0},               // middle
        {1, 3, 6, "100@0 103@3 104@4 105@5", 4},               // middle that the twins hold
        {1, 3, 2, "100@0 103@3 104@4 105@5", 1},               // middle that they hold in part
        {3, 5, 2, "100@0 101@1 102@2 105@5", 2},               // middle behind them
        {0, 2, 3, "102@2 103@3 104@4 105@5", 1},               // head
        {-1, 2, 3, "102@2 103@3 104@4 105@5", 1},              // negative p0 is 0
        {-1, -1, 4, "", 0},                                    // all
        {0, 100, 4, "", 0},                                    // all, with an end
        {6, -1, 4, "100@0 101@1 102@2 103@3 104@4 105@5", 4},  // nothing
        {3, 3, 4, "100@0 101@1 102@2 103@3 104@4 105@5", 4},   // an empty range
    };
    for (const RemoveCase & c : cases) {
        SCOPED_TRACE(::testing::Message() << c.p0 << ", " << c.p1 << ") with " << c.n_twin_before << " twin rows");
        TokenHistory history = history_of(6, c.n_twin_before);
        history.remove(c.p0, c.p1);
        EXPECT_EQ(text(history), c.expected);
        EXPECT_EQ(history.n_twin(), c.n_twin_after);
    }
    TokenHistory empty;
    empty.remove(-1, -1);
    EXPECT_TRUE(empty.empty());
}

TEST(TokenHistory, TakesRowsBackAsIfTheyHadNeverBeen) {
    for (const size_t n_before : {0U, 2U}) {
        TokenHistory history;
        history.set_prompt_end(9, Scope::generated);
        for (size_t i = 0; i < n_before; ++i) history.append(1, static_cast<llama_pos>(i), Scope::generated, false);
        history.set_twin(n_before, {});
        const auto from = static_cast<llama_pos>(n_before);
        history.append(5, from, Scope::generated, true);
        history.append(6, from + 1, Scope::generated, true);
        history.set_twin(n_before + 2, {});
        history.set_shared(n_before + 2);
        history.take_back(from);
        EXPECT_EQ(history.size(), n_before);
        EXPECT_EQ(history.n_twin(), n_before);
        EXPECT_EQ(history.n_shared(), n_before);
        EXPECT_FALSE(history.would_reframe(8, Scope::generated));  // the prompt's end is still set
        EXPECT_TRUE(history.would_reframe(9, Scope::generated));
        EXPECT_FALSE(history.snapshot().seen_output);  // and no output row has been
    }
    TokenHistory answer = history_of(4);
    answer.take_back(2);
    EXPECT_TRUE(answer.snapshot().seen_output);  // an earlier one was
}

TEST(TokenHistory, CountsTheRowsWhoseCellsAreShared) {
    TokenHistory history = history_of(6, 6);
    history.set_shared(4);
    history.remove(1, 3);
    EXPECT_EQ(history.n_shared(), 2U);
    TokenHistory copy;
    EXPECT_TRUE(copy.copy_from(history, -1, -1));
    EXPECT_EQ(copy.n_shared(), 2U);
    TokenHistory restored;
    restored.restore(history.snapshot());
    EXPECT_EQ(restored.n_shared(), 0U);  // saved rows come back in cells of their own
    history.set_twin(1, {});
    EXPECT_EQ(history.n_shared(), 1U);
    history.forget_twin();
    EXPECT_EQ(history.n_shared(), 0U);
}

TEST(TokenHistory, RemovingAllForgetsEverything) {
    TokenHistory history = history_of(4, 4, {0, 1, 2});
    history.remove(0, 2);  // two dropped hesitations
    history.remove(-1, -1);
    const auto snapshot = history.snapshot();
    EXPECT_EQ(snapshot.dropped_hesitations, 0U);
    EXPECT_FALSE(snapshot.seen_output);
    history.append(1, 0, Scope::generated, false);
    EXPECT_EQ(text(history), "1@0-");
    EXPECT_EQ(history.draw_for_hesitation(0, 1), (DrawId{0, 1}));
}

TEST(TokenHistory, DrawNeverChangesWithoutRedraw) {
    const TokenHistory history = history_of(6, 0, {1, 2, 4});
    for (size_t row = 0; row < 6; ++row) EXPECT_EQ(history.draw_for_hesitation(row, 0).index, 0U) << row;
    // the draw began with the first hesitation: noise that depends on the length keeps that length
    EXPECT_EQ(history.draw_for_hesitation(1, 0).length, 2U);
    EXPECT_EQ(history.draw_for_hesitation(2, 0).length, 2U);
    EXPECT_EQ(history.draw_for_hesitation(5, 0).length, 2U);
}

TEST(TokenHistory, ANewDrawAtEachHesitation) {
    const TokenHistory history = history_of(6, 0, {1, 2, 4});
    EXPECT_EQ(history.draw_for_hesitation(1, 1), (DrawId{0, 2}));
    EXPECT_EQ(history.draw_for_hesitation(2, 1), (DrawId{1, 3}));
    EXPECT_EQ(history.draw_for_hesitation(4, 1), (DrawId{2, 5}));
    EXPECT_EQ(history.draw_for_hesitation(5, 1), (DrawId{3, 6}));  // if it came to hesitate
}

TEST(TokenHistory, ANewDrawAtEveryThirdHesitation) {
    const TokenHistory history = history_of(10, 0, {0, 2, 3, 5, 6, 8, 9});
    const std::vector<std::pair<size_t, DrawId>> expected{{0, {0, 1}}, {2, {0, 1}}, {3, {0, 1}}, {5, {1, 6}},
                                                          {6, {1, 6}}, {8, {1, 6}}, {9, {2, 10}}};
    for (const auto & [row, draw] : expected) EXPECT_EQ(history.draw_for_hesitation(row, 3), draw) << row;
}

TEST(TokenHistory, RemovingTheTailTakesItsHesitationsBack) {
    TokenHistory history = history_of(6, 0, {1, 3, 5});
    history.remove(3, -1);  // rejected by speculation
    EXPECT_EQ(history.snapshot().dropped_hesitations, 0U);
    history.append(200, 3, Scope::all, true);
    EXPECT_EQ(history.draw_for_hesitation(3, 1), (DrawId{1, 4}));
    history.mark_hesitation(3, true);
    history.mark_hesitation(3, false);  // judged anew
    history.append(201, 4, Scope::all, true);
    EXPECT_EQ(history.draw_for_hesitation(4, 1), (DrawId{1, 5}));
}

TEST(TokenHistory, RemovingTheMiddleKeepsCountingItsHesitations) {
    TokenHistory history = history_of(8, 0, {1, 3, 5, 6});
    const DrawId before = history.draw_for_hesitation(7, 1);
    EXPECT_EQ(before.index, 4U);
    history.remove(1, 4);  // a context shift: draws 0 and 1 are used up
    EXPECT_EQ(history.snapshot().dropped_hesitations, 2U);
    EXPECT_EQ(history.draw_for_hesitation(4, 1).index, 4U);
    EXPECT_EQ(history.draw_for_hesitation(4, 3).index, 1U);
    history.remove(5, -1);  // rows 105 .. 107
    EXPECT_EQ(history.snapshot().dropped_hesitations, 2U);
    EXPECT_EQ(history.draw_for_hesitation(history.size() - 1, 1).index, 2U);
}

TEST(TokenHistory, ADrawWhoseFirstHesitationWasDroppedBeginsHere) {
    TokenHistory history = history_of(6, 0, {0, 1, 3});
    history.remove(0, 2);
    EXPECT_EQ(history.draw_for_hesitation(1, 3), (DrawId{0, 2}));  // row 1 is the token at position 3
}

TEST(TokenHistory, CopiesIntoAnEmptyOne) {
    TokenHistory source = history_of(6, 4, {1, 2});
    source.set_prompt_end(2, Scope::generated);
    source.set_twin(4, {3, 7});
    source.remove(0, 1);
    TokenHistory whole;
    EXPECT_TRUE(whole.copy_from(source, -1, -1));
    EXPECT_EQ(text(whole), text(source));
    EXPECT_EQ(whole.n_twin(), 3U);
    EXPECT_EQ(whole.twin_draw(), (DrawId{3, 7}));
    for (const uint32_t redraw : {0U, 1U, 3U}) {
        EXPECT_EQ(whole.draw_for_hesitation(4, redraw), source.draw_for_hesitation(4, redraw)) << redraw;
    }
    EXPECT_FALSE(whole.would_reframe(1, Scope::generated));
    EXPECT_TRUE(whole.would_reframe(2, Scope::generated));

    TokenHistory part;
    EXPECT_TRUE(part.copy_from(source, 2, 4));
    EXPECT_EQ(text(part), "102@2! 103@3");
    EXPECT_EQ(part.n_twin(), 2U);
    TokenHistory nothing;
    EXPECT_TRUE(nothing.copy_from(source, 10, 20));
    EXPECT_TRUE(nothing.empty());
    EXPECT_EQ(nothing.n_twin(), 0U);
}

TEST(TokenHistory, CopiesBehindRowsThatAreThere) {
    const TokenHistory source = history_of(6, 6);
    TokenHistory head;
    head.append(1, 0, Scope::all, false);
    head.append(2, 1, Scope::all, false);
    head.set_twin(2, {});
    EXPECT_FALSE(head.copy_from(source, 2, 4));  // the twins are to be emptied
    EXPECT_EQ(text(head), "1@0 2@1 102@2 103@3");
    TokenHistory tail;
    tail.append(9, 4, Scope::all, false);
    EXPECT_FALSE(tail.copy_from(source, 0, 4));  // in front of them
    EXPECT_EQ(text(tail), "100@0 101@1 102@2 103@3 9@4");
}

TEST(TokenHistory, ShiftsPositionsAndKeepsMaskPositions) {
    TokenHistory history = history_of(8, 5, {2, 6});
    history.remove(2, 5);
    EXPECT_EQ(history.n_twin(), 2U);
    EXPECT_TRUE(history.add(5, -1, -3));
    EXPECT_EQ(text(history), "100@0 101@1 105@2/5 106@3/6! 107@4/7");
    EXPECT_EQ(history.next_position(), 5);
    EXPECT_EQ(history.n_twin(), 2U);
    history.append(200, 5, Scope::all, true);
    EXPECT_TRUE(history.add(1, 3, 0));
    EXPECT_EQ(text(history), "100@0 101@1 105@2/5 106@3/6! 107@4/7 200@5");
}

TEST(TokenHistory, ShiftingBelowZeroDropsRowsAndTwins) {
    TokenHistory history = history_of(5, 4);
    EXPECT_FALSE(history.add(-1, -1, -2));
    EXPECT_EQ(text(history), "102@0/2 103@1/3 104@2/4");
}

TEST(TokenHistory, ShiftingBelowZeroKeepsCountingHesitations) {
    TokenHistory history = history_of(5, 0, {0, 1, 3});
    const DrawId before = history.draw_for_hesitation(4, 1);
    EXPECT_FALSE(history.add(-1, -1, -2));
    EXPECT_EQ(history.draw_for_hesitation(2, 1).index, before.index);
}

TEST(TokenHistory, ShiftingPastOtherRowsReordersThem) {
    TokenHistory history = history_of(4, 4);
    EXPECT_FALSE(history.add(0, 1, 10));  // the twins are no prefix any more
    EXPECT_EQ(text(history), "101@1 102@2 103@3 100@10/0");
    TokenHistory collision = history_of(3, 3);
    EXPECT_FALSE(collision.add(2, -1, -1));  // two rows at position 1
}

TEST(TokenHistory, DividesPositions) {
    TokenHistory history;
    for (llama_pos p = 0; p < 4; ++p) history.append(p, 4 * p, Scope::all, false);
    EXPECT_TRUE(history.divide(4, -1, 2));
    EXPECT_EQ(text(history), "0@0 1@2/4 2@4/8 3@6/12");
    EXPECT_TRUE(history.divide(-1, -1, 2));
    EXPECT_EQ(text(history), "0@0 1@1/4 2@2/8 3@3/12");
    EXPECT_FALSE(history.divide(-1, -1, 2));  // two rows at each position (self-extend): no prefix of rows any more
    EXPECT_EQ(text(history), "0@0 1@0/4 2@1/8 3@1/12");
}

TEST(TokenHistory, ClearsAndForgets) {
    TokenHistory history = history_of(4, 3, {1});
    history.forget_twin();
    EXPECT_EQ(history.n_twin(), 0U);
    EXPECT_EQ(history.size(), 4U);
    history.clear();
    EXPECT_TRUE(history.empty());
    EXPECT_EQ(history.next_position(), 0);
}

TEST(TokenHistory, SnapshotRoundTrip) {
    TokenHistory history = history_of(8, 3, {1, 3, 5});
    history.remove(1, 3);
    EXPECT_TRUE(history.add(3, -1, -2));
    history.set_twin(2, {5, 9});
    history.set_prompt_end(4, Scope::generated);
    TokenHistory other = history_of(2);
    other.restore(history.snapshot());
    EXPECT_EQ(text(other), text(history));
    EXPECT_EQ(other.n_twin(), 2U);
    EXPECT_EQ(other.twin_draw(), (DrawId{5, 9}));
    for (const uint32_t redraw : {0U, 1U, 3U}) {
        EXPECT_EQ(other.draw_for_hesitation(5, redraw), history.draw_for_hesitation(5, redraw));
    }
    for (const llama_pos p : {3, 4, 9}) {
        EXPECT_EQ(other.would_reframe(p, Scope::generated), history.would_reframe(p, Scope::generated)) << p;
    }
}

TEST(TokenHistory, RefusesInconsistentSnapshots) {
    const auto refused = [](TokenHistory::Snapshot snapshot) {
        TokenHistory history = history_of(2, 1);
        try {
            history.restore(std::move(snapshot));
        } catch (const Error & error) {
            EXPECT_EQ(error.code(), ErrorCode::invalid_state);
            EXPECT_EQ(text(history), "100@0 101@1");  // untouched
            EXPECT_EQ(history.n_twin(), 1U);
            return true;
        }
        return false;
    };
    const auto good = history_of(3, 3).snapshot();
    EXPECT_FALSE(refused(good));
    auto long_twin = good;
    long_twin.n_twin = 4;
    EXPECT_TRUE(refused(long_twin));
    long_twin.n_twin = ~uint64_t{0};
    EXPECT_TRUE(refused(long_twin));
    auto twice = good;
    twice.rows[2].position = twice.rows[1].position;
    EXPECT_TRUE(refused(twice));
    auto back = good;
    back.rows[1].position = 7;
    EXPECT_TRUE(refused(back));
}

}  // namespace
}  // namespace harp::forward
