// Texts and tokens of a vocabulary that puts a space before each text: the text that was tokenized comes back.
#include "decoding/text.h"

#include <gtest/gtest.h>

#include "support/models.h"

namespace harp::testing {
namespace {

using Pieces = std::vector<std::string>;
using Tokens = std::vector<llama_token>;
using decoding::pieces_of_text;
using decoding::tokenize_behind;

constexpr llama_token UNKNOWN = 0, BEGIN = 1, ONCE = 403, UPON = 407;

TEST(Text, hasNoAddedSpaceWhereItBegins) {
    HARP_REQUIRE_MODEL(model, stories260k());
    const llama_vocab & vocab = *llama_model_get_vocab(&model);
    EXPECT_EQ(pieces_of_text(vocab, Tokens{ONCE, UPON}, true, true), (Pieces{"Once", " upon"}));
    EXPECT_EQ(pieces_of_text(vocab, Tokens{BEGIN, ONCE, UPON}, true, true), (Pieces{"<s>", "Once", " upon"}));
    EXPECT_EQ(pieces_of_text(vocab, Tokens{UPON, UNKNOWN, ONCE}, true, true), (Pieces{"upon", "<unk>", "Once"}));
}

TEST(Text, keepsTheSpaceOfATextThatGoesOn) {
    HARP_REQUIRE_MODEL(model, stories260k());
    const llama_vocab & vocab = *llama_model_get_vocab(&model);
    EXPECT_EQ(pieces_of_text(vocab, Tokens{ONCE, UPON}, false, false), (Pieces{" Once", " upon"}));
    EXPECT_EQ(pieces_of_text(vocab, Tokens{BEGIN, ONCE}, false, false), (Pieces{"", "Once"}));
    EXPECT_EQ(pieces_of_text(vocab, Tokens{}, false, false), Pieces{});
}

TEST(Text, isContinuedWithoutAnAddedSpace) {
    HARP_REQUIRE_MODEL(model, stories260k());
    const llama_vocab & vocab = *llama_model_get_vocab(&model);
    EXPECT_EQ(tokenize_behind(vocab, Tokens{BEGIN, ONCE}, " upon"), Tokens{UPON});
    EXPECT_EQ(tokenize_behind(vocab, Tokens{BEGIN}, "Once upon"), (Tokens{ONCE, UPON}));
    EXPECT_EQ(tokenize_behind(vocab, Tokens{}, "Once upon"), (Tokens{ONCE, UPON}));
    EXPECT_EQ(tokenize_behind(vocab, Tokens{ONCE}, ""), Tokens{});
    for (const std::string text : {"upon", " ", "  two", ", there"}) {
        std::string back;
        for (const std::string & piece : pieces_of_text(vocab, tokenize_behind(vocab, Tokens{ONCE}, text), false, true))
            back += piece;
        EXPECT_EQ(back, text);
    }
}

}  // namespace
}  // namespace harp::testing
