// The authors' runs of stories260K. Also checks that a replay fails as soon as one rule of the method is changed.
#include <algorithm>

#include "conformance/replays.h"

namespace harp::testing {
namespace {

using decoding::RecordedStep;
using decoding::Recording;
using decoding::ReplayResult;
using decoding::ReplaySettings;

class Stories260K : public ::testing::TestWithParam<const char *> {};

TEST_P(Stories260K, IsTheAuthorsRun) {
    HARP_REQUIRE_GOLDEN(GetParam());
    HARP_REQUIRE_MODEL(model, stories260k());
    (void)expect_conformance(model, GetParam());
}

INSTANTIATE_TEST_SUITE_P(Recordings, Stories260K,
                         ::testing::Values("stories260K.once.harp", "stories260K.lily.harp", "stories260K.dog.harp",
                                           "stories260K.once.harp-stop426", "stories260K.once.vanilla",
                                           "stories260K.lily.vanilla", "stories260K.dog.vanilla",
                                           "stories260K.once.vanilla-stop426"),
                         recording_name);

// ---------------------------------------------------------------------------------------------------------------------
// The replay can fail: each of these is a plausible mistake in an implementation of HARP.

struct Mistake {
    const char * name;
    void (*bend)(Recording &, ReplaySettings &);
    /// Whether the gate, which uses only vanilla logits, must still agree.
    bool same_gate = true;
};

/// Calls change(mask, bytes of one position) for each mask.
template <typename Change>
void for_each_mask(Recording & recording, Change change) {
    for (RecordedStep & step : recording.steps) {
        if (step.hesitated) change(step.mask, recording.n_embd / 8);
    }
}

void shift_by_one_position(Recording & recording, ReplaySettings &) {
    for_each_mask(recording,
                  [](auto & mask, std::ptrdiff_t width) { std::rotate(mask.begin(), mask.end() - width, mask.end()); });
}
void leave_first_position_clean(Recording & recording, ReplaySettings &) {
    for_each_mask(recording, [](auto & mask, std::ptrdiff_t width) {
        std::fill(mask.begin(), mask.begin() + width, uint8_t{0xff});
    });
}
void leave_last_position_clean(Recording & recording, ReplaySettings &) {
    for_each_mask(recording,
                  [](auto & mask, std::ptrdiff_t width) { std::fill(mask.end() - width, mask.end(), uint8_t{0xff}); });
}
void use_masks_of_next_hesitation(Recording & recording, ReplaySettings &) {
    RecordedStep * previous = nullptr;
    for (RecordedStep & step : recording.steps) {
        if (!step.hesitated) continue;
        if (previous != nullptr) std::copy_n(step.mask.begin(), previous->mask.size(), previous->mask.begin());
        previous = &step;
    }
}
void keep_old_masks(Recording & recording, ReplaySettings &) {
    const RecordedStep * previous = nullptr;
    for (RecordedStep & step : recording.steps) {
        if (!step.hesitated) continue;
        if (previous != nullptr) std::copy(previous->mask.begin(), previous->mask.end(), step.mask.begin());
        previous = &step;
    }
}
void flip_one_bit(Recording & recording, ReplaySettings &) {
    for_each_mask(recording, [](auto & mask, std::ptrdiff_t) { mask.back() ^= 1; });
}
void reverse_bits(Recording & recording, ReplaySettings &) {
    for_each_mask(recording, [](auto & mask, std::ptrdiff_t) {
        for (uint8_t & byte : mask) {
            uint8_t reversed = 0;
            for (int bit = 0; bit < 8; ++bit) reversed = static_cast<uint8_t>(reversed << 1 | (byte >> bit & 1));
            byte = reversed;
        }
    });
}
void rescale_kept_values(Recording & recording, ReplaySettings & settings) {
    const float scale = 1.0F / (1.0F - recording.options->strength);
    settings.after_mask = [scale](const RowToPerturb &, std::span<float> row) {
        for (float & value : row) value *= scale;
    };
}
void raise_threshold(Recording & recording, ReplaySettings &) {
    recording.options->threshold = 1.02;
}
void change_beta(Recording & recording, ReplaySettings &) {
    recording.options->beta = 0.51F;
}
void never_hesitate(Recording & recording, ReplaySettings &) {
    recording.options->threshold = 20.0;
}

class MistakeIsNoticed : public ::testing::TestWithParam<Mistake> {};

TEST_P(MistakeIsNoticed, InAReplay) {
    HARP_REQUIRE_GOLDEN("stories260K.lily.harp");  // it has a step with an entropy between 1.01 and 1.02
    HARP_REQUIRE_MODEL(model, stories260k());
    Recording recording = decoding::read_recording(golden("stories260K.lily.harp"));
    ReplaySettings settings;
    GetParam().bend(recording, settings);
    const ReplayResult result = decoding::replay(model, recording, settings);
    std::printf("%zu of %zu steps fail; %s\n", result.n_failures, result.n_steps, result.first_mismatch.c_str());
    EXPECT_FALSE(result.passed());
    EXPECT_GT(result.n_failures, 0U);
    EXPECT_FALSE(result.first_mismatch.empty());
    EXPECT_EQ(result.n_gate_mismatches == 0, GetParam().same_gate);
    // the recorded tokens are fed, so everything vanilla stays right
    EXPECT_LE(result.entropy_difference, 5e-4);
    EXPECT_LE(result.vanilla_difference, 1e-3);
}

INSTANTIATE_TEST_SUITE_P(OneByOne, MistakeIsNoticed,
                         ::testing::Values(Mistake{"MasksShiftedByOnePosition", shift_by_one_position},
                                           Mistake{"FirstPositionNotCovered", leave_first_position_clean},
                                           Mistake{"LastPositionNotCovered", leave_last_position_clean},
                                           Mistake{"MasksOfTheNextHesitation", use_masks_of_next_hesitation},
                                           Mistake{"MasksKept", keep_old_masks}, Mistake{"OneBitFlipped", flip_one_bit},
                                           Mistake{"BitOrderReversed", reverse_bits},
                                           Mistake{"KeptValuesRescaled", rescale_kept_values},
                                           Mistake{"Beta051", change_beta},
                                           Mistake{"Threshold102", raise_threshold, false},
                                           Mistake{"NeverHesitates", never_hesitate, false}),
                         [](const auto & mistake) { return std::string(mistake.param.name); });

TEST(Replay, StopsWithinARecording) {
    HARP_REQUIRE_GOLDEN("stories260K.once.harp");
    HARP_REQUIRE_MODEL(model, stories260k());
    const auto recording = decoding::read_recording(golden("stories260K.once.harp"));
    expect_stops_when_told([&](ggml_abort_callback stop) {
        ReplaySettings settings;
        settings.should_stop = stop;
        (void)decoding::replay(model, recording, settings);
    });
}

TEST(Replay, MasksOfAnotherDrawAreNoticed) {
    // noticed by the draw number that the pass gives, before any logits differ
    HARP_REQUIRE_GOLDEN("stories260K.lily.harp");
    HARP_REQUIRE_MODEL(model, stories260k());
    Recording recording = decoding::read_recording(golden("stories260K.lily.harp"));
    recording.options->redraw = 0;
    const ReplayResult result = decoding::replay(model, recording);
    EXPECT_EQ(result.n_failures, recording.n_hesitations() - 1);
    EXPECT_EQ(result.first_mismatch, "step 1: the masks of draw 0 were asked for, not those of draw 1");
}

TEST(Replay, AChangedTokenIsNoticed) {
    HARP_REQUIRE_GOLDEN("stories260K.once.vanilla-stop426");
    HARP_REQUIRE_MODEL(model, stories260k());
    Recording recording = decoding::read_recording(golden("stories260K.once.vanilla-stop426"));
    recording.steps.back().token = 7;
    const ReplayResult result = decoding::replay(model, recording);
    EXPECT_EQ(result.n_token_mismatches, 1U);
    EXPECT_EQ(result.n_failures, 1U);
    EXPECT_EQ(result.first_mismatch, "step 10: chose token 426, recorded 7");
}

TEST(Replay, AChangedEntropyIsNoticed) {
    HARP_REQUIRE_GOLDEN("stories260K.once.vanilla");
    HARP_REQUIRE_MODEL(model, stories260k());
    Recording recording = decoding::read_recording(golden("stories260K.once.vanilla"));
    recording.steps[5].entropy += 1e-3;
    const ReplayResult result = decoding::replay(model, recording);
    EXPECT_EQ(result.n_failures, 1U);
    EXPECT_NE(result.first_mismatch.find("step 5: entropy"), std::string::npos) << result.first_mismatch;
    ReplaySettings settings;
    settings.tolerances.entropy = 2e-3;
    EXPECT_TRUE(decoding::replay(model, recording, settings).passed());
}

TEST(Replay, AMissingLargeLogitIsNoticed) {
    HARP_REQUIRE_GOLDEN("stories260K.once.vanilla");
    HARP_REQUIRE_MODEL(model, stories260k());
    Recording recording = decoding::read_recording(golden("stories260K.once.vanilla"));
    auto & top = recording.steps[0].vanilla;  // the recorded values stay right, but one in between is missing
    top.erase(top.begin() + 3);
    const ReplayResult result = decoding::replay(model, recording);
    EXPECT_EQ(result.n_failures, 1U);
    EXPECT_NE(result.first_mismatch.find("step 0: vanilla logits differ by"), std::string::npos)
        << result.first_mismatch;
}

}  // namespace
}  // namespace harp::testing
