// Tokens and their text, with vocabularies that put a space before each text, as those of SentencePiece do: the first token of "Once" is
// " Once". The space is the vocabulary's own, not the text's.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "llama.h"

namespace harp::decoding {

/// Whether what follows this token is tokenized separately, with a space of its own: behind control tokens, unknown ones, and those that were
/// added to a vocabulary.
[[nodiscard]] bool ends_text(const llama_vocab & vocab, llama_token token);

/// Each token's bytes, without the spaces that the vocabulary put before texts.
/// @param tokens       of the vocabulary
/// @param begins_text  whether the first token does; if not it may continue a text, and keeps its space
/// @param special      control tokens by name; otherwise they are empty
[[nodiscard]] std::vector<std::string> pieces_of_text(const llama_vocab & vocab, std::span<const llama_token> tokens,
                                                      bool begins_text, bool special);

/// Tokens of a text that continues `context`, without the space that the vocabulary puts before a text.
[[nodiscard]] std::vector<llama_token> tokenize_behind(const llama_vocab & vocab, std::span<const llama_token> context,
                                                       const std::string & text);

}  // namespace harp::decoding
