// Sequence on a fake of each kind of memory: tables of rows before and after operations; and random operations, after
// each of which clean stream and twins must hold exactly what a simple model says.
#include "forward/sequence.h"

#include <gtest/gtest.h>

#include <array>
#include <functional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "support/fake_memory.h"

namespace harp::forward {
namespace {

using testing::FakeMemory;
using Kind = FakeMemory::Kind;

constexpr int32_t n_vocab = 1000;
constexpr BatchLimits limits = {.n_vocab = n_vocab, .n_embd = 2};

Options options_with(Scope scope, uint32_t redraw = 0, uint32_t reframings = 1) {
    Options options;
    options.scope = scope;
    options.redraw = redraw;
    options.reframings = reframings;
    return options;
}

std::string clean_content(const Row & row) {
    return std::to_string(row.token);
}

/// What a twin's row should hold. A clean row is equal to the clean stream's; in a copied prompt it is the same cell.
std::string twin_content(const Sequence & sequence, size_t i, const Draw & draw, size_t reframing) {
    const Row & row = sequence.rows()[i];
    if (!sequence.view().is_reframed(i)) return clean_content(row);
    return clean_content(row) + "/" + std::to_string(row.ordinal) + "/" + std::to_string(draw.index) + "/" +
           std::to_string(sequence.mask_family()) + "/" + std::to_string(reframing);
}

/// Sequences, with the decodes that ForwardPass would do.
struct Pass {
    FakeMemory memory;
    std::vector<Sequence> sequences;

    Pass(Kind kind, size_t n, const Options & options) : memory(kind) {
        const auto n_twins = static_cast<llama_seq_id>(options.reframings);
        for (size_t s = 0; s < n; ++s) {
            const auto id = static_cast<llama_seq_id>(s);
            Sequence::Ids ids{id * (1 + n_twins), {}};
            for (llama_seq_id r = 0; r < n_twins; ++r) ids.twins.push_back(ids.clean + 1 + r);
            sequences.emplace_back(memory, id, ids, options);
        }
    }
    Sequence & operator[](size_t s) { return sequences[s]; }

