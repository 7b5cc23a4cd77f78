// The law that allows caching of the reframed pass: at any one step of a given text the reframed logits have the same
// distribution, whether masks are drawn once and kept (redraw 0) or anew at each hesitation (redraw 1, the paper).
//
// Independent samples over seeds are compared by the two-sample Kolmogorov-Smirnov test, on every coordinate of l_r and
// on its distance from the median. Bonferroni's correction over all of them assumes nothing about their dependence, so
// each comparison's false-alarm rate is at most `false_alarm_rate`. A third sample is independent of harp's random
// numbers, and deliberately wrong masks show which differences the comparison detects.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <iterator>
#include <random>
#include <utility>

#include "method/perturbation.h"
#include "support/models.h"

namespace harp::testing {
namespace {

constexpr double false_alarm_rate = 1e-6;
constexpr size_t n_samples = 2500;  // the weakest control below needs about 2200
constexpr float delta = 0.2F;
const std::vector<llama_token> text = {1, 403, 407, 261, 378, 432, 383, 286};
const auto last_position = static_cast<llama_pos>(text.size() - 1);

using Sample = std::vector<std::vector<float>>;  // [n_vocab][n_samples]: reframed logits at the last step, sorted

/// Which steps of the text hesitate.
enum class Hesitates { at_each_step, at_the_last_step };

/// Replaces harp's masking of a row.
using Masks = std::function<void(uint64_t seed, const RowToPerturb &, std::span<float> factors)>;

/// A sample of the reframed logits at the last token of `text`. Each call uses seeds that no other call uses.
Sample draw_sample(llama_model & model, uint32_t redraw, Hesitates hesitates, const Masks & masks = {}) {
    Options options;
    options.threshold = 0.0;
    options.strength = delta;
    options.redraw = redraw;
    options.schedule = Schedule::lazy;
    ForwardPass pass(model, small_context(64), options);

    Sample sample(static_cast<size_t>(pass.n_vocab()));
    size_t n_reframed = 0;
    pass.set_observer([&](const StepObservation & observation) {
        if (observation.reframed.empty()) return;
        ++n_reframed;
        if (observation.position != last_position) return;
        for (size_t i = 0; i < sample.size(); ++i) sample[i].push_back(observation.reframed[i]);
    });
    if (masks) {
        pass.set_row_perturbation(
            [&](const RowToPerturb & row, std::span<float> factors) { masks(options.seed, row, factors); });
    }
    static uint64_t next_seed = 0;
    for (size_t i = 0; i < n_samples; ++i) {
        options.seed = next_seed++;
        pass.memory_clear(false);
        pass.set_sequence_options(0, options);
        if (hesitates == Hesitates::at_the_last_step) {
            decode(pass, text, 0);
        } else {
            for (llama_pos t = 0; t <= last_position; ++t) decode(pass, {text[static_cast<size_t>(t)]}, t);
        }
    }
    EXPECT_EQ(n_reframed, n_samples * (hesitates == Hesitates::at_each_step ? text.size() : 1));
    EXPECT_EQ(sample[0].size(), n_samples);
    for (auto & coordinate : sample) std::sort(coordinate.begin(), coordinate.end());
    return sample;
}

/// Largest distance between the two empirical distribution functions. @param a,b sorted
double kolmogorov_smirnov(const std::vector<float> & a, const std::vector<float> & b) {
    double largest = 0;
    size_t i = 0;
    size_t j = 0;
    while (i < a.size() && j < b.size()) {
        const float x = std::min(a[i], b[j]);
        while (i < a.size() && a[i] == x) ++i;
        while (j < b.size() && b[j] == x) ++j;
        largest = std::max(largest, std::fabs(static_cast<double>(i) / static_cast<double>(a.size()) -
                                              static_cast<double>(j) / static_cast<double>(b.size())));
    }
    return largest;
}

/// Bound of P(D >= d) if both samples, of n each, have the same distribution: the two-sample Dvoretzky-Kiefer-
/// Wolfowitz-Massart inequality, which holds for n >= 458 (Wei and Dudley 2012).
double p_value(double d, size_t n) {
    return std::min(1.0, 2.0 * std::exp(-d * d * static_cast<double>(n)));
}

/// Distances from the median of both samples together, sorted; they show a difference of spread. The centre depends
/// only on the pooled sample, so two samples of one distribution stay exchangeable.
std::pair<std::vector<float>, std::vector<float>> spread(std::vector<float> a, std::vector<float> b) {
    std::vector<float> pooled;
    std::merge(a.begin(), a.end(), b.begin(), b.end(), std::back_inserter(pooled));
    const float median = pooled[pooled.size() / 2];
    for (std::vector<float> * sample : {&a, &b}) {
        for (float & x : *sample) x = std::fabs(x - median);
        std::sort(sample->begin(), sample->end());
    }
    return {std::move(a), std::move(b)};
}

/// p-value for both samples having the same distribution, corrected for the number of comparisons.
double compare(const char * what, const Sample & a, const Sample & b) {
    double location = 0;
    double dispersion = 0;
    for (size_t i = 0; i < a.size(); ++i) {
        location = std::max(location, kolmogorov_smirnov(a[i], b[i]));
        const auto [spread_a, spread_b] = spread(a[i], b[i]);
        dispersion = std::max(dispersion, kolmogorov_smirnov(spread_a, spread_b));
    }
    const size_t n_comparisons = 2 * a.size();
    const double p =
        std::min(1.0, p_value(std::max(location, dispersion), n_samples) * static_cast<double>(n_comparisons));
    std::printf("%-36s largest distance of logits %.4f, of their spread %.4f; p %.2g\n", what, location, dispersion, p);
    return p;
}

/// harp's own masks, as a basis for wrong ones.
void perturb(uint64_t seed, const RowToPerturb & row, std::span<float> factors) {
    method::perturb({seed, row.draw, 0, row.reframing, 1}, row.ordinal, Perturbation::dropout, delta,
                    {factors, {}, {}});
}

TEST(RedrawDistribution, CachedMasksGiveTheDistributionOfFreshOnes) {
    HARP_REQUIRE_MODEL(model, stories260k());
    // exactly the paper's method with another generator: fresh masks over the whole text at a single hesitation
    std::mt19937_64 generator(20241207);
    std::uniform_real_distribution<float> uniform;
    const Sample reference = draw_sample(model, 1, Hesitates::at_the_last_step,
                                         [&](uint64_t, const RowToPerturb &, std::span<float> factors) {
                                             for (float & factor : factors) {
                                                 if (!(uniform(generator) > delta)) factor = 0.0F;
                                             }
                                         });
    const Sample fresh = draw_sample(model, 1, Hesitates::at_each_step);
    const Sample cached = draw_sample(model, 0, Hesitates::at_each_step);
    EXPECT_GT(compare("cached against fresh masks", cached, fresh), false_alarm_rate);
    EXPECT_GT(compare("fresh masks against the reference", fresh, reference), false_alarm_rate);
    EXPECT_GT(compare("cached masks against the reference", cached, reference), false_alarm_rate);

    // differences that the comparison must detect
    const auto wrong = [&](const char * what, const Masks & masks) {
        EXPECT_LT(compare(what, draw_sample(model, 0, Hesitates::at_the_last_step, masks), fresh), false_alarm_rate);
    };
    wrong("kept values rescaled", [](uint64_t seed, const RowToPerturb & row, std::span<float> factors) {
        perturb(seed, row, factors);
        for (float & factor : factors) factor /= 1.0F - delta;
    });
    wrong("first position not covered", [](uint64_t seed, const RowToPerturb & row, std::span<float> factors) {
        if (row.ordinal > 0) perturb(seed, row, factors);
    });
    wrong("one mask for all positions", [](uint64_t seed, RowToPerturb row, std::span<float> factors) {
        row.ordinal = 0;
        perturb(seed, row, factors);
    });
    wrong("delta 0.23", [](uint64_t seed, const RowToPerturb & row, std::span<float> factors) {
        method::perturb({seed, row.draw, 0, row.reframing, 1}, row.ordinal, Perturbation::dropout, 0.23F,
                        {factors, {}, {}});
    });
}

}  // namespace
}  // namespace harp::testing
