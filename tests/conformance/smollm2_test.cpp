// The authors' runs of SmolLM2-135M-Instruct, on its float32 weights.
#include "conformance/replays.h"

namespace harp::testing {
namespace {

class SmolLM2 : public ::testing::TestWithParam<const char *> {};

TEST_P(SmolLM2, IsTheAuthorsRun) {
    HARP_REQUIRE_GOLDEN(GetParam());
    HARP_REQUIRE_MODEL(model, smollm2_f32());
    (void)expect_conformance(model, GetParam());
}

INSTANTIATE_TEST_SUITE_P(Recordings, SmolLM2,
                         ::testing::Values("smollm2-135m.question.harp", "smollm2-135m.question.vanilla",
                                           "smollm2-135m.plain.harp", "smollm2-135m.plain.vanilla"),
                         recording_name);

TEST(SmolLM2Replay, QuantisedWeightsAreNoticed) {
    HARP_REQUIRE_GOLDEN("smollm2-135m.plain.vanilla");
    HARP_REQUIRE_MODEL(model, smollm2_q4());
    const auto result = decoding::replay(model, decoding::read_recording(golden("smollm2-135m.plain.vanilla")));
    EXPECT_FALSE(result.passed());
    EXPECT_GT(result.vanilla_difference, 0.01);
    EXPECT_NE(result.first_mismatch.find("step 0: vanilla logits differ by"), std::string::npos)
        << result.first_mismatch;
}

TEST(SmolLM2Replay, ARecordingOfAnotherModelIsRefused) {
    HARP_REQUIRE_GOLDEN("stories260K.once.harp");
    HARP_REQUIRE_MODEL(model, smollm2_q4());
    try {
        (void)decoding::replay(model, decoding::read_recording(golden("stories260K.once.harp")));
        FAIL() << "not refused";
    } catch (const Error & e) {
        EXPECT_EQ(e.code(), ErrorCode::invalid_input);
        EXPECT_NE(std::string(e.what()).find("n_vocab: recorded with 512, the model has 49152"), std::string::npos)
            << e.what();
    }
}

}  // namespace
}  // namespace harp::testing
