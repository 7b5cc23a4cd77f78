// A text at which the models hesitate now and then, and functions that decode it in pieces.
#pragma once

#include <vector>

#include "support/models.h"

namespace harp::testing {

/// The text's token at a place; its ids are in the vocabulary of every model.
llama_token token_at(llama_pos place);
/// Its tokens [begin, end).
std::vector<llama_token> text_of(llama_pos begin, llama_pos end);

/// Decodes tokens [begin, end) in batches of the pass's size, without logits.
void read(ForwardPass & pass, llama_pos begin, llama_pos end, llama_seq_id sequence = 0);

/// A step: what follows one token.
struct Step {
    std::vector<float> logits;
    StepRecord record;
};
/// Decodes tokens [begin, end) one by one, checking the invariant after each.
/// @param shift position minus place in the text
std::vector<Step> go_on(ForwardPass & pass, llama_pos begin, llama_pos end, llama_seq_id sequence = 0,
                        llama_pos shift = 0);

/// Expects equal logits within `tolerance`, step by step.
void expect_same_steps(const std::vector<Step> & a, const std::vector<Step> & b, double tolerance);

/// Fails the test unless the mean divergence of the steps is at most `most` nats, with all but `n_parted` of them
/// compared.
void expect_agreement(const std::vector<Step> & a, const std::vector<Step> & b, double most, size_t n_parted = 0);

}  // namespace harp::testing
