// How tokens get into a sequence and out again: here they become rows of batches, of one sequence or of several.
#pragma once

#include <cstddef>
#include <functional>
#include <limits>
#include <optional>
#include <span>
#include <vector>

#include "forward/batch_rows.h"
#include "harp/forward_pass.h"

namespace harp::decoding {

/// @throws Error{invalid_option} if there is a negative prompt that the options do not use
void check_negative_prompt(std::span<const llama_token> negative_prompt, const Options & options);

/// The negative prompt if these options read it, else none. @param options nullopt: HARP off
[[nodiscard]] std::vector<llama_token> negative_prompt_for(const std::optional<Options> & options,
                                                           const std::vector<llama_token> & negative_prompt);

/// Tokens that a sequence is to decode after those it holds.
struct Feed {
    llama_seq_id sequence = 0;
    std::span<const llama_token> tokens;
    llama_pos first = 0;  ///< position of tokens[0]
    size_t n_silent = 0;  ///< number of leading tokens whose logits are not wanted
    size_t n_done = 0;    ///< number of leading tokens that are decoded already
};

/// How much a batch still has room for.
struct Room {
    size_t rows = 0;
    size_t outputs = std::numeric_limits<size_t>::max();
};

/// Adds as many of a feed's next tokens to a batch as fit. @return how many
size_t add_rows(forward::BatchRows & rows, Room & room, const Feed & feed);

/// Called after each batch. @return false to stop
using OnFed = std::function<bool(size_t n_done)>;
/// Decodes a whole feed, in batches.
/// @param most_outputs output rows per batch
/// @throws what ForwardPass::decode throws; the batches before the failed one stay
void decode_feed(ForwardPass & pass, Feed feed, const OnFed & on_fed = {},
                 size_t most_outputs = std::numeric_limits<size_t>::max());

/// Cuts a sequence at position `end`. If its memory cannot go back there (a sliding window that has moved on, recurrent
/// state), the sequence is emptied.
/// @return where the sequence now ends: `end` or 0
[[nodiscard]] llama_pos cut_sequence(ForwardPass & pass, llama_seq_id sequence, llama_pos end);

}  // namespace harp::decoding
