// The choice of a schedule from synthetic costs.
#include "forward/cost_model.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>

namespace harp::forward {
namespace {

/// A model that has measured each batch size `n` often, at `costs[n]` seconds.
CostModel measured(const std::map<size_t, double> & costs) {
    CostModel model;
    for (const auto & [n, seconds] : costs) {
        for (int i = 0; i < 5; ++i) model.add_call(n, seconds);
    }
    return model;
}

void set_share(CostModel & model, double share) {
    for (int i = 0; i < 3000; ++i) model.add_step(std::floor(i * share) != std::floor((i + 1) * share));
}

TEST(CostModel, KnowsNothingAtFirst) {
    CostModel model;
    EXPECT_FALSE(model.is_measured(1));
    EXPECT_FALSE(model.call_seconds(1).has_value());
    EXPECT_FALSE(model.lazy_seconds(1, 1).has_value());
    EXPECT_FALSE(model.fused_seconds(1, 1).has_value());
    EXPECT_EQ(model.choose(1, 1), Schedule::lazy);
}

TEST(CostModel, KnowsASizeAfterThreeCalls) {
    CostModel model;
    for (int i = 0; i < 2; ++i) model.add_call(4, 1.0);
    EXPECT_FALSE(model.is_measured(4));
    model.add_call(4, 1.0);
    EXPECT_TRUE(model.is_measured(4));
    EXPECT_FALSE(model.is_measured(5));
}

TEST(CostModel, TakesTheLowerQuartileOfTheLatestCalls) {
    CostModel model;
    for (const double seconds : {1.0, 1.0, 100.0, 1.0, 1.0}) model.add_call(1, seconds);
    EXPECT_DOUBLE_EQ(*model.call_seconds(1), 1.0);       // an outlier does not count
    for (int i = 0; i < 9; ++i) model.add_call(1, 3.0);  // the context has grown
    EXPECT_DOUBLE_EQ(*model.call_seconds(1), 3.0);
    for (int i = 0; i < 2; ++i) model.add_call(1, 0.5);
    EXPECT_DOUBLE_EQ(*model.call_seconds(1), 3.0);
    model.add_call(1, 0.5);
    EXPECT_DOUBLE_EQ(*model.call_seconds(1), 0.5);
}

TEST(CostModel, IsNotMisledByABusyMachine) {
    CostModel model;
    for (int i = 0; i < 9; ++i) {
        model.add_call(1, i % 3 == 0 ? 1.0 : 7.0);  // most calls are disturbed
        model.add_call(2, 1.9);
    }
    EXPECT_DOUBLE_EQ(*model.call_seconds(1), 1.0);
    EXPECT_DOUBLE_EQ(*model.call_seconds(2), 1.9);
    // even if all are disturbed: a larger batch never costs less
    model = measured({{1, 7.0}, {2, 1.9}, {4, 3.0}});
    for (const double n : {1.0, 2.0, 3.0, 4.0}) EXPECT_DOUBLE_EQ(*model.call_seconds(n), 7.0) << n;
    EXPECT_DOUBLE_EQ(*model.call_seconds(8), 14.0);
}

TEST(CostModel, InterpolatesBetweenSizesAndScalesBeyondThem) {
    const CostModel model = measured({{2, 2.0}, {6, 4.0}});
    EXPECT_DOUBLE_EQ(*model.call_seconds(2), 2.0);
    EXPECT_DOUBLE_EQ(*model.call_seconds(3), 2.5);
    EXPECT_DOUBLE_EQ(*model.call_seconds(4.5), 3.25);
    EXPECT_DOUBLE_EQ(*model.call_seconds(6), 4.0);
    EXPECT_DOUBLE_EQ(*model.call_seconds(12), 8.0);  // in proportion
    EXPECT_DOUBLE_EQ(*model.call_seconds(1), 2.0);   // a smaller batch never costs more
    EXPECT_DOUBLE_EQ(*model.call_seconds(100), 4.0 * 100 / 6);
}

TEST(CostModel, SharesTheTimeOfACallWithTwins) {
    EXPECT_DOUBLE_EQ(CostModel().added_share(4, 1), 0.25);  // nothing measured: by rows
    const CostModel model = measured({{1, 1.0}, {2, 1.25}, {4, 1.25}});
    EXPECT_DOUBLE_EQ(model.added_share(2, 1), 0.2);
    EXPECT_DOUBLE_EQ(model.added_share(4, 2), 0.0);      // takes no longer than two rows
    EXPECT_DOUBLE_EQ(model.added_share(512, 256), 0.5);  // a prompt, although its rows cost less than those measured
}

TEST(CostModel, LearnsCatchUpsOfAboutTheSameSizeTogether) {
    CostModel model = measured({{1, 1.0}});
    model.add_call(5, 2.0);
    model.add_call(8, 2.0);
    EXPECT_FALSE(model.is_measured(6));
    model.add_call(5, 2.0);
    EXPECT_TRUE(model.is_measured(6));
    EXPECT_TRUE(model.is_measured(8));
    EXPECT_FALSE(model.is_measured(9));
    EXPECT_DOUBLE_EQ(*model.call_seconds(6), 2.0);  // 6 rows on average
}

TEST(CostModel, TriesLazyWhereItsCatchUpsAreGuessed) {
    // up to 4 rows each row costs as much as the first, beyond that little; this is known only after batches of 5 rows
    CostModel model = measured({{1, 1.0}, {2, 2.0}});
    set_share(model, 0.2);
    EXPECT_EQ(model.choose(1, 1), Schedule::lazy);  // although c(5) = 5 in proportion, which makes fused equally good
    for (int i = 0; i < 3; ++i) model.add_call(5, 2.5);
    for (int i = 0; i < 100; ++i) EXPECT_EQ(model.choose(1, 1), Schedule::lazy) << i;  // now it is measured
    // if it turns out to cost as much as guessed, fused is chosen
    model = measured({{1, 1.0}, {2, 1.5}});
    set_share(model, 0.2);
    EXPECT_EQ(model.choose(1, 1), Schedule::lazy);
    for (int i = 0; i < 3; ++i) model.add_call(6, 4.5);
    EXPECT_EQ(model.choose(1, 1), Schedule::fused);
    // if no catch-up of that size ever comes, it does not wait for one forever
    model = measured({{1, 1.0}, {2, 1.1}});
    set_share(model, 0.2);
    int n_lazy = 0;
    for (int i = 0; i < 1000; ++i) n_lazy += model.choose(1, 1) == Schedule::lazy ? 1 : 0;
    EXPECT_GT(n_lazy, 0);
    EXPECT_LE(n_lazy, 32);
}

TEST(CostModel, IgnoresPrefillAndEmptyCalls) {
    CostModel model;
    for (int i = 0; i < 5; ++i) {
        model.add_call(0, 1.0);
        model.add_call(CostModel::max_rows + 1, 1.0);
        model.add_call(100000, 1.0);
    }
    EXPECT_FALSE(model.call_seconds(1).has_value());
    EXPECT_FALSE(model.is_measured(100000));
    EXPECT_EQ(model.choose(20, 20), Schedule::lazy);
}

TEST(CostModel, TracksTheShareOfHesitations) {
    CostModel model;
    const double initial = model.hesitation_share();
    EXPECT_GT(initial, 0.0);
    EXPECT_LT(initial, 1.0);
    for (int i = 0; i < 1000; ++i) model.add_step(true);
    EXPECT_NEAR(model.hesitation_share(), 1.0, 1e-3);
    for (int i = 0; i < 1000; ++i) model.add_step(false);
    EXPECT_NEAR(model.hesitation_share(), 0.0, 1e-3);
    set_share(model, 0.25);
    EXPECT_NEAR(model.hesitation_share(), 0.25, 0.03);
}

TEST(CostModel, PredictsTheCostOfAStep) {
    CostModel model = measured({{1, 1.0}, {2, 1.9}, {3, 2.8}, {4, 3.7}});  // c(n) = 0.1 + 0.9 n
    set_share(model, 0.5);
    EXPECT_DOUBLE_EQ(*model.fused_seconds(1, 1), 1.9);
    EXPECT_DOUBLE_EQ(*model.fused_seconds(1, 3), 3.7);
    EXPECT_DOUBLE_EQ(*model.fused_seconds(2, 2), 3.7);
    // 1 + h * c(1 / h)
    EXPECT_NEAR(*model.lazy_seconds(1, 1), 1.0 + 0.5 * 1.9, 0.03);
    // two sequences: in 3 of 4 steps one of them hesitates, and 2 rows per step must be caught up
    EXPECT_NEAR(*model.lazy_seconds(2, 2), 1.9 + 0.75 * (0.1 + 0.9 * 2 / 0.75), 0.03);
    // three reframings
    EXPECT_NEAR(*model.lazy_seconds(1, 3), 1.0 + 0.5 * (0.1 + 0.9 * 6), 0.3);
    EXPECT_FALSE(model.fused_seconds(3, 3).has_value());
}

TEST(CostModel, WithoutHesitationsLazyCostsNothing) {
    CostModel model = measured({{1, 1.0}, {2, 1.0}});
    for (int i = 0; i < 20000; ++i) model.add_step(false);
    EXPECT_NEAR(*model.lazy_seconds(1, 1), 1.0, 0.1);
}

TEST(CostModel, PicksFusedWhereTheSecondRowIsFree) {
    CostModel model = measured({{1, 1.0}, {2, 1.0}, {3, 1.0}});
    set_share(model, 0.4);
    EXPECT_EQ(model.choose(1, 1), Schedule::fused);
    EXPECT_EQ(model.chosen(), Schedule::fused);
}

TEST(CostModel, PicksLazyWhereTheSecondRowCostsAsMuch) {
    for (const double share : {0.1, 0.4}) {
        CostModel model = measured({{1, 1.0}, {2, 1.9}, {3, 2.1}, {4, 2.5}, {8, 4.0}, {16, 6.7}});
        set_share(model, share);
        EXPECT_EQ(model.choose(1, 1), Schedule::lazy) << share;
    }
}

TEST(CostModel, PicksByTheShareOfHesitations) {
    // c(n) = 0.4 + 0.6 n: fused costs 1.6; lazy 1 + 0.4 h + 0.6, so equal at h = 0 and worse with each hesitation
    CostModel model = measured({{1, 1.0}, {2, 1.6}, {3, 2.2}, {4, 2.8}, {8, 5.2}, {16, 10.0}});
    set_share(model, 0.9);
    EXPECT_EQ(model.choose(1, 1), Schedule::fused);
    // catch-up batches that cost far less than their rows separately, and rare hesitations
    model = measured({{1, 1.0}, {2, 1.6}, {8, 2.0}, {16, 2.4}});
    set_share(model, 0.1);
    EXPECT_EQ(model.choose(1, 1), Schedule::lazy);
}

TEST(CostModel, TriesFusedUntilItIsMeasured) {
    CostModel model;
    for (int i = 0; i < 3; ++i) {
        EXPECT_EQ(model.choose(1, 1), Schedule::lazy) << i;
        model.add_call(1, 1.0);
    }
    for (int i = 0; i < 3; ++i) {
        EXPECT_EQ(model.choose(1, 1), Schedule::fused) << i;
        model.add_call(2, 1.9);
    }
    for (int i = 0; i < 3; ++i) model.add_call(4, 2.2);
    set_share(model, 0.4);
    for (int i = 0; i < 100; ++i) {
        EXPECT_EQ(model.choose(1, 1), Schedule::lazy) << i;  // tried once, and not again
        model.add_call(1, 1.0);
    }
}

TEST(CostModel, DoesNotFlapWithinThreePercent) {
    // share 0.5: lazy is 1 + 0.5 c(2), fused is c(2); equal at c(2) = 2
    CostModel model = measured({{1, 1.0}});
    set_share(model, 0.5);
    const auto with_cost_of_two = [&](double seconds) {
        for (int i = 0; i < 9; ++i) model.add_call(2, seconds);
        return model.choose(1, 1);
    };
    EXPECT_EQ(with_cost_of_two(1.5), Schedule::fused);
    int changes = 0;
    for (int i = 0; i < 50; ++i) {
        const Schedule before = model.chosen();
        if (with_cost_of_two(i % 2 == 0 ? 1.98 : 2.02) != before) ++changes;
    }
    EXPECT_EQ(changes, 0);
    EXPECT_EQ(model.chosen(), Schedule::fused);
    EXPECT_EQ(with_cost_of_two(2.3), Schedule::lazy);
    for (int i = 0; i < 50; ++i) {
        const Schedule before = model.chosen();
        if (with_cost_of_two(i % 2 == 0 ? 1.98 : 2.02) != before) ++changes;
    }
    EXPECT_EQ(changes, 0);
    EXPECT_EQ(model.chosen(), Schedule::lazy);
    EXPECT_EQ(with_cost_of_two(1.7), Schedule::fused);
}

}  // namespace
}  // namespace harp::forward