    /// Decodes one row at the end of the sequence.
    void decode(size_t s, llama_token token, bool is_output = true, bool hesitates = false) {
        Sequence & sequence = sequences[s];
        sequence.share_prompt();
        const size_t i = sequence.append(token, sequence.next_position(), is_output);
        memory.decode(sequence.ids().clean, sequence.rows()[i].position, clean_content(sequence.rows()[i]));
        if (!hesitates) return;
        sequence.mark_hesitation(i, true);
        catch_up(s);
    }
    void decode_many(size_t s, llama_token first, size_t n) {
        for (size_t i = 0; i < n; ++i) decode(s, first + static_cast<llama_token>(i));
    }
    /// Runs a second pass for a hesitation at the last row.
    void catch_up(size_t s) {
        Sequence & sequence = sequences[s];
        if (sequence.size() == 0) return;
        const size_t last = sequence.size() - 1;
        if (!has_masks(sequence.options().view) && !sequence.view().differs_at(last)) return;
        const Draw draw = sequence.due_draw(last);
        sequence.cut_twins(draw == sequence.twin_draw() ? last : sequence.n_clean_prefix());
        sequence.share_prompt_again();
        complete(s, draw);
    }
    void complete(size_t s, const Draw & draw) {
        Sequence & sequence = sequences[s];
        for (size_t r = 0; r < sequence.options().reframings; ++r) {
            for (const ViewRow & row : sequence.view().read(sequence.n_twin(), sequence.size())) {
                memory.decode(sequence.ids().twins[r], row.position,
                              row.is_reframed ? twin_content(sequence, row.index, draw, r) : std::to_string(row.token));
            }
        }
        sequence.twins_hold(sequence.size(), draw);
        if (sequence.options().view == View::last) sequence.empty_twins();
    }
    /// Like ForwardPass: before rows in the middle are removed, twins that stay in use decode their pending rows.
    bool remove(size_t s, llama_pos p0, llama_pos p1) {
        Sequence & sequence = sequences[s];
        const bool is_middle = p1 >= 0 && p1 < sequence.next_position();
        const bool has_copies = sequence.n_twin() > 0 && has_masks(sequence.options().view);
        if (is_middle && has_copies && sequence.due_draw(sequence.size()) == sequence.twin_draw()) {
            complete(s, sequence.twin_draw());
        }
        return sequence.remove(p0, p1);
    }
    [[nodiscard]] std::vector<uint8_t> save(size_t s, llama_state_seq_flags flags = 0) const {
        return sequences[s].saved_with_memory(flags);
    }
    void load(size_t s, const std::vector<uint8_t> & bytes, llama_state_seq_flags flags = 0) {
        Reader in(bytes);
        sequences[s].load_with_memory(in, &limits, flags);
    }
};

/// For each row "token@position", "/ordinal" if that differs from the position, "!" if hesitated, "-" if not reframed.
std::string text(const Sequence & sequence) {
    std::string out;
    for (size_t i = 0; i < sequence.size(); ++i) {
        const Row & row = sequence.rows()[i];
        if (!out.empty()) out += ' ';
        out.append(std::to_string(row.token)).append("@").append(std::to_string(row.position));
        if (row.ordinal != static_cast<uint32_t>(row.position)) out.append("/").append(std::to_string(row.ordinal));
        if (row.hesitated) out += '!';
        if (!sequence.view().is_reframed(i)) out += '-';
    }
    return out;
}

// ---------------------------------------------------------------------------------------------------------------------
// Tables

TEST(Sequence, ScopeGeneratedLeavesRowsUpToTheFirstOutputClean) {
    Pass pass(Kind::unified, 1, options_with(Scope::generated));
    pass.decode(0, 1, false);
    pass.decode(0, 2, true);  // the first output row is still prompt
    pass.decode(0, 3, true);
    pass.decode(0, 4, false);
    EXPECT_EQ(text(pass[0]), "1@0- 2@1- 3@2 4@3");
    EXPECT_EQ(pass[0].n_clean_prefix(), 2U);
    // after a cut inside the prompt the prompt is open again; after a later cut it is not
    ASSERT_TRUE(pass.remove(0, 2, -1));
    pass.decode(0, 5);
    EXPECT_EQ(text(pass[0]), "1@0- 2@1- 5@2");
    ASSERT_TRUE(pass.remove(0, 1, -1));
    pass.decode(0, 6);
    EXPECT_EQ(text(pass[0]), "1@0- 6@1-");
}

TEST(Sequence, ScopeGeneratedWithAPromptEndThatWasSet) {
    Pass pass(Kind::unified, 1, options_with(Scope::generated));
    pass[0].set_prompt_end(3);
    pass.decode_many(0, 0, 5);
    EXPECT_EQ(text(pass[0]), "0@0- 1@1- 2@2- 3@3 4@4");
    // the conversation continues: generated rows are prompt now
    pass.complete(0, {});
    pass[0].set_prompt_end(6);
    EXPECT_EQ(pass[0].n_twin(), 3U) << "rows that are as before";
    pass.decode_many(0, 5, 2);
    EXPECT_EQ(text(pass[0]), "0@0- 1@1- 2@2- 3@3- 4@4- 5@5- 6@6");
    // with an earlier end
    pass.complete(0, {});
    pass[0].set_prompt_end(2);
    EXPECT_EQ(pass[0].n_twin(), 2U);
    EXPECT_EQ(text(pass[0]), "0@0- 1@1- 2@2 3@3 4@4 5@5 6@6");
    pass.complete(0, {});
    pass[0].set_prompt_end(2);
    EXPECT_EQ(pass[0].n_twin(), 7U) << "nothing changed";
}

/// Prompt 0 to 2, answer 3 to 5; then other masks, so that the twin begins anew.
void begin_anew(Pass & pass) {
    pass[0].set_prompt_end(3);
    pass.decode_many(0, 0, 6);
    pass.catch_up(0);
    Options other = options_with(Scope::generated);
    other.seed = 7;
    pass[0].set_options(other, 0);
    EXPECT_EQ(pass[0].n_twin(), 0U);
}

TEST(Sequence, ATwinThatBeginsAnewSharesACleanPrompt) {
    Pass pass(Kind::unified, 1, options_with(Scope::generated));
    begin_anew(pass);
    pass[0].share_prompt_again();
    EXPECT_EQ(pass[0].n_twin(), 3U);
    EXPECT_EQ(pass.memory.contents(pass[0].ids().twins[0]), "0:0 1:1 2:2 ");
    pass.catch_up(0);
    pass[0].add(1, -1, 5);  // shared cells move once
    EXPECT_EQ(pass.memory.contents(pass[0].ids().twins[0]).substr(0, 12), "0:0 6:1 7:2 ");
    EXPECT_EQ(pass[0].disagreement(), "");

    Pass divided(Kind::unified, 1, options_with(Scope::generated));
    begin_anew(divided);
    divided[0].divide(0, -1, 2);  // positions 0 0 1 | 1 2 2: the answer begins where the prompt ends
    divided[0].share_prompt_again();
    EXPECT_EQ(divided[0].n_twin(), 0U);
    Pass streams(Kind::streams, 1, options_with(Scope::generated));
    begin_anew(streams);
    streams[0].share_prompt_again();
    EXPECT_EQ(streams[0].n_twin(), 0U) << "only whole sequences can be copied";
}

TEST(Sequence, APromptsEndFollowsAContextShift) {
    for (const bool is_set : {true, false}) {
        Pass pass(Kind::unified, 1, options_with(Scope::generated));
        if (is_set) pass[0].set_prompt_end(10);
        for (llama_token t = 0; t < 20; ++t) pass.decode(0, t, t >= 9);
        ASSERT_TRUE(pass.remove(0, 4, 16));
        pass[0].add(16, -1, -12);
        EXPECT_EQ(text(pass[0]), "0@0- 1@1- 2@2- 3@3- 16@4/16 17@5/17 18@6/18 19@7/19");
        pass.decode(0, 20);
        EXPECT_TRUE(pass[0].view().is_reframed(8)) << "position 8 was prompt once";
        ASSERT_TRUE(pass.remove(0, 4, -1));
        pass.decode(0, 21);
        EXPECT_EQ(pass[0].view().is_reframed(4), is_set) << "what follows the prompt whose end was set is an answer";
    }
}

TEST(Sequence, NoTwoRowsShareMasksAfterAContextShift) {
    Pass pass(Kind::unified, 1, options_with(Scope::all));
    pass.decode_many(0, 100, 8);
    ASSERT_TRUE(pass.remove(0, 2, 5));
    pass[0].add(5, -1, -3);
    pass.decode(0, 200);
    EXPECT_EQ(text(pass[0]), "100@0 101@1 105@2/5 106@3/6 107@4/7 200@5/8");
    ASSERT_TRUE(pass.remove(0, 5, -1));
    EXPECT_EQ(pass[0].next_ordinal(), 8U) << "decoded anew, a row has the masks that it had";
}

TEST(Sequence, HesitationsOfThePromptAreForgotten) {
    Pass pass(Kind::streams, 1, options_with(Scope::all, 2));
    for (llama_token t = 0; t < 6; ++t) pass.decode(0, t, true, true);
    EXPECT_EQ(pass[0].due_draw(5).index, 2U);
    pass[0].set_prompt_end(4);
    EXPECT_EQ(pass[0].due_draw(4).index, 0U);
    EXPECT_EQ(pass[0].due_draw(5).index, 0U);
}

TEST(Sequence, TheSamePromptEndAgainChangesNothing) {
    Pass pass(Kind::streams, 1, options_with(Scope::all, 1));
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
    Pass pass(Kind::streams, 1, options);
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
    Pass pass(Kind::unified, 1, options_with(Scope::all, 1));
    pass.decode_many(0, 0, 8);
    for (const size_t i : {1U, 3U, 5U, 6U}) pass[0].mark_hesitation(i, true);
    EXPECT_EQ(pass[0].due_draw(7).index, 4U);
    ASSERT_TRUE(pass.remove(0, 1, 4));  // draws 0 and 1 are used up
    EXPECT_EQ(pass[0].due_draw(4).index, 4U);
    ASSERT_TRUE(pass.remove(0, 5, -1));  // a removed tail takes its hesitations with it
    EXPECT_EQ(pass[0].due_draw(1).index, 2U);
    pass[0].add(-1, -1, -4);  // rows shifted below zero are removed
    EXPECT_EQ(text(pass[0]), "4@0/4");
    pass.remove(0, -1, -1);
    EXPECT_EQ(pass[0].next_ordinal(), 0U) << "all forgotten";
}

TEST(Sequence, ShiftsThatReorderRowsEmptyTheTwins) {
    for (const auto & change : std::vector<std::function<void(Sequence &)>>{
             [](Sequence & s) { s.add(0, 1, 10); }, [](Sequence & s) { s.divide(-1, -1, 2); }}) {
        Pass pass(Kind::unified, 1, options_with(Scope::all));
        pass.decode_many(0, 100, 4);
        pass.complete(0, {});
        change(pass[0]);
        EXPECT_EQ(pass[0].n_twin(), 0U);
        EXPECT_EQ(pass[0].disagreement(), "");
    }
}

TEST(Sequence, ACopyBringsOptionsAlongWhereItReplaces) {
    Pass pass(Kind::unified, 2, options_with(Scope::all));
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
    EXPECT_EQ(text(pass[1]), text(pass[0]));
    EXPECT_EQ(pass[1].n_twin(), 0U);
}

TEST(Sequence, APromptOfCopiedPartsIsAPrompt) {
    for (const bool is_set : {true, false}) {
        Pass pass(Kind::unified, 2, options_with(Scope::generated));
        if (is_set) pass[0].set_prompt_end(6);
        for (llama_token t = 0; t < 9; ++t) pass.decode(0, t, /*is_output=*/t >= 5);
        pass[1].copy_from(pass[0], 0, 3);
        pass[1].copy_from(pass[0], 3, 5);
        EXPECT_EQ(text(pass[1]), "0@0- 1@1- 2@2- 3@3- 4@4-") << is_set;
        pass[1].copy_from(pass[0], 5, 8);
        EXPECT_EQ(text(pass[1]), "0@0- 1@1- 2@2- 3@3- 4@4- 5@5- 6@6 7@7") << is_set;
        pass.decode(1, 8);
        EXPECT_TRUE(pass[1].view().is_reframed(8)) << is_set;
    }
}

TEST(Sequence, APartIsCopiedWithSharedCellsOnly) {
    Pass pass(Kind::streams, 2, options_with(Scope::all));
    pass.decode_many(0, 100, 6);
    EXPECT_THROW(pass[1].copy_from(pass[0], 0, 4), Error);
    EXPECT_EQ(pass[1].size(), 0U);
    pass[1].copy_from(pass[0], -1, -1);
    EXPECT_EQ(text(pass[1]), text(pass[0]));
}

TEST(Sequence, AShiftMovesTheCellsOfOneSequenceAlone) {
    Pass pass(Kind::unified, 2, options_with(Scope::generated));
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
    Pass pass(Kind::sliding_window, 1, options_with(Scope::all));
    pass.decode_many(0, 100, 4);
    EXPECT_THROW(pass[0].add(2, -1, 1), Error);
    EXPECT_THROW(pass[0].divide(0, -1, 2), Error);
    EXPECT_NO_THROW(pass[0].add(2, -1, 0));
    EXPECT_EQ(text(pass[0]), "100@0 101@1 102@2 103@3");
}

TEST(Sequence, WhatAWindowHasDroppedCannotComeBack) {
    Pass pass(Kind::sliding_window, 1, options_with(Scope::all));
    pass.decode_many(0, 100, 20);
    pass.complete(0, {});
    const std::string before = text(pass[0]);
    EXPECT_FALSE(pass.remove(0, 12, -1));
    EXPECT_EQ(text(pass[0]), before);
    EXPECT_EQ(pass[0].n_twin(), 20U);
    EXPECT_TRUE(pass.remove(0, 20, -1)) << "nothing";
    EXPECT_TRUE(pass.remove(0, -1, -1)) << "all";
    EXPECT_EQ(pass[0].size(), 0U);
}

TEST(Sequence, WhatIsRecurrentCannotBeCut) {
    for (const Kind kind : {Kind::recurrent, Kind::hybrid}) {
        Pass pass(kind, 1, options_with(Scope::all));
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

// ---------------------------------------------------------------------------------------------------------------------
// State

TEST(Sequence, ALoadedStateReplacesTwinsThatAreInUse) {
    for (const Kind kind : {Kind::unified, Kind::streams, Kind::sliding_window, Kind::recurrent, Kind::hybrid}) {
        Pass pass(kind, 1, options_with(Scope::all));
        pass.decode_many(0, 100, 5);
        const auto saved = pass.save(0);  // twins empty
        pass.decode(0, 200, true, true);
        pass.decode(0, 201, true, true);
        pass.load(0, saved);
        EXPECT_EQ(text(pass[0]), "100@0 101@1 102@2 103@3 104@4");
        EXPECT_EQ(pass[0].n_twin(), 0U);
        EXPECT_EQ(pass.memory.last(pass[0].ids().twins[0]), -1);
    }
}

TEST(Sequence, DamagedStatesAreRefused) {
    Pass pass(Kind::streams, 1, options_with(Scope::generated));
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
        Pass pass(kind, 1, options_with(Scope::all));
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

// ---------------------------------------------------------------------------------------------------------------------
// Random operations against a model

/// What the operations should leave, as a list of rows.
struct Model {
    struct Item {
        llama_token token;
        llama_pos position;
        uint32_t ordinal;
        bool operator==(const Item &) const = default;
    };
    std::vector<Item> items;

    void append(llama_token token) {
        items.push_back(
            {token, items.empty() ? 0 : items.back().position + 1, items.empty() ? 0 : items.back().ordinal + 1});
    }
    void remove(llama_pos p0, llama_pos p1) {
        std::erase_if(items, [=](const Item & i) { return i.position >= p0 && (p1 < 0 || i.position < p1); });
    }
    void add(llama_pos p0, llama_pos delta) {
        for (Item & i : items) i.position += i.position >= p0 ? delta : 0;
    }
};

struct Fuzz {
    static constexpr size_t n_sequences = 3;

    Kind kind;
    std::mt19937 random;
    Pass pass;
    std::vector<Model> models = std::vector<Model>(n_sequences);
    struct Saved {
        std::vector<uint8_t> bytes;
        Model model;
        size_t sequence;
        bool is_partial;
    };
    std::vector<Saved> saved;
    std::string log;

    Fuzz(Kind k, uint32_t seed, const Options & options) : kind(k), random(seed), pass(k, n_sequences, options) {}

    int pick(int n) { return static_cast<int>(random() % static_cast<uint32_t>(n)); }

    void step() {
        const auto s = static_cast<size_t>(pick(n_sequences));
        Sequence & sequence = pass[s];
        Model & model = models[s];
        const llama_pos end = sequence.next_position();
        const int what = pick(14);
        log += std::to_string(what) + "(" + std::to_string(s) + ") ";
        switch (what) {
            case 0:
            case 1:
            case 2:
            case 3:
                for (int i = 0; i < 1 + pick(4); ++i) {
                    const llama_token token = pick(n_vocab);
                    model.append(token);
                    pass.decode(s, token, pick(2) == 0, pick(2) == 0);
                }
                break;
            case 4: {  // tail
                const llama_pos from = pick(end + 2);
                if (pass.remove(s, from, -1)) model.remove(from, -1);
                break;
            }
            case 5: {  // context shift
                if (end < 4 || !pass.memory.kind().can_shift) break;
                const llama_pos p0 = 1 + pick(end - 3), p1 = p0 + 1 + pick(end - p0 - 1);
                if (!pass.remove(s, p0, p1)) break;
                model.remove(p0, p1);
                sequence.add(p1, -1, p0 - p1);
                model.add(p1, p0 - p1);
                break;
            }
            case 6: {  // copy
                const auto other = static_cast<size_t>(pick(n_sequences));
                if (other == s) break;
                if (kind == Kind::unified) {
                    pass[other].clear();
                    models[other].items.clear();
                }
                pass[other].copy_from(sequence, -1, -1);
                models[other] = model;
                break;
            }
            case 7: saved.push_back({pass.save(s), model, s, false}); break;
            case 8: {
                if (saved.empty()) break;
                const Saved & one = saved[static_cast<size_t>(pick(static_cast<int>(saved.size())))];
                if (one.is_partial) break;
                pass.load(s, one.bytes);
                model = one.model;
                break;
            }
            case 9: {  // a checkpoint, and a return to it
                constexpr llama_state_seq_flags partial = LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY;
                if (kind != Kind::sliding_window && kind != Kind::hybrid) break;
                const auto bytes = pass.save(s, partial);
                const Model before = model;
                for (int i = 0; i < pick(9); ++i) pass.decode(s, pick(n_vocab), true, pick(2) == 0);
                pass.load(s, bytes, partial);
                model = before;
                break;
            }
            case 10: sequence.set_prompt_end(pick(end + 4)); break;
            case 11: {
                Options options = sequence.options();
                options.seed = static_cast<uint64_t>(pick(2));
                options.redraw = static_cast<uint32_t>(pick(3));
                options.scope = pick(2) == 0 ? Scope::all : Scope::generated;
                options.view = static_cast<View>(pick(4));
                options.view_tokens = static_cast<uint32_t>(1 + pick(5));
                sequence.set_options(options, static_cast<uint32_t>(pick(2)));
                sequence.set_negative_prompt(std::vector<llama_token>(static_cast<size_t>(pick(3)), pick(n_vocab)));
                break;
            }
            case 12: {  // a decode that fails in the middle
                const size_t n = sequence.size();
                sequence.share_prompt();
                for (int i = 0; i < 3; ++i) {
                    const size_t row = sequence.append(pick(n_vocab), sequence.next_position(), true);
                    if (i < 2) memory_decode(sequence.ids().clean, sequence, row);
                }
                if (sequence.n_twin() == n && n > 0) {
                    const ViewRow row = sequence.view().read(n, n + 1).back();
                    pass.memory.decode(sequence.ids().twins[0], row.position,
                                       twin_content(sequence, n, sequence.twin_draw(), 0));
                }
                sequence.take_back(n, end);
                if (sequence.size() == 0) model.items.clear();
                break;
            }
            default: sequence.clear(); model.items.clear();
        }
    }
    void memory_decode(llama_seq_id id, const Sequence & sequence, size_t row) {
        pass.memory.decode(id, sequence.rows()[row].position, clean_content(sequence.rows()[row]));
    }

    /// Checks that rows are the model's, and that clean stream and twins hold exactly these.
    void check(size_t s) {
        const Sequence & sequence = pass[s];
        SCOPED_TRACE("sequence " + std::to_string(s) + " after " + log.substr(log.size() > 200 ? log.size() - 200 : 0));
        std::vector<Model::Item> rows;
        for (const Row & row : sequence.rows()) rows.push_back({row.token, row.position, row.ordinal});
        ASSERT_TRUE(rows == models[s].items) << text(sequence);
        ASSERT_EQ(sequence.disagreement(), "");
        Cells clean;
        for (const Row & row : sequence.rows()) clean.emplace_back(row.position, clean_content(row));
        expect_held(sequence.ids().clean, clean);
        for (size_t r = 0; r < sequence.ids().twins.size(); ++r) {
            expect_held(sequence.ids().twins[r], twin_cells(sequence, r));
        }
    }

    using Cells = std::vector<std::pair<llama_pos, std::string>>;
    /// What a twin should hold: the rows; or with guidance the negative prompt or last prompt token, then the answer.
    static Cells twin_cells(const Sequence & sequence, size_t r) {
        Cells cells;
        if (sequence.n_twin() == 0) return cells;
        const ViewOf view = sequence.view();
        size_t begin = 0;
        llama_pos moved = 0;
        if (view.options.view == View::guidance) {
            for (const llama_token token : view.negative_prompt)
                cells.emplace_back(cells.size(), std::to_string(token));
            begin = view.n_prompt - (cells.empty() && view.n_prompt > 0 ? 1 : 0);
            const llama_pos answer = view.n_prompt == 0 ? 0 : sequence.rows()[view.n_prompt - 1].position + 1;
            if (!cells.empty()) moved = static_cast<llama_pos>(cells.size()) - answer;
        }
        for (size_t i = begin; i < sequence.n_twin(); ++i) {
            cells.emplace_back(sequence.rows()[i].position + moved, twin_content(sequence, i, sequence.twin_draw(), r));
        }
        return cells;
    }
    void expect_held(llama_seq_id id, const Cells & expected) {
        std::string cells, window, state;
        const llama_pos end = expected.empty() ? 0 : expected.back().first + 1;
        for (const auto & [position, content] : expected) {
            const std::string cell = std::to_string(position) + ":" + content + " ";
            cells += cell;
            if (position > end - FakeMemory::window) window += cell;
            state += content + " ";
        }
        if (kind == Kind::recurrent) {
            ASSERT_EQ(pass.memory.contents(id), state);
            return;
        }
        ASSERT_EQ(pass.memory.contents(id), cells);
        if (kind == Kind::hybrid) {
            ASSERT_EQ(pass.memory.state_contents(id), state);
        }
        if (kind == Kind::sliding_window) {  // everything that the next row attends to is there
            const std::string held = pass.memory.window_contents(id);
            ASSERT_TRUE(held.size() >= window.size() && held.substr(held.size() - window.size()) == window)
                << "holds " << held << ", wanted " << window;
        }
    }
};

std::string name_of(Kind kind) {
    constexpr std::array<const char *, 5> names = {"Unified", "Streams", "SlidingWindow", "Recurrent", "Hybrid"};
    return names[static_cast<size_t>(kind)];
}

class SequenceFuzz : public ::testing::TestWithParam<Kind> {};

TEST_P(SequenceFuzz, RandomOperationsLeaveWhatTheModelSays) {
    std::array<size_t, 4> n_twin_rows{};  // [View]
    for (uint32_t seed = 0; seed < 60; ++seed) {
        for (const uint32_t reframings : {1U, 2U}) {
            Fuzz fuzz(GetParam(), seed, options_with(seed % 2 == 0 ? Scope::all : Scope::generated, 0, reframings));
            for (int i = 0; i < 150; ++i) {
                fuzz.step();
                for (size_t s = 0; s < Fuzz::n_sequences; ++s) {
                    fuzz.check(s);
                    if (HasFatalFailure()) return;
                    n_twin_rows.at(static_cast<size_t>(fuzz.pass[s].options().view)) += fuzz.pass[s].n_twin();
                }
            }
        }
    }
    for (const View view : {View::perturbed, View::masked, View::guidance}) {
        EXPECT_GT(n_twin_rows.at(static_cast<size_t>(view)), 3000U) << "the twins were in use";
    }
}

INSTANTIATE_TEST_SUITE_P(Kinds, SequenceFuzz,
                         ::testing::Values(Kind::unified, Kind::streams, Kind::sliding_window, Kind::recurrent,
                                           Kind::hybrid),
                         [](const auto & tested) { return name_of(tested.param); });

}  // namespace
}  // namespace harp::forward
