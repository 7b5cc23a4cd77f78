// Sequence on a fake of each kind of memory: tables of rows before and after operations.
#include "forward/sequence.h"

#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "support/fake_pass.h"

namespace harp::forward {
namespace {

using testing::FakePass;
using testing::options_with;
using testing::rows_as_text;
using Kind = testing::FakeMemory::Kind;

TEST(Sequence, ScopeGeneratedLeavesRowsUpToTheFirstOutputClean) {
    FakePass pass(Kind::unified, 1, options_with(Scope::generated));
    pass.decode(0, 1, false);
    pass.decode(0, 2, true);  // the first output row is still prompt
    pass.decode(0, 3, true);
    pass.decode(0, 4, false);
    EXPECT_EQ(rows_as_text(pass[0]), "1@0- 2@1- 3@2 4@3");
    EXPECT_EQ(pass[0].n_clean_prefix(), 2U);
    // after a cut inside the prompt the prompt is open again; after a later cut it is not
    ASSERT_TRUE(pass.remove(0, 2, -1));
    pass.decode(0, 5);
    EXPECT_EQ(rows_as_text(pass[0]), "1@0- 2@1- 5@2");
    ASSERT_TRUE(pass.remove(0, 1, -1));
    pass.decode(0, 6);
    EXPECT_EQ(rows_as_text(pass[0]), "1@0- 6@1-");
}

TEST(Sequence, ScopeGeneratedWithAPromptEndThatWasSet) {
    FakePass pass(Kind::unified, 1, options_with(Scope::generated));
    pass[0].set_prompt_end(3);
    pass.decode_many(0, 0, 5);
    EXPECT_EQ(rows_as_text(pass[0]), "0@0- 1@1- 2@2- 3@3 4@4");
    // the conversation continues: generated rows are prompt now
    pass.complete(0, {});
    pass[0].set_prompt_end(6);
    EXPECT_EQ(pass[0].n_twin(), 3U) << "rows that are as before";
    pass.decode_many(0, 5, 2);
    EXPECT_EQ(rows_as_text(pass[0]), "0@0- 1@1- 2@2- 3@3- 4@4- 5@5- 6@6");
    // with an earlier end
    pass.complete(0, {});
    pass[0].set_prompt_end(2);
    EXPECT_EQ(pass[0].n_twin(), 2U);
    EXPECT_EQ(rows_as_text(pass[0]), "0@0- 1@1- 2@2 3@3 4@4 5@5 6@6");
    pass.complete(0, {});
    pass[0].set_prompt_end(2);
    EXPECT_EQ(pass[0].n_twin(), 7U) << "nothing changed";
}

/// Prompt 0 to 2, answer 3 to 5; then other masks, so that the twin begins anew.
void begin_anew(FakePass & pass) {
    pass[0].set_prompt_end(3);
    pass.decode_many(0, 0, 6);
    pass.catch_up(0);
    Options other = options_with(Scope::generated);
    other.seed = 7;
    pass[0].set_options(other, 0);
    EXPECT_EQ(pass[0].n_twin(), 0U);
}

TEST(Sequence, ATwinThatBeginsAnewSharesACleanPrompt) {
    FakePass pass(Kind::unified, 1, options_with(Scope::generated));
    begin_anew(pass);
    pass[0].share_prompt_again();
    EXPECT_EQ(pass[0].n_twin(), 3U);
    EXPECT_EQ(pass.memory.contents(pass[0].ids().twins[0]), "0:0 1:1 2:2 ");
    pass.catch_up(0);
    pass[0].add(1, -1, 5);  // shared cells move once
    EXPECT_EQ(pass.memory.contents(pass[0].ids().twins[0]).substr(0, 12), "0:0 6:1 7:2 ");
    EXPECT_EQ(pass[0].disagreement(), "");

    FakePass divided(Kind::unified, 1, options_with(Scope::generated));
    begin_anew(divided);
    divided[0].divide(0, -1, 2);  // positions 0 0 1 | 1 2 2: the answer begins where the prompt ends
    divided[0].share_prompt_again();
    EXPECT_EQ(divided[0].n_twin(), 0U);
    FakePass streams(Kind::streams, 1, options_with(Scope::generated));
    begin_anew(streams);
    streams[0].share_prompt_again();
    EXPECT_EQ(streams[0].n_twin(), 0U) << "only whole sequences can be copied";
}

TEST(Sequence, APromptsEndFollowsAContextShift) {
    for (const bool is_set : {true, false}) {
        FakePass pass(Kind::unified, 1, options_with(Scope::generated));
        if (is_set) pass[0].set_prompt_end(10);
        for (llama_token t = 0; t < 20; ++t) pass.decode(0, t, t >= 9);
        ASSERT_TRUE(pass.remove(0, 4, 16));
        pass[0].add(16, -1, -12);
        EXPECT_EQ(rows_as_text(pass[0]), "0@0- 1@1- 2@2- 3@3- 16@4/16 17@5/17 18@6/18 19@7/19");
        pass.decode(0, 20);
        EXPECT_TRUE(pass[0].view().is_reframed(8)) << "position 8 was prompt once";
        ASSERT_TRUE(pass.remove(0, 4, -1));
        pass.decode(0, 21);
        EXPECT_EQ(pass[0].view().is_reframed(4), is_set) << "what follows the prompt whose end was set is an answer";
    }
}

TEST(Sequence, NoTwoRowsShareMasksAfterAContextShift) {
    FakePass pass(Kind::unified, 1, options_with(Scope::all));
    pass.decode_many(0, 100, 8);
    ASSERT_TRUE(pass.remove(0, 2, 5));
    pass[0].add(5, -1, -3);
    pass.decode(0, 200);
    EXPECT_EQ(rows_as_text(pass[0]), "100@0 101@1 105@2/5 106@3/6 107@4/7 200@5/8");
    ASSERT_TRUE(pass.remove(0, 5, -1));
    EXPECT_EQ(pass[0].next_ordinal(), 8U) << "decoded anew, a row has the masks that it had";
}

TEST(Sequence, HesitationsOfThePromptAreForgotten) {
    FakePass pass(Kind::streams, 1, options_with(Scope::all, 2));
    for (llama_token t = 0; t < 6; ++t) pass.decode(0, t, true, true);
    EXPECT_EQ(pass[0].due_draw(5).index, 2U);
    pass[0].set_prompt_end(4);
    EXPECT_EQ(pass[0].due_draw(4).index, 0U);
    EXPECT_EQ(pass[0].due_draw(5).index, 0U);
}

TEST(Sequence, TheSamePromptEndAgainChangesNothing) {
    FakePass pass(Kind::streams, 1, options_with(Scope::all, 1));
    pass[0].set_prompt_end(2);
    for (llama_token t = 0; t < 6; ++t) pass.decode(0, t, true, true);
    const Draw draw = pass[0].due_draw(5);
    EXPECT_EQ(draw.index, 4U) << "after the hesitations of rows 1 to 4";
    pass[0].set_prompt_end(2);
    EXPECT_EQ(pass[0].due_draw(5), draw);
}

TEST(Sequence, DrawsBeginAtEveryNthHesitation) {
    Options options = options_with(Scope::all, 3);
    options.perturbation = Perturbation::uniform;
    FakePass pass(Kind::streams, 1, options);
    pass.decode_many(0, 0, 10);
    for (const size_t i : {0U, 2U, 3U, 5U, 6U, 8U, 9U}) pass[0].mark_hesitation(i, true);
    const std::vector<std::pair<size_t, Draw>> expected{{0, {0, 1}}, {2, {0, 1}}, {3, {0, 1}}, {5, {1, 6}},
                                                        {6, {1, 6}}, {8, {1, 6}}, {9, {2, 10}}};
    for (const auto & [row, draw] : expected) EXPECT_EQ(pass[0].due_draw(row), draw) << row;
    options.redraw = 0;
    pass[0].set_options(options, 0);
    for (size_t i = 0; i < 10; ++i) EXPECT_EQ(pass[0].due_draw(i), (Draw{0, 1})) << i;
    options.perturbation = Perturbation::dropout;  // whose masks do not depend on the length
    options.redraw = 1;
    pass[0].set_options(options, 0);
    EXPECT_EQ(pass[0].due_draw(9), (Draw{6, 1}));
}

TEST(Sequence, ContextShiftsKeepCountingHesitations) {
    FakePass pass(Kind::unified, 1, options_with(Scope::all, 1));
    pass.decode_many(0, 0, 8);
    for (const size_t i : {1U, 3U, 5U, 6U}) pass[0].mark_hesitation(i, true);
    EXPECT_EQ(pass[0].due_draw(7).index, 4U);
    ASSERT_TRUE(pass.remove(0, 1, 4));  // draws 0 and 1 are used up
    EXPECT_EQ(pass[0].due_draw(4).index, 4U);
    ASSERT_TRUE(pass.remove(0, 5, -1));  // a removed tail takes its hesitations with it
    EXPECT_EQ(pass[0].due_draw(1).index, 2U);
    pass[0].add(-1, -1, -4);  // rows shifted below zero are removed
    EXPECT_EQ(rows_as_text(pass[0]), "4@0/4");
    pass.remove(0, -1, -1);
    EXPECT_EQ(pass[0].next_ordinal(), 0U) << "all forgotten";
}

TEST(Sequence, ShiftsThatReorderRowsEmptyTheTwins) {
    for (const auto & change : std::vector<std::function<void(Sequence &)>>{
             [](Sequence & s) { s.add(0, 1, 10); }, [](Sequence & s) { s.divide(-1, -1, 2); }}) {
        FakePass pass(Kind::unified, 1, options_with(Scope::all));
        pass.decode_many(0, 100, 4);
        pass.complete(0, {});
        change(pass[0]);
        EXPECT_EQ(pass[0].n_twin(), 0U);
        EXPECT_EQ(pass[0].disagreement(), "");
    }
}

TEST(Sequence, ACopyBringsOptionsAlongWhereItReplaces) {
    FakePass pass(Kind::unified, 2, options_with(Scope::all));
    Options other = options_with(Scope::all);
    other.seed = 9;
    pass[0].set_options(other, 77);
    pass.decode_many(0, 100, 6);
    pass.complete(0, {});
    pass[1].copy_from(pass[0], 0, 4);
    EXPECT_EQ(pass[1].options().seed, 9U);
    EXPECT_EQ(pass[1].mask_family(), 77U);
    EXPECT_EQ(pass[1].n_twin(), 4U);
    pass[1].set_options(options_with(Scope::all), 5);
    pass[1].copy_from(pass[0], 4, -1);  // a part after existing rows, which keep what they have
    EXPECT_EQ(pass[1].options().seed, 0U);
    EXPECT_EQ(pass[1].mask_family(), 5U);
    EXPECT_EQ(rows_as_text(pass[1]), rows_as_text(pass[0]));
    EXPECT_EQ(pass[1].n_twin(), 0U);
}

TEST(Sequence, APromptOfCopiedPartsIsAPrompt) {
    for (const bool is_set : {true, false}) {
        FakePass pass(Kind::unified, 2, options_with(Scope::generated));
        if (is_set) pass[0].set_prompt_end(6);
        for (llama_token t = 0; t < 9; ++t) pass.decode(0, t, /*is_output=*/t >= 5);
        pass[1].copy_from(pass[0], 0, 3);
        pass[1].copy_from(pass[0], 3, 5);
        EXPECT_EQ(rows_as_text(pass[1]), "0@0- 1@1- 2@2- 3@3- 4@4-") << is_set;
        pass[1].copy_from(pass[0], 5, 8);
        EXPECT_EQ(rows_as_text(pass[1]), "0@0- 1@1- 2@2- 3@3- 4@4- 5@5- 6@6 7@7") << is_set;
        pass.decode(1, 8);
        EXPECT_TRUE(pass[1].view().is_reframed(8)) << is_set;
    }
}

TEST(Sequence, APartIsCopiedWithSharedCellsOnly) {
    FakePass pass(Kind::streams, 2, options_with(Scope::all));
    pass.decode_many(0, 100, 6);
    EXPECT_THROW(pass[1].copy_from(pass[0], 0, 4), Error);
    EXPECT_EQ(pass[1].size(), 0U);
    pass[1].copy_from(pass[0], -1, -1);
    EXPECT_EQ(rows_as_text(pass[1]), rows_as_text(pass[0]));
}

TEST(Sequence, AShiftMovesTheCellsOfOneSequenceAlone) {
    FakePass pass(Kind::unified, 2, options_with(Scope::generated));
    pass[0].set_prompt_end(4);
    pass.decode_many(0, 100, 8);
    pass.complete(0, {});
    pass[1].copy_from(pass[0], -1, -1);
    const std::string before = pass.memory.contents(pass[0].ids().clean);
    const std::string twin_before = pass.memory.contents(pass[0].ids().twins[0]);
    ASSERT_TRUE(pass.remove(1, 2, 5));
    pass[1].add(5, -1, -3);
    EXPECT_EQ(pass.memory.contents(pass[0].ids().clean), before);
    EXPECT_EQ(pass.memory.contents(pass[0].ids().twins[0]), twin_before);
    EXPECT_EQ(pass.memory.contents(pass[1].ids().clean), "0:100 1:101 2:105 3:106 4:107 ");
}

TEST(Sequence, MemoryThatCannotShiftSaysSo) {
    FakePass pass(Kind::sliding_window, 1, options_with(Scope::all));
    pass.decode_many(0, 100, 4);
    EXPECT_THROW(pass[0].add(2, -1, 1), Error);
    EXPECT_THROW(pass[0].divide(0, -1, 2), Error);
    EXPECT_NO_THROW(pass[0].add(2, -1, 0));
    EXPECT_EQ(rows_as_text(pass[0]), "100@0 101@1 102@2 103@3");
}

TEST(Sequence, WhatAWindowHasDroppedCannotComeBack) {
    FakePass pass(Kind::sliding_window, 1, options_with(Scope::all));
    pass.decode_many(0, 100, 20);
    pass.complete(0, {});
    const std::string before = rows_as_text(pass[0]);
    EXPECT_FALSE(pass.remove(0, 12, -1));
    EXPECT_EQ(rows_as_text(pass[0]), before);
    EXPECT_EQ(pass[0].n_twin(), 20U);
    EXPECT_TRUE(pass.remove(0, 20, -1)) << "nothing";
    EXPECT_TRUE(pass.remove(0, -1, -1)) << "all";
    EXPECT_EQ(pass[0].size(), 0U);
}

TEST(Sequence, WhatIsRecurrentCannotBeCut) {
    for (const Kind kind : {Kind::recurrent, Kind::hybrid}) {
        FakePass pass(kind, 1, options_with(Scope::all));
        pass.decode_many(0, 100, 5);
        pass.complete(0, {});
        EXPECT_FALSE(pass.remove(0, 3, -1));
        EXPECT_FALSE(pass.remove(0, 1, 3));
        EXPECT_EQ(pass[0].size(), 5U);
        EXPECT_EQ(pass[0].n_twin(), 5U);
        pass[0].cut_twins(3);
        EXPECT_EQ(pass[0].n_twin(), 0U) << "they begin anew";
        EXPECT_EQ(pass[0].size(), 5U);
    }
}

}  // namespace
}  // namespace harp::forward
