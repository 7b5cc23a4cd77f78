// Contexts of the C API.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "harp/harp.h"
#include "support/models.h"

namespace harp::testing {

struct ContextDeleter {
    void operator()(llama_context * context) const { harp_free(context); }
};
using Context = std::unique_ptr<llama_context, ContextDeleter>;

/// Decodes tokens as one batch of sequence 0, with logits for the last. @return what harp_decode() returns
inline int32_t decode(llama_context * context, std::vector<llama_token> tokens) {
    return harp_decode(context, llama_batch_get_one(tokens.data(), static_cast<int32_t>(tokens.size())));
}

inline std::vector<float> row(llama_context * context, int32_t i = -1) {
    const float * logits = harp_get_logits_ith(context, i);
    return logits != nullptr ? std::vector<float>(logits, logits + 512) : std::vector<float>();
}

/// Like greedy() of the C++ pass.
inline Continuation greedy_by_c(llama_context * context, int n) {
    Continuation run;
    std::vector<llama_token> next = once_upon_a_time;
    for (int i = 0; i < n; ++i) {
        EXPECT_EQ(decode(context, next), 0) << harp_last_error();
        run.logits.push_back(row(context));
        harp_step step{};
        if (harp_get_step(context, -1, &step)) run.records.push_back({step.entropy, step.hesitated});
        const auto best = std::max_element(run.logits.back().begin(), run.logits.back().end());
        next = {static_cast<llama_token>(best - run.logits.back().begin())};
        run.tokens.push_back(next[0]);
    }
    return run;
}

/// Contexts with the tiny model and the default parameters that defaults() gives.
class CContexts : public ::testing::Test {
  protected:
    void SetUp() override {
        model_ = load(stories260k());
        if (model_ == nullptr) GTEST_SKIP() << "model not there: " << stories260k().string();
        const harp_params params = defaults();
        ASSERT_TRUE(harp_set_default_params(&params)) << harp_last_error();
    }
    void TearDown() override {
        const harp_params params = harp_default_params();
        EXPECT_TRUE(harp_set_default_params(&params));
    }
    [[nodiscard]] virtual harp_params defaults() const = 0;
    [[nodiscard]] Context create(llama_context_params params = small_context(256)) const {
        Context context(harp_init_from_model(model_, params));
        EXPECT_NE(context, nullptr) << harp_last_error();
        return context;
    }
    llama_model * model_ = nullptr;
};

/// With seed 7.
class CApi : public CContexts {
  protected:
    [[nodiscard]] harp_params defaults() const override {
        harp_params params = harp_default_params();
        params.seed = 7;
        params.schedule = HARP_SCHEDULE_LAZY;
        return params;
    }
    /// The same in C++.
    [[nodiscard]] static Options options() {
        Options options;
        options.seed = 7;
        options.schedule = Schedule::lazy;
        return options;
    }
};

}  // namespace harp::testing
