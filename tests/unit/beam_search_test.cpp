// The search without a model: against brute force over all continuations, and its rules one by one on hand-made
// distributions.
#include "decoding/beam_search.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <random>

#include "harp/error.h"

namespace harp::decoding {
namespace {

/// log p(next | prefix) as a table filled on demand: normalised random numbers, the same for the same prefix.
class FakeModel {
  public:
    FakeModel(size_t n_vocab, uint32_t seed) : n_vocab_(n_vocab), seed_(seed) {}

    const std::vector<float> & logits(const std::vector<llama_token> & prefix) {
        auto [it, is_new] = rows_.try_emplace(prefix);
        if (is_new) {
            std::seed_seq seeds(prefix.begin(), prefix.end());
            std::vector<uint32_t> mixed(1);
            seeds.generate(mixed.begin(), mixed.end());
            std::mt19937 random(mixed[0] ^ seed_);
            std::normal_distribution<float> normal(0.0F, 1.5F);
            for (size_t i = 0; i < n_vocab_; ++i) it->second.push_back(normal(random));
        }
        return it->second;
    }

  private:
    size_t n_vocab_;
    uint32_t seed_;
    std::map<std::vector<llama_token>, std::vector<float>> rows_;
};

using Row = std::vector<BeamCandidate>;

constexpr llama_token end_token = 1;
bool is_end(llama_token token) {
    return token == end_token;
}

/// Runs a search on a table of log-probabilities until it is done.
template <typename Logits>
BeamSearch search_on(const BeamOptions & options, size_t length, Logits logits) {
    BeamSearch search(options, length, is_end);
    std::vector<std::vector<llama_token>> running = {{}};
    while (!search.is_done()) {
        std::vector<std::vector<BeamCandidate>> candidates;
        for (const auto & prefix : running) candidates.push_back(top_candidates(logits(prefix), search.n_candidates()));
        const std::vector<StepRecord> records(running.size());
        std::vector<std::vector<llama_token>> next;
        for (const BeamSearch::Branch & branch : search.advance(candidates, records)) {
            next.push_back(running[branch.parent]);
            next.back().push_back(branch.token);
        }
        running = std::move(next);
    }
    return search;
}

double normalised(double sum, size_t length, const BeamOptions & options) {
    const auto n = static_cast<double>(length);
    return sum / std::pow(options.norm == LengthNorm::gnmt ? (5 + n) / 6 : n, options.alpha);
}

struct BruteForce {
    FakeModel & model;
    const BeamOptions & options;
    size_t n_vocab;
    size_t length;
    std::vector<Hypothesis> all = {};

