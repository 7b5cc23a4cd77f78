// Sequence ids that a pass does not have: each call names the id and the allowed range, and changes nothing.
#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <string>

#include "support/text.h"

namespace harp::testing {
namespace {

constexpr llama_pos N_TOKENS = 12;

/// The message of the harp::Error that `call` throws; fails the test if it throws none.
std::string refusal(const std::function<void()> & call) {
    try {
        call();
    } catch (const Error & error) {
        return error.what();
    }
    ADD_FAILURE() << "not refused";
    return {};
}

struct Call {
    std::string name;
    std::function<void(ForwardPass &, llama_seq_id)> make;
};

std::vector<Call> memory_calls() {
    return {
        {"rm", [](ForwardPass & p, llama_seq_id s) { (void)p.memory_seq_rm(s, 0, -1); }},
        {"rm of a part", [](ForwardPass & p, llama_seq_id s) { (void)p.memory_seq_rm(s, 2, 4); }},
        {"cp from", [](ForwardPass & p, llama_seq_id s) { p.memory_seq_cp(s, 1, -1, -1); }},
        {"cp to", [](ForwardPass & p, llama_seq_id s) { p.memory_seq_cp(0, s, -1, -1); }},
        {"cp onto itself", [](ForwardPass & p, llama_seq_id s) { p.memory_seq_cp(s, s, -1, -1); }},
        {"keep", [](ForwardPass & p, llama_seq_id s) { p.memory_seq_keep(s); }},
        {"add", [](ForwardPass & p, llama_seq_id s) { p.memory_seq_add(s, 0, -1, 1); }},
        {"div", [](ForwardPass & p, llama_seq_id s) { p.memory_seq_div(s, 0, -1, 2); }},
        {"pos_min", [](ForwardPass & p, llama_seq_id s) { (void)p.memory_seq_pos_min(s); }},
        {"pos_max", [](ForwardPass & p, llama_seq_id s) { (void)p.memory_seq_pos_max(s); }},
        {"can_continue_at", [](ForwardPass & p, llama_seq_id s) { (void)p.can_continue_at(s, 2); }},
        {"state_seq_get", [](ForwardPass & p, llama_seq_id s) { (void)p.state_seq_get(s); }},
        {"state_seq_set", [](ForwardPass & p, llama_seq_id s) { p.state_seq_set(p.state_seq_get(0), s); }},
    };
}

std::vector<Call> option_calls() {
    return {
        {"set_sequence_options", [](ForwardPass & p, llama_seq_id s) { p.set_sequence_options(s, Options{}); }},
        {"sequence_options", [](ForwardPass & p, llama_seq_id s) { (void)p.sequence_options(s); }},
        {"set_prompt_end", [](ForwardPass & p, llama_seq_id s) { p.set_prompt_end(s, 4); }},
        {"prepare_twins", [](ForwardPass & p, llama_seq_id s) { p.prepare_twins(s); }},
        {"keep_vanilla_logits", [](ForwardPass & p, llama_seq_id s) { p.keep_vanilla_logits(s, true); }},
    };
}

/// Whether a negative id has a meaning for this call of llama.cpp: all sequences.
bool means_all(const Call & call, llama_seq_id sequence) {
    return sequence < 0 && call.name.starts_with("rm");
}

class SequenceIds : public ::testing::TestWithParam<bool> {  // a unified cache
  protected:
    void SetUp() override {
        model_ = load(stories260k());
        if (model_ == nullptr) GTEST_SKIP() << "model not there: " << stories260k().string();
    }
    [[nodiscard]] ForwardPass pass(bool is_on = true) const {
        llama_context_params params = small_context(512, 2);
        params.kv_unified = GetParam();
        Options options;
        options.threshold = 0;
        // not automatic, which depends on times: two passes could decode in batches of different sizes
        options.schedule = Schedule::fused;
        return {*model_, params, is_on ? std::optional(options) : std::nullopt};
    }
    llama_model * model_ = nullptr;
};

TEST_P(SequenceIds, OutOfRangeAreRefusedByNameAndChangeNothing) {
    ForwardPass p = pass(), undisturbed = pass();
    for (ForwardPass * each : {&p, &undisturbed}) {
        for (const llama_seq_id s : {0, 1}) (void)go_on(*each, 0, N_TOKENS, s);
    }
    std::vector<Call> calls = memory_calls();
    for (Call & call : option_calls()) calls.push_back(std::move(call));
    for (const Call & call : calls) {
        for (const llama_seq_id sequence : {-2, -1, 2, 7, std::numeric_limits<llama_seq_id>::max()}) {
            if (means_all(call, sequence)) continue;
            SCOPED_TRACE(call.name + " of " + std::to_string(sequence));
            const std::string message = refusal([&] { call.make(p, sequence); });
            EXPECT_NE(message.find(std::to_string(sequence)), std::string::npos) << message;
            EXPECT_NE(message.find("0..1"), std::string::npos) << message;
            ASSERT_EQ(p.check_invariant(), "");
        }
    }
    for (const llama_seq_id s : {0, 1}) {
        EXPECT_EQ(p.memory_seq_pos_max(s), N_TOKENS - 1);
        EXPECT_EQ(p.sequence_options(s).threshold, 0);
        expect_same_steps(go_on(p, N_TOKENS, N_TOKENS + 4, s), go_on(undisturbed, N_TOKENS, N_TOKENS + 4, s), 0);
    }
}

TEST_P(SequenceIds, MinusOneIsAllOfThemWhereLlamaCppSaysSo) {
    ForwardPass p = pass();
    for (const llama_seq_id s : {0, 1}) (void)go_on(p, 0, N_TOKENS, s);
    EXPECT_TRUE(p.memory_seq_rm(-1, 4, -1));
    for (const llama_seq_id s : {0, 1}) EXPECT_EQ(p.memory_seq_pos_max(s), 3);
    EXPECT_TRUE(p.memory_seq_rm(-1, -1, -1));
    for (const llama_seq_id s : {0, 1}) EXPECT_EQ(p.memory_seq_pos_max(s), -1);
    EXPECT_EQ(p.check_invariant(), "");
}

/// In these cases llama.cpp ends the process, or reads beyond its tables.
TEST_P(SequenceIds, OutOfRangeAreRefusedWithHarpOff) {
    ForwardPass off = pass(/*is_on=*/false);
    read(off, 0, N_TOKENS);
    for (const Call & call : memory_calls()) {
        for (const llama_seq_id sequence : {-2, std::numeric_limits<llama_seq_id>::max()}) {
            if (means_all(call, sequence)) continue;
            SCOPED_TRACE(call.name + " of " + std::to_string(sequence));
            const std::string message = refusal([&] { call.make(off, sequence); });
            EXPECT_NE(message.find(std::to_string(sequence)), std::string::npos) << message;
        }
    }
    EXPECT_EQ(off.memory_seq_pos_max(0), N_TOKENS - 1);
}

INSTANTIATE_TEST_SUITE_P(Layouts, SequenceIds, ::testing::Bool(),
                         [](const auto & param_info) { return std::string(param_info.param ? "Unified" : "Streams"); });

}  // namespace
}  // namespace harp::testing
