// What tests of errors in the middle of work share.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "support/models.h"
#include "support/text.h"

namespace harp::testing {

/// The code of the harp::Error that `call` throws; fails the test if it throws none.
template <typename Call>
ErrorCode code_of(Call && call, std::string * message = nullptr) {
    try {
        call();
    } catch (const Error & error) {
        if (message != nullptr) *message = error.what();
        return error.code();
    }
    ADD_FAILURE() << "no error";
    return ErrorCode::io;
}

inline Options with_schedule(Schedule schedule, uint32_t redraw = 0, uint32_t reframings = 1) {
    Options options;
    options.schedule = schedule;
    options.redraw = redraw;
    options.reframings = reframings;
    options.seed = 7;
    return options;
}

/// Logits and record of each of the last batch's `n` output rows.
inline std::vector<Step> rows_of_last_batch(ForwardPass & pass, int32_t n) {
    std::vector<Step> rows;
    for (int32_t i = 0; i < n; ++i) {
        if (pass.logits(i) != nullptr) rows.push_back({row(pass, i), pass.step(i)});
    }
    return rows;
}

class Faults : public ::testing::Test {
  protected:
    void SetUp() override {
        model_ = load(stories260k());
        if (model_ == nullptr) GTEST_SKIP() << "model not there: " << stories260k().string();
        llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);  // errors are expected here
    }
    llama_model * model_ = nullptr;
};

}  // namespace harp::testing
