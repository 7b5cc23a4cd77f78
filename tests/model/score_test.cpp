// Scoring of given texts: shared caches, negative prompts, readings that option sets share.
#include <gtest/gtest.h>

#include <limits>
#include <string>
#include <vector>

#include "decoding/batch_score.h"
#include "support/models.h"
#include "support/pool.h"

namespace harp::testing {
namespace {

using decoding::BatchScorer;
using decoding::ScoreResult;

std::vector<ScoreResult> scores_of(BatchScorer & scorer, size_t n_requests) {
    std::vector<ScoreResult> results(n_requests);
    for (int step = 0; step < 1000 && !scorer.is_idle(); ++step) {
        scorer.step([&](size_t request, std::span<const ScoreResult> of_request) { results[request] = of_request[0]; });
    }
    EXPECT_TRUE(scorer.is_idle());
    return results;
}

TEST(Scoring, TextsThatFitApartShareAPool) {
    HARP_REQUIRE_MODEL(model, stories260k());
    ForwardPass pass(model, pool(256, 2), std::nullopt);
    BatchScorer scorer(pass);
    scorer.submit({.tokens = meaningless_text(250, 300), .n_context = 1, .options = {}});
    scorer.submit({.tokens = meaningless_text(240, 310), .n_context = 1, .options = {}});
    scorer.submit({.tokens = meaningless_text(250, 305), .n_context = 1, .options = {}});
    const auto results = scores_of(scorer, 3);
    for (const size_t i : {0U, 1U, 2U}) EXPECT_EQ(results[i].tokens.size(), i == 1 ? 239U : 249U);
}

/// A text's twin reads the negative prompt in the place of its first token; and twins that are longer than their texts share a
/// pool too.
TEST(Scoring, ReadsNegativePrompts) {
    HARP_REQUIRE_MODEL(model, stories260k());
    Options options = hesitant(0);
    options.view = View::guidance;
    options.beta = 0;  // the twin's own logits
    ForwardPass pass(model, pool(64, 2), options);
    const std::vector<llama_token> text = meaningless_text(12, 300);
    const size_t room = pass.n_ctx_seq() - 10;  // beside the rows behind the first
    const std::vector<llama_token> negative =
        meaningless_text(room, 310);  // two twins and two texts do not fit at once
    BatchScorer scorer(pass);
    for (int i = 0; i < 3; ++i)
        scorer.submit({.tokens = text, .n_context = 1, .options = {options}, .negative_prompt = negative});
    const auto results = scores_of(scorer, 3);
    std::vector<llama_token> twin = negative;
    twin.insert(twin.end(), text.begin() + 1, text.end());
    ForwardPass plain(model, small_context(), std::nullopt);
    BatchScorer of_twin(plain);
    of_twin.submit({.tokens = twin, .n_context = negative.size(), .options = {}});
    const auto expected = scores_of(of_twin, 1).front();
    for (const ScoreResult & result : results) {
        ASSERT_EQ(result.tokens.size(), expected.tokens.size());
        for (size_t i = 0; i < expected.tokens.size(); ++i)
            EXPECT_NEAR(result.tokens[i].harp, expected.tokens[i].vanilla, 1e-4) << i;
    }
    EXPECT_THROW(
        scorer.submit(
            {.tokens = text, .n_context = 1, .options = {options}, .negative_prompt = meaningless_text(room + 1, 310)}),
        Error)
        << "no room for the twin";
}

TEST(Scoring, VanillaLogitsAreKeptAsLongAsTheScorerLives) {
    HARP_REQUIRE_MODEL(model, stories260k());
    ForwardPass pass(model, small_context(), hesitant(0));
    {
        BatchScorer scorer(pass);
        scorer.submit({.tokens = once_upon_a_time, .n_context = 1, .options = {}});
        scores_of(scorer, 1);
    }
    decode(pass, once_upon_a_time, 0);
    ASSERT_TRUE(pass.step(-1).hesitated);
    EXPECT_EQ(pass.vanilla_logits(-1), nullptr);
}

TEST(Scoring, UniformNoiseIsNotSharedByThresholds) {
    HARP_REQUIRE_MODEL(model, stories260k());
    ForwardPass pass(model, small_context(), hesitant());
    BatchScorer scorer(pass);
    Options low = hesitant(1);
    low.perturbation = Perturbation::uniform;
    low.strength = 5;
    Options high = low;
    high.threshold = 4;
    Options other_mix = low;
    other_mix.beta = 0.25F;
    Options never = low;
    never.threshold = std::numeric_limits<double>::infinity();
    try {
        scorer.submit({.tokens = once_upon_a_time, .n_context = 1, .options = {low, high}});
        FAIL() << "was not refused";
    } catch (const Error & error) {
        EXPECT_EQ(error.code(), ErrorCode::invalid_option);
        EXPECT_NE(std::string(error.what()).find("uniform"), std::string::npos) << error.what();
    }
    scorer.submit({.tokens = once_upon_a_time, .n_context = 1, .options = {low, other_mix, never}});
}

}  // namespace
}  // namespace harp::testing
