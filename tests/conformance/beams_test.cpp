// The authors' beam searches of stories260K. Also checks that a replay fails as soon as one rule of the search is
// changed.
#include "conformance/replays.h"
#include "decoding/beam_replay.h"

namespace harp::testing {
namespace {

class Stories260KBeams : public ::testing::TestWithParam<const char *> {};

TEST_P(Stories260KBeams, IsTheAuthorsSearch) {
    HARP_REQUIRE_GOLDEN(GetParam());
    HARP_REQUIRE_MODEL(model, stories260k());
    const auto recording = decoding::read_beam_recording(golden(GetParam()));
    const auto result = decoding::replay_beams(model, recording);
    EXPECT_TRUE(result.passed(1e-4)) << result.first_mismatch;
    EXPECT_EQ(result.n_steps, recording.steps.size());
    // in one recording a finished beam takes over another slot's score at step 10, which is not imitated
    const bool has_that = std::string(GetParam()) == "stories260K.dog.beam3-stop426";
    EXPECT_EQ(result.first_state_differing, has_that ? 10U : result.n_steps) << result.first_mismatch;
}

TEST_P(Stories260KBeams, WouldNoticeAnotherRule) {
    HARP_REQUIRE_GOLDEN(GetParam());
    HARP_REQUIRE_MODEL(model, stories260k());
    const auto recording = decoding::read_beam_recording(golden(GetParam()));
    for (int rule = 0; rule < 3; ++rule) {
        auto bent = recording;
        if (rule == 0) bent.options.variant = decoding::BeamVariant::standard;
        if (rule == 1) bent.options.alpha = 1.0;
        if (rule == 2) bent.options.norm = decoding::LengthNorm::length;
        const auto result = decoding::replay_beams(model, bent);
        EXPECT_TRUE(!result.passed(1e-4) || result.n_states_differing > 0) << rule;
    }
}

TEST(Beams, StopWithinARecording) {
    HARP_REQUIRE_GOLDEN("stories260K.once.beam3");
    HARP_REQUIRE_MODEL(model, stories260k());
    const auto recording = decoding::read_beam_recording(golden("stories260K.once.beam3"));
    expect_stops_when_told([&](ggml_abort_callback stop) { (void)decoding::replay_beams(model, recording, 1, stop); });
}

INSTANTIATE_TEST_SUITE_P(Recordings, Stories260KBeams,
                         ::testing::Values("stories260K.once.beam3", "stories260K.lily.beam3", "stories260K.dog.beam3",
                                           "stories260K.once.beam3-stop426", "stories260K.lily.beam3-stop426",
                                           "stories260K.dog.beam3-stop426"),
                         recording_name);

}  // namespace
}  // namespace harp::testing
