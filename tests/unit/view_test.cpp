// Views: tables of what a twin reads of a sequence.
#include "forward/view.h"

#include <gtest/gtest.h>

#include <span>
#include <string>
#include <vector>

namespace harp::forward {
namespace {

/// Rows 100@0, 101@1, ...
std::vector<Row> make_rows(size_t n) {
    std::vector<Row> rows;
    for (size_t i = 0; i < n; ++i) {
        rows.push_back({.token = static_cast<llama_token>(100 + i),
                        .position = static_cast<llama_pos>(i),
                        .ordinal = static_cast<uint32_t>(i),
                        .embedding = {}});
    }
    return rows;
}

/// "token@position", "'" if perturbed or masked, and the row it stands for unless that is the one at its position.
std::string text(const std::vector<ViewRow> & rows) {
    std::string out;
    for (const ViewRow & row : rows) {
        if (!out.empty()) out += ' ';
        out.append(std::to_string(row.token)).append("@").append(std::to_string(row.position));
        if (row.is_reframed) out += '\'';
        if (row.index == ViewRow::none) {
            out += "/none";
        } else if (row.index != static_cast<size_t>(row.position)) {
            out.append("/").append(std::to_string(row.index));
        }
    }
    return out;
}

Options view_options(View view, Scope scope = Scope::all) {
    Options options;
    options.view = view;
    options.scope = scope;
    options.view_tokens = 3;
    return options;
}

TEST(View, WhatATwinReads) {
    const std::vector<Row> rows = make_rows(6);
    const std::vector<llama_token> negative = {7, 8};
    struct Case {
        Options options;
        size_t n_prompt;
        std::vector<llama_token> negative_prompt;
        size_t n_held, end;
        std::string expected;
    };
    const std::vector<Case> cases{
        {view_options(View::perturbed), 3, {}, 0, 4, "100@0' 101@1' 102@2' 103@3'"},
        {view_options(View::perturbed), 3, {}, 2, 4, "102@2' 103@3'"},
        {view_options(View::perturbed, Scope::generated), 3, {}, 1, 5, "101@1 102@2 103@3' 104@4'"},
        {view_options(View::masked, Scope::generated), 3, {}, 2, 4, "102@2 103@3'"},
        {view_options(View::perturbed), 3, negative, 2, 4, "102@2' 103@3'"},
        {view_options(View::guidance), 3, {}, 0, 3, "102@2"},
        {view_options(View::guidance), 3, {}, 0, 5, "102@2 103@3 104@4"},
        {view_options(View::guidance), 3, {}, 4, 5, "104@4"},
        {view_options(View::guidance), 3, negative, 0, 3, "7@0/none 8@1/2"},
        {view_options(View::guidance), 3, negative, 0, 5, "7@0/none 8@1/2 103@2/3 104@3/4"},
        {view_options(View::guidance), 3, negative, 4, 6, "104@3/4 105@4/5"},
        {view_options(View::guidance), 0, negative, 0, 1, "7@0/none 8@1/none 100@2/0"},
        {view_options(View::guidance), 0, {}, 0, 2, "100@0 101@1"},
        {view_options(View::last), 3, {}, 0, 6, "103@3 104@4 105@5"},
        {view_options(View::last), 3, {}, 0, 2, "100@0 101@1"},
    };
    for (const Case & c : cases) {
        const ViewOf view{c.options, rows, c.n_prompt, true, c.negative_prompt};
        EXPECT_EQ(text(view.read(c.n_held, c.end)), c.expected) << get_option(c.options, "view") << " " << c.n_held;
    }
}

TEST(View, ATwinNeedsACellForEachRowThatItReads) {
    const std::vector<llama_token> negative = {7, 8};
    for (const size_t n_prompt : std::vector<size_t>{0, 1, 3, 6}) {
        for (const size_t end : std::vector<size_t>{3, 4, 6}) {
            if (n_prompt > end) continue;
            const std::vector<Row> rows = make_rows(end);
            const auto expect_cells = [&](const Options & options, std::span<const llama_token> negative_prompt = {}) {
                const ViewOf view{options, rows, n_prompt, true, negative_prompt};
                EXPECT_EQ(view.n_cells(end),
                          view.read(0, end).size() - (options.scope == Scope::generated ? n_prompt : 0))
                    << get_option(options, "view") << ", " << n_prompt << " of " << end;
            };
            for (const View each : {View::perturbed, View::masked, View::guidance, View::last})
                expect_cells(view_options(each));
            expect_cells(view_options(View::perturbed, Scope::generated));
            expect_cells(view_options(View::guidance), negative);
        }
    }
}

TEST(View, WhereItDiffersFromTheFirstPass) {
    const std::vector<Row> rows = make_rows(6);
    const std::vector<llama_token> negative = {7};
    const auto differing = [&](const Options & options, size_t n_prompt, bool is_complete,
                               std::span<const llama_token> negative_prompt) {
        std::string out;
        const ViewOf view{options, rows, n_prompt, is_complete, negative_prompt};
        for (size_t i = 0; i < rows.size(); ++i) out += view.differs_at(i) ? '1' : '0';
        return out;
    };
    EXPECT_EQ(differing(view_options(View::perturbed), 3, true, {}), "111111");
    EXPECT_EQ(differing(view_options(View::masked, Scope::generated), 3, true, {}), "000111");
    EXPECT_EQ(differing(view_options(View::guidance), 3, true, {}), "001111");
    EXPECT_EQ(differing(view_options(View::guidance), 6, false, {}), "000000") << "more of the prompt is to come";
    EXPECT_EQ(differing(view_options(View::guidance), 1, true, {}), "000000") << "there is nothing to leave out";
    EXPECT_EQ(differing(view_options(View::guidance), 1, true, negative), "111111");
    EXPECT_EQ(differing(view_options(View::last), 3, true, {}), "000111") << "three rows are all there are";
}

TEST(View, APictureIsNotReadInPart) {
    std::vector<Row> rows = make_rows(6);
    rows[3].embedding.chunk = std::make_shared<EmbeddingChunk>();
    const Options last = view_options(View::last);
    EXPECT_EQ(text(ViewOf{last, rows, 4}.read(0, 6)), "104@4 105@5");
    EXPECT_FALSE((ViewOf{last, rows, 4}.differs_at(3)));
    const Options guidance = view_options(View::guidance);
    EXPECT_FALSE((ViewOf{guidance, rows, 4}.differs_at(5))) << "the prompt ends in a picture";
    EXPECT_TRUE((ViewOf{guidance, rows, 5}.differs_at(5)));
}

}  // namespace
}  // namespace harp::forward
