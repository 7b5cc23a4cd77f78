// Shared by the conformance tests: where recordings are, and what a faithful replay looks like.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <string>

#include "decoding/replay.h"
#include "harp/error.h"
#include "support/models.h"

namespace harp::testing {

inline std::filesystem::path golden(const std::string & name) {
    return shared_data() / "golden" / (name + ".json");
}

/// Name of a parametrised test: the recording's, in characters that GoogleTest allows.
inline std::string recording_name(const ::testing::TestParamInfo<const char *> & recording) {
    std::string name = recording.param;
    std::replace_if(
        name.begin(), name.end(), [](char c) { return c == '.' || c == '-'; }, '_');
    return name;
}

/// Replays a recording within the default tolerances; prints the largest differences.
inline decoding::ReplayResult expect_conformance(llama_model & model, const std::string & name) {
    const decoding::Recording recording = decoding::read_recording(golden(name));
    const decoding::ReplayResult result = decoding::replay(model, recording);
    std::printf(
        "%-32s %2zu steps, %2zu hesitations; largest differences: entropy %.1e, vanilla %.1e, reframed %.1e, mixed "
        "%.1e\n",
        name.c_str(), result.n_steps, result.n_hesitations, result.entropy_difference, result.vanilla_difference,
        result.reframed_difference, result.mixed_difference);
    EXPECT_TRUE(result.passed()) << result.first_mismatch;
    EXPECT_EQ(result.n_failures, 0U);
    EXPECT_EQ(result.n_gate_mismatches, 0U);
    EXPECT_EQ(result.n_token_mismatches, 0U);
    EXPECT_EQ(result.n_steps, recording.steps.size());
    EXPECT_EQ(result.n_hesitations, recording.n_hesitations());
    EXPECT_LE(result.entropy_difference, 5e-4);
    EXPECT_LE(result.vanilla_difference, 1e-3);
    EXPECT_LE(result.reframed_difference, 1e-3);
    EXPECT_LE(result.mixed_difference, 1e-3);
    EXPECT_GT(result.smallest_margin, 0.0);
    return result;
}

/// Calls `replay` with callbacks that say stop when they are asked for the first time, and later: it must throw `aborted`.
template <class Replay>
void expect_stops_when_told(const Replay & replay) {
    for (const int n_asked : {0, 1, 300}) {
        static int calls_left;
        calls_left = n_asked;
        try {
            replay([](void *) { return --calls_left < 0; });
            ADD_FAILURE() << "not stopped after " << n_asked;
        } catch (const Error & error) {
            EXPECT_EQ(error.code(), ErrorCode::aborted) << error.what();
        }
    }
}

}  // namespace harp::testing

/// Skips the test if a recording is missing.
#define HARP_REQUIRE_GOLDEN(name)                                \
    if (!std::filesystem::exists(harp::testing::golden(name))) { \
        GTEST_SKIP() << "recording not there: " << (name);       \
    }
