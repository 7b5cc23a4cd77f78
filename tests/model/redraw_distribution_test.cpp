// The law that makes the reframed pass cacheable: at any one step of a given text, the reframed logits have the same
// distribution whether masks are drawn once and kept (redraw 0) or anew at each hesitation (redraw 1, the paper).
//
// Two independent samples over seeds, compared by the two-sample Kolmogorov-Smirnov test on every coordinate of l_r.
// Bonferroni over the coordinates needs no assumption on how they depend on one another, so the false-alarm rate of the
// whole comparison is at most `false_alarm_rate`. Wrong masks, drawn on purpose, show what the test can tell apart.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "method/perturbation.h"
#include "support/models.h"

namespace harp::testing {
namespace {

constexpr double false_alarm_rate = 1e-6;
constexpr size_t n_samples = 2000;
const std::vector<llama_token> text = {1, 403, 407, 261, 378, 432, 383, 286, 269, 401};

using Sample = std::vector<std::vector<float>>;  // [n_vocab][n_samples]: reframed logits at the last step

/// Changes a row after method::perturb; `original` is the row before it.
using Mistake = std::function<void(const RowToPerturb &, std::span<const float> original, std::span<float> row)>;

/// The reframed logits at the last token of `text`, for the seeds first_seed .. first_seed + n_samples - 1.
/// Each step hesitates, so that with redraw 0 the twin has caught up row by row, and with redraw 1 masks are those of
/// the last of as many draws.
Sample draw_sample(llama_model & model, uint32_t redraw, uint64_t first_seed, const Mistake & mistake = {}) {
    Options options;
    options.threshold = 0.0;
    options.redraw = redraw;
    options.schedule = Schedule::lazy;
    ForwardPass pass(model, small_context(64), options);

    Sample sample(static_cast<size_t>(pass.n_vocab()));
    size_t n_reframed = 0;
    pass.set_observer([&](const StepObservation & observation) {
        if (observation.reframed.empty()) return;
        ++n_reframed;
        if (observation.position + 1 != static_cast<llama_pos>(text.size())) return;
        for (size_t i = 0; i < sample.size(); ++i) sample[i].push_back(observation.reframed[i]);
    });
    if (mistake) {
        pass.set_row_perturbation([&](const RowToPerturb & row, std::span<float> values) {
            const std::vector<float> original(values.begin(), values.end());
            method::perturb({options.seed, row.draw, 0, row.reframing, 1}, static_cast<uint32_t>(row.position),
                            options.perturbation, options.strength, values);
            mistake(row, original, values);
        });
    }
    for (size_t i = 0; i < n_samples; ++i) {
        options.seed = first_seed + i;
        pass.memory_clear(false);
        pass.set_sequence_options(0, options);
        for (size_t t = 0; t < text.size(); ++t) decode(pass, {text[t]}, static_cast<llama_pos>(t));
    }
    EXPECT_EQ(n_reframed, n_samples * text.size());
    EXPECT_EQ(sample[0].size(), n_samples);
    for (auto & coordinate : sample) std::sort(coordinate.begin(), coordinate.end());
    return sample;
}

/// Largest distance of the two empirical distribution functions. @param a,b sorted
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

/// P(D >= d) where both samples, of n each, have the same distribution (Kolmogorov's limit; for samples of equal size the
/// exact tail is below it).
double p_value(double d, size_t n) {
    const double lambda = d * std::sqrt(static_cast<double>(n) / 2.0);
    double sum = 0;
    for (int k = 1; k <= 100; ++k) sum += (k % 2 == 1 ? 2.0 : -2.0) * std::exp(-2.0 * k * k * lambda * lambda);
    return lambda < 0.2 ? 1.0 : std::clamp(sum, 0.0, 1.0);
}

/// p of the hypothesis that both samples have the same distribution, corrected for the number of coordinates.
double compare(const char * what, const Sample & a, const Sample & b) {
    double largest = 0;
    for (size_t i = 0; i < a.size(); ++i) largest = std::max(largest, kolmogorov_smirnov(a[i], b[i]));
    const double p = std::min(1.0, p_value(largest, n_samples) * static_cast<double>(a.size()));
    std::printf("%-48s largest distance %.4f over %zu coordinates, p %.2g\n", what, largest, a.size(), p);
    return p;
}

TEST(RedrawDistribution, CachedMasksGiveTheDistributionOfFreshOnes) {
    HARP_REQUIRE_MODEL(model, stories260k());
    const Sample cached = draw_sample(model, 0, 0);
    const Sample fresh = draw_sample(model, 1, n_samples);
    EXPECT_GT(compare("cached against fresh masks", cached, fresh), false_alarm_rate);

    // what the comparison can tell apart
    const auto rescaled = [](const RowToPerturb &, std::span<const float>, std::span<float> row) {
        for (float & value : row) value /= 0.8F;
    };
    EXPECT_LT(compare("kept values rescaled", draw_sample(model, 0, 2 * n_samples, rescaled), fresh), false_alarm_rate);

    const auto first_clean = [](const RowToPerturb & row, std::span<const float> original, std::span<float> values) {
        if (row.position == 0) std::copy(original.begin(), original.end(), values.begin());
    };
    EXPECT_LT(compare("first position not covered", draw_sample(model, 0, 3 * n_samples, first_clean), fresh),
              false_alarm_rate);

    const auto last_clean = [](const RowToPerturb & row, std::span<const float> original, std::span<float> values) {
        if (row.position + 1 == static_cast<llama_pos>(text.size())) {
            std::copy(original.begin(), original.end(), values.begin());
        }
    };
    EXPECT_LT(compare("last position not covered", draw_sample(model, 0, 4 * n_samples, last_clean), fresh),
              false_alarm_rate);
}

}  // namespace
}  // namespace harp::testing
