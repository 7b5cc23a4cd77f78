// A text that makes the models hesitate now and then, and its decoding in pieces.
#pragma once

#include <vector>

#include "support/models.h"

namespace harp::testing {

/// The text's token at a place; its ids are in the vocabulary of every model.
llama_token token_at(llama_pos place);
/// Its tokens [begin, end).
std::vector<llama_token> text_of(llama_pos begin, llama_pos end);

/// Decodes tokens [begin, end) in batches of the pass's size, with no logits wanted.
void read(ForwardPass & pass, llama_pos begin, llama_pos end, llama_seq_id sequence = 0);

/// A step: what follows one token.
struct Step {
    std::vector<float> logits;
    StepRecord record;
};
/// Tokens [begin, end) one by one, the invariant checked after each.
/// @param shift from a token's place in the text to its position
std::vector<Step> go_on(ForwardPass & pass, llama_pos begin, llama_pos end, llama_seq_id sequence = 0,
                        llama_pos shift = 0);

/// Same logits within `tolerance`, step by step.
void expect_same_steps(const std::vector<Step> & a, const std::vector<Step> & b, double tolerance);

/// Fails the test unless the mean divergence of the steps is at most `most` nats, all but `n_parted` of them compared.
void expect_agreement(const std::vector<Step> & a, const std::vector<Step> & b, double most, size_t n_parted = 0);

}  // namespace harp::testing
