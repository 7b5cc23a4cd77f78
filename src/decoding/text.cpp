#include "decoding/text.h"

#include <algorithm>
#include <utility>

#include "common.h"

namespace harp::decoding {

namespace {

bool adds_space(const llama_vocab & vocab) {
    const std::vector<llama_token> tokens =
        common_tokenize(&vocab, "a", /*add_special=*/false, /*parse_special=*/false);
    return !tokens.empty() && common_token_to_piece(&vocab, tokens.front()).starts_with(' ');
}

}  // namespace

bool ends_text(const llama_vocab & vocab, llama_token token) {
    constexpr int named = LLAMA_TOKEN_ATTR_CONTROL | LLAMA_TOKEN_ATTR_USER_DEFINED | LLAMA_TOKEN_ATTR_UNKNOWN;
    return (llama_vocab_get_attr(&vocab, token) & named) != 0;
}

std::vector<std::string> pieces_of_text(const llama_vocab & vocab, std::span<const llama_token> tokens,
                                        bool begins_text, bool special) {
    const bool has_added_spaces = adds_space(vocab);
    std::vector<std::string> pieces;
    for (const llama_token token : tokens) {
        std::string piece = common_token_to_piece(&vocab, token, special);
        const bool is_named = ends_text(vocab, token);
        if (has_added_spaces && begins_text && !is_named && piece.starts_with(' ')) piece.erase(0, 1);
        pieces.push_back(std::move(piece));
        begins_text = is_named;
    }
    return pieces;
}

std::vector<llama_token> tokenize_behind(const llama_vocab & vocab, std::span<const llama_token> context,
                                         const std::string & text) {
    const auto tokenize = [&vocab](const std::string & one) {
        return common_tokenize(&vocab, one, /*add_special=*/false, /*parse_special=*/true);
    };
    if (!adds_space(vocab) || context.empty() || ends_text(vocab, context.back())) return tokenize(text);
    if (text.starts_with(' ') && text.size() > 1)
        return tokenize(text.substr(1));  // its own space instead of the added one
    const std::vector<llama_token> before = tokenize("\n");
    std::vector<llama_token> both = tokenize("\n" + text);
    if (!std::ranges::equal(before, std::span(both).first(std::min(before.size(), both.size())))) return tokenize(text);
    both.erase(both.begin(), both.begin() + static_cast<std::ptrdiff_t>(before.size()));
    return both;
}

}  // namespace harp::decoding