    void extend(const std::vector<llama_token> & prefix, double sum) {
        for (const BeamCandidate & c : top_candidates(model.logits(prefix), n_vocab)) {
            Hypothesis hypothesis;
            hypothesis.tokens = prefix;
            hypothesis.tokens.push_back(c.token);
            hypothesis.sum = sum + c.log_probability;
            hypothesis.score = normalised(hypothesis.sum, hypothesis.tokens.size(), options);
            if (is_end(c.token) || hypothesis.tokens.size() == length) {
                all.push_back(hypothesis);
            } else {
                extend(hypothesis.tokens, hypothesis.sum);
            }
        }
    }
};

TEST(BeamSearch, WideEnoughIsBruteForce) {
    constexpr size_t n_vocab = 6;
    constexpr size_t length = 4;
    for (uint32_t seed = 0; seed < 20; ++seed) {
        for (const LengthNorm norm : {LengthNorm::gnmt, LengthNorm::length}) {
            for (const double alpha : {0.0, 0.7, 1.2, 3.0}) {
                BeamOptions options;
                options.beams = 216;  // all prefixes of length 3
                options.candidates = n_vocab;
                options.alpha = alpha;
                options.norm = norm;
                options.early_stopping = EarlyStopping::never;
                FakeModel model(n_vocab, seed);
                BruteForce brute{model, options, n_vocab, length};
                brute.extend({}, 0);
                std::stable_sort(brute.all.begin(), brute.all.end(),
                                 [](const Hypothesis & a, const Hypothesis & b) { return a.score > b.score; });
                const auto found =
                    search_on(options, length, [&](const auto & prefix) { return model.logits(prefix); }).best(10);
                ASSERT_EQ(found.size(), 10U);
                for (size_t i = 0; i < found.size(); ++i) {
                    EXPECT_EQ(found[i].tokens, brute.all[i].tokens)
                        << "seed " << seed << " alpha " << alpha << " rank " << i;
                    EXPECT_NEAR(found[i].score, brute.all[i].score, 1e-9);
                    EXPECT_NEAR(found[i].sum, brute.all[i].sum, 1e-9);
                }
            }
        }
    }
}

TEST(BeamSearch, OneBeamIsGreedy) {
    FakeModel model(50, 3);
    BeamOptions options;
    options.beams = 1;
    options.candidates = 50;
    const auto found = search_on(options, 12, [&](const auto & prefix) { return model.logits(prefix); }).best(1);
    std::vector<llama_token> greedy;
    do {
        greedy.push_back(top_candidates(model.logits(greedy), 1).front().token);
    } while (!is_end(greedy.back()) && greedy.size() < 12);
    EXPECT_EQ(found.front().tokens, greedy);
}

// ---------------------------------------------------------------------------------------------------------------------
// Rules

/// Logits of a distribution given by probabilities.
std::vector<float> probabilities(const std::vector<double> & p) {
    std::vector<float> logits;
    for (const double x : p) logits.push_back(x > 0 ? static_cast<float>(std::log(x)) : -INFINITY);
    return logits;
}

/// After one token the end is likely. Continuations get better with length: token 2, 2, 2, ... is nearly certain.
std::vector<float> ending_soon(const std::vector<llama_token> & prefix) {
    if (prefix.empty()) return probabilities({0, 0.30, 0.40, 0.30});
    if (prefix.size() == 1) return probabilities({0, 0.55, 0.44, 0.01});
    return probabilities({0, 0.01, 0.98, 0.01});
}

size_t steps_until_done(const BeamOptions & options, size_t length) {
    size_t longest = 0;
    (void)search_on(options, length, [&](const auto & prefix) {
        longest = std::max(longest, prefix.size() + 1);
        return ending_soon(prefix);
    });
    return longest;
}

TEST(BeamSearch, EarlyStoppingRules) {
    BeamOptions options;
    options.beams = 2;
    options.candidates = 4;
    options.norm = LengthNorm::length;
    options.alpha = 2.0;
    options.early_stopping = EarlyStopping::first;
    // step 1: the end has rank 1, so it finishes a hypothesis; step 2: another one
    EXPECT_EQ(steps_until_done(options, 30), 2U);
    // the worst finished one has ln(0.3) / 1 = -1.2; the running beam 2 2 has ln(0.4 * 0.44) / 4 = -0.434, which is
    // better
    options.early_stopping = EarlyStopping::heuristic;
    EXPECT_GT(steps_until_done(options, 30), 2U);
    // with alpha = 0 nothing gets better with length, so the rules agree
    options.alpha = 0;
    const size_t heuristic = steps_until_done(options, 30);
    options.early_stopping = EarlyStopping::never;
    EXPECT_EQ(steps_until_done(options, 30), heuristic);
    EXPECT_EQ(heuristic, 2U);
    // never: ln(0.4 * 0.44) / 30^2 could still be reached, so it continues to the end
    options.alpha = 2.0;
    EXPECT_EQ(steps_until_done(options, 30), 30U);
}

TEST(BeamSearch, OnlyNeverLooksAtTheFullLength) {
    BeamOptions options;
    options.beams = 2;
    options.candidates = 4;
    options.norm = LengthNorm::length;
    options.alpha = 1.0;
    const auto steps = [&](EarlyStopping rule) {
        options.early_stopping = rule;
        size_t longest = 0;
        (void)search_on(options, 30, [&](const auto & prefix) {
            longest = std::max(longest, prefix.size() + 1);
            if (prefix.empty()) return probabilities({0, 0.45, 0.55, 0});
            if (prefix.size() == 1) return probabilities({0, 0.6, 0.3, 0.1});
            return probabilities({0, 0.001, 0.998, 0.001});
        });
        return longest;
    };
    // finished ln(0.45) / 1 = -0.80 and ln(0.55 * 0.6) / 2 = -0.55; running ln(0.55 * 0.3) / 2 = -0.90, but / 30 =
    // -0.06
    EXPECT_EQ(steps(EarlyStopping::heuristic), 2U);
    EXPECT_EQ(steps(EarlyStopping::never), 30U);
}

TEST(BeamSearch, AnEndBelowTheBestBeamsIsNoHypothesis) {
    BeamOptions options;
    options.beams = 2;
    options.candidates = 4;
    // the end is the third best: it neither finishes a hypothesis nor takes a beam
    BeamSearch search(options, 5, is_end);
    const std::vector<std::vector<BeamCandidate>> rows = {top_candidates(probabilities({0.4, 0.2, 0.3, 0.1}), 4)};
    const std::vector<StepRecord> records(1);
    const auto & branches = search.advance(rows, records);
    ASSERT_EQ(branches.size(), 2U);
    EXPECT_EQ(branches[0].token, 0);
    EXPECT_EQ(branches[1].token, 2);
    for (const Hypothesis & hypothesis : search.best(10)) EXPECT_FALSE(hypothesis.is_finished);
}

TEST(BeamSearch, UnfinishedBeamsCompeteAtFullLength) {
    BeamOptions options;
    options.beams = 2;
    options.candidates = 4;
    const auto found = search_on(options, 3, [](const auto &) { return probabilities({0.5, 0.2, 0.2, 0.1}); }).best(5);
    EXPECT_EQ(found.front().tokens, (std::vector<llama_token>{0, 0, 0}));
    EXPECT_FALSE(found.front().is_finished);
    EXPECT_LE(found.size(), 5U);
}

TEST(BeamSearch, AllBeamsCanEndAtOnce) {
    BeamOptions options;
    options.beams = 2;
    options.candidates = 1;
    const auto search = search_on(options, 9, [](const auto & prefix) {
        return prefix.empty() ? probabilities({0.6, 0, 0.4, 0}) : probabilities({0, 1, 0, 0});
    });
    const auto found = search.best(5);
    ASSERT_EQ(found.size(), 2U);
    EXPECT_EQ(found[0].tokens, (std::vector<llama_token>{0, 1}));
    EXPECT_EQ(found[1].tokens, (std::vector<llama_token>{2, 1}));
    EXPECT_TRUE(found[0].is_finished && found[1].is_finished);
}

TEST(BeamSearch, KeepsTheRecordsOfItsTokens) {
    BeamOptions options;
    options.beams = 2;
    options.candidates = 2;
    BeamSearch search(options, 2, is_end);
    const std::vector<StepRecord> first = {{1.5, true}};
    const std::vector<StepRecord> second = {{0.25, false}, {2.5, true}};
    const auto row = top_candidates(probabilities({0.6, 0, 0.4, 0}), 4);
    search.advance(std::vector<Row>{row}, first);
    search.advance(std::vector<Row>{row, row}, second);
    const auto found = search.best(2);
    ASSERT_EQ(found[0].tokens, (std::vector<llama_token>{0, 0}));
    ASSERT_EQ(found[0].records.size(), 2U);
    EXPECT_EQ(found[0].records[0].entropy, 1.5);
    EXPECT_EQ(found[0].records[1].entropy, 0.25);
    EXPECT_TRUE(found[0].records[0].hesitated);
}

TEST(BeamSearch, TheAuthorsCountings) {
    BeamOptions options;
    options.beams = 2;
    options.candidates = 3;
    options.alpha = 1.2;
    options.variant = BeamVariant::authors;
    BeamSearch search(options, 4, is_end);
    const auto row = top_candidates(probabilities({0.1, 0.5, 0.4, 0}), 4);
    const double p1 = std::log(0.5);
    const double p2 = std::log(0.4);
    search.advance(std::vector<Row>{row}, std::vector<StepRecord>(1));
    ASSERT_EQ(search.beams().size(), 2U);
    EXPECT_NEAR(search.beams()[0].sum, 1 + p1, 1e-6);  // sums begin at 1
    EXPECT_NEAR(search.beams()[0].score, 1 + p1, 1e-6);
    EXPECT_FALSE(search.beams()[0].is_finished);  // begins with the end token, and continues
    EXPECT_EQ(search.n_running(), 2U);
    search.advance(std::vector<Row>{row, row}, std::vector<StepRecord>(2));
    EXPECT_NEAR(search.beams()[0].score, 1 + 2 * p1, 1e-6);  // the second token counts length 1 again
    EXPECT_TRUE(search.beams()[0].is_finished);
    EXPECT_NEAR(search.beams()[1].sum, 1 + p1 + p2, 1e-6);
    EXPECT_EQ(search.n_running(), 1U);  // the finished beam keeps its place
    search.advance(std::vector<Row>{row}, std::vector<StepRecord>(1));
    for (const Hypothesis & beam : search.beams()) {
        if (beam.tokens.size() != 3) continue;
        EXPECT_NEAR(beam.score, beam.sum / std::pow(7.0 / 6.0, 1.2), 1e-9);
    }
}

TEST(BeamSearch, TheAuthorsEndAtTokenZeroToo) {
    BeamOptions options;
    options.beams = 1;
    options.variant = BeamVariant::authors;
    const auto found = search_on(options, 9, [](const auto & prefix) {
        return prefix.size() == 2 ? probabilities({0.9, 0, 0.1}) : probabilities({0.1, 0, 0.9});
    });
    EXPECT_EQ(found.best(1).front().tokens, (std::vector<llama_token>{2, 2, 0}));
}

TEST(BeamSearch, TopCandidatesAreSortedLogProbabilities) {
    const auto top = top_candidates(probabilities({0.125, 0.5, 0.125, 0.25}), 3);
    ASSERT_EQ(top.size(), 3U);
    EXPECT_EQ(top[0].token, 1);
    EXPECT_EQ(top[1].token, 3);
    EXPECT_EQ(top[2].token, 0);  // the first of equals
    EXPECT_NEAR(top[0].log_probability, std::log(0.5), 1e-6);
    EXPECT_NEAR(top[2].log_probability, std::log(0.125), 1e-6);
    EXPECT_EQ(top_candidates(probabilities({0.5, 0.5}), 9).size(), 2U);
}

TEST(BeamSearch, RefusesOptionsOutOfRange) {
    const auto expect_refused = [](const BeamOptions & options, const std::string & field, const std::string & value) {
        try {
            validate(options);
            FAIL() << field;
        } catch (const Error & error) {
            EXPECT_EQ(error.code(), ErrorCode::invalid_option);
            EXPECT_NE(std::string(error.what()).find(field), std::string::npos) << error.what();
            EXPECT_NE(std::string(error.what()).find(value), std::string::npos) << error.what();
        }
    };
    expect_refused({.beams = 0}, "beams", "0");
    expect_refused({.beams = 257}, "beams", "257");
    expect_refused({.candidates = 0}, "beam-candidates", "0");
    expect_refused({.alpha = -0.5}, "length-penalty", "-0.5");
    expect_refused({.alpha = NAN}, "length-penalty", "nan");
    EXPECT_NO_THROW(validate({}));
}

}  // namespace
}  // namespace harp::decoding
