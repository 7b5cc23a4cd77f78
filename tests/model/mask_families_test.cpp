// Mask families: any 32-bit number is one, and within each the reframings have different masks.
#include <gtest/gtest.h>

#include <limits>
#include <map>

#include "support/text.h"

namespace harp::testing {
namespace {

constexpr uint32_t FAMILIES[] = {
    5, (1U << 24) - 1, 1U << 24, (1U << 24) + 5, (3U << 24) + 5, 0x80000000U, std::numeric_limits<uint32_t>::max()};

class MaskFamilies : public ::testing::TestWithParam<Perturbation> {
  protected:
    void SetUp() override {
        model_ = load(stories260k());
        if (model_ == nullptr) GTEST_SKIP() << "model not there: " << stories260k().string();
    }
    /// Logits after a text whose last step hesitates.
    [[nodiscard]] std::vector<float> logits(uint32_t family, uint32_t reframings) const {
        Options options;
        options.threshold = 0;
        options.perturbation = GetParam();
        options.strength = GetParam() == Perturbation::uniform ? 5.0F : 0.3F;
        options.reframings = reframings;
        ForwardPass p(*model_, small_context(256), options);
        p.set_sequence_options(0, options, family);
        decode(p, text_of(0, 12), 0);
        return row(p);
    }
    llama_model * model_ = nullptr;
};

TEST_P(MaskFamilies, HaveAMaskForEachReframing) {
    for (const uint32_t family : FAMILIES) {
        const auto one = logits(family, 1);
        for (const uint32_t reframings : {2U, 3U}) {
            EXPECT_GT(largest_difference(one, logits(family, reframings)), 0.05)
                << "family " << family << ", " << reframings << " reframings";
        }
    }
}

TEST_P(MaskFamilies, DifferFromEachOther) {
    std::map<std::vector<float>, uint32_t> family_of;
    for (const uint32_t family : FAMILIES) {
        const auto [it, is_new] = family_of.try_emplace(logits(family, 2), family);
        EXPECT_TRUE(is_new) << "families " << it->second << " and " << family;
    }
}

INSTANTIATE_TEST_SUITE_P(Perturbations, MaskFamilies,
                         ::testing::Values(Perturbation::dropout, Perturbation::uniform, Perturbation::gaussian),
                         [](const auto & param_info) {
                             switch (param_info.param) {
                                 case Perturbation::dropout: return std::string("Dropout");
                                 case Perturbation::uniform: return std::string("Uniform");
                                 default: return std::string("Gaussian");
                             }
                         });

}  // namespace
}  // namespace harp::testing
