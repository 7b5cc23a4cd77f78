// Models with a sliding window that the context has exceeded. A cut after which tokens would attend to rows that the
// window has dropped is refused, though llama.cpp would make it.
#include <gtest/gtest.h>

#include <array>
#include <optional>

#include "support/text.h"

namespace harp::testing {
namespace {

struct WindowCase {
    const char * name;
    Schedule schedule;
    bool unified;
};

class Window : public ::testing::TestWithParam<WindowCase> {
  protected:
    void SetUp() override {
        model_ = load(random_windowed());
        if (model_ == nullptr) GTEST_SKIP() << "model not there: " << random_windowed().string();
    }
    [[nodiscard]] ForwardPass pass(bool is_on = true) const {
        llama_context_params params = windowed_context();
        params.kv_unified = GetParam().unified;
        Options options;
        options.threshold = 0;
        options.schedule = GetParam().schedule;
        return {*model_, params, is_on ? std::optional(options) : std::nullopt};
    }
    /// Reads, with logits for the last step only.
    static void read_to(ForwardPass & p, llama_pos end) {
        read(p, 0, end - 1);
        (void)go_on(p, end - 1, end);
    }
    static constexpr llama_pos n_long = BEYOND_WINDOW + 300;
    llama_model * model_ = nullptr;
};

TEST_P(Window, ACutBeyondItIsRefusedAndChangesNothing) {
    ForwardPass p = pass(), undisturbed = pass();
    read_to(p, BEYOND_WINDOW);
    read_to(undisturbed, BEYOND_WINDOW);
    for (const llama_pos cut : {1, 15, 16, 100}) {
        ASSERT_FALSE(p.can_continue_at(0, cut));
        EXPECT_FALSE(p.memory_seq_rm(0, cut, -1)) << cut;
        EXPECT_EQ(p.memory_seq_pos_max(0), BEYOND_WINDOW - 1);
        EXPECT_EQ(p.check_invariant(), "");
    }
    expect_same_steps(go_on(p, BEYOND_WINDOW, BEYOND_WINDOW + 6), go_on(undisturbed, BEYOND_WINDOW, BEYOND_WINDOW + 6),
                      LONG_TOLERANCE);
}

TEST_P(Window, TheFurthestCutThatIsLeftGoesOnAsAFreshRun) {
    ForwardPass p = pass(), fresh = pass();
    read_to(p, BEYOND_WINDOW);
    llama_pos cut = BEYOND_WINDOW;
    while (p.can_continue_at(0, cut - 1)) --cut;
    // in a unified cache the twins' rows may have taken all cells from before the window
    EXPECT_LT(cut, GetParam().unified ? BEYOND_WINDOW + 1 : BEYOND_WINDOW - 100);
    ASSERT_TRUE(p.memory_seq_rm(0, cut, -1));
    EXPECT_EQ(p.memory_seq_pos_max(0), cut - 1);
    read_to(fresh, cut);
    expect_same_steps(go_on(p, cut, cut + 8), go_on(fresh, cut, cut + 8), LONG_TOLERANCE);
}

TEST_P(Window, ACutIsMadeJustWhereOneCanContinue) {
    ForwardPass p = pass();
    read(p, 0, BEYOND_WINDOW);
    const auto whole = p.state_seq_get(0);
    int n_refused = 0;
    for (llama_pos cut = BEYOND_WINDOW - 1; cut > 0; cut -= 19) {
        const bool can = p.can_continue_at(0, cut);
        EXPECT_EQ(p.memory_seq_rm(0, cut, -1), can) << cut;
        EXPECT_EQ(p.memory_seq_pos_max(0), can ? cut - 1 : BEYOND_WINDOW - 1) << cut;
        n_refused += can ? 0 : 1;
        if (can) p.state_seq_set(whole, 0);
    }
    EXPECT_GT(n_refused, 0);
    EXPECT_TRUE(p.memory_seq_rm(0, BEYOND_WINDOW, -1)) << "nothing to cut";
    EXPECT_TRUE(p.memory_seq_rm(0, 0, -1)) << "all of it";
    EXPECT_EQ(p.memory_seq_pos_max(0), -1);
}

TEST_P(Window, WithHarpOffACutIsLlamaCpps) {
    ForwardPass off = pass(/*is_on=*/false);
    read(off, 0, BEYOND_WINDOW);
    EXPECT_TRUE(off.memory_seq_rm(0, 100, -1));
    EXPECT_EQ(off.memory_seq_pos_max(0), -1) << "the window's cells, of which none is left";
}

/// In a unified cache a copy shares cells. They have to be freed when the window of both has moved on.
TEST_P(Window, SequencesThatShareItGoOnWhenItHasMovedOn) {
    for (const std::optional<Scope> scope :
         {std::optional<Scope>(), std::optional(Scope::all), std::optional(Scope::generated)}) {
        Options options;
        options.threshold = 0;
        options.schedule = GetParam().schedule;
        options.scope = scope.value_or(Scope::all);
        const auto pass_for = [&](bool is_unified) {
            llama_context_params params = windowed_context(2 * n_long, 2);
            params.kv_unified = is_unified;
            return ForwardPass(*model_, params, scope ? std::optional(options) : std::nullopt);
        };
        ForwardPass p = pass_for(GetParam().unified);
        ForwardPass streams = pass_for(false);
        for (ForwardPass * each : {&p, &streams}) {
            each->set_prompt_end(0, BEYOND_WINDOW);
            read_to(*each, BEYOND_WINDOW);
            each->memory_seq_cp(0, 1, -1, -1);
        }
        for (llama_pos place = BEYOND_WINDOW; place < n_long; ++place) {
            for (const llama_seq_id s : {0, 1}) {
                const auto steps = go_on(p, place, place + 1, s);
                const auto expected = go_on(streams, place, place + 1, s);
                if (place + 10 > n_long) expect_same_steps(steps, expected, LONG_TOLERANCE);
            }
        }
        EXPECT_EQ(p.check_invariant(), "");
    }
}

/// llama.cpp looks for the cells of all micro-batches of a batch before it computes the first. What the last of them takes
/// must still be there for the first.
TEST(Windows, OfTheFirstMicroBatchAreNotTakenByTheLast) {
    HARP_REQUIRE_MODEL(model, random_windowed());
    const auto pass_for = [&](bool is_unified) {
        llama_context_params params = windowed_context(2048, 3);
        params.kv_unified = is_unified;
        params.swa_full = !is_unified;
        return ForwardPass(model, params, std::nullopt);
    };
    ForwardPass p = pass_for(true), expected = pass_for(false);
    struct Piece {
        llama_seq_id sequence;
        llama_pos n_rows;
    };
    std::array<llama_pos, 3> ends = {};
    for (const auto & [s, n] : {Piece{2, 64}, {1, 200}, {0, 40}, {1, 200}, {0, 40}, {2, 100}, {1, 100}, {0, 200}}) {
        llama_pos & end = ends.at(static_cast<size_t>(s));
        for (ForwardPass * each : {&p, &expected}) decode(*each, text_of(end, end + n), end, s, /*all_outputs=*/true);
        end += n;
        for (int32_t i = 0; i < n; ++i) {
            ASSERT_LE(largest_difference(row(p, i), row(expected, i)), LONG_TOLERANCE)
                << "sequence " << s << " row " << i;
        }
    }
}

INSTANTIATE_TEST_SUITE_P(Layouts, Window,
                         ::testing::Values(WindowCase{"Lazy", Schedule::lazy, false},
                                           WindowCase{"Fused", Schedule::fused, false},
                                           WindowCase{"LazyUnified", Schedule::lazy, true}),
                         [](const auto & param_info) { return std::string(param_info.param.name); });

}  // namespace
}  // namespace harp::testing
